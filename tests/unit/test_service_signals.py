"""What several sources say of one service, put together: who is believed, and what is not known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway_sidecar.config import ScalingSettings
from gateway_sidecar.control.autoscaling.service_signals import ServiceSignals, policy_of
from gateway_sidecar.control.replicas.tenure import Notes, Probed, Status
from gateway_sidecar.domain.model import ConnectionMode, EngineFacts, ReplicaState, WorkerType
from gateway_sidecar.domain.planning import Missing
from gateway_sidecar.domain.scaling import Metric
from gateway_sidecar.domain.signals import RequestEnd
from gateway_sidecar.engines.engine_metrics import EngineReading
from gateway_sidecar.routers.base import RouterReading
from gateway_sidecar.telemetry.metrics import Metrics

POLICY = ScalingSettings(metric="rps", target=1.0, min=0)


@dataclass
class Replica:
    """As much of a tenure as signals look at."""

    key: int
    role: WorkerType | None = WorkerType.REGULAR
    mode: ConnectionMode = ConnectionMode.HTTP
    state: ReplicaState = ReplicaState.SERVING
    seen_at: float = 0.0
    leaving: object = None
    notes: Notes = field(default_factory=Notes)

    @property
    def urls(self) -> dict[str, None]:
        return {f"http://a:{self.key}": None}

    @property
    def probe(self) -> Probed:
        return Probed(EngineFacts("vllm", self.mode, self.role) if self.role else None)

    @property
    def status(self) -> Status:
        return Status(self.state)


def service(*replicas: Replica, scaling: ScalingSettings | None = POLICY) -> tuple[ServiceSignals, Any]:
    """Signals of a service with these replicas, at second 100, when nginx begins to tell."""
    stub = SimpleNamespace(
        name="chat",
        tenures={r.key: r for r in replicas},
        settings=SimpleNamespace(scaling=scaling),
        hold=SimpleNamespace(waiting=0, waiting_for_models=0, missing=None),
        has_looked=True,
    )
    signals = ServiceSignals(cast(Any, stub), Metrics())
    signals.note_roles(100)
    signals.watch(100, is_told=True)
    return signals, stub


def routed(now: float, signals: ServiceSignals, requests: dict[str, float], active: float = 0.0) -> None:
    signals.take_routers(now, {"r": RouterReading(active, dict.fromkeys(requests, active), requests, {}, {})})


def desired(signals: ServiceSignals, now: float, role: WorkerType = WorkerType.REGULAR) -> int | None:
    signals.evaluate(now, now)
    return signals.roles[role].scaler.desired


def test_nginx_counts_requests_and_the_router_does_where_nginx_is_not_heard() -> None:
    """What clients asked for counts, refused or not; a silent nginx does not make a busy service idle."""
    signals, _ = service(Replica(1))
    routed(110, signals, {"http://a:1": 0})
    routed(130, signals, {"http://a:1": 60})
    for number in range(120):
        signals.record(110 + number / 6, RequestEnd("chat", 503, 0.1))
    assert desired(signals, 130) == 4
    signals, _ = service(Replica(1))
    routed(110, signals, {"http://a:1": 0})
    routed(130, signals, {"http://a:1": 60})
    assert desired(signals, 130) == 3, "nginx told of nothing, and the router had 60 requests in 20 s"


def test_nothing_is_known_in_the_first_seconds() -> None:
    """Whoever is there stays."""
    signals, _ = service(Replica(1), Replica(2), Replica(3))
    signals.record(101, RequestEnd("chat", 200, 0.1))
    assert desired(signals, 102) == 3
    assert signals.roles[WorkerType.REGULAR].scaler.reason == "rps is not known; nothing changes"


def test_replicas_that_are_not_listed_yet_are_not_zero() -> None:
    """A daemon that has not looked recommends nothing."""
    signals, stub = service()
    stub.has_looked = False
    assert desired(signals, 130) is None


def test_roles_are_waited_for_kept_and_complete() -> None:
    """A moment for an engine that is not identified; half a pair is a pair; a role outlives its last replica."""
    signals, stub = service(Replica(1, role=None, seen_at=99))
    assert signals.roles == {}
    signals.note_roles(120)
    assert set(signals.roles) == {WorkerType.REGULAR}, "nobody knows, and a default is better than nothing"
    stub.tenures = {2: Replica(2, WorkerType.DECODE)}
    signals.note_roles(125)
    assert set(signals.roles) == {WorkerType.PREFILL, WorkerType.DECODE}
    stub.tenures = {}
    signals.note_roles(130)
    assert set(signals.roles) == {WorkerType.PREFILL, WorkerType.DECODE}


def test_waiting_requests_ask_for_the_half_that_is_missing() -> None:
    """Prefill is there, decode is not: one decode replica, at once."""
    signals, stub = service(Replica(1, WorkerType.PREFILL))
    stub.hold.waiting, stub.hold.missing = 3, Missing.DECODE
    assert signals.waiting_for(WorkerType.DECODE) == 3
    assert signals.waiting_for(WorkerType.PREFILL) == 0
    assert desired(signals, 105, WorkerType.DECODE) == 1
    stub.hold.missing = Missing.ROUTER
    assert signals.waiting_for(WorkerType.DECODE) == 0, "no replica helps a router that is away"
    stub.hold.missing, stub.hold.waiting_for_models = None, 2
    assert signals.waiting_for(WorkerType.DECODE) == 2, "one of several models has no replica"


def test_who_says_what_a_first_token_took() -> None:
    """Clients' streams, by nginx, whatever the engines speak; without any the engines, whose own clock stays beside."""
    signals, _ = service(Replica(1))
    tenure = cast(Any, signals.service.tenures[1])
    for at, count in ((115, 0.0), (120, 10.0)):
        signals.take_engine(at, tenure, EngineReading({0.5: count, math.inf: count}, {}))
    signals.record(110, RequestEnd("chat", 200, 1.0))
    window = signals.windows(120)[30]
    told = signals.ttft(120, 30, window)
    assert told == signals.engines_ttft(120, 30, window)
    assert told is not None
    assert (told.source, told.latency.samples) == ("engines", 10)
    assert told.latency.p50 == pytest.approx(0.25)
    signals.record(110, RequestEnd("chat", 200, 1.0, 0.6))
    signals.record(110, RequestEnd("chat", 500, 1.0, 9.0))
    window = signals.windows(120)[30]
    told = signals.ttft(120, 30, window)
    assert told is not None
    assert (told.source, told.latency.samples, told.share) == ("nginx", 1, 0.5)
    assert told.latency.p50 == pytest.approx(0.6, rel=0.1)
    engines = signals.engines_ttft(120, 30, window)
    assert engines is not None
    assert engines.latency.p50 == pytest.approx(0.25)


