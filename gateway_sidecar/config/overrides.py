"""The file beside a socket, `<replica>.yaml`: what it adds to, or puts above, the engine's own answers.

Everyone who may place replica sockets may write it, so it is not trusted. It counts only for a socket of its own owner,
unless it is root's or the daemon's; the key file that it names must be its owner's as well; and where it is root's, a
key is sent only where no other user could place a socket. So a user's key never reaches another user's engine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from gateway_sidecar.config.access import AccessSection
from gateway_sidecar.config.build import build
from gateway_sidecar.config.section import Section, entry_schema
from gateway_sidecar.config.text_file import FileText, read_file
from gateway_sidecar.config.values import Endpoint, NotTextError, parse_peer_address, show
from gateway_sidecar.config.yamltree import Problem, Tree, read_tree
from gateway_sidecar.domain.model import BY_KV_ROLE, MOST_NAMES, Overrides, PeerAddress, WorkerType
from gateway_sidecar.domain.trust import ROOT, Owned, trouble_with_key, trouble_with_notes, way_in
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.files.follow import follow, ours

_MOST_BYTES = 64 * 1024  # A choice: labels are what is longest in it, and there are 64 at the most.
_MOST_KEY_BYTES = 8 * 1024  # A choice: what nginx and most servers take of one header line.
MOST_LABELS = 64  # A choice: labels go to the router, and from there into each list of workers.
MOST_MODEL = 256
"""A choice: names on Hugging Face have 96 characters at the most, and paths of files stand for names, too."""
MODEL_NAME = r"^[!-~]([ -~]*[!-~])?$"
LABEL_NAME = r"[A-Za-z0-9]([A-Za-z0-9_./-]{0,251}[A-Za-z0-9])?"
_OTHERS_MAY_READ = 0o044  # Group and all others: what must not be readable is a key.


ModelName = Annotated[str, Field(min_length=1, max_length=MOST_MODEL, pattern=MODEL_NAME)]


def parse_names(value: object) -> tuple[str, ...]:
    """One model's name, or a list of them."""
    cure = f"use a name, or a list of {MOST_NAMES} at most: ASCII that can be printed, {MOST_MODEL} characters each"
    names = value if isinstance(value, list) else [value]
    if not 0 < len(names) <= MOST_NAMES:
        raise ValueError(f"has {len(names)} names; {cure}")
    for name in names:
        if not isinstance(name, str):
            raise NotTextError(cure) if not isinstance(value, list) else ValueError(f"{show(name)} is no name; {cure}")
        if len(name) > MOST_MODEL or not re.fullmatch(MODEL_NAME, name):
            raise ValueError(f"{show(name)} is not a name that can be passed on; {cure}")
    return tuple(names)


_NAME = TypeAdapter(ModelName).json_schema()
_NAMES = {"type": "array", "items": _NAME, "minItems": 1, "maxItems": MOST_NAMES}
ModelNames = Annotated[tuple[str, ...], PlainValidator(parse_names), WithJsonSchema({"anyOf": [_NAME, _NAMES]})]


