"""Which models of a service cannot be answered, for want of the other half of a pair."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.control.replicas.pairing import Pairing
from gateway_sidecar.control.routers.replacement import RouterSlots
from gateway_sidecar.domain.model import ConnectionMode, Registered, WorkerStatus, WorkerType
from gateway_sidecar.routers.pairing import unanswered
from gateway_sidecar.telemetry.metrics import Metrics
from tests.smg import SMG

WORDS = {"P": WorkerType.PREFILL, "D": WorkerType.DECODE, "R": WorkerType.REGULAR, "E": WorkerType.ENCODE}
ENGINES = {"s": "sglang", "v": "vllm"}


def worker(text: str) -> Registered:
    """`P`, `D`, `R` or `E` over HTTP; with an `s` or `v`, SGLang or vLLM over gRPC."""
    mode = ConnectionMode.GRPC if len(text) > 1 else ConnectionMode.HTTP
    runtime = ENGINES[text[1]] if len(text) > 1 else "sglang"
    return Registered(text, f"http://{text}", WorkerStatus.READY, WORDS[text[0]], mode, runtime, "tiny")


@pytest.mark.parametrize(
    "fleet", ["R", "P D", "P P D", "Ps Ds", "Pv Dv", "R P", "R D", "R Ps", "Rs P", "R P D", "P D Pv", "E P D", ""]
)
def test_what_can_be_answered(fleet: str) -> None:
    """A pair, or a regular worker beside whatever else."""
    assert unanswered(map(worker, fleet.split())) == {}


@pytest.mark.parametrize(
    ("fleet", "why"),
    [
        ("P", "1 prefill worker and no decode worker"),
        ("P P", "2 prefill workers and no decode worker"),
        ("Dv", "1 decode worker and no prefill worker"),
        ("D Ds", "2 decode workers and no prefill worker"),
        ("P Ds", "prefill over HTTP and decode over gRPC (sglang) do not pair"),
        ("Ps Dv", "prefill over gRPC (sglang) and decode over gRPC (vllm) do not pair"),
        ("E P", "1 prefill worker and no decode worker"),
    ],
)
def test_what_cannot_and_why(fleet: str, why: str) -> None:
    """As the router would say with each request."""
    assert unanswered(map(worker, fleet.split())) == {"tiny": why}


def test_models_are_judged_one_by_one() -> None:
    """A half pair of one model says nothing of another."""
    fleet = [worker("P"), replace(worker("D"), model_id="other"), replace(worker("R"), model_id="third")]
    assert unanswered(fleet) == {
        "tiny": "1 prefill worker and no decode worker",
        "other": "1 decode worker and no prefill worker",
    }


def pairing_of(fleet: str) -> Pairing:
    """Of a service whose router lists these workers."""
    book = SimpleNamespace(workers={each.url: each for each in map(worker, fleet.split())})
    active = SimpleNamespace(book=book, router=SimpleNamespace(setup=SMG))
    return Pairing(cast("RouterSlots", SimpleNamespace(service="chat", active=active)), Metrics())


def test_half_a_pair_is_told_of_after_a_while_and_the_look_says_when() -> None:
    """Its other half may be on its way."""
    watch = pairing_of("P")
    with capture_logs() as log:
        assert [watch.look(now) for now in (0.0, 1.5, 2.0)] == [2.0, 0.5, None]
    assert [event["event"] for event in log] == ["service.half_pair"]


@pytest.mark.parametrize(
    ("fleet", "leaving", "said"),
    [
        ("R", "R", {"tiny": "it is the model's only replica"}),
        ("R Rs", "R", {}),
        ("P D", "D", {"tiny": "1 prefill worker and no decode worker"}),
        ("E R", "E", {}),
        ("P", "P", {}),  # Nobody answered before, either.
        ("R", "X", {}),
    ],
)
def test_what_nobody_answers_without_one(fleet: str, leaving: str, said: dict[str, str]) -> None:
    """A drain says it before an engine is stopped, for the last replica of a model as for half of a pair."""
    watch = pairing_of(fleet)
    watch.look(0.0)
    assert watch.unanswered_without(f"http://{leaving}") == said
