"""SMG's log (`--log-json`), line by line."""

from __future__ import annotations

import orjson

from gateway_sidecar.domain.printable import printable
from gateway_sidecar.routers.base import LONGEST_MESSAGE, LogLine

_EVERY_START = ("SECURITY POSTURE", "libturbojpeg not found")
"""Warnings that SMG gives at every start, and that the daemon has an answer to, or nobody needs."""

_LEVELS = {"ERROR": "error", "WARN": "warning", "INFO": "info", "DEBUG": "debug", "TRACE": "debug"}


_NOT_PASSED_ON = frozenset(
    ("timestamp", "level", "message", "filename", "line_number", "target", "threadName", "threadId", "span", "spans")
) | frozenset(("event", "service", "text", "exc_info", "stack_info", "exception", "stack"))
"""What says nothing new, and what our own events say under the same name."""
_MOST_FIELDS = 20  # A choice: a bound for what one line of SMG's may carry into our log.


def _shown(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return printable(value if isinstance(value, str) else orjson.dumps(value).decode())


def _request_of(row: dict[str, object]) -> dict[str, object]:
    """The names of the request that a line is about, and of its trace, which the span around it has."""
    span = row.get("span")
    said = span if isinstance(span, dict) else {}
    return {name: _shown(said[name]) for name in ("request_id", "trace_id") if said.get(name)}


def read_log_line(line: str) -> LogLine | None:
    """One line of `--log-json` output; None for what is not worth passing on (the banner)."""
    try:
        row = orjson.loads(line)
    except ValueError:
        # The banner, a Python traceback, a Rust panic. The banner is drawn in Braille.
        text = printable(line.strip(), LONGEST_MESSAGE)
        return LogLine("warning", text) if line.isascii() and not line.startswith(" ") else None
    if not isinstance(row, dict):
        return LogLine("warning", printable(line.strip(), LONGEST_MESSAGE))
    told = [name for name in row if name not in _NOT_PASSED_ON and name.isidentifier()][:_MOST_FIELDS]
    fields = {name: _shown(row[name]) for name in told} | _request_of(row)
    message = printable(str(row.get("message", "")), LONGEST_MESSAGE)
    level = "debug" if message.startswith(_EVERY_START) else _LEVELS.get(str(row.get("level")), "info")
    return LogLine(level, message, fields)