class OverridesFile(Section):
    """The keys of a `<replica>.yaml`."""

    labels: dict[str, str] = Field(
        default={}, description="Labels of the worker, 64 at most.", examples=[{"rack": "b7"}]
    )
    api_key_file: str | None = Field(
        default=None,
        description="A file with the engine's API key. A relative path begins in this file's directory. The key's file"
        " must belong to this file's owner.",
        examples=["r1.key"],
    )
    worker_type: Literal["regular", "prefill", "decode", "encode"] | None = Field(
        default=None, description="The worker's role, if the engine's own answer is wrong or missing."
    )
    kv_connector: ModelName | None = Field(
        default=None,
        description="vLLM's `kv_connector`, if the engine does not say it, as over HTTP outside its development mode.",
        examples=["NixlConnector"],
    )
    kv_role: Literal["kv_producer", "kv_consumer", "kv_both"] | None = Field(
        default=None,
        description="vLLM's `kv_role`, if the engine does not say it. A `kv_producer` is a prefill worker, a"
        " `kv_consumer` a decode worker. `kv_both` goes with any `worker_type`.",
    )
    kv_engine_id: ModelName | None = Field(
        default=None,
        description="vLLM's `engine_id` of the KV transfer, if the engine does not say it and its connector needs one."
        " Engines with NIXL tell each other.",
        examples=["engine-1"],
    )
    model: ModelNames | None = Field(
        default=None,
        description="The model's name, or a list of names, if the engine's own answer is wrong or missing: a server"
        " that lists no model, names that are not to be used, or vLLM over gRPC, which says one name only. Requests"
        " must use these names, and the engine receives them.",
        examples=["qwen3-32b", ["qwen3-32b", "qwen3"]],
    )
    health: AccessSection = Field(
        default=AccessSection(),
        description="How this engine is reached and asked, where that differs from the service's `health`.",
        examples=[{"prefix": "/v3"}],
    )
    priority: int | None = Field(
        default=None, ge=0, le=2**32 - 1, description="The router prefers workers of higher priority."
    )
    cost: float | None = Field(
        default=None, gt=0, le=1_000_000, description="The router prefers workers of lower cost."
    )

    advertise: Annotated[Endpoint, PlainValidator(parse_peer_address)] | None = Field(
        default=None,
        description="The replica's address, IP and port, as its peers see it. The bridge listens on that address here,"
        " and the router knows the worker by it. A router that pairs prefill with decode names this address to the"
        " decode engine.",
        examples=["10.0.0.5:8000"],
    )
    direct: bool = Field(
        default=False,
        description="Whether this machine reaches `advertise` itself. Then the worker is registered under that"
        " address, and nothing is bridged.",
    )

    dynamo: Annotated[str, Field(pattern=r"^/[^\x00-\x1f]*$", max_length=1024)] | None = Field(
        default=None,
        description="The directory in which a worker of NVIDIA Dynamo writes its entries (its DYN_FILE_KV). Then the"
        " socket leads to the request plane of that worker, and no other worker may write there. It needs `router:"
        " {type: dynamo}`.",
        examples=["/run/replicas/chat/r1.dynamo"],
    )

    bootstrap_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="The port at which a decode engine finds this prefill engine, if the engine does not say it, as"
        " vLLM with Mooncake. By default the router's own.",
    )

    @model_validator(mode="after")
    def _direct(self) -> Self:
        if self.direct and (self.health.prefix is not None or self.health.tls):
            raise ValueError(
                "has `direct: true`, and without a bridge nothing adds TLS or a prefix for the engine;"
                " leave out either `direct`, or `health.tls` and `health.prefix`"
            )
        return self

    @field_validator("kv_role")
    @classmethod
    def _kv_role(cls, value: str | None, others: ValidationInfo) -> str | None:
        implied, worker_type = implied_by(value), others.data.get("worker_type")
        if implied is not None and worker_type not in (None, implied.value):
            raise ValueError(
                f"{show(value)} is a {implied.value} worker, but worker_type says {worker_type}; leave out the one that"
                " is wrong"
            )
        return value

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        if len(value) > MOST_LABELS:
            raise ValueError(f"{len(value)} labels are too many; use {MOST_LABELS} at most")
        for key, text in value.items():
            if not re.fullmatch(LABEL_NAME, key):
                raise ValueError(f"{show(key)} is not a label's name; use letters, digits and _ . / - inside")
            if not text.isprintable():
                raise ValueError(f"{show(text)} is not a label's value; use characters that can be printed")
        return value


def implied_by(kv_role: str | None) -> WorkerType | None:
    """The only role that a vLLM of this `kv_role` can have; None if it may have any."""
    return None if kv_role in (None, "kv_both") else BY_KV_ROLE[kv_role]


