"""Why a replica is where it is: the steps from its first sight to its requests, and to its end. Pure.

Each step says how it stands, by which evidence, how old that is, and what would change it. The steps are those of the
path of a replica (docs/architecture.md): seen, socket, probe, bridge, router, and drain once it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gateway_sidecar.domain.lifecycle import Against, Evidence, EvidencePolicy
from gateway_sidecar.domain.model import (
    Dead,
    EngineFacts,
    Foreign,
    Loading,
    ProbeResult,
    Ready,
    Registered,
    ReplicaState,
    Unknown,
    WorkerStatus,
)
from gateway_sidecar.domain.planning import Why
from gateway_sidecar.domain.printable import age, counted

_NONE, _USUAL = Evidence(), EvidencePolicy()


class StepState(StrEnum):
    """How a step stands."""

    OK = "ok"
    WAITING = "waiting"
    FAILED = "failed"
    NOT_REACHED = "not reached"


@dataclass(frozen=True, slots=True)
class Step:
    """One step. says: how it stands, in words. change: what would change that; empty where nothing has to."""

    name: str
    state: StepState
    says: str
    evidence: tuple[str, ...] = ()
    change: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A whole chain. why: the first step that holds the replica up, or that all is well."""

    state: str
    state_age_s: float
    why: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """blind: why its source cannot be read now. gone: why it is no more what its replica is; None while it is."""

    source: str
    age_s: float
    superseded: bool = False
    gone: Why | None = None
    blind: str | None = None


@dataclass(frozen=True, slots=True)
class Socket:
    """tunnel: what its tunnel leads to, where it has one; tunnel_problem: why that is down.

    problem: why the socket cannot be opened. notes_problem: why what is written beside it does not count.
    """

    path: str
    tunnel: str | None = None
    tunnel_problem: str | None = None
    problem: str | None = None
    notes_read: bool = True
    notes_problem: str | None = None


@dataclass(frozen=True, slots=True)
class Probing:
    """What is known of the questions to its engine. `ejected_age_s`, `asked_age_s`, `answered_age_s`: how long ago it
    was taken out, was asked, and answered a request; None where that was not. `next_s`: when it is asked again.
    """

    result: ProbeResult | None
    facts: EngineFacts | None
    evidence: Evidence = _NONE
    evidence_age_s: float = 0.0
    policy: EvidencePolicy = _USUAL
    ejected: Against | None = None
    ejected_age_s: float = 0.0
    asked_age_s: float | None = None
    answered_age_s: float | None = None
    failed_requests: int = 0
    next_s: float | None = None
    asking: bool = False
    drained: bool = False


@dataclass(frozen=True, slots=True)
class Bridging:
    """at: HOST:PORT of its bridge. peer: the address that it is advertised under, if it is."""

    at: str | None
    linked: bool
    leads_to: str | None = None
    problem: str | None = None
    peer: str | None = None
    peer_problem: str | None = None
    key_problem: str | None = None


@dataclass(frozen=True, slots=True)
class Worker:
    """One of its workers as the router knows it. `held_s`: how long the next try has to wait."""

    url: str
    name: str | None
    registered: Registered | None
    busy: bool = False
    held_s: float = 0.0
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Routing:
    """`state` and `reason` are the router's; `listed` says whether its list of workers is known."""

    kind: str
    up: bool
    state: str
    reason: str = ""
    listed: bool = False
    list_age_s: float | None = None
    workers: tuple[Worker, ...] = ()


@dataclass(frozen=True, slots=True)
class Leaving:
    """How far its leaving is. `out_age_s`: since when no router lists it; `gives_up_s`: when it is no more waited for.

    in_flight: connections to it; None while they were not counted.
    """

    done: bool
    in_flight: int | None = None
    out_age_s: float | None = None
    gives_up_s: float | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """All that is known of one occupant. `leaving` is set once it is gone, or a drain was asked for.

    reason: what `status` says of it; of one that serves, what its clients miss.
    """

    state: ReplicaState
    state_age_s: float
    seen: Seen
    socket: Socket
    probe: Probing
    bridge: Bridging
    router: Routing
    leaving: Leaving | None = None
    reason: str = ""
    command: str = "SERVICE REPLICA"


