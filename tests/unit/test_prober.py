"""What an engine's silence proves, and what it does not."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.replicas import prober as prober_module
from gateway_sidecar.control.replicas.prober import Prober
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import BridgeHosts, Probed, Tenure
from gateway_sidecar.control.workqueue import WorkQueue
from gateway_sidecar.domain.lifecycle import Against
from gateway_sidecar.domain.model import (
    Access,
    ConnectionMode,
    EngineFacts,
    Foreign,
    Loading,
    Overrides,
    ProbeResult,
    Ready,
    ReplicaId,
    SocketIdentity,
    Unknown,
    WorkerType,
)
from gateway_sidecar.domain.planning import Why
from gateway_sidecar.domain.tunnels import PathState, PathStatus
from gateway_sidecar.sources.listing import Sighting
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import in_fake_time

FACTS = EngineFacts("vllm", ConnectionMode.HTTP, WorkerType.REGULAR, "tiny")


class PlayedProbe:
    """Gives these answers, one after the other; during each of them the daemon is stopped, if it is to be."""

    def __init__(self, *answers: tuple[ProbeResult, bool]) -> None:
        self.left = list(answers)
        self.stalls = 0

    async def identify(self, _address: str, *, timeout_s: float, access: Access) -> ProbeResult:
        raise AssertionError((timeout_s, access))

    def ask_health(self, *_: object, **__: object) -> None:
        """Each question is a task here."""

    async def check_health(
        self, _address: str, _facts: EngineFacts, *, timeout_s: float, access: Access, relist: bool
    ) -> ProbeResult:
        del timeout_s, access, relist
        answer, stalls = self.left.pop(0)
        self.stalls += stalls
        await asyncio.sleep(0)
        return answer


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


def tenure_of(name: str) -> Tenure:
    sighting = Sighting(ReplicaId(name), Path(f"/{name}.sock"), SocketIdentity(1, 2, 3), "sockets")
    hosts = BridgeHosts("127.0.0.1", "127.0.0.1")
    return Tenure(1, f"chat/{name}", 0, sighting, awake.monotonic(), 99, hosts)


def watcher_of(tenures: list[Tenure], probe: PlayedProbe) -> Prober:
    settings = ServiceSettings.model_validate(
        {"name": "chat", "listen": "127.0.0.1:1", "replicas": {"sockets": "/r/{replica}.sock"}}
    )
    return Prober(
        settings,
        probe,
        cast("Registry", tenures),
        WorkQueue(awake.monotonic),
        lambda _: PathStatus(PathState.UP),
        Metrics(),
    )


async def evidence_after(probe: PlayedProbe, monkeypatch: pytest.MonkeyPatch) -> Tenure:
    """A tenure of an engine that was well, after one look at it."""
    monkeypatch.setattr(awake, "stalls", lambda: probe.stalls)
    tenure = tenure_of("r1")
    tenure.probe = Probed(facts=FACTS, result=Ready(FACTS), identify_next=False)
    tenure.notes.of = tenure.sighting
    prober = watcher_of([tenure], probe)
    await prober._ask(tenure, "/r1.sock")
    await prober.close()
    return tenure


@in_fake_time
async def test_a_question_that_was_asked_across_a_stall_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time-out may have been the stall's; how often the daemon is stopped does not matter."""
    silence = Unknown("no answer")
    probe = PlayedProbe((silence, True), (silence, True), (Ready(FACTS), False))
    tenure = await evidence_after(probe, monkeypatch)
    assert probe.left == []
    assert tenure.probe.evidence.failures == 0


@in_fake_time
async def test_silence_while_the_daemon_ran_is_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = PlayedProbe((Unknown("no answer"), True), (Unknown("no answer"), False), (Ready(FACTS), False))
    tenure = await evidence_after(probe, monkeypatch)
    assert len(probe.left) == 1
    assert tenure.probe.evidence.failures == 1


@in_fake_time
async def test_who_comes_after_silent_ones_is_asked_before_their_time_is_up() -> None:
    """Each of them keeps its turn for a moment; those that were silent before have turns of their own."""
    probe = SilentEngines()
    names = [f"silent{number}" for number in range(40)]
    tenures = [tenure_of(name) for name in names]
    prober = watcher_of(tenures, probe)
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


@in_fake_time
async def test_an_engine_that_is_well_is_asked_each_interval_and_nothing_is_planned() -> None:
    """Only an answer that is news is worth a plan."""
    probe = PlayedProbe(*[(Ready(FACTS), False)] * 8)
    tenure, prober = well_engine(probe)
    prober.look_after(tenure)
    asked_at = []
    for _ in range(7):
        left = len(probe.left)
        while len(probe.left) == left:
            await asyncio.sleep(0.1)
        asked_at.append(awake.monotonic())
    gaps = [after - before for before, after in pairwise(asked_at)]
    assert all(8 <= gap <= 13 for gap in gaps), gaps
    assert prober._queue.pop() is None
    await prober.close()
    await asyncio.sleep(60)
    assert len(probe.left) == 1


def well_engine(probe: PlayedProbe) -> tuple[Tenure, Prober]:
    tenure = tenure_of("r1")
    tenure.probe = Probed(facts=FACTS, result=Ready(FACTS), identify_next=False)
    tenure.notes.of = tenure.sighting
    return tenure, watcher_of([tenure], probe)


