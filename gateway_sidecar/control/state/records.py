"""The records for the next daemon. They are hints, never the truth: observation wins.

Two files, each atomic, versioned and fsynced: `leases.json` in the state directory (which port belonged to whom) and
`processes.json` in the runtime directory (which nginx and routers run, and the routers' keys; mode 0600).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from gateway_sidecar.control.replicas.tenure import SavedTenure
from gateway_sidecar.control.routers.process import SavedRouter
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.domain.leaving import Leave, LeavePhase
from gateway_sidecar.domain.model import EngineFacts, PeerAddress, ReplicaId, SocketIdentity
from gateway_sidecar.domain.tunnels import Tunnel
from gateway_sidecar.errors import StateError
from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import replace_file
from gateway_sidecar.kinds import ENGINES
from gateway_sidecar.sources.listing import NotesFile, Sighting
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.process import Identity, boot_id

_Port = Annotated[int, Field(ge=1, le=65535)]


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of `leases.json`."""

    replica: str
    socket: Path
    occupant: SocketIdentity
    source: str
    described: bool
    tunnel: Tunnel | None
    notes: NotesFile | None
    generation: int
    port: _Port | None
    facts: EngineFacts | None
    drain: bool
    leaving: bool
    peer: tuple[str, _Port, bool] | None = None
    target: Path | None = None
    asked: str | None = None


@dataclass(frozen=True, slots=True)
class _Leave:
    """A gateway that is leaving, in seconds of the machine's clock; `at`: when this was written."""

    boot_id: str
    at: FiniteFloat
    phase: LeavePhase
    began: FiniteFloat
    phase_began: FiniteFloat
    until: FiniteFloat
    cut: int | None
    was_quiet: bool


_T = TypeVar("_T")
_LEAVE = TypeAdapter(_Leave)
_TENURE = TypeAdapter(_Row)
_IDENTITY = TypeAdapter(Identity)
_ROUTER = TypeAdapter(SavedRouter)
_PORTS = TypeAdapter(tuple[_Port, _Port])
_BRIDGE_KEY = TypeAdapter(Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{32}$")] | None)
_RESTING = TypeAdapter(list[tuple[int, FiniteFloat, str]])
_TOLD = TypeAdapter(dict[str, tuple[_Port, str]])
_FORGOTTEN_S = 600.0
"""systemd starts a daemon again within two minutes. Who comes later was started by somebody: for another purpose."""
_VERSION = 1  # Of the records' form; one of another form is not read.
_MOST_BYTES = 64 * 1024 * 1024  # A bound for what somebody else may have put there.


def write_record(path: Path, content: Mapping[str, object]) -> None:
    """Replaces the file whole, or leaves it as it was. Raises StateError. Blocks: call in a thread."""
    try:
        make_directory(path.parent)
        replace_file(path, as_json({"version": _VERSION, **content}), synced=True)
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror}") from error


def as_json(value: object) -> bytes:
    """Plain data, frozen values and paths as JSON. A path that is not UTF-8 is not the same when it is read."""
    return orjson.dumps(value, default=_text_of)


def _text_of(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "replace")


def read_record(path: Path) -> dict[str, Any]:
    """What was written; empty if there is none. Raises StateError for a file that cannot be trusted."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from error
    try:
        content = orjson.loads(raw)
    except ValueError as error:
        raise StateError(f"{path} is not whole: {error}") from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != _VERSION:
        raise StateError(f"{path} has version {version!r}; this daemon reads {_VERSION}")
    for name in ("routers", "departing", "services", "models"):
        by_service = content.get(name, {})
        if not isinstance(by_service, dict) or not all(isinstance(rows, list) for rows in by_service.values()):
            raise StateError(f"{path}: {name} is not a mapping of lists")
    return dict(content)


def _read(form: TypeAdapter[_T], row: object, what: str) -> _T:
    """A part of a record in its form, nothing guessed. Raises StateError."""
    try:
        return form.validate_json(as_json(row), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "all of it"
        raise StateError(f"{what} of an unknown form: {where}: {first['msg']}") from error


def tenure_to_json(saved: SavedTenure) -> dict[str, object]:
    """One tenure as `write_record` writes it, which knows values and paths. Of a thousand 3 ms."""
    it = saved.sighting
    return {
        "replica": it.replica,
        "socket": it.socket,
        "target": it.target,
        "occupant": it.occupant,
        "source": it.source,
        "described": it.described,
        "tunnel": it.tunnel,
        "notes": it.notes,
        "generation": saved.generation,
        "port": saved.port,
        "facts": saved.facts,
        "drain": saved.drain,
        "asked": saved.asked,
        "leaving": saved.leaving,
        "peer": (saved.peer.host, saved.peer.port, saved.peer.direct) if saved.peer else None,
    }


def tenure_from_json(row: Mapping[str, Any]) -> SavedTenure:
    """The tenure that was written down. Raises StateError for one of another form."""
    told = _read(_TENURE, row, "a lease")
    sighting = Sighting(
        *(ReplicaId(told.replica), told.socket, told.occupant, told.source, told.notes, told.tunnel, told.described),
        target=told.target,
    )
    peer = PeerAddress(*told.peer) if told.peer else None
    # An engine whose package is not installed any more is asked again what it is.
    facts = told.facts if told.facts is not None and told.facts.runtime_type in ENGINES.by_name else None
    return SavedTenure(sighting, told.generation, told.port, facts, told.drain, told.leaving, peer, told.asked)


def resting_to_json(leases: PortLeases) -> list[tuple[int, float, str]]:
    """The ports that must rest, until when (monotonic seconds of this boot), and which service had them."""
    rests_until = sorted(leases.rests_until.items())
    return [(port, awake.to_monotonic(until), leases.holder_of(port)) for port, until in rests_until]


def resting_from_json(leases: Mapping[str, Any]) -> list[tuple[int, float, str]]:
    """The rows that were written down, with awake seconds. Raises StateError for rows of another form."""
    rows: list[tuple[int, float, str]] = _read(_RESTING, leases.get("resting", []), "resting ports")
    return [(port, awake.from_monotonic(until), service) for port, until, service in rows]


def told_from_json(leases: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """The ports of the fleet that stays of this boot were told, by SERVICE/REPLICA; empty after a reboot.

    After that every stay is new here, while the engine of another machine may be the same. Raises StateError for rows
    of another form.
    """
    return _read(_TOLD, leases.get("told", {}), "ports that were told") if leases.get("boot_id") == boot_id() else {}


def identity_to_json(identity: Identity) -> dict[str, object]:
    """One process's identity as plain data."""
    return asdict(identity)


