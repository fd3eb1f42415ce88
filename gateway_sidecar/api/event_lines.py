"""Events as lines for people: when, how bad, what, about whom, and what else was said."""

from __future__ import annotations

from collections.abc import Mapping

from gateway_sidecar.domain.printable import age, printable
from gateway_sidecar.telemetry.dates import local_time

_LONGEST = 400  # A choice: a few lines of a terminal; `events --json` has all.
_HEAD = ("seq", "timestamp", "level", "event", "service", "replica", "reason", "worker_id")
"""Shown first, or left to `--json`."""
_MARKS = {"warning": "!", "error": "!!", "critical": "!!"}
_OF_TIME = ("for_s", "over_s", "took_s", "since_seen_s", "retry_in_s", "after_s")


def event_line(event: Mapping[str, object], *, named: bool = True) -> str:
    """`22:31:04 !  chat/r1 replica.dead  /health answers 503  was=serving for=4m02s`, in local time.

    named: with the service and the replica that it is about.
    """
    mark = _MARKS.get(str(event.get("level")), "")
    whom = "/".join(str(event[key]) for key in ("service", "replica") if event.get(key) not in (None, "-"))
    words = [
        f"{local_time(str(event.get('timestamp')))} {mark:2}",
        *([whom] if whom and named else []),
        str(event.get("event")),
    ]
    reason = event.get("reason")
    if reason:
        words.append(str(reason))
    words += [
        f"{key.removesuffix('_s') if key in _OF_TIME else key}={_value(key, value)}"
        for key, value in event.items()
        if key not in _HEAD and value not in (None, "", [])
    ]
    return printable("  ".join(words), _LONGEST)


def _value(key: str, value: object) -> str:
    if key in _OF_TIME and isinstance(value, int | float):
        return f"{value:.3g}s" if value < 60 else age(value)
    if isinstance(value, list):
        return ",".join(str(each) for each in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
