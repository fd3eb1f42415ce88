"""One replica as the admin API is told of it: held to the rules of an inventory's entry, by the same model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway_sidecar.config.inventory import Described, InventoryEntry, describe, described_schema
from gateway_sidecar.config.text_file import FileText
from gateway_sidecar.config.tunnels import SshDefaults
from gateway_sidecar.config.yamltree import Problem, Tree
from gateway_sidecar.errors import ConfigError

ToldEntry = Mapping[str, object]
"""The object that was put, as JSON has it. It names files with secrets and holds none."""

_OURS = Path("/")


def read_told(entry: object, service: str, replica: str, defaults: SshDefaults) -> Described:
    """What the entry says. Raises ConfigError with a line for each mistake, without a file's name. Blocks."""
    if not isinstance(entry, dict):
        raise ConfigError(['is not an object; send {"socket": "/path"} or {"ssh": {...}}'])
    problems: list[Problem] = []
    key_file = entry.get("api_key_file")
    if isinstance(key_file, str) and not key_file.startswith("/"):
        text = f"{key_file!r} is relative, and this entry lies in no directory; name the file by its absolute path"
        raise ConfigError([f"api_key_file: {text}"])
    # Whoever may tell us of replicas may stop us too: what the daemon may read is theirs to name.
    file = FileText(b"", os.geteuid(), 0o600)
    described = describe(_OURS, file, f"{service}/{replica}", Tree(data=entry), defaults, problems, lambda _: None)
    if described is None or problems:
        texts = [f"{problem.where}: {problem.text}" if problem.where else problem.text for problem in problems]
        raise ConfigError([text.replace(" to YAML, not", ", not") for text in dict.fromkeys(texts)])
    return described


def told_schema(ref_template: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """JSON Schema of an entry, and of the parts that it refers to."""
    schema, parts = described_schema(ref_template)
    schema["properties"]["api_key_file"] |= {
        "anyOf": [{"type": "string", "pattern": "^/"}, {"type": "null"}],
        "description": "File with the engine's API key, on the daemon's machine. The key itself is never sent here.",
        "examples": ["/etc/gateway-sidecar/keys/r1"],
    }
    return schema | {"title": "Entry"}, parts


def same_entry(one: ToldEntry, other: ToldEntry) -> bool:
    """Whether both, each usable in itself, say the same, however they say it."""
    return InventoryEntry.model_validate(one) == InventoryEntry.model_validate(other)
