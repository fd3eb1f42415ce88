"""When it is an engine's turn, what it is asked then, in full or for its health alone, and what a tunnel makes of that:
what was asked while it was down says nothing of its far end.
"""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from gateway_sidecar.control.replicas.asking import ProbeTurns, TunnelEnds
from gateway_sidecar.control.replicas.tenure import BridgeHosts, Presence, Probed, Tenure
from gateway_sidecar.domain.lifecycle import Against
from gateway_sidecar.domain.model import (
    Access,
    ConnectionMode,
    EngineFacts,
    Loading,
    ProbeResult,
    Ready,
    ReplicaId,
    SocketIdentity,
    Unknown,
)
from gateway_sidecar.domain.tunnels import PathState, PathStatus, SshRoute, SshServer, Tunnel
from gateway_sidecar.sources.listing import Sighting
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.engines import FACTS, PlayedProbe, prober_of, tenure_of, well_engine
from tests.unit.fake_time import in_fake_time


class SilentEngines(PlayedProbe):
    """They take connections and say nothing; whom of them was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def identify(self, address: str, *, timeout_s: float, access: Access) -> ProbeResult:
        del timeout_s, access
        self.asked.append(address)
        await asyncio.Event().wait()
        raise AssertionError


@in_fake_time
async def test_who_comes_after_silent_ones_is_asked_before_their_time_is_up() -> None:
    """Each of them keeps its turn for a moment; those that were silent before have turns of their own."""
    probe = SilentEngines()
    names = [f"silent{number}" for number in range(40)]
    tenures = [tenure_of(name) for name in names]
    prober = prober_of(tenures, probe)
    asking = [asyncio.create_task(prober._ask(tenure, tenure.replica)) for tenure in tenures]
    async with asyncio.timeout(60):
        while set(probe.asked) != set(names):
            await asyncio.sleep(0.01)
    for task in asking:
        task.cancel()
    known = [tenure_of(f"known{number}") for number in range(40)]
    for tenure in known:
        tenure.probe.result = Unknown("no answer")
    asking += [asyncio.create_task(prober._ask(tenure, tenure.replica)) for tenure in known]
    await asyncio.sleep(0)
    fresh = tenure_of("fresh")
    asking.append(asyncio.create_task(prober._ask(fresh, "fresh")))
    await asyncio.sleep(0)
    assert probe.asked[-1] == "fresh"
    assert len(probe.asked) < 40 + 40 + 1
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


TUNNEL = Tunnel("chat/r1", SshRoute((SshServer("gpu"),)), "127.0.0.1:8000")
DOWN = PathStatus(PathState.REFUSED, "nobody there")
UP = PathStatus(PathState.UP)
COMPLAINT = PathStatus(PathState.UP, "administratively prohibited")
REFUSED, BUSY = Loading("closed without an answer", refused=True), Loading("/health answers 503")


READY = Ready(EngineFacts("vllm", ConnectionMode.HTTP))


class Stays(list[Tenure]):
    """In place of the registry."""

    current: dict[ReplicaId, Tenure]


def ends(path: PathStatus, *tenures: Tenure, metrics: Metrics | None = None) -> TunnelEnds:
    registry: Any = Stays(tenures)
    registry.current = {each.replica: each for each in tenures}
    return TunnelEnds("chat", registry, lambda _: path, metrics or Metrics())


def tenure(*, result: ProbeResult, asked: bool = True, tunnel: Tunnel | None = TUNNEL) -> Tenure:
    sighting = Sighting(ReplicaId("r1"), Path("/t.sock"), SocketIdentity(0, 0, 0, "t"), "ssh", tunnel=tunnel)
    return Tenure(
        1,
        "chat/r1",
        0,
        sighting,
        0.0,
        None,
        BridgeHosts("127.0.0.1", "127.0.0.2"),
        probe=Probed(result=result, asked=asked),
    )


@pytest.mark.parametrize(
    ("path", "result", "asked", "state"),
    [
        (UP, REFUSED, True, PathState.REMOTE_CLOSED),
        (UP, REFUSED, False, PathState.UP),
        (UP, BUSY, True, PathState.UP),
        (COMPLAINT, REFUSED, True, PathState.FORBIDDEN),
        (DOWN, REFUSED, True, PathState.REFUSED),
    ],
)
def test_far_end(path: PathStatus, result: Loading, asked: bool, state: PathState) -> None:
    """A tunnel that has just come up is up until somebody has been refused through it."""
    shown = ends(path).far_end_of(tenure(result=result, asked=asked))
    assert shown is not None
    assert shown.state is state


def test_socket_of_somebody_elses_has_no_path() -> None:
    """Nothing is claimed about what is not ours."""
    assert ends(UP).far_end_of(tenure(result=REFUSED, tunnel=None)) is None
    assert ends(DOWN).refusal_of(tenure(result=REFUSED, tunnel=None)) is None


def test_a_tunnel_that_is_down_refuses_and_says_why() -> None:
    refusal = ends(DOWN).refusal_of(tenure(result=READY))
    assert refusal == Loading("tunnel: connection refused: nobody there", refused=True)
    assert ends(UP).refusal_of(tenure(result=READY)) is None


def test_a_refusal_through_a_tunnel_that_is_up_is_the_far_ends() -> None:
    seen = ends(UP).as_seen_through(tenure(result=READY), REFUSED)
    assert isinstance(seen, Loading)
    assert seen.refused
    assert seen.reason.endswith("nothing listens on 127.0.0.1:8000 at gpu:22")
    assert ends(UP).as_seen_through(tenure(result=READY), BUSY) is BUSY


@pytest.mark.parametrize(
    ("path", "result", "outdated"), [(UP, READY, False), (UP, REFUSED, True), (DOWN, READY, True), (DOWN, BUSY, False)]
)
def test_who_is_asked_again_once_a_tunnel_changed(path: PathStatus, result: ProbeResult, *, outdated: bool) -> None:
    """Who said before what the tunnel makes likely now is left alone."""
    stay = tenure(result=result)
    assert list(ends(path, stay).outdated()) == [stay] * outdated


def test_each_tunnel_is_measured_in_the_state_that_is_shown() -> None:
    metrics = Metrics()
    ends(UP, tenure(result=REFUSED), metrics=metrics).measure()
    assert metrics.tunnel_state.labels("chat", "r1", PathState.REMOTE_CLOSED)._value.get() == 1


async def settled() -> None:
    """Whatever is due now has run."""
    for _ in range(5):
        await asyncio.sleep(0)


def asking(turns: ProbeTurns, names: str) -> tuple[list[str], dict[str, asyncio.Event], dict[str, asyncio.Task[None]]]:
    """Probes that last until their event is set; in which order they began."""
    begun: list[str] = []
    ends = {name: asyncio.Event() for name in names}

    async def probe(name: str) -> None:
        async with turns.turn():
            begun.append(name)
            await ends[name].wait()

    return begun, ends, {name: asyncio.create_task(probe(name)) for name in names}


async def test_few_at_a_time_and_the_latest_first() -> None:
    """Who came before a crowd of silent ones is asked already; who comes after it does not wait for all of it."""
    turns = ProbeTurns(2, most_s=60)
    begun, ends, tasks = asking(turns, "abcde")
    await settled()
    assert begun == ["a", "b"]
    ends["a"].set()
    await settled()
    assert begun == ["a", "b", "e"]
    for end in ends.values():
        end.set()
    await asyncio.gather(*tasks.values())
    assert begun == ["a", "b", "e", "d", "c"]
    again, ends, tasks = asking(turns, "fgh")
    await settled()
    assert again == ["f", "g"], "no turn was lost, and none was given twice"
    for end in ends.values():
        end.set()
    await asyncio.gather(*tasks.values())


async def test_a_silent_one_goes_on_without_its_turn() -> None:
    """Its turn is another's after a while; that it ends later gives no further one."""
    turns = ProbeTurns(1, most_s=0.01)
    begun, ends, tasks = asking(turns, "abc")
    async with asyncio.timeout(30):
        while begun != ["a", "c", "b"]:
            await asyncio.sleep(0.001)
    assert not any(task.done() for task in tasks.values())
    for end in ends.values():
        end.set()
    await asyncio.gather(*tasks.values())
    begun, ends, tasks = asking(turns, "de")
    await asyncio.sleep(0)  # Each has taken a turn if there was one, and no time is up yet.
    assert begun == ["d"], "what ended after its time gave a second turn"
    for end in ends.values():
        end.set()
    await asyncio.gather(*tasks.values())
    patient = ProbeTurns(1, most_s=math.inf)
    begun, ends, tasks = asking(patient, "ab")
    await asyncio.sleep(0.05)
    assert begun == ["a"]
    for end in ends.values():
        end.set()
    await asyncio.gather(*tasks.values())


