"""One inventory file: which replicas there are, where, and what is noted of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from gateway_sidecar.config.explain import explain
from gateway_sidecar.config.overrides import LABEL_NAME, MOST_LABELS, OverridesFile, read_key, with_key
from gateway_sidecar.config.part import entry_schema
from gateway_sidecar.config.text_file import FileText, read_file
from gateway_sidecar.config.tunnels import MOST_ID_BYTES, SocketValue, SshDefaults, SshReplica, parse_id, tunnel_to
from gateway_sidecar.config.yamltree import Location, Problem, Tree, read_tree
from gateway_sidecar.domain.model import Overrides, ReplicaId
from gateway_sidecar.domain.trust import ROOT
from gateway_sidecar.domain.tunnels import Tunnel
from gateway_sidecar.errors import ConfigError

_MOST_BYTES = 8 * 1024 * 1024


class InventoryEntry(OverridesFile):
    """One replica of an inventory: `socket` or `ssh`, and the notes that a `<replica>.yaml` may carry."""

    socket: SocketValue | None = Field(
        default=None, description="Path of its Unix socket on this machine.", examples=["/run/replicas/r1.sock"]
    )
    ssh: SshReplica | None = Field(default=None, description="Where it is, for the daemon to open a tunnel.")


def described_schema(ref_template: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """JSON Schema of one entry, and of the parts that it refers to."""
    schema = entry_schema(InventoryEntry, ref_template)
    parts = schema.pop("$defs", {})
    fields = schema["properties"]
    fields["labels"] |= {"maxProperties": MOST_LABELS, "propertyNames": {"pattern": f"^{LABEL_NAME}$"}}
    fields["advertise"]["anyOf"] = [{"type": "string"}, {"type": "null"}]
    about = "One replica: `socket` or `ssh`, and what is noted of it."
    return schema | {"description": about, "oneOf": [_with("socket"), _with("ssh")]}, parts


def _with(place: str) -> dict[str, Any]:
    return {"required": [place], "properties": {place: {"not": {"type": "null"}}}}


def inventory_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of an inventory file. What a service's `ssh_defaults` add is beyond it."""
    entry, parts = described_schema("#/$defs/{model}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "gateway-sidecar inventory",
        "description": "Replicas by their ids. A file without any says {}.",
        "type": "object",
        "propertyNames": {"pattern": r"^(?!\.{1,2}$)[^/]+$", "maxLength": MOST_ID_BYTES},
        "additionalProperties": {"$ref": "#/$defs/InventoryEntry"},
        "$defs": {**parts, "InventoryEntry": entry},
    }


@dataclass(frozen=True, slots=True)
class Described:
    """One replica as a source describes it: a socket of somebody's, or a tunnel of ours. `named_by` is who wrote it."""

    place: Path | Tunnel
    overrides: Overrides
    named_by: int = ROOT


def read_inventory(
    path: Path, service: str, defaults: SshDefaults, warn: Callable[[str], object] = lambda _line: None
) -> Mapping[ReplicaId, Described]:
    """Reads one file. Raises ConfigError with a line for each mistake. Blocks.

    An empty one is a mistake: so does a file look that is being written, or that a full disk has cut.
    """
    file = read_file(path, _MOST_BYTES)
    tree = _read_tree(path, file.content)
    problems = list(tree.problems)
    if not isinstance(tree.data, dict) and not problems:
        what = "is empty; write {} to have no replicas" if tree.data is None else "is not a mapping at the top"
        cure = "" if tree.data is None else "; write `id: {socket: /path}` lines"
        problems.append(Problem(tree.line(()), "", what + cure))
    found: dict[ReplicaId, Described] = {}
    if isinstance(tree.data, dict):
        for replica, entry in _entries(tree):
            further: list[Problem] = []
            described = describe(path, file, f"{service}/{replica}", entry, defaults, further, warn)
            where = re.sub(r"\n.*", "", replica)
            problems += [Problem(p.line, f"{where}.{p.where}" if p.where else where, p.text) for p in further]
            if described is not None:
                found[ReplicaId(replica)] = described
    if problems:
        unique = dict.fromkeys(sorted(problems, key=lambda problem: problem.line or 0))
        raise ConfigError([problem.render(str(path)) for problem in unique])
    return found


def _read_tree(path: Path, content: bytes) -> Tree:
    """JSON is YAML, but for tabs between its tokens; in its texts it has none. Broken, it is told as JSON."""
    if path.suffix != ".json":
        return read_tree(content)
    tree = read_tree(content.replace(b"\t", b" "))
    if tree.problems and tree.data is None:
        try:
            json.loads(content)
        except json.JSONDecodeError as error:
            text = f"is not JSON: {error.msg} (column {error.colno}); it has no comments, and is written whole"
            tree.problems = [Problem(error.lineno, "", text)]
        except (UnicodeDecodeError, RecursionError):
            pass  # Told already.
    return tree


def _entries(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """Each entry as a tree of its own."""
    assert isinstance(tree.data, dict)
    trees = {replica: Tree(data=entry) for replica, entry in tree.data.items()}

    def below(location: Location) -> Tree | None:
        return trees.get(str(location[0])) if location else None

    for location, place in tree.places.items():
        if (part := below(location)) is not None:
            part.places[location[1:]] = place
    for location, line in tree.key_lines.items():
        if (part := below(location)) is not None:
            part.key_lines[location[1:]] = line
    for location in tree.unread:
        if (part := below(location)) is not None:
            part.unread.add(location[1:])
    yield from trees.items()


def describe(
    path: Path,
    file: FileText,
    owner: str,
    tree: Tree,
    defaults: SshDefaults,
    problems: list[Problem],
    warn: Callable[[str], object],
) -> Described | None:
    """What one entry says, if it can be used; else `problems` tell. `owner` is SERVICE/REPLICA. Blocks."""
    line = tree.line(())
    key = read_key(path, file, tree, problems, warn)
    try:
        parse_id(owner.partition("/")[2])
        said = InventoryEntry.model_validate({} if tree.data is None else tree.data)
        place = _place(said, owner, defaults)
    except ValidationError as error:
        found = [detail for detail in error.errors() if tuple(detail["loc"]) not in tree.unread]
        problems += [explain(detail, InventoryEntry, tree) for detail in found]
        return None
    except ValueError as error:
        problems.append(Problem(line, "", str(error)))
        return None
    return Described(place, with_key(said, key), file.owner)


def _place(said: InventoryEntry, owner: str, defaults: SshDefaults) -> Path | Tunnel:
    if said.direct and said.advertise is None:
        raise ValueError("has `direct: true`, but not where this machine reaches the replica; add advertise: HOST:PORT")
    if said.ssh is not None and said.socket is None:
        return tunnel_to(owner, said.ssh, defaults)
    if said.socket is not None and said.ssh is None:
        return Path(said.socket)
    raise ValueError("needs one place; give it either `socket` or `ssh`")
