"""One replica as people describe it, in an inventory or to the API: where it is, and what is noted of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from gateway_sidecar.config.explain import explain
from gateway_sidecar.config.overrides import LABEL_NAME, MOST_LABELS, OverridesFile, read_key, with_key
from gateway_sidecar.config.section import entry_schema
from gateway_sidecar.config.text_file import FileText
from gateway_sidecar.config.tunnels import SocketValue, SshDefaults, SshReplica, parse_id, tunnel_to
from gateway_sidecar.config.yamltree import Problem, Tree
from gateway_sidecar.domain.model import Overrides, ReplicaId
from gateway_sidecar.domain.trust import ROOT
from gateway_sidecar.domain.tunnels import Tunnel

RawEntry = Mapping[str, object]
"""An entry as the API was given it. It names files with secrets and holds none."""


class InventoryEntry(OverridesFile):
    """One replica of an inventory: `socket` or `ssh`, and the notes that a `<replica>.yaml` may carry."""

    socket: SocketValue | None = Field(
        default=None,
        description="The path of the replica's Unix socket on this machine.",
        examples=["/run/replicas/r1.sock"],
    )
    ssh: SshReplica | None = Field(
        default=None, description="The replica's place behind an SSH server. The daemon opens a tunnel to it."
    )


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


@dataclass(frozen=True, slots=True)
class Described:
    """One replica as a source describes it: a socket of somebody's, or a tunnel of ours.

    named_by: who wrote it.
    entry: what was read, where that is an entry of the API.
    """

    place: Path | Tunnel
    overrides: Overrides
    named_by: int = ROOT
    entry: RawEntry | None = None


@dataclass(slots=True)
class ApiRecord:
    """The replicas of one service that the API was given.

    leaving: those that were deleted and are being drained; they are forgotten when that is done.
    lost: those that were put once, and whose entries cannot be read any more; they stay as they are.
    unread: why what an earlier daemon was given could not be read yet.
    news: set when others than this daemon's own API have changed the record; None where nobody else can.
    """

    entries: dict[ReplicaId, RawEntry] = field(default_factory=dict)
    leaving: dict[ReplicaId, RawEntry] = field(default_factory=dict)
    lost: set[ReplicaId] = field(default_factory=set)
    unread: str | None = None
    news: asyncio.Event | None = None

    def forget(self, replica: ReplicaId, entry: RawEntry | None) -> bool:
        """Forgets a replica that has left; False if it was put again meanwhile, at whichever gateway."""
        if replica in self.entries:
            return False
        if self.leaving.get(replica) is entry:
            self.leaving.pop(replica, None)
        return True


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
        raise ValueError(
            "has `direct: true` without the address at which this machine reaches the replica; add advertise: HOST:PORT"
        )
    if said.ssh is not None and said.socket is None:
        return tunnel_to(owner, said.ssh, defaults)
    if said.socket is not None and said.ssh is None:
        return Path(said.socket)
    raise ValueError("needs one place; give it either `socket` or `ssh`")
