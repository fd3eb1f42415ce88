"""What others say, shown: one line without escapes, whoever said it and wherever it goes."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, cast

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.api.models import Replica, Status
from gateway_sidecar.api.table import render_replicas, render_status
from gateway_sidecar.domain.printable import LONGEST, counted, printable, printable_lines
from gateway_sidecar.routers.smg.log import read_log_line
from gateway_sidecar.telemetry.logs import get_logger, set_up_logs, take_in_libraries
from gateway_sidecar.telemetry.terminal import PrintableStream

EVIL = "\x1b]0;x\x07\x1b[2J\r\n\x9b31m\u202e\u2066\u2028\u2029\x85\x00\x7f\ud800\u200b{}"
SHOWN = r"\x1b]0;x\x07\x1b[2J\r\n\x9b31m\u202e\u2066\u2028\u2029\x85\x00\x7f\ud800\u200b{}"


def test_what_is_not_printed_as_itself_is_escaped() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("größe 模型 😀") == "größe 模型 😀"


@given(st.text(st.characters(codec=None)), st.integers(10, 400))
def test_any_text_becomes_one_line_that_can_be_written(text: str, most: int) -> None:
    """Escaped, a character has ten at the most."""
    shown = printable(text * 40, most)
    assert shown.isprintable()
    assert len(shown) <= most * 10
    shown.encode()
    assert printable_lines(text).replace("\n", "").isprintable()


def test_an_endless_text_is_cut() -> None:
    assert printable("x" * 10**6) == "x" * (LONGEST - 3) + "..."


def test_lines_of_a_whole_text_stay() -> None:
    assert printable_lines("a\x1b\nb\u2028c\n") == "a\\x1b\nb\\u2028c\n"


def test_commands_print_nothing_else() -> None:
    out = io.StringIO()
    print(f"replica {EVIL}", file=PrintableStream(out))
    assert out.getvalue().replace("\n", "").isprintable()


# --- log lines --------------------------------------------------------------------------------------------------


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """The log of a daemon with its libraries; afterwards all is as it was."""
    handlers, level, show = list(logging.root.handlers), logging.root.level, warnings.showwarning
    yield io.StringIO()
    structlog.reset_defaults()
    logging.captureWarnings(False)
    logging.root.handlers[:], warnings.showwarning = handlers, show
    logging.root.setLevel(level)
    threading.excepthook = threading.__excepthook__
    sys.unraisablehook = sys.__unraisablehook__


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("evil", [EVIL, EVIL.replace("\ud800", "")], ids=["half a pair", "Unicode"])
def test_whatever_slips_through_is_one_line_of_the_log(lines: io.StringIO, form: str, evil: str) -> None:
    """The last line of defence: in a value, in a name, in a list, in a traceback."""
    set_up_logs(form, "info", lines)
    get_logger(service=evil).info("replica.seen", reason=evil, lines=[evil], **{f"odd {evil}": 1})
    (line,) = lines.getvalue().removesuffix("\n").split("\n")
    assert line.isprintable()
    if form == "json":
        assert json.loads(line)["reason"] == evil
    lines.truncate(0)
    lines.seek(0)
    try:
        raise ValueError(evil)
    except ValueError:
        get_logger().exception("loop.failed")
    assert lines.getvalue().replace("\n", "").isprintable()
    lines.getvalue().encode()


def test_libraries_write_events_and_nothing_else(lines: io.StringIO, capfd: pytest.CaptureFixture[str]) -> None:
    """A record, a warning, a fault in a thread or in a finalizer: else each is text of its own beside the log."""
    set_up_logs("json", "info", lines)
    take_in_libraries()
    logging.getLogger("asyncio").error("Task exception: %s", '\n{"event": "daemon.stopped"}')
    logging.getLogger("odd").warning("%d", "no number")
    logging.getLogger("quiet").info("nobody cares")
    warnings.showwarning(EVIL, UserWarning, "file.py", 3)
    threading.Thread(target=_fail, name=EVIL).start()
    wait_for_threads()
    _Unraisable()
    events = [json.loads(line) for line in lines.getvalue().split("\n") if line]
    assert [event["event"] for event in events] == ["library.said"] * 5
    assert [event["library"] for event in events] == ["asyncio", "odd", "py.warnings", "python", "python"]
    assert all(event["text"].isprintable() for event in events)
    assert capfd.readouterr().err == ""


def _fail() -> None:
    raise ValueError(EVIL)


def wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.name == EVIL:
            thread.join()


class _Unraisable:
    def __del__(self) -> None:
        raise ValueError(EVIL)


# --- SMG --------------------------------------------------------------------------------------------------------


def test_what_a_router_says_is_short_printable_and_names_nothing_of_ours() -> None:
    """A field called like one of ours would be taken for it, or end the loop that passes it on."""
    evil = EVIL.replace("\ud800", "")  # which SMG's JSON cannot hold
    row: dict[str, Any] = {
        "level": "ERROR",
        "message": evil + "m" * 10**5,
        **dict.fromkeys(("event", "service", "text", "exc_info", "not a name"), "x"),
        "url": evil,
        "many": ["x"] * 10**4,
        "count": 3,
        **{f"field_{number}": number for number in range(100)},
    }
    line = read_log_line(json.dumps(row))
    assert line is not None
    assert line.message.isprintable()
    assert len(line.message) < 3000
    assert line.fields["url"] == printable(evil)
    assert line.fields["count"] == 3
    assert len(str(line.fields["many"])) <= LONGEST
    assert len(line.fields) == 20
    assert not line.fields.keys() & {"event", "service", "text", "exc_info", "not a name"}
    for odd in (json.dumps([evil]), json.dumps("m" * 10**5), f'"{evil}"'):
        said = read_log_line(odd)
        assert said is None or (said.message.isprintable() and len(said.message) < 3000)
    panic = read_log_line("thread panicked: " + "\x1b[2J" + "p" * 10**5)
    assert panic is not None
    assert panic.message.isprintable()
    assert len(panic.message) < 3000


# --- tables -----------------------------------------------------------------------------------------------------


def replica(**said: object) -> Replica:
    row: dict[str, Any] = dict.fromkeys(
        (
            "runtime_type",
            "connection_mode",
            "worker_type",
            "model",
            "advertise",
            "bridge",
            "reason",
            "tunnel",
            "socket",
            "in_flight",
        )
    )
    row |= {"id": "r1", "state": "foreign", "state_age_s": 1, "source": "sockets", **said}
    return cast("Replica", row)


def test_a_table_has_a_row_for_each_replica_whatever_is_in_it() -> None:
    target = {"service": EVIL, "weight": 1, "model": EVIL, "asleep": True}
    model = {"name": EVIL, "services": [target, target], "fallback": target, "asleep": True}
    address = {
        "name": "api", "listen": EVIL, "frontend_listen": [EVIL], "not_in_force": EVIL, "default": EVIL,
        "models": [model] * 51,
    }  # fmt: skip
    rows = [replica(reason=EVIL, model=EVIL, socket=EVIL, id=EVIL), replica()]
    service: dict[str, Any] = {
        "name": "chat",
        "listen": "127.0.0.1:30000",
        "frontend_listen": [EVIL],
        "not_in_force": EVIL,
        "router": {"type": "smg", "state": "up", "pid": 1, "url": EVIL, "restarts": 0, "reason": EVIL, "mesh": EVIL},
        "missing": None,
        "unanswered": {EVIL: EVIL},
        "waiting": 0,
        "source": {"settings": {EVIL: EVIL}, "blind": EVIL, "refused": {EVIL: EVIL}},
        "scaling": {
            "roles": {"regular": {"desired": 1, "current": 1, "reason": EVIL}},
            "hook_problem": EVIL,
            "voice": EVIL,
            "problem": EVIL,
        },
        "replicas": rows,
    }
    status: dict[str, Any] = {
        "nginx": {"state": "down", "reason": EVIL},
        "leave": {"phase": "draining", "reason": EVIL},
        "problems": [EVIL],
        "services": [service | SEEN],
    }
    status |= {
        "addresses": [address],
        "daemon": {**ABOUT, "configuration": {**ABOUT["configuration"], "lines": [EVIL]}},
    }
    text = render_status(cast("Status", status))
    assert "0 restarts" in text
    assert all(line.isprintable() for line in text.split("\n"))
    assert len(text.split("\n")) == 2 + 3 + 2 + 2 + 15 + 56
    assert "and 1 more: status --json" in text
    table = render_replicas({"chat": rows})
    assert all(line.isprintable() for line in table.split("\n"))
    assert len(table.split("\n")) == 3
    long = replica(socket="/s" * 5000, reason="why it is so")
    assert render_replicas({"chat": [long]}).endswith("why it is so"), "a cell is cut, and not what follows it"


ABOUT: dict[str, Any] = {
    "version": "0.0.9", "pid": 7, "uptime_s": 3.0,
    "configuration": {"path": "/etc/g.yaml", "age_s": 3.0, "on_disk": "differs", "lines": []},
}  # fmt: skip
SEEN: dict[str, Any] = {
    "serving": 1, "expected": 2, "traffic": {
        "covered_s": 60.0, "requests_per_s": 12.34, "errors_per_s": 0.0, "in_flight": 8.0, "ttft_p50_s": 0.2,
        "ttft_p99_s": 1.34,
    },
}  # fmt: skip


def test_one_is_no_many() -> None:
    """One request waits, and two wait; a number that is shown as 1 is one."""
    said = [counted(number, "day") for number in (0, 1, 2, 0.7, 1.6)]
    assert said == ["0 days", "1 day", "2 days", "1 day", "2 days"]
    router = {"type": "smg", "state": "up", "pid": 1, "url": "-", "restarts": 1, "reason": None, "mesh": None}
    for waiting, line in ((1, "none serves; 1 request waits"), (2, "none serves; 2 requests wait")):
        service: dict[str, Any] = {
            "name": "chat", "listen": "-", "frontend_listen": [], "not_in_force": None, "router": router,
            "missing": "replica", "reason": "none serves", "waiting": waiting, "unanswered": {},
            "source": {"settings": {}, "blind": None, "refused": {}}, "scaling": None, "replicas": [],
        }  # fmt: skip
        status = {
            "nginx": {"state": "up"},
            "leave": None,
            "problems": [],
            "services": [service | SEEN],
            "addresses": [],
        }
        status["daemon"] = ABOUT
        text = render_status(cast("Status", status))
        assert line in text
        assert "1 restart)" in text
