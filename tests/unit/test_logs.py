"""Log lines: one JSON object for each event, whatever is in it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from gateway_sidecar.telemetry.logs import get_logger, set_up_logs


@pytest.fixture
def output(own_logs: None) -> io.StringIO:
    stream = io.StringIO()
    set_up_logs("json", "info", stream)
    return stream


def test_event_is_one_line_of_json_with_its_facts(output: io.StringIO) -> None:
    get_logger(service="chat").info("replica.seen", replica="größe", port=24001)
    (line,) = output.getvalue().splitlines()
    event = json.loads(line)
    assert {"event": "replica.seen", "service": "chat", "replica": "größe", "port": 24001}.items() <= event.items()
    assert event["level"] == "info"
    assert "größe" in line


def test_text_that_is_no_unicode_is_escaped_and_not_lost(output: io.StringIO) -> None:
    get_logger().error("router.said", text="half \ud83d a pair")
    assert json.loads(output.getvalue())["text"] == "half \ud83d a pair"
    output.getvalue().encode()


def test_levels_below_the_chosen_one_are_not_written(output: io.StringIO) -> None:
    get_logger().debug("nothing")
    assert output.getvalue() == ""


@pytest.mark.usefixtures("own_logs")
@pytest.mark.parametrize("form", ["json", "console"])
def test_no_fault_tells_what_was_in_variables(form: str) -> None:
    """An API key is a variable somewhere; a traceback says where it was, and not what."""
    written = io.StringIO()
    set_up_logs(form, "debug", written)
    try:
        api_key = "sk-" + "secret"
        raise ZeroDivisionError(len(api_key))
    except ZeroDivisionError:
        get_logger().exception("loop.failed")
    assert "test_no_fault_tells_what_was_in_variables" in written.getvalue()
    assert "sk-secret" not in written.getvalue()


def test_time_level_and_event_stand_first(output: io.StringIO) -> None:
    """Whoever reads lines, or cuts them, finds when and what in the same place of each."""
    get_logger(service="chat").info("replica.seen", replica="r1")
    assert list(json.loads(output.getvalue())) == ["timestamp", "level", "event", "service", "replica"]


@pytest.mark.usefixtures("own_logs")
@pytest.mark.parametrize("form", ["json", "console"])
def test_the_journal_is_told_how_bad_an_event_is(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a prefix of each line, where systemd reads standard error and nowhere else."""
    with (tmp_path / "journal").open("w+") as stream:
        there = os.fstat(stream.fileno())
        for named in (f"{there.st_dev}:{there.st_ino}", f"{there.st_dev}:{there.st_ino + 1}", ""):
            monkeypatch.setenv("JOURNAL_STREAM", named)
            set_up_logs(form, "debug", stream)
            for level in ("debug", "info", "warning", "error", "critical"):
                getattr(get_logger(), level)("daemon.stalled")
        stream.flush()
        stream.seek(0)
        lines = stream.read().splitlines()
    assert [line[:3] for line in lines[:5]] == ["<7>", "<6>", "<4>", "<3>", "<2>"]
    assert not any(line.startswith("<") for line in lines[5:])
    if form == "json":
        assert json.loads(lines[3][3:])["level"] == "error"