@in_fake_time
async def test_an_engine_that_answers_requests_is_asked_seldom_and_again_soon_after_its_last_answer() -> None:
    """Traffic is evidence. It is asked all the same now and then, and when it ends as soon as any other."""
    probe = PlayedProbe(*[(Ready(FACTS), False)] * 100)
    tenure, prober = well_engine(probe)
    prober.look_after(tenure)
    await asyncio.sleep(1)
    before = len(probe.left)
    for _ in range(300):
        prober.note_answer(tenure)
        await asyncio.sleep(1)
    assert 6 <= before - len(probe.left) <= 11  # In place of thirty.
    asked = len(probe.left)
    await asyncio.sleep(13)
    assert len(probe.left) < asked
    await prober.close()


@in_fake_time
async def test_an_engine_that_does_not_say_how_it_is_but_answers_a_request_is_busy() -> None:
    class Busy(PlayedProbe):
        async def check_health(
            self, _address: str, _facts: EngineFacts, *, timeout_s: float, access: Access, relist: bool
        ) -> ProbeResult:
            del timeout_s, access, relist
            if answers:
                prober.note_answer(tenure)
            return Unknown("no answer")

    answers = True
    tenure, prober = well_engine(Busy())
    await prober._ask(tenure, "/r1.sock")
    assert tenure.probe.evidence.failures == 0
    answers = False
    await asyncio.sleep(9)  # Less than an interval: the answer still counts.
    await prober._ask(tenure, "/r1.sock")
    assert tenure.probe.evidence.failures == 0
    await asyncio.sleep(2)
    await prober._ask(tenure, "/r1.sock")
    assert tenure.probe.evidence.failures == 1
    await prober.close()


@in_fake_time
async def test_an_engine_that_hangs_is_found_however_many_requests_it_answered_before() -> None:
    tenure, prober = well_engine(PlayedProbe(*[(Unknown("no answer"), False)] * 100))
    tenure.probe.health_asked_at = awake.now()
    prober.note_answer(tenure)
    look = asyncio.create_task(_look_each_tenth(prober, tenure))
    await asyncio.sleep(26)
    assert tenure.probe.ejected
    look.cancel()
    await prober.close()


async def _look_each_tenth(prober: Prober, tenure: Tenure) -> None:
    while True:
        prober.look_after(tenure)
        await asyncio.sleep(0.1)


@in_fake_time
async def test_a_busy_engine_that_was_to_be_asked_who_it_is_is_asked_again() -> None:
    """Traffic shows that it is well, and not who it is."""

    class Silent(PlayedProbe):
        async def identify(self, _address: str, *, timeout_s: float, access: Access) -> ProbeResult:
            await asyncio.sleep(timeout_s)
            return Unknown(f"no answer, {access}")

    tenure, prober = well_engine(Silent())
    tenure.probe.identify_next = True
    asking = asyncio.create_task(prober._ask(tenure, "/r1.sock"))
    assert prober.owing() == []
    tenure.bridge.port = 24001
    await asyncio.sleep(2)
    assert prober.owing() == [tenure]
    prober.note_answer(tenure)
    await asking
    assert tenure.probe.evidence.failures == 0
    assert tenure.probe.identify_next
    await prober.close()


@in_fake_time
async def test_an_engine_that_refuses_is_not_saved_by_an_answer_of_before() -> None:
    tenure, prober = well_engine(PlayedProbe((Loading("connection refused", refused=True), False)))
    prober.note_answer(tenure)
    await prober._ask(tenure, "/r1.sock")
    assert tenure.probe.evidence.failures == 1
    await prober.close()


@in_fake_time
async def test_an_engine_that_listens_at_last_is_found_however_long_nobody_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody is touched while nobody refuses; who refuses then is touched again and again."""
    touched: list[str] = []
    refuses = {"/proc/self/fd/99"}

    def touch(address: str) -> bool:
        touched.append(address)
        return address in refuses

    monkeypatch.setattr(prober_module, "is_refused", touch)
    tenure = tenure_of("r1")
    prober = watcher_of([tenure], PlayedProbe())
    touching = asyncio.create_task(prober.touch_refused())
    for _ in range(2):
        await asyncio.sleep(3600)
        assert touched == []
        prober._learn(tenure, Loading("connection refused", refused=True), identified=False)
        tenure.probe.due = awake.now() + 60
        await asyncio.sleep(1.1)
        assert len(touched) >= 2
        refuses.clear()
        await asyncio.sleep(0.5)
        assert tenure.probe.due == 0.0  # It is asked now.
        tenure.probe.result = Ready(FACTS)
        await asyncio.sleep(1)
        touched.clear()
        refuses.add("/proc/self/fd/99")
    touching.cancel()


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
        tenure.leave(Why.SOCKET_GONE)
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
async def test_an_engine_is_asked_again_at_once_when_its_notes_say_how() -> None:
    """What could not be understood so far may be, then; and one that rests is left alone."""
    asked: list[Access] = []

    class Understood(PlayedProbe):
        async def identify(self, _address: str, *, timeout_s: float, access: Access) -> ProbeResult:
            del timeout_s
            asked.append(access)
            return Foreign("no OpenAI API") if access.prefix is None else Ready(FACTS)

    tenure = tenure_of("r1")
    tenure.notes.of = tenure.sighting
    tenure.seen_at = awake.monotonic() - 86400
    prober = watcher_of([tenure], Understood())
    for _ in range(60):
        prober.look_after(tenure)
        await asyncio.sleep(1)
    assert 4 <= len(asked) <= 5
    tenure.notes.overrides = Overrides(health=Access(prefix="/v3"), model="m")
    prober.look_after(tenure)
    await asyncio.sleep(0.1)
    assert asked[-1] == Access(prefix="/v3", model="m")
    assert tenure.probe.facts == FACTS
    await prober.close()
