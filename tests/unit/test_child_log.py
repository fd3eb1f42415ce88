"""What a child wrote is read once, in whole lines, and in part when it is a flood."""

from __future__ import annotations

from pathlib import Path

from gateway_sidecar.supervision.logfile import ChildLog


def test_lines_are_read_once_and_only_whole(tmp_path: Path) -> None:
    """A line that is still being written is left for the next time."""
    log = ChildLog(tmp_path / "log")
    assert log.new_lines() == []
    write(log.path, "one\ntwo\nthr")
    assert log.new_lines() == ["one", "two"]
    write(log.path, "ee\n")
    assert log.new_lines() == ["three"]
    assert log.new_lines() == []
    assert log.tail(2) == ["two", "three"]


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    """SMG's JSON lets U+2028 stand as it is: a client's words behind it are no line of SMG's."""
    log = ChildLog(tmp_path / "log")
    log.new_lines()
    told = '{"message": "a\u2028{\x85\x0b\x0c\x1c"}'
    write(tmp_path / "log", told + "\nb\n")
    assert log.new_lines() == [told, "b"]
    assert log.tail(2) == [r'{"message": "a\u2028{\x85\x0b\x0c\x1c"}', "b"]


def test_a_flood_is_read_in_part_and_the_newest_wins(tmp_path: Path) -> None:
    """However much was written, one reading stays small."""
    log = ChildLog(tmp_path / "log")
    assert log.new_lines() == []
    write(log.path, "x" * 99 + "\n")
    write(log.path, "".join(f"{n:099}\n" for n in range(50_000)))
    lines = log.new_lines()
    assert len(lines) < 3000
    assert lines[-1] == f"{49_999:099}"


def write(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)
