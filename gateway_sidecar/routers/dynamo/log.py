"""The frontend's log (`DYN_LOGGING_JSONL=1`), line by line."""

from __future__ import annotations

import orjson

from gateway_sidecar.domain.printable import printable
from gateway_sidecar.routers.base import LONGEST_MESSAGE, LogLine

_LEVELS = {"ERROR": "error", "WARN": "warning", "INFO": "info", "DEBUG": "debug", "TRACE": "debug"}
_PASSED_ON = ("error", "error_detail", "model", "request_id", "worker_id", "instance_id", "status")
_OF_EVERY_ANSWER = frozenset(("http response sent", "route request completed"))
"""Whatever its level is. The first is an error for each 404 as well; what failed is told in a line of its own."""


def read_log_line(line: str) -> LogLine | None:
    """One line of its output; None for what is not worth passing on."""
    try:
        row = orjson.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        text = printable(line.strip(), LONGEST_MESSAGE)
        return LogLine("warning", text) if text else None
    if row.get("message") in _OF_EVERY_ANSWER:
        return None
    fields = {f"dynamo_{name}": printable(str(row[name]), LONGEST_MESSAGE) for name in _PASSED_ON if name in row}
    return LogLine(
        _LEVELS.get(str(row.get("level")), "info"), printable(str(row.get("message", "")), LONGEST_MESSAGE), fields
    )
