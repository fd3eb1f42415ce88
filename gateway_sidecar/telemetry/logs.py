"""structlog, set up once: one event per fact, JSON or console, on standard error, and in the journal (`journal.py`).

Each event is one line of printable text, whatever its values hold: the last defence of log and terminal. Nothing else
writes there: libraries' own log records, warnings and faults become events (`library.said`).
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO, cast

import orjson
import structlog
import structlog.tracebacks

from gateway_sidecar.domain.printable import printable, printable_lines
from gateway_sidecar.telemetry.journal import JOURNAL

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_NUMBERS = {**_LEVELS, "warn": logging.WARNING, "critical": logging.CRITICAL}
_PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
_FIRST = ("timestamp", "level", "event")
_LONGEST_VALUE = 4000  # Twice a router's message (`LONGEST_MESSAGE`): nothing of it is lost on a console.
_LONGEST_RECORD = 2000  # As long as a router's message (`LONGEST_MESSAGE`).
_WITHOUT_LOCALS = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
"""Variables of a function that failed may hold keys, or what somebody sent us; a log holds neither."""


def set_up_logs(form: str, level: str, stream: TextIO | None = None) -> None:
    """Sends every event to `stream`. `form` is auto, json or console; auto is console on a terminal."""
    target = sys.stderr if stream is None else stream
    as_json = form == "json" or (form == "auto" and not target.isatty())
    render: list[structlog.typing.Processor] = (
        [
            structlog.processors.ExceptionRenderer(_WITHOUT_LOCALS),
            _time_and_event_first,
            structlog.processors.JSONRenderer(serializer=_as_json),
        ]
        if as_json
        else [
            _printable_values,
            structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=_printable_traceback),
        ]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _noted_from(_LEVELS[level]),
            *render[:-1],
            _with_priority(render[-1]) if _is_journal(target) else render[-1],
        ],
        wrapper_class=structlog.make_filtering_bound_logger(min(_LEVELS[level], logging.INFO)),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _NeverRaising(target))),
        cache_logger_on_first_use=False,
    )


def _noted_from(level: int) -> structlog.typing.Processor:
    """Puts an event into the journal, and lets only those of `level` through to the log: the journal has all but
    `debug`, so `explain` and `events` know as much whatever `log.level` is.
    """

    def note(_logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        number = _NUMBERS.get(method, logging.ERROR)
        if number >= logging.INFO:
            JOURNAL.note(event)
        if number < level:
            raise structlog.DropEvent
        return event

    return note


def _time_and_event_first(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.ProcessorReturnValue:
    """Time and event stand in the same place of each line."""
    return {**{name: event[name] for name in _FIRST if name in event}, **event}


def _is_journal(stream: TextIO) -> bool:
    """Whether systemd reads this stream for the journal: it names the stream's device and inode."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        there = os.fstat(stream.fileno())
    except (OSError, ValueError):  # Closed, or no file at all.
        return False
    return (device, inode) == (str(there.st_dev), str(there.st_ino))


def _with_priority(render: structlog.typing.Processor) -> structlog.typing.Processor:
    """Each line with its priority in front, which journald takes away: sd-daemon(3)."""

    def rendered(logger: object, method: str, event: structlog.typing.EventDict) -> str:
        priority = _PRIORITIES.get(str(event.get("level")), 6)
        lines = str(render(logger, method, event)).split("\n")
        return "\n".join(f"<{priority}>{line}" for line in lines)

    return rendered


def take_in_libraries() -> None:
    """From now on what libraries would write to standard error themselves is an event, for the life of the process."""
    logging.basicConfig(handlers=[_AsEvent()], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    threading.excepthook = lambda fault: _tell_fault(f"thread {getattr(fault.thread, 'name', '?')}", fault.exc_value)
    sys.unraisablehook = lambda fault: _tell_fault(f"{fault.err_msg or 'ignored in'} {fault.object!r}", fault.exc_value)


class _AsEvent(logging.Handler):
    """Turns a library's log record into an event."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # Its arguments do not fit.
            text = str(record.msg)
        log = get_logger().error if record.levelno >= logging.ERROR else get_logger().warning
        fault = record.exc_info[1] if record.exc_info else None
        log("library.said", library=record.name, text=printable(text, _LONGEST_RECORD), exc_info=fault)


def _tell_fault(where: str, fault: BaseException | None) -> None:
    get_logger().error("library.said", library="python", text=printable(where), exc_info=fault)


class _NeverRaising:
    """A stream whose reader may go and whose disk may be full: the daemon goes on without the log line."""

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
        text = orjson.dumps(event, default=default).decode()
    except orjson.JSONEncodeError:  # Half a surrogate pair, out of some engine's mouth: escaped, it can be written.
        return json.dumps(event, default=default)
    # JSON lets C1 controls, U+2028 and what turns the direction of writing stand as they are. Only strings have them.
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


def _printable_values(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.ProcessorReturnValue:
    """On a console nothing is quoted."""
    return {
        printable(name): value if name == "exc_info" else printable(str(value), _LONGEST_VALUE)
        for name, value in event.items()
    }


def _printable_traceback(stream: TextIO, fault: structlog.typing.ExcInfo) -> None:
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, fault)
    stream.write(printable_lines(plain.getvalue()))


def get_logger(**facts: object) -> structlog.typing.FilteringBoundLogger:
    """A logger that adds `facts` to each of its events."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(**facts)
    return logger
