"""structlog, set up once: one event per fact, JSON or console, on standard error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO, cast

import orjson
import structlog
import structlog.tracebacks

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_WITHOUT_LOCALS = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
"""Variables of a function that failed may hold keys, or what somebody sent us; a log holds neither."""


def set_up_logs(form: str, level: str, stream: TextIO | None = None) -> None:
    """Sends every event to `stream`. `form` is auto, json or console; auto is console on a terminal."""
    target = sys.stderr if stream is None else stream
    as_json = form == "json" or (form == "auto" and not target.isatty())
    last: list[structlog.typing.Processor] = (
        [
            structlog.processors.ExceptionRenderer(_WITHOUT_LOCALS),
            structlog.processors.JSONRenderer(serializer=_as_json),
        ]
        if as_json
        else [structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback)]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _NeverRaising(target))),
        cache_logger_on_first_use=False,
    )


class _NeverRaising:
    """A stream whose reader may go and whose disk may be full: nobody stops working for want of a log line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _as_json(event: object, default: Callable[[object], object]) -> str:
    try:
        return orjson.dumps(event, default=default).decode()
    except orjson.JSONEncodeError:  # Half a surrogate pair, out of some engine's mouth: escaped, it can be written.
        return json.dumps(event, default=default)


def get_logger(**facts: object) -> structlog.typing.FilteringBoundLogger:
    """A logger that adds `facts` to each of its events."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(**facts)
    return logger