def explain(record: Record) -> Explanation:
    """The chain of one occupant."""
    steps = [_seen(record), _socket(record), _probe(record), _bridge(record), _router(record)]
    if record.leaving is not None:
        steps.append(_drain(record, record.leaving))
    return Explanation(record.state.value, record.state_age_s, _why(record, steps), tuple(steps))


def explain_missing(state: str, step: Step) -> Explanation:
    """The chain of a replica without an occupant: all that is known of it is why there is none."""
    names = ("seen", "socket", "probe", "bridge", "router")
    before = [Step(it, StepState.OK, "") for it in names[: names.index(step.name)]]
    after = [Step(it, StepState.NOT_REACHED, "") for it in names[names.index(step.name) + 1 :]]
    return Explanation(state, 0.0, f"{step.name}: {step.says}", (*before, step, *after))


def _why(record: Record, steps: list[Step]) -> str:
    if record.leaving is not None:
        return f"drain: {steps[-1].says}"
    for wanted in (StepState.FAILED, StepState.WAITING):
        for step in steps:
            if step.state is wanted:
                return f"{step.name}: {step.says}"
    return f"it serves; but {record.reason}" if record.reason else "it serves: every step is well"


def _seen(record: Record) -> Step:
    it = record.seen
    evidence = (f"its source cannot be read now: {it.blind}; it stays as it was",) if it.blind else ()
    first = f"by {it.source}, {age(it.age_s)} ago"
    if it.gone is not None:
        return Step("seen", StepState.FAILED, it.gone.value, (f"first {first}", *evidence), _AFTER[it.gone])
    if it.superseded:
        says = "its replica has moved: it serves until the new engine does"
        return Step("seen", StepState.WAITING, says, (f"first {first}", *evidence))
    return Step("seen", StepState.OK, first, evidence)


_AFTER = dict.fromkeys(Why, "nothing: another stay of the replica has begun") | {
    Why.SOCKET_GONE: "a socket at the same path begins a new stay of the replica",
}


def _socket(record: Record) -> Step:
    it = record.socket
    evidence = (f"an SSH tunnel to {it.tunnel}",) if it.tunnel else ()
    if record.seen.gone is not None:
        return Step("socket", StepState.NOT_REACHED, it.path, evidence)
    if it.tunnel_problem:
        change = "the tunnel comes up: the daemon tries again by itself; see the SSH server, its keys and the network"
        return Step("socket", StepState.FAILED, f"tunnel: {it.tunnel_problem}", (*evidence, it.path), change)
    if it.problem:
        change = "give the daemon's user the right to open it (`gateway-sidecar check` says which); it is tried again"
        return Step("socket", StepState.FAILED, it.problem, (*evidence, it.path), change)
    if it.notes_problem:
        change = "correct the file; it is read again at once"
        return Step("socket", StepState.FAILED, f"its notes do not count: {it.notes_problem}", (it.path,), change)
    if not it.notes_read:
        return Step("socket", StepState.WAITING, "its notes have not been read yet", (it.path,))
    return Step("socket", StepState.OK, it.path, evidence)


def _probe(record: Record) -> Step:
    it = record.probe
    if record.seen.gone is not None:
        return Step("probe", StepState.NOT_REACHED, "not asked any more", _facts(it))
    if it.drained:
        return Step("probe", StepState.NOT_REACHED, "not asked while it is drained", _facts(it))
    if it.result is None:
        if it.facts is None and _socket(record).state is not StepState.OK:
            return Step("probe", StepState.NOT_REACHED, "asked once its socket is well")
        says = "being asked now" if it.asking else "not asked yet"
        return Step("probe", StepState.WAITING, says, _facts(it), "its answer")
    if isinstance(it.result, Ready):
        return Step("probe", StepState.OK, "the engine says that it is well", (*_facts(it), *_asked(it)))
    is_loading = isinstance(it.result, Loading) or (isinstance(it.result, Unknown) and it.result.begun)
    state = StepState.WAITING if is_loading and it.ejected is None else StepState.FAILED
    evidence = (*_asked(it), *_against(it), *_facts(it))
    return Step("probe", state, it.result.reason, evidence, _cure(record, it.result))


_NOW_S = 0.05  # Less is shown as 0.0 s.