def identity_from_json(row: Mapping[str, Any]) -> Identity:
    """The identity that was written down. Raises StateError for one of another form."""
    return _read(_IDENTITY, row, "a process")


def router_to_json(saved: SavedRouter) -> dict[str, object]:
    """One router as plain data, its key included."""
    return {
        "slot": saved.slot,
        "identity": None if saved.identity is None else identity_to_json(saved.identity),
        "ports": asdict(saved.ports),
        "key": saved.key,
        "kind": saved.kind,
        "digest": saved.digest,
    }


def router_from_json(row: Mapping[str, Any]) -> SavedRouter:
    """The router that was written down. Raises StateError for one of another form."""
    saved = _read(_ROUTER, row, "a router")
    _read(_PORTS, (saved.ports.api, saved.ports.metrics), "a router's ports")
    return saved


def bridge_key_from_json(processes: Mapping[str, Any]) -> str | None:
    """What routers show the bridges; None if nothing was written down. Raises StateError for another form."""
    return _read(_BRIDGE_KEY, processes.get("bridge_key"), "the bridges' key")


def departing_to_json(departing: Iterable[tuple[str, Identity]]) -> dict[str, list[dict[str, object]]]:
    """Routers that are to end, by service, as plain data."""
    rows: dict[str, list[dict[str, object]]] = {}
    for service, identity in departing:
        rows.setdefault(service, []).append(identity_to_json(identity))
    return rows


def departing_from_json(processes: Mapping[str, Any], *, still_there: Container[str]) -> dict[Identity, str]:
    """Routers that are to end, and whose they were: those of services that are not there any more are among them."""
    found: dict[Identity, str] = {}
    # A row of another form, or without identity, tells nothing of a process: that one is found by its output.
    for service, rows in processes.get("routers", {}).items():
        for row in rows if service not in still_there else ():
            with contextlib.suppress(StateError):
                identity = router_from_json(row).identity
                if identity is not None:
                    found[identity] = service
    for service, rows in processes.get("departing", {}).items():
        for row in rows:
            with contextlib.suppress(StateError):
                found[identity_from_json(row)] = service
    return found


def leave_to_json(leave: Leave) -> dict[str, object]:
    """How the gateway leaves, for the next daemon of this boot."""
    return asdict(
        _Leave(
            boot_id(),
            awake.monotonic(),
            leave.phase,
            awake.to_monotonic(leave.began),
            awake.to_monotonic(leave.phase_began),
            awake.to_monotonic(leave.until),
            leave.cut,
            leave.was_quiet,
        )
    )


def leave_from_json(processes: Mapping[str, Any]) -> Leave | None:
    """How the last daemon's gateway was leaving; None if it stayed, or the machine was started again since.

    Raises StateError for what cannot be read, or was written long ago.
    """
    row = processes.get("leave")
    if row is None:
        return None
    saved = _read(_LEAVE, row, "a gateway that leaves")
    if saved.boot_id != boot_id():
        return None
    age_s = awake.monotonic() - saved.at
    if age_s > _FORGOTTEN_S:
        raise StateError(f"the gateway was leaving when the last daemon ended, {age_s:.0f} s ago; now it stays")
    return Leave(
        saved.phase,
        awake.from_monotonic(saved.began),
        awake.from_monotonic(saved.phase_began),
        awake.from_monotonic(saved.until),
        saved.cut,
        saved.was_quiet,
    )
