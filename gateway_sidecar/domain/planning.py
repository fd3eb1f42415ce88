"""What is observed and what is wanted -> the next actions. Pure: no clock, no I/O.

The invariants, which hold after every interruption and for everything unknown:

1. Unknown removes nothing. A worker is deregistered only on positive evidence: its socket is gone, a drain was asked
for, the evidence against it is strong, it is another engine now, or no replica stands behind it.
2. Grow before shrink. Bridge -> register -> Ready; deregister -> nothing in flight -> release the port.
3. Only an identified engine is bridged; anything else has no port, and nothing leads to it.
4. One operation at a time per worker; the plan never repeats what is in progress.
5. At rest the plan is empty.

Every plan is made anew from what is observed, so an interrupted plan is simply made again.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from gateway_sidecar.domain.model import (
    ENTRIES_LABEL,
    MOST_NAMES,
    EngineFacts,
    Overrides,
    Registered,
    WorkerSpec,
    WorkerStatus,
    WorkerType,
)


class Why(StrEnum):
    """Why a worker leaves the router."""

    SOCKET_GONE = "socket gone"
    DRAIN = "drain requested"
    UNREACHABLE = "strong evidence that the engine does not answer"
    REPLACED = "another engine behind the socket"
    CHANGED = "registered with other properties than the engine has"
    FAILED = "the router gave it up"
    OVERDUE = "the router did not make it ready"
    MOVED = "it is advertised under another address"
    ADDRESS = "this machine needs the address that it is advertised under"
    FOREIGN = "no replica stands behind it"


STAYS_BRIDGED = frozenset({None, Why.UNREACHABLE, Why.ADDRESS})
"""An occupant that leaves for one of these reasons, or for none, may be back in a moment: its bridge stays as it is."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """Lease a port for the occupant and lead it to the socket."""


@dataclass(frozen=True, slots=True)
class Unbridge:
    """Nothing new may reach the occupant: take the port's link away. Open connections go on."""


@dataclass(frozen=True, slots=True)
class Release:
    """No connection is left: forget the occupant, its port may be used again."""


@dataclass(frozen=True, slots=True)
class Register:
    """Tell the router of the worker."""

    spec: WorkerSpec


@dataclass(frozen=True, slots=True)
class Deregister:
    """Take the worker out of the router."""

    worker_id: str
    url: str
    why: Why


_NOTHING_ADDED = Overrides()

OccupantAction = Bridge | Unbridge | Release
WorkerAction = Register | Deregister


@dataclass(frozen=True, slots=True)
class OccupantView:
    """All that is known of one occupant of one replica.

    `facts` is set once the engine was identified. `wanted` says that it was ready when last asked and nothing
    strong speaks against it: only then is a bridge made. `leaving` gives the reason why it must go, if it must.
    `in_flight` counts established connections on its bridge; None where that is not known. `reachable` is False while
    the address that it is advertised under does not lead to it yet. `name` is the one of its names that the worker at
    `url` answers to; None is the first.
    """

    facts: EngineFacts | None
    wanted: bool
    leaving: Why | None
    gone: bool
    port: int | None
    linked: bool
    url: str | None
    overrides: Overrides = _NOTHING_ADDED
    in_flight: int | None = None
    reachable: bool = True
    name: str | None = None
    replica: str = ""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One occupant's worker as one router knows it.

    `listed` is False while the router's list is not known. A registration that the router accepted counts as a
    pending worker, listed or not. `registered_as` is what we told the router of it, if it was us; `busy` an
    operation that has not been answered yet; `held` a back-off, `held_leaving` one after a removal that failed;
    `overdue` says that it is there and not ready for longer than this router may take.
    """

    listed: bool
    worker: Registered | None = None
    registered_as: WorkerSpec | None = None
    busy: bool = False
    held: bool = False
    held_leaving: bool = False
    overdue: bool = False


NAMED = "/="
"""What a URL has before the name of its worker."""
_RESERVED = re.compile(rb"[^A-Za-z0-9._-]")


def base_of(url: str) -> str:
    """Where the bridge is that a worker's URL leads to."""
    return url.partition(NAMED)[0]