def _facts(it: Probing) -> tuple[str, ...]:
    if it.facts is None:
        return ()
    version = f" {it.facts.version}" if it.facts.version else ""
    role = f"{it.facts.worker_type.value}, " if it.facts.worker_type != "regular" else ""
    serves = f"model {it.facts.model}" if it.facts.model else "it names no model"
    return (f"{it.facts.runtime_type}{version} over {it.facts.connection_mode.value}, {role}{serves}",)


def _asked(it: Probing) -> tuple[str, ...]:
    asked = "being asked now" if it.asking else f"asked {ago(it.asked_age_s)}" if it.asked_age_s is not None else ""
    again = "" if it.next_s is None or it.asking else f"asked again in {short(it.next_s)}" if it.next_s >= _NOW_S else (
        "asked again now"
    )  # fmt: skip
    words = [", ".join(filter(None, (asked, again)))]
    if it.answered_age_s is not None:
        words.append(f"it answered a request {ago(it.answered_age_s)}")
    if it.failed_requests:
        words.append(f"{counted(it.failed_requests, 'request')} failed since then")
    return tuple(filter(None, words))


def _against(it: Probing) -> tuple[str, ...]:
    """How much evidence there is, and how much it takes."""
    if it.ejected is not None:
        return (f"taken out of rotation {ago(it.ejected_age_s)}, on strong evidence ({it.ejected.value})",)
    kind, policy = it.evidence.kind, it.policy
    if kind is None or it.facts is None:
        return ()
    refused = kind in (Against.REFUSED, Against.FOREIGN)
    most = policy.refused_failures if refused else policy.failures
    over_s = policy.refused_over_s if refused else 0.0 if kind is Against.NOT_READY else (most - 1) * policy.timeout_s
    over = f" over {short(over_s)}" if over_s else ""
    so_far = f"{counted(it.evidence.failures, 'failure')} in a row over {short(it.evidence_age_s)} ({kind.value})"
    return (f"{so_far}; {most}{over} take it out of rotation",)


def _cure(record: Record, result: Loading | Foreign | Unknown | Dead) -> str:
    where = record.socket.tunnel or record.socket.path
    match result:
        case Dead():
            return "restart the engine; it gets requests again once it works, or after a minute without any"
        case Foreign():
            return f"an inference engine at {where}; if it is one, `health` in its notes says how to ask it"
        case Unknown(ours=True):
            return "the daemon's own trouble: see `gateway-sidecar status` and the log"
        case Unknown(begun=True):
            return "the engine's answer about itself; raise `probe.timeout_s` if it is only slow"
        case Unknown():
            return "a usable answer: see the engine's log; raise the time-out if it is only slow"
        case Loading(asleep=True):
            return "wake the engine"
        case Loading(refused=True):
            return f"an engine that listens at {where}: see whether it runs, and its log"
        case _ if record.state is ReplicaState.DEAD:
            return "restart the engine: it served, and says that it is not well; its log says why"
        case _:
            return "the engine's own word that it is well: see its log; it is asked again by itself"


def _bridge(record: Record) -> Step:
    it, gone = record.bridge, record.seen.gone is not None
    places = tuple(filter(None, (f"advertised as {it.peer}" if it.peer else "",)))
    if it.problem and not gone:
        return Step("bridge", StepState.FAILED, it.problem, places, "a port that becomes free, or what the text says")
    if it.at is None:
        if record.probe.facts is None:
            return Step("bridge", StepState.NOT_REACHED, "only an engine that was identified is bridged")
        is_well = isinstance(record.probe.result, Ready) and not gone
        return Step("bridge", StepState.WAITING if is_well else StepState.NOT_REACHED, "it has no port", places)
    if it.linked and not gone:
        for problem in (it.key_problem, it.peer_problem):
            if problem:
                return Step("bridge", StepState.FAILED, problem, places, "the daemon tries again by itself")
        return Step("bridge", StepState.OK, f"{it.at} leads to {it.leads_to or record.socket.path}", places)
    if record.leaving is not None:
        return Step("bridge", StepState.OK, f"{it.at} is closed to new connections", places)
    if it.key_problem:
        return Step("bridge", StepState.FAILED, it.key_problem, places, "the daemon tries again by itself")
    return Step("bridge", StepState.WAITING, f"{it.at} leads nowhere yet", places)


