"""Questions for health that are asked without a task, and what follows from their answers."""

from __future__ import annotations

import asyncio

import pytest

from gateway_sidecar.control.replicas.tenure import Probed
from gateway_sidecar.domain.lifecycle import Against
from gateway_sidecar.domain.model import Loading, ProbeResult, Ready
from gateway_sidecar.domain.planning import Why
from gateway_sidecar.supervision import awake
from tests.unit.engines import FACTS, PlayedProbe, prober_of, tenure_of, well_engine
from tests.unit.fake_time import in_fake_time


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