def test_scaling_by_the_first_token_follows_what_clients_saw() -> None:
    """The engines' clock says that the target is met."""
    policy = ScalingSettings(metric="ttft", target=1.0, max=9)
    signals, _ = service(Replica(1), scaling=policy)
    tenure = cast(Any, signals.service.tenures[1])
    for at, count in ((105, 0.0), (110, 10.0)):
        signals.take_engine(at, tenure, EngineReading({1.0: count, math.inf: count}, {}))
    assert desired(signals, 111) == 1
    for _ in range(10):
        signals.record(112, RequestEnd("chat", 200, 4.0, 1.8))
    assert desired(signals, 113) == 2
    assert signals.roles[WorkerType.REGULAR].scaler.reason.startswith("ttft p90 1.8")


def test_each_role_has_the_streams_that_its_workers_answered() -> None:
    """Of a pair the router names one half, and both had a part in the first token."""
    signals, _ = service(Replica(1), Replica(2, WorkerType.PREFILL), Replica(3, WorkerType.DECODE))
    routed(105, signals, {})
    signals.record(110, RequestEnd("chat", 200, 1.0, 0.1, "http://a:1"))
    for _ in range(3):
        signals.record(110, RequestEnd("chat", 200, 1.0, 0.8, "http://a:3"))
    window = signals.windows(112)[30]
    told = {role: signals.ttft(112, 30, window, role) for role in (None, *signals.roles)}
    assert {role: each and each.latency.samples for role, each in told.items()} == {
        None: 4, WorkerType.REGULAR: 1, WorkerType.PREFILL: 3, WorkerType.DECODE: 3
    }  # fmt: skip


def test_idle_is_known_or_it_is_not() -> None:
    """In flight, waiting, routed and ended: all of it has to be known, and nothing."""
    signals, stub = service(Replica(1))
    assert signals._is_idle(signals.windows(130), 130) is None, "the router was not read"
    routed(130, signals, {"http://a:1": 5})
    assert signals._is_idle(signals.windows(130), 130) is True
    routed(131, signals, {"http://a:1": 5}, active=1)
    assert signals._is_idle(signals.windows(131), 131) is False
    routed(132, signals, {"http://a:1": 6})
    assert signals._is_idle(signals.windows(132), 132) is False
    stub.hold.waiting = 1
    routed(200, signals, {"http://a:1": 6})
    assert signals._is_idle(signals.windows(200), 200) is False
    stub.hold.waiting = 0
    assert signals._is_idle(signals.windows(200), 200) is True
    signals.watch(200, is_told=False)
    assert signals._is_idle(signals.windows(200), 200) is None


def test_a_roles_own_settings_stand_above_the_services() -> None:
    """What it leaves out is the service's."""
    settings = ScalingSettings.model_validate(
        {"metric": "rps", "target": 5.0, "max": 4, "decode": {"metric": "itl", "target": 0.05, "min": 2}}
    )
    decode, prefill = policy_of(settings, WorkerType.DECODE), policy_of(settings, WorkerType.PREFILL)
    assert (decode.metric, decode.target, decode.least, decode.most) == (Metric.ITL, 0.05, 2, 4)
    assert (prefill.metric, prefill.target, prefill.least, prefill.most) == (Metric.RPS, 5.0, 1, 4)