def replica_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a `<replica>.yaml`."""
    schema = entry_schema(OverridesFile, "#/$defs/{model}")
    schema["properties"]["labels"] |= {"maxProperties": MOST_LABELS, "propertyNames": {"pattern": f"^{LABEL_NAME}$"}}
    schema["properties"]["advertise"]["anyOf"] = [{"type": "string"}, {"type": "null"}]
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **schema, "title": "gateway-sidecar replica", "type": ["object", "null"]}


def load_overrides(path: Path, socket_owner: int, warn: Callable[[str], object] = lambda _line: None) -> Overrides:
    """Read `<replica>.yaml`; an empty file says nothing, and that is allowed.

    socket_owner: the user whose socket lies beside it.
    `warn` is given a line for each thing that is unwise but usable. Raises `ConfigError` with one line for
    each mistake; a missing file is one, so ask first whether it is there.
    """
    file, notes, shared = _read_beside(path, socket_owner)
    tree = read_tree(file.content)
    if tree.data is None and not tree.problems:
        return Overrides()
    if not tree.problems and not isinstance(tree.data, dict):
        problem = Problem(tree.line(()), "", "is not a mapping at the top; write lines such as `priority: 10`")
        raise ConfigError([problem.render(str(path))])
    further: list[Problem] = []
    key = read_key(path, file, tree, further, warn)
    if key is not None and (trouble := trouble_with_key(notes, socket_owner, shared)):
        further.append(Problem(tree.line(("api_key_file",)), "api_key_file", trouble))
    if isinstance(tree.data, dict) and tree.data.get("direct") is True and tree.data.get("advertise") is None:
        text = "true needs the address at which this machine reaches the replica; add advertise: HOST:PORT"
        further.append(Problem(tree.line(("direct",)), "direct", text))
    said = build(OverridesFile, tree, str(path), further)
    return with_key(said, key)


def _read_beside(path: Path, socket_owner: int) -> tuple[FileText, Owned, str | None]:
    """The file, whose it is, and how somebody else could place a socket beside it. Raises `ConfigError`."""
    try:
        where = follow(str(path.parent))
        place = follow(path.name, where)
    except OSError as error:
        raise ConfigError([Problem(None, "", f"cannot be read: {error.strerror}").render(str(path))]) from None
    file = read_file(path, _MOST_BYTES, followed=place)
    notes = Owned(str(path), file.owner, file.group, file.mode)
    trouble = trouble_with_notes(notes, place.links, socket_owner, ours())
    if trouble is not None:
        raise ConfigError([trouble])
    return file, notes, way_in(where.owned, where.above, ours(), (ROOT,))


def with_key(said: OverridesFile, key: str | None) -> Overrides:
    """What was said, and the key that it names."""
    worker_type = WorkerType(said.worker_type) if said.worker_type else implied_by(said.kv_role)
    peer = PeerAddress(said.advertise.host, said.advertise.port, said.direct) if said.advertise else None
    names = said.model or (None,)
    return Overrides(
        *(said.labels, key, worker_type, said.priority, said.cost, peer, said.bootstrap_port, names[0]),
        health=replace(said.health.access(), dynamo=said.dynamo),
        names=tuple(name for name in dict.fromkeys(names[1:]) if name is not None and name != names[0]),
        kv_connector=said.kv_connector,
        kv_role=said.kv_role,
        kv_engine_id=said.kv_engine_id,
    )


def read_key(
    path: Path, beside: FileText, tree: Tree, problems: list[Problem], warn: Callable[[str], object]
) -> str | None:
    """The engine's key from the file that `tree` names; what is wrong with it goes into `problems`."""
    named = tree.data.get("api_key_file") if isinstance(tree.data, dict) else None
    if not isinstance(named, str):
        return None
    where = "api_key_file"
    line = tree.line((where,))
    # The file's own directory, not that of a link to it: a link must not redirect what another user wrote.
    key_path = Path(os.path.realpath(path)).parent / named
    try:
        file = read_file(key_path, _MOST_KEY_BYTES)
    except ConfigError as error:
        text = error.problems[0].removeprefix(f"{key_path}: ").replace(", or name another with --config", "")
        problems.append(Problem(line, where, f"{show(str(key_path))} {text}"))
        return None
    shown = show(str(key_path))
    if file.owner != beside.owner and beside.owner not in (0, os.geteuid()):
        text = f"{shown} belongs to user {file.owner}, this file to {beside.owner}; give both one owner"
        problems.append(Problem(line, where, text))
        return None
    key = _key_text(file.content)
    if key is None:
        problems.append(Problem(line, where, f"{shown} is not one line of printable ASCII; put only the key in it"))
    elif file.mode & _OTHERS_MAY_READ:
        text = f"{shown} may be read by others (mode {file.mode:04o}); use chmod 0600"
        warn(Problem(line, where, text).render(str(path)))
    return key


def _key_text(content: bytes) -> str | None:
    """The key as an HTTP header can carry it; None where there is none."""
    stripped = content.strip()
    return stripped.decode("ascii") if re.fullmatch(rb"[\x21-\x7e]+", stripped) else None
