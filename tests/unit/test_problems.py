"""What is amiss with the daemon itself: one line for each name, and one writer."""

from __future__ import annotations

import pytest

from gateway_sidecar.telemetry.problems import Problems


def test_a_problem_is_told_until_nothing_is_amiss() -> None:
    problems = Problems()
    disk, keys = problems.of("disk"), problems.of("keys")
    assert disk.set("it is full")
    assert not disk.set("it is full"), "no news"
    assert keys.set("they cannot be read")
    assert problems.told() == {"disk": "it is full", "keys": "they cannot be read"}
    assert disk.set("")
    assert problems.told() == {"keys": "they cannot be read"}


def test_a_line_has_one_writer() -> None:
    problems = Problems()
    problems.of("disk")
    with pytest.raises(ValueError, match="has a writer already"):
        problems.of("disk")
