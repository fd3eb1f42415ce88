"""What an engine's silence proves, and what it does not; how often each of a crowd is asked."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import cast

import pytest

from gateway_sidecar.control.replicas.prober import Crowds, Prober
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import Presence, Probed, Tenure
from gateway_sidecar.domain.lifecycle import Against
from gateway_sidecar.domain.model import (
    Access,
    EngineFacts,
    Foreign,
    Loading,
    Overrides,
    ProbeResult,
    Ready,
    Unknown,
)
from gateway_sidecar.supervision import awake
from tests.unit.engines import FACTS, PlayedProbe, prober_of, tenure_of, well_engine
from tests.unit.fake_time import in_fake_time


async def evidence_after(probe: PlayedProbe, monkeypatch: pytest.MonkeyPatch) -> Tenure:
    """A tenure of an engine that was well, after one look at it."""
    monkeypatch.setattr(awake, "stalls", lambda: probe.stalls)
    tenure = tenure_of("r1")
    tenure.probe = Probed(facts=FACTS, result=Ready(FACTS), identify_next=False)
    tenure.notes.of = tenure.sighting
    prober = prober_of([tenure], probe)
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
    prober = prober_of([tenure], Understood())
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


def tenures(result: ProbeResult, number: int, *, port: int | None = None) -> list[Tenure]:
    made = [tenure_of(f"r{each}") for each in range(number)]
    for each in made:
        each.probe.result, each.bridge.port = result, port
    return made


def test_each_kind_of_answer_is_a_crowd_of_its_own() -> None:
    """Dead sockets hold up no engine that loads, and an engine that serves is in no crowd."""
    dead, loading = tenures(Loading("refused", refused=True), 300), tenures(Loading("503"), 20)
    waiting, serving = tenures(Ready(FACTS), 7), tenures(Ready(FACTS), 50, port=24001)
    crowds = Crowds(cast("Registry", [*dead, *loading, *waiting, *serving]))
    assert crowds.of(Against.REFUSED, 1.0).loading == 300
    assert crowds.of(Against.NOT_READY, 1.0).loading == 20
    assert crowds.of(None, 1.0).loading == 7
    assert crowds.of(Against.SILENT, 1.0).loading == 1, "itself"


def test_a_crowd_is_counted_now_and_then_and_not_for_each_of_it() -> None:
    dead = tenures(Loading("refused", refused=True), 300)
    crowds = Crowds(cast("Registry", dead))
    assert crowds.of(Against.REFUSED, 1.0).loading == 300
    for each in dead[:100]:
        each.presence = Presence.GONE
    assert crowds.of(Against.REFUSED, 1.1).loading == 300
    assert crowds.of(Against.REFUSED, 1.3).loading == 200
