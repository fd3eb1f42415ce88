"""What `GET /v1/services/NAME/signals` shows of a service, in the form that `signal_models` gives it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from gateway_sidecar.api import signal_models as models
from gateway_sidecar.api.models import Traffic
from gateway_sidecar.control.autoscaling.service_signals import RoleSignals, ServiceSignals, Told
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.domain.fleet_signals import Together
from gateway_sidecar.domain.model import WorkerType
from gateway_sidecar.domain.signals import WINDOWS_S, Latency, TrafficWindow

_MINUTE_S = 60


def signals_view(signals: ServiceSignals, events_problem: str | None) -> models.Signals:
    """All of one service, as it is now."""
    now = time.monotonic()
    traffic = signals.windows(now)
    hold = signals.service.hold
    return {
        "service": signals.name,
        "in_flight": signals.in_flight(now),
        "waiting": hold.waiting,
        "missing": hold.missing,
        "windows": {str(window_s): _window(signals, traffic.get(window_s), window_s, now) for window_s in WINDOWS_S},
        "roles": {role: _role(signals, role, traffic, now) for role in signals.roles},
        "scaling": _scaling(signals),
        "fleet": _fleet(signals),
        "sources": {
            "nginx": {"problem": events_problem},
            "router": {
                "age_s": None if signals.router_read_at is None else round(now - signals.router_read_at, 1),
                "problem": signals.router_problem,
            },
            "engines": {
                "read": len(signals.worked_by),
                "problems": {str(replica): why for replica, why in signals.engine_problems.items()},
            },
        },
    }


def scaling_view(daemon: Daemon, name: str) -> models.Scaling | None:
    """The recommendation for `status`; None where none is wanted, or there is none yet."""
    signals = daemon.signals.of.get(name)
    return None if signals is None else _scaling(signals)


def traffic_view(signals: ServiceSignals | None) -> Traffic:
    """The last minute, for `status`."""
    now = time.monotonic()
    window = None if signals is None else signals.windows(now).get(_MINUTE_S)
    told = None if signals is None else signals.ttft(now, _MINUTE_S, window)
    in_flight = None if signals is None else signals.in_flight(now)
    return {
        "covered_s": 0.0 if window is None else round(window.covered_s, 1),
        "requests_per_s": None if window is None else _rounded(window.rps),
        "errors_per_s": None if window is None else _rounded(window.errors_per_s),
        "in_flight": in_flight,
        "ttft_p50_s": None if told is None else round(told.latency.p50, 6),
        "ttft_p99_s": None if told is None else round(told.latency.p99, 6),
    }


def _window(signals: ServiceSignals, traffic: TrafficWindow | None, window_s: int, now: float) -> models.Window:
    return {
        "covered_s": round(traffic.covered_s, 1) if traffic else 0.0,
        "requests_per_s": _rounded(traffic.rps) if traffic else None,
        "errors_per_s": _rounded(traffic.errors_per_s) if traffic else None,
        "outcomes": dict(traffic.outcomes) if traffic else None,
        "e2e_s": _latency(traffic.took, "nginx", 1.0) if traffic and traffic.took else None,
        "ttft_s": _told(signals.ttft(now, window_s, traffic)),
        "engines_ttft_s": _told(signals.engines_ttft(now, window_s, traffic)),
        "itl_s": _told(signals.itl(now, window_s, traffic)),
    }


def _role(signals: ServiceSignals, role: WorkerType, traffic: Mapping[int, TrafficWindow], now: float) -> models.Role:
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
                "engines_ttft_s": _told(signals.engines_ttft(now, window_s, traffic.get(window_s), role)),
                "itl_s": _told(signals.itl(now, window_s, traffic.get(window_s), role)),
            }
            for window_s in WINDOWS_S
        },
    }


def _scaling(signals: ServiceSignals) -> models.Scaling | None:
    found = {role: _recommended(signals, role, one) for role, one in signals.roles.items()}
    roles = {role: recommended for role, recommended in found.items() if recommended is not None}
    fleet = signals.fleet
    if not roles and (fleet is None or signals.service.settings.scaling is None):
        return None
    voice, problem = (None, None) if fleet is None else (fleet.voice, fleet.problem or None)
    return {"roles": roles, "hook_problem": signals.hook.problem, "voice": voice, "problem": problem}


def _fleet(signals: ServiceSignals) -> models.FleetSignals | None:
    fleet, scaling = signals.fleet, signals.service.settings.scaling
    if fleet is None or scaling is None:
        return None
    it, window_s = fleet.together, scaling.window_s
    return {
        "voice": fleet.voice,
        "is_voice": fleet.is_own,
        "gateways": list(fleet.gateways),
        "problem": fleet.problem or None,
        "in_flight": None if it is None else it.in_flight,
        "waiting": None if it is None else it.waiting,
        "windows": {} if it is None else {str(window_s): _fleet_window(it, window_s)},
    }


def _fleet_window(it: Together, window_s: int) -> models.FleetWindow:
    took, ttft, itl = it.took(window_s), it.ttft(window_s), it.itl(window_s)
    return {
        "covered_s": round(it.covered_s(window_s), 1),
        "requests_per_s": _rounded(it.rps(window_s)),
        "errors_per_s": _rounded(it.errors_per_s(window_s)),
        "outcomes": it.outcomes(window_s),
        "e2e_s": None if took is None else _latency(took, "nginx", None),
        "ttft_s": None if ttft is None else _latency(*ttft, None),
        "itl_s": None if itl is None else _latency(*itl, None),
    }


def _recommended(signals: ServiceSignals, role: WorkerType, one: RoleSignals) -> models.RoleScaling | None:
    if one.policy is None or one.scaler.desired is None:
        return None
    return {
        "desired": one.scaler.desired,
        "current": sum(signals.counts(role)),
        "reason": one.scaler.reason,
        "metric": one.policy.metric,
        "target": one.policy.target,
        "min": one.policy.least,
        "max": one.policy.most,
    }


def _told(told: Told | None) -> models.Latency | None:
    return None if told is None else _latency(told.latency, told.source, told.share)


def _latency(latency: Latency, source: str, share: float | None) -> models.Latency:
    p50, p90, p99 = (round(each, 6) for each in (latency.p50, latency.p90, latency.p99))
    share = _rounded(share)
    return {"p50": p50, "p90": p90, "p99": p99, "samples": latency.samples, "source": source, "share": share}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