@pytest.mark.parametrize("is_its_turn", [False, True])
async def test_a_probe_that_is_given_up_keeps_no_turn(is_its_turn: bool) -> None:
    """Neither while it waits, nor in the moment that its turn comes."""
    turns = ProbeTurns(1, most_s=60)
    begun, ends, tasks = asking(turns, "abc")
    await settled()
    if is_its_turn:
        ends["a"].set()
        await asyncio.sleep(0)  # It has ended, and `c` does not know yet.
    tasks["c"].cancel()
    ends["a"].set()
    await settled()
    assert begun == ["a", "b"]
    ends["b"].set()
    await asyncio.gather(tasks["a"], tasks["b"])
    assert tasks["c"].cancelled()


class PlayedQuestion:
    """A question that was sent; the answer is `says`."""

    def __init__(self) -> None:
        self.says: bool | None = None
        self.fault: Exception | None = None
        self.is_open = True

    def is_well(self) -> bool | None:
        if self.fault is not None:
            raise self.fault
        return self.says

    def close(self) -> None:
        self.is_open = False


class Prompt(PlayedProbe):
    """Is asked without a task, and in full only by `check_health`."""

    def __init__(self, *answers: tuple[ProbeResult, bool]) -> None:
        super().__init__(*answers)
        self.questions: list[PlayedQuestion] = []

    def ask_health(self, *_: object, **__: object) -> PlayedQuestion:  # type: ignore[override]
        self.questions.append(PlayedQuestion())
        return self.questions[-1]


