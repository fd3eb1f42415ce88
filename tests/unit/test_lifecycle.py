"""Evidence, and when to look again."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.domain.backoff import Backoff
from gateway_sidecar.domain.lifecycle import (
    Against,
    Crowd,
    Evidence,
    EvidencePolicy,
    against,
    loading_delay_s,
    state_of,
    suspect_delay_s,
)
from gateway_sidecar.domain.model import (
    ConnectionMode,
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
    WorkerType,
)

FACTS = EngineFacts("vllm", ConnectionMode.HTTP)
REFUSED = Loading("connection refused", refused=True)
NOT_READY = Loading("/health answers 503", FACTS)
SILENT = Unknown("no answer within 5 s")
POLICY = EvidencePolicy(refused_failures=3, refused_over_s=0.5, failures=3, timeout_s=5.0)


def evidence(*results: tuple[float, ProbeResult]) -> Evidence:
    found = Evidence()
    for now, result in results:
        found = found.after(result, now)
    return found


def test_refused_takes_tries_and_time() -> None:
    """Connection refused n times over t seconds: not once, and not three times in a moment."""
    assert not evidence((0.0, REFUSED)).is_strong(0.0, POLICY)
    assert not evidence((0.0, REFUSED), (0.1, REFUSED), (0.2, REFUSED)).is_strong(0.2, POLICY)
    assert evidence((0.0, REFUSED), (0.25, REFUSED), (0.5, REFUSED)).is_strong(0.5, POLICY)


def test_silence_takes_as_long_as_its_time_outs() -> None:
    """Busy is not dead: a full queue that answers 'no' at once is no faster evidence than a time-out."""
    quick = evidence((0.0, SILENT), (1.0, SILENT), (2.0, SILENT))
    assert not quick.is_strong(2.0, POLICY)
    assert evidence((0.0, SILENT), (6.0, SILENT), (12.0, SILENT)).is_strong(12.0, POLICY)


def test_an_engines_own_word_is_believed_after_a_few_times() -> None:
    """503 and NOT_SERVING are the engine's own."""
    assert not evidence((0.0, NOT_READY), (1.0, NOT_READY)).is_strong(1.0, POLICY)
    assert evidence((0.0, NOT_READY), (1.0, NOT_READY), (2.0, NOT_READY)).is_strong(2.0, POLICY)


def test_a_foreign_answer_is_as_good_as_none() -> None:
    """Somebody else's words take as many tries as a connection that is refused, and are asked for as soon again."""
    foreign = Foreign("a web server")
    assert not evidence((0.0, foreign), (0.1, foreign), (0.2, foreign)).is_strong(0.2, POLICY)
    assert evidence((0.0, foreign), (0.25, foreign), (0.5, foreign)).is_strong(0.5, POLICY)
    assert suspect_delay_s(evidence((0.0, foreign)), POLICY) == suspect_delay_s(evidence((0.0, REFUSED)), POLICY)


def test_one_good_answer_clears_all() -> None:
    """Hysteresis: the evidence is of failures in a row."""
    assert evidence((0.0, REFUSED), (0.5, REFUSED), (0.6, Ready(FACTS)), (0.7, REFUSED)).failures == 1


def test_failures_of_different_kinds_count_together() -> None:
    """An engine that dies in ever new ways is dead all the same."""
    found = evidence((0.0, SILENT), (6.0, NOT_READY), (7.0, REFUSED))
    assert (found.failures, found.kind) == (3, Against.REFUSED)
    assert found.is_strong(7.0, POLICY)


@given(st.lists(st.sampled_from([REFUSED, NOT_READY, SILENT, Foreign("x"), Ready(FACTS)]), max_size=20))
def test_a_single_failure_after_a_good_answer_never_ejects(results: list[ProbeResult]) -> None:
    """Silence is not death, however bad the past."""
    history = [(float(i), result) for i, result in enumerate(results)]
    last = evidence(*history, (100.0, Ready(FACTS)), (101.0, SILENT))
    assert not last.is_strong(101.0, POLICY)


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (Ready(FACTS), None), (REFUSED, Against.REFUSED), (NOT_READY, Against.NOT_READY),
        (Loading("503"), Against.NOT_READY), (SILENT, Against.SILENT), (Foreign("a web server"), Against.FOREIGN),
    ],
)  # fmt: skip
def test_what_a_result_proves(result: ProbeResult, kind: Against | None) -> None:
    """Only the kernel's word is REFUSED, only the engine's own NOT_READY, only what no engine would say FOREIGN."""
    assert against(result) is kind


def test_loading_is_asked_often_at_first_and_then_cheaply() -> None:
    """Half an hour of loading costs next to nothing; the first seconds cost no latency."""
    one = Crowd(1)
    assert loading_delay_s(REFUSED, 0.0, one) == pytest.approx(0.02)
    assert loading_delay_s(REFUSED, 60.0, one) == pytest.approx(0.2)
    assert loading_delay_s(NOT_READY, 60.0, one) == pytest.approx(0.5)
    assert loading_delay_s(NOT_READY, 1800.0, one) == pytest.approx(1.0)
    assert loading_delay_s(REFUSED, 60.0, Crowd(100)) == pytest.approx(2.0), "together under 50 a second"


