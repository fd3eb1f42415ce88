"""What `GET /v1/services/NAME/signals` shows: measures as plain data. Unknown is null. Tools rely on the names."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from gateway_sidecar.control.autoscaling.service_signals import RoleSignals, ServiceSignals, Told
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.domain.model import WorkerType
from gateway_sidecar.domain.signals import WINDOWS_S, Latency, TrafficWindow


def signals_view(signals: ServiceSignals, events_problem: str | None) -> dict[str, Any]:
    """All of one service, as it is now."""
    now = time.monotonic()
    traffic = signals.windows(now)
    hold = signals.service.hold
    return {
        "service": signals.name,
        "in_flight": signals.in_flight(now),
        "waiting": hold.waiting,
        "missing": hold.missing.value if hold.missing else None,
        "windows": {str(window_s): _window(signals, traffic.get(window_s), window_s, now) for window_s in WINDOWS_S},
        "roles": {role.value: _role(signals, role, traffic, now) for role in signals.roles},
        "scaling": _scaling(signals),
        "sources": {
            "events": {"problem": events_problem},
            "router": {
                "age_s": None if signals.router_read_at is None else round(now - signals.router_read_at, 1),
                "problem": signals.router_problem,
            },
            "engines": {"read": len(signals.worked_by), "problems": dict(signals.engine_problems)},
        },
    }


def scaling_view(daemon: Daemon, name: str) -> dict[str, Any] | None:
    """The recommendation for `status`; None where none is wanted, or there is none yet."""
    signals = daemon.signals.of.get(name)
    return None if signals is None else _scaling(signals)


def _window(signals: ServiceSignals, traffic: TrafficWindow | None, window_s: int, now: float) -> dict[str, Any]:
    return {
        "covered_s": round(traffic.covered_s, 1) if traffic else 0.0,
        "requests_per_s": _rounded(traffic.rps) if traffic else None,
        "errors_per_s": _rounded(traffic.errors_per_s) if traffic else None,
        "outcomes": {outcome.value: count for outcome, count in traffic.outcomes.items()} if traffic else None,
        "e2e_s": _latency(traffic.took) if traffic else None,
        "ttft_s": _told(signals.ttft(now, window_s, traffic)),
        "itl_s": _told(signals.itl(now, window_s)),
    }


def _role(
    signals: ServiceSignals, role: WorkerType, traffic: Mapping[int, TrafficWindow], now: float
) -> dict[str, Any]:
    serving, coming = signals.counts(role)
    return {
        "serving": serving,
        "coming": coming,
        "in_flight": signals.role_in_flight(role, now),
        "waiting": signals.waiting_for(role),
        "windows": {
            str(window_s): {
                "requests_per_s": _rounded(signals.role_rps(role, now, window_s)),
                "errors_per_s": _rounded(signals.role_errors_per_s(role, now, window_s)),
                "ttft_s": _told(signals.ttft(now, window_s, traffic.get(window_s), role)),
                "itl_s": _told(signals.itl(now, window_s, role)),
            }
            for window_s in WINDOWS_S
        },
    }


def _scaling(signals: ServiceSignals) -> dict[str, Any] | None:
    roles = {
        role.value: recommended
        for role, one in signals.roles.items()
        if (recommended := _recommended(signals, role, one)) is not None
    }
    return {"roles": roles, "hook_problem": signals.hook.problem} if roles else None


def _recommended(signals: ServiceSignals, role: WorkerType, one: RoleSignals) -> dict[str, Any] | None:
    if one.policy is None or one.scaler.desired is None:
        return None
    return {
        "desired": one.scaler.desired,
        "current": sum(signals.counts(role)),
        "reason": one.scaler.reason,
        "metric": one.policy.metric.value,
        "target": one.policy.target,
        "min": one.policy.least,
        "max": one.policy.most,
    }


def _told(told: Told | None) -> dict[str, Any] | None:
    return None if told is None else {**(_latency(told.latency) or {}), "source": told.source}


def _latency(latency: Latency | None) -> dict[str, Any] | None:
    return None if latency is None else {name: _rounded(value) for name, value in asdict(latency).items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