@in_fake_time
async def test_an_engine_that_says_it_is_well_costs_no_task() -> None:
    probe = Prompt()
    tenure, prober = well_engine(probe)
    prober.look_after(tenure)
    await asyncio.sleep(1)
    assert tenure.probe.task is None
    assert tenure.probe.due == 0.0, "the answer has not come"
    probe.questions[0].says = True
    await asyncio.sleep(15)
    assert len(probe.questions) == 2
    assert not probe.questions[0].is_open
    await prober.close()
    assert not probe.questions[1].is_open


@in_fake_time
async def test_silence_is_evidence_after_its_time_out_also_where_no_task_waited() -> None:
    probe = Prompt()
    tenure, prober = well_engine(probe)
    prober.look_after(tenure)
    await asyncio.sleep(4.5)
    assert tenure.probe.evidence.failures == 0
    await asyncio.sleep(1)
    assert (tenure.probe.evidence.failures, tenure.probe.evidence.kind) == (1, Against.SILENT)
    await prober.close()


@in_fake_time
async def test_whatever_else_an_engine_says_is_asked_for_in_full() -> None:
    probe = Prompt((Loading("/health answers 503", FACTS), False))
    tenure, prober = well_engine(probe)
    prober.look_after(tenure)
    probe.questions[0].says = False
    await asyncio.sleep(1)
    assert tenure.probe.result == Loading("/health answers 503", FACTS)
    await prober.close()


@in_fake_time
@pytest.mark.parametrize("leaves", [True, False])
async def test_a_question_whose_answer_matters_no_more_is_taken_back(leaves: bool) -> None:
    """The engine may be another by now, or its replica is gone."""
    probe = Prompt()
    tenure, prober = well_engine(probe)
    prober.look_after(tenure)
    if leaves:
        tenure.presence = Presence.GONE
    else:
        tenure.drain.requested = True
    await asyncio.sleep(1)
    assert not probe.questions[0].is_open
    assert tenure.probe.task is None
    await prober.close()


@in_fake_time
async def test_a_fault_with_one_answer_has_that_engine_looked_at_again() -> None:
    probe = Prompt()
    tenure, prober = well_engine(probe)
    prober.look_after(tenure)
    probe.questions[0].fault = RuntimeError("ours")
    await asyncio.sleep(1)
    assert prober._queue.pop() == tenure.key
    prober.look_after(tenure)
    probe.questions[1].says = True
    await asyncio.sleep(1)
    assert not probe.questions[1].is_open
    await prober.close()


@in_fake_time
async def test_silence_across_a_stall_is_no_evidence_and_the_engine_is_asked_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time-out may have been the stall's."""
    probe = Prompt((Ready(FACTS), False))
    monkeypatch.setattr(awake, "stalls", lambda: probe.stalls)
    tenure, prober = well_engine(probe)
    prober.look_after(tenure)
    probe.stalls += 1
    await asyncio.sleep(6)
    assert probe.left == []
    assert tenure.probe.evidence.failures == 0
    await prober.close()


@in_fake_time
async def test_a_fault_in_what_follows_an_answer_stops_no_other_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Prompt()
    tenure, prober = well_engine(probe)
    with monkeypatch.context() as faulty:
        faulty.setattr(prober, "trust_until_next", lambda _: 1 // 0)
        prober.look_after(tenure)
        probe.questions[0].says = True
        await asyncio.sleep(1)
    assert prober._queue.pop() == tenure.key
    prober.look_after(tenure)
    probe.questions[1].says = True
    await asyncio.sleep(1)
    assert not probe.questions[1].is_open
    assert tenure.probe.due > awake.now()
    await prober.close()


@in_fake_time
async def test_a_bounded_number_is_under_way_and_who_comes_then_is_asked_in_full() -> None:
    probe = Prompt(*[(Ready(FACTS), False)] * 3)
    tenures = [tenure_of(f"r{number}") for number in range(1027)]
    for tenure in tenures:
        tenure.probe, tenure.notes.of = Probed(FACTS, Ready(FACTS), identify_next=False), tenure.sighting
    prober = prober_of(tenures, probe)
    for tenure in tenures:
        prober.look_after(tenure)
    await asyncio.sleep(0.1)
    assert len(probe.questions) == 1024
    assert probe.left == []
    await prober.close()