@pytest.mark.parametrize("result", [Foreign("x"), SILENT, Loading("closed", refused=True, closed=True)])
def test_who_may_never_serve_is_asked_ever_more_seldom(result: ProbeResult) -> None:
    """Each question may be a line in its log."""
    assert loading_delay_s(result, 10.0, Crowd()) == pytest.approx(0.5)
    assert loading_delay_s(result, 300.0, Crowd()) == pytest.approx(6.0)
    assert loading_delay_s(result, 86400.0, Crowd()) == pytest.approx(15.0)


def asked_during(hours: float, result: Loading, loading: int = 1) -> list[float]:
    """When an engine is asked that is not ready for so long: seconds since it was first seen."""
    moments, now = [], 0.0
    while now < hours * 3600:
        moments.append(now)
        now += loading_delay_s(result, now, Crowd(loading))
    return moments


def test_half_an_hour_of_loading_question_by_question() -> None:
    """Asked within 5 % of its age, so that its end is noticed soon, and after two minutes once a second at the most."""
    moments = asked_during(0.5, NOT_READY)
    gaps = [after - before for before, after in pairwise(moments)]
    assert all(gap <= max(0.05 * at, 0.02) + 1e-9 for at, gap in zip(moments, gaps, strict=False))
    assert len([at for at in moments if at > 120]) <= 1681, "once a second"
    assert len(moments) < 2000
    crowd = asked_during(0.5, NOT_READY, loading=200)
    assert len(crowd) <= 1800 / 4 + 1, "two hundred that load share 50 questions a second"


def test_suspect_is_asked_soon_enough_for_the_evidence() -> None:
    """The configured number of tries fits into the configured time."""
    refused = Evidence(Against.REFUSED, 1, 0.0)
    assert suspect_delay_s(refused, POLICY) * (POLICY.refused_failures - 1) == pytest.approx(POLICY.refused_over_s)


READY_WORKER = Registered("w", "u", WorkerStatus.READY, WorkerType.REGULAR, ConnectionMode.HTTP, "vllm")


@pytest.mark.parametrize(
    ("result", "leaving", "ejected", "worker", "state"),
    [
        (None, False, None, None, ReplicaState.SEEN),
        (Ready(FACTS), False, None, None, ReplicaState.REGISTERING),
        (Ready(FACTS), False, None, READY_WORKER, ReplicaState.SERVING),
        (SILENT, False, None, READY_WORKER, ReplicaState.SERVING),
        (NOT_READY, False, None, None, ReplicaState.LOADING),
        (REFUSED, False, None, None, ReplicaState.LOADING),
        (REFUSED, False, Against.REFUSED, READY_WORKER, ReplicaState.UNREACHABLE),
        (NOT_READY, False, Against.REFUSED, None, ReplicaState.LOADING),
        (NOT_READY, False, Against.NOT_READY, None, ReplicaState.DEAD),
        (Dead("x"), False, Against.DEAD, READY_WORKER, ReplicaState.DEAD),
        (SILENT, False, Against.NOT_READY, None, ReplicaState.DEAD),
        (NOT_READY, False, Against.SILENT, None, ReplicaState.DEAD),
        (SILENT, False, Against.SILENT, None, ReplicaState.UNREACHABLE),
        (SILENT, False, None, None, ReplicaState.UNREACHABLE),
        (Foreign("x"), False, None, None, ReplicaState.FOREIGN),
        (Ready(FACTS), True, None, READY_WORKER, ReplicaState.DRAINING),
    ],
)
def test_words_of_status(
    result: ProbeResult | None, leaving: bool, ejected: Against | None, worker: Registered | None, state: ReplicaState
) -> None:
    """One word for each case; a worker that was silent once still serves."""
    assert state_of(result=result, leaving=leaving, ejected=ejected, worker=worker) is state


def test_backoff_grows_to_its_bound_and_starts_at_nothing() -> None:
    """No failures, no delay; many failures, a bounded one."""
    backoff = Backoff(first_s=0.5, most_s=10.0)
    delays = [backoff.delay_s(n) for n in range(8)]
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert backoff.delay_s(10_000) == 10.0


def test_an_engine_that_was_put_to_sleep_is_not_dead() -> None:
    """It said so itself; one that served and says anything else against itself is."""
    asleep = Loading("/is_sleeping answers 200, but says is_sleeping: true", FACTS, asleep=True)

    def state(result: ProbeResult) -> ReplicaState:
        return state_of(result=result, leaving=False, ejected=Against.NOT_READY, worker=None)

    assert state(asleep) is ReplicaState.LOADING
    assert state(NOT_READY) is ReplicaState.DEAD