def _quoted(name: str) -> str:
    """A name as one segment of a path."""
    return _RESERVED.sub(lambda found: b"%%%02X" % ord(found[0]), name.encode()).decode()


def worker_urls(base: str, facts: EngineFacts, overrides: Overrides, *, bridged: bool) -> dict[str, str | None]:
    """The workers of an engine that is bridged at `base`: URL -> name; None is the engine's only name, if it has one.

    A router may send a worker requests for one name only, so each further name, of the model or of an adapter, is a
    worker of its own: the same bridge by another path, which the bridge takes away. Without a bridge there is but one.
    """
    if overrides.model is None and not facts.names:
        return {base: None}
    first = overrides.model or facts.model
    more = overrides.names if overrides.model else facts.names[:MOST_NAMES]
    urls: dict[str, str | None] = {} if first is None else {base: None}
    if bridged:
        return urls | {f"{base}{NAMED}{_quoted(name)}": name for name in more}
    return urls or {base: more[0]}


_KV_ROLES = {WorkerType.PREFILL: "kv_producer", WorkerType.DECODE: "kv_consumer"}


def worker_spec(
    facts: EngineFacts, url: str, overrides: Overrides, name: str | None = None, replica: str = ""
) -> WorkerSpec:
    """The registration of an engine that is bridged at `url`, under this name or the first of its names.

    Where a KV connector is known and its role is not, the worker's type tells the role.
    """
    worker_type = overrides.worker_type or facts.worker_type
    connector = overrides.kv_connector or facts.kv_connector
    dynamo = overrides.health.dynamo
    return WorkerSpec(
        url=url,
        runtime_type=facts.runtime_type,
        connection_mode=facts.connection_mode,
        worker_type=worker_type,
        model_id=name or overrides.model or facts.model,
        bootstrap_port=overrides.bootstrap_port or facts.bootstrap_port,
        kv_connector=connector,
        kv_role=overrides.kv_role or facts.kv_role or (_KV_ROLES.get(worker_type) if connector else None),
        kv_engine_id=overrides.kv_engine_id or facts.kv_engine_id,
        labels={**overrides.labels, **({ENTRIES_LABEL: dynamo} if dynamo else {})},
        api_key=overrides.api_key,
        bridged=overrides.peer is None or not overrides.peer.direct,
        priority=overrides.priority,
        cost=overrides.cost,
        named=name or overrides.model,
        replica=replica if overrides.peer is None else "",
    )


def describe(action: OccupantAction | WorkerAction) -> str:
    """One action in words, for people."""
    match action:
        case Register(spec):
            return f"register {spec.url} as {spec.worker_type.value} {spec.runtime_type}"
        case Deregister(_, url, why):
            return f"deregister {url}: {why.value}"
        case Bridge():
            return "lease a port and bridge it to the socket"
        case Unbridge():
            return "close the bridge to new connections"
        case Release():
            return "release the port"


def plan_occupant(
    view: OccupantView, workers: Iterable[WorkerView], *, given_up: bool = False
) -> OccupantAction | None:
    """The next step for the occupant's bridge. `workers` holds one view for each router of the service.

    given_up: it is gone, and what is connected to it has been waited for long enough.
    """
    if not view.gone and view.leaving in STAYS_BRIDGED:
        return Bridge() if view.wanted and not view.linked else None
    if view.linked and view.gone:
        return Unbridge()
    out = all(w.listed and w.worker is None and not w.busy for w in workers)
    if not out or (view.port is not None and view.in_flight != 0 and not given_up):
        return None
    if view.gone:
        return Release()
    return Unbridge() if view.linked else None


