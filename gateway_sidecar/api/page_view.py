"""What the live page shows: of `status` and of the events, only what is chosen here.

Whoever reaches the metrics listener reads it, and that may be more people than may use the admin API. So it has names,
states, counts and reasons, and none of these: sockets, processes, addresses but those that clients use, tunnels, what
the configuration file says, lines of the routers' and nginx's own logs. Reasons are those of `status`, cut, made
printable, and without the credentials of a URL.
"""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from gateway_sidecar.api.table import problems_of
from gateway_sidecar.domain.merge_patch import AGE, known
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.telemetry.events import EVENTS

if TYPE_CHECKING:
    from gateway_sidecar.api.models import Address, Replica, Service, Status, Store
    from gateway_sidecar.telemetry.journal import Entry

_MOST_LINES = 20
"""Problems of one service, or of the gateway; as many again help nobody."""
_CREDENTIALS = re.compile(r"(://)(?:(?!://)\S)*@")
"""Up to the last `@`: a password may hold one, and `/`, too. What is lost of a path that holds one is no loss."""
_NAMES = ("timestamp", "level", "event", "service", "replica")
_SAID = (
    *("reason", "role", "desired", "was", "model", "by", "failures", "over_s", "since_seen_s", "retry_in_s"),
    *("version", "left_running", "connections", "after_s", "exit_code", "state", "loop", "for_s", "stale_s"),
)
"""What an event may say beside its names. What is not here stays in the log: paths, URLs, lines of files."""


def page_document(status: Status) -> dict[str, Any]:
    """The whole page, but for events and plots."""
    about, leave, nginx = status["daemon"], status["leave"], status["nginx"]
    return known(
        {
            "gateway": printable(socket.gethostname()),
            "version": about["version"],
            AGE: about["uptime_s"],
            "ready": status["ready"],
            "file": about["configuration"]["on_disk"],
            "leaving": None if leave is None else _safe(f"{leave['phase']}: {leave['reason']}"),
            "nginx": None if nginx["state"] == "up" else _safe(nginx["reason"] or "down"),
            "problems": _lines(status["problems"]),
            "store": None if status["store"] is None else _store(status["store"]),
            "addresses": {it["name"]: _address(it) for it in status["addresses"]},
            "services": {it["name"]: _service(it) for it in status["services"]},
        }
    )


def page_event(entry: Entry) -> dict[str, Any] | None:
    """An event as the page shows it; None for one that it does not show."""
    if entry.is_said:
        return None
    event = orjson.loads(entry.line)
    shown: dict[str, Any] = {"seq": entry.seq}
    for key in (*_NAMES, *_SAID):
        value = event.get(key)
        if isinstance(value, str) and value:
            shown[key] = _safe(value)
        elif isinstance(value, int | float):
            shown[key] = value
    return shown


def event_meanings() -> dict[str, list[str]]:
    """Event -> what it means, and what to do where there is something to do."""
    return {name: [event.meaning, *([event.cure] if event.cure else [])] for name, event in EVENTS.items()}


def _service(it: Service) -> dict[str, Any]:
    router, traffic, scaling = it["router"], it["traffic"], it["scaling"]
    recommended = {} if scaling is None else scaling["roles"]
    members = {
        "listen": [it["listen"], *it["frontend_listen"]],
        "serving": it["serving"],
        "expected": it["expected"],
        "router": {"type": router["type"], "state": router["state"], "restarts": router["restarts"]},
        "requests_per_s": _rate(traffic["requests_per_s"]),
        "errors_per_s": _rate(traffic["errors_per_s"]),
        "in_flight": _rate(traffic["in_flight"]),
        "waiting": it["waiting"],
        "ttft_p50_s": traffic["ttft_p50_s"],
        "ttft_p99_s": traffic["ttft_p99_s"],
        "problems": _lines(line.strip() for line in problems_of(it)),
        "scaling": _lines(
            f"{role}: {one['desired']} wanted, {one['current']} there: {one['reason']}"
            for role, one in recommended.items()
        ),
        "replicas": _replicas(it["replicas"]),
    }
    return known(members)


def _replicas(rows: Iterable[Replica]) -> dict[str, Any]:
    """By id and a number, as an id is there twice while an old occupant drains beside the new one."""
    found: dict[str, Any] = {}
    times: Counter[str] = Counter()
    for row in rows:
        name = printable(row["id"])
        found[f"{name}/{times[name]}"] = _replica(name, row)
        times[name] += 1
    return found


def _replica(name: str, row: Replica) -> dict[str, Any]:
    members = {
        "id": name,
        "state": row["state"],
        AGE: None if row["state"] == "absent" else row["state_age_s"],
        "role": row["worker_type"],
        "engine": "/".join(filter(None, (row["runtime_type"], row["connection_mode"]))) or None,
        "model": _safe(row["model"]) if row["model"] else None,
        "in_flight": row["in_flight"],
        "reason": _safe(row["reason"]) if row["reason"] else None,
    }
    return known(members)


def _address(it: Address) -> dict[str, Any]:
    members = {
        "listen": [it["listen"], *it["frontend_listen"]],
        "models": len(it["models"]),
        "asleep": _lines(model["name"] for model in it["models"] if model["asleep"]),
        "not_in_force": _safe(it["not_in_force"]) if it["not_in_force"] else None,
    }
    return known(members)


def _store(it: Store) -> dict[str, Any]:
    others: Mapping[str, str] = {
        other["name"]: "leaving" if other["leaving"] else "ready" if other["ready"] else "not ready"
        for other in it["others"]
    }
    reason = _safe(it["reason"]) if it["reason"] else None
    return known({"gateway": it["gateway"], "state": it["state"], "reason": reason, "others": others})


def _lines(lines: Iterable[str]) -> list[str]:
    """Not too many of them."""
    shown = [_safe(line) for line in lines]
    more = len(shown) - _MOST_LINES
    return shown if more <= 0 else [*shown[:_MOST_LINES], f"and {more} more"]


def _safe(text: str) -> str:
    return printable(_CREDENTIALS.sub(r"\1", text) if "@" in text else text)


def _rate(value: float | None) -> float | None:
    """As many digits as are shown, so that nothing is sent for those that are not."""
    return None if value is None else float(f"{value:.3g}")
