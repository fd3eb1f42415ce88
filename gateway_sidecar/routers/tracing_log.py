"""The log of a router that writes as Rust's `tracing` does for people, in colours: vllm-router and sglang-router.

2026-11-29 06:13:44  INFO vllm_router_rs::server: src/server.rs:1025: Starting router on 127.0.0.1:41010
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gateway_sidecar.domain.model import Registered
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.routers.base import LONGEST_MESSAGE, LogLine, RouterSetup
from gateway_sidecar.routers.pairing import unanswered

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +(?P<level>ERROR|WARN|INFO|DEBUG|TRACE) +(?P<span>\w+\{.*?\}: )?"
    r"(?P<target>[\w:]+): (?:\S+\.rs:\s?\d+: )?(?P<message>.*)"
)
_LEVELS = {"ERROR": "error", "WARN": "warning", "INFO": "info", "DEBUG": "debug", "TRACE": "debug"}


def read_log_line(line: str) -> LogLine | None:
    """One line of its output; None for an empty one. What is not of that form is a warning: a traceback, a panic."""
    text = _COLOUR.sub("", line).strip()
    found = _LINE.fullmatch(text)
    if found is not None:
        message = printable((found["span"] or "") + found["message"], LONGEST_MESSAGE)
        return LogLine(_LEVELS[found["level"]], message, {"target": printable(found["target"])})
    if not text:
        return None
    level = "debug" if text.startswith("DEBUG: ") else "warning"
    return LogLine(level, printable(text, LONGEST_MESSAGE))


class TracingSetup(RouterSetup):
    """What both have in common: this log, and that prefill and decode only answer together (`pairing`)."""

    def read_log_line(self, line: str) -> LogLine | None:
        return read_log_line(line)

    def unanswered(self, workers: Iterable[Registered]) -> Mapping[str, str]:
        return unanswered(workers)