def plan_worker(view: OccupantView, seen: WorkerView) -> WorkerAction | None:
    """The next step for the occupant's worker on one router.

    | router says          | wanted             | leaving    | neither (not known yet) |
    | -------------------- | ------------------ | ---------- | ----------------------- |
    | list not known       | wait               | wait       | wait                    |
    | not there            | register           | -          | -                       |
    | ready, not ready     | keep, or replace   | deregister | keep                    |
    | not ready, overdue   | deregister         | deregister | keep                    |
    | failed               | deregister         | deregister | keep                    |
    | pending              | wait               | deregister | keep                    |
    | draining             | wait               | wait       | wait                    |

    A worker that was taken out while it is wanted is not there, and so registered again.
    """
    if not seen.listed or seen.busy:
        return None
    worker = seen.worker
    if worker is None:
        if view.wanted and view.linked and view.reachable and not seen.held:
            assert view.facts is not None
            assert view.url is not None
            return Register(worker_spec(view.facts, view.url, view.overrides, view.name, view.replica))
        return None
    if worker.status is WorkerStatus.DRAINING:
        return None
    if view.leaving is not None:
        # A back-off that began before it had to leave does not count.
        return None if seen.held_leaving else Deregister(worker.worker_id, worker.url, view.leaving)
    if not view.wanted or seen.held:
        return None
    if worker.status is WorkerStatus.FAILED:
        return Deregister(worker.worker_id, worker.url, Why.FAILED)
    if seen.overdue:
        return Deregister(worker.worker_id, worker.url, Why.OVERDUE)
    assert view.facts is not None
    expected = worker_spec(view.facts, worker.url, view.overrides, view.name, view.replica)
    # What we told the router counts, not what it made of it: a router that names things in its own way must not
    # be corrected for ever.
    changed = seen.registered_as != expected if seen.registered_as else differs(worker, expected)
    return Deregister(worker.worker_id, worker.url, Why.CHANGED) if changed else None


def differs(worker: Registered, expected: WorkerSpec) -> bool:
    """Whether the router's properties of a worker are wrong for the engine, no matter who registered it."""
    if worker.status is WorkerStatus.PENDING:
        return False  # Not all of its properties are listed yet.
    return (
        worker.worker_type is not expected.worker_type
        or worker.connection_mode is not expected.connection_mode
        or worker.runtime_type not in (None, expected.runtime_type)
        or (expected.bootstrap_port is not None and worker.bootstrap_port != expected.bootstrap_port)
        or (expected.kv_role is not None and _kv(worker) != _kv(expected))
        or expected.named not in (None, worker.model_id)
    )


def _kv(worker: Registered | WorkerSpec) -> tuple[str | None, str | None]:
    """What makes a router ask a pair to transfer KV."""
    return worker.kv_connector, worker.kv_role


class Missing(StrEnum):
    """What a service lacks to answer a request."""

    ROUTER = "router"
    REPLICA = "replica"
    PREFILL = "prefill"
    DECODE = "decode"


def missing_role(serving: Iterable[WorkerType]) -> Missing | None:
    """What is missing beside the workers that serve; None if requests can be answered.

    Prefill and decode workers answer only together; an encode worker answers nothing by itself.
    """
    seen = set()
    for role in serving:
        seen.add(role)
        if role is WorkerType.REGULAR or seen >= {WorkerType.PREFILL, WorkerType.DECODE}:
            return None
    if WorkerType.PREFILL in seen:
        return Missing.DECODE
    return Missing.PREFILL if WorkerType.DECODE in seen else Missing.REPLICA


def plan_orphans(listed: Mapping[str, Registered], known_urls: Container[str], *, complete: bool) -> list[Deregister]:
    """Workers that no replica stands behind, or stands behind no more under this name.

    `complete` says that the sources have been read whole at least once; before that a worker may be somebody's.
    """
    if not complete:
        return []
    return [
        Deregister(worker.worker_id, url, Why.FOREIGN)
        for url, worker in listed.items()
        if url not in known_urls and worker.status is not WorkerStatus.DRAINING
    ]