def _router(record: Record) -> Step:
    it = record.router
    if not it.up:
        says = f"{it.kind} is {it.state}" + (f": {it.reason}" if it.reason else "")
        change = "its configuration is corrected, then `gateway-sidecar reload`" if it.state == "refused" else (
            "the router comes up: the daemon starts it by itself; its log is in `state_dir/log`"
        )  # fmt: skip
        state = StepState.WAITING if it.state in ("starting", "stopped") else StepState.FAILED
        return Step("router", state, says, (), change)
    if not it.listed:
        return Step("router", StepState.WAITING, f"{it.kind} has not listed its workers yet", (), "its list")
    listed = (f"{it.kind} listed its workers {ago(it.list_age_s)}",) if it.list_age_s is not None else ()
    there = [worker for worker in it.workers if worker.registered is not None]
    if record.leaving is not None:
        if there:
            return Step("router", StepState.WAITING, "it is being taken out", listed, "the router's list without it")
        return Step("router", StepState.OK, "no router lists it any more", listed)
    if not there and record.probe.ejected is not None:
        return Step("router", StepState.NOT_REACHED, "out of rotation until its engine is well")
    if not it.workers or (not there and not isinstance(record.probe.result, Ready)):
        return Step("router", StepState.NOT_REACHED, "it is not registered")
    return _workers(record, listed)


def _workers(record: Record, listed: tuple[str, ...]) -> Step:
    """Whether the router has all of its names ready; else the first that it has not."""
    workers = record.router.workers
    first = next(
        (it for it in workers if it.registered is None or it.registered.status is not WorkerStatus.READY), None
    )
    ready = tuple(
        f"{it.url}: {it.registered.model_id or 'no model'}, id {it.registered.worker_id}"
        for it in workers[:_FEW]
        if it.registered is not None and it.registered.status is WorkerStatus.READY
    )
    if first is None:
        more = (record.reason,) if record.reason and record.state is ReplicaState.SERVING else ()
        return Step("router", StepState.OK, "the router lists it as ready", (*ready, *more, *listed))
    name = f" ({first.name})" if first.name else ""
    evidence = (f"{first.url}{name}", *ready, *listed)
    if first.registered is None:
        if first.trouble:
            again = f"it is tried again in {short(first.held_s)}" if first.held_s else "it is tried again now"
            return Step("router", StepState.FAILED, first.trouble, evidence, again)
        says = "the router is being told of it" if first.busy else "not registered yet"
        return Step("router", StepState.WAITING, says, evidence, "the router's answer")
    status = first.registered.status
    note = f": {first.registered.note}" if first.registered.note else ""
    if status is WorkerStatus.PENDING:
        says = f"accepted by the router, and not ready there yet{note}"
        return Step("router", StepState.WAITING, says, evidence, "the router's own check of the worker")
    says = first.trouble or f"the router says {status.value}{note}"
    return Step("router", StepState.FAILED, says, evidence, "the router's word: its log is in `state_dir/log`")


_FEW = 4  # A choice: an engine with a dozen names is to leave room for the other steps.


def _drain(record: Record, it: Leaving) -> Step:
    resume = f"`gateway-sidecar resume {record.command}` takes it back" if record.seen.gone is None else ""
    if it.done:
        return Step("drain", StepState.OK, "nothing is in flight: safe to stop", (), resume)
    if it.out_age_s is None:
        return Step("drain", StepState.WAITING, "a router lists it still", (), "the router's list without it")
    evidence = (f"out of the router for {short(it.out_age_s)}",)
    if it.in_flight is None:
        return Step("drain", StepState.WAITING, "its connections have not been counted yet", evidence, "the count")
    if not it.in_flight:
        return Step("drain", StepState.WAITING, "nothing is in flight; its bridge is about to close", evidence)
    gives_up = f"; or in {short(it.gives_up_s)} it is no more waited for" if it.gives_up_s is not None else ""
    says = f"{counted(it.in_flight, 'connection')} in flight"
    change = f"their end{gives_up}" + (f"; {resume}" if resume else "")
    return Step("drain", StepState.WAITING, says, evidence, change)


def ago(seconds: float | None) -> str:
    """`0.3 s ago`, `4m12s ago`."""
    return "at a time that is not known" if seconds is None else f"{short(seconds)} ago"


def short(seconds: float | None) -> str:
    """A duration, to a tenth where it is short."""
    if seconds is None:
        return "a while"
    return f"{max(seconds, 0.0):.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 60 else age(seconds)
