"""What an nginx that starts is told of keys' use."""

from __future__ import annotations

import calendar
from collections.abc import Mapping
from pathlib import Path

from structlog.testing import capture_logs

from gateway_sidecar.config import AuthSettings, FrontendSettings
from gateway_sidecar.config.frontend import UsageSettings
from gateway_sidecar.control.edge.used_up import UsedUp, periods
from gateway_sidecar.errors import StateError
from gateway_sidecar.nginx.frontend_places import FrontendPlaces


class PlayedUsage:
    """Usage as it is in a dictionary: when it was, and how much."""

    def __init__(self) -> None:
        self.used: list[tuple[str, float, str, int]] = []
        self.collected = 0
        self.fault: Exception | None = None

    async def collect(self) -> None:
        self.collected += 1
        if self.fault is not None:
            raise self.fault

    async def tokens_since(self, service: str, unix_s: float) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for where, at, key, tokens in self.used:
            if where == service and at >= unix_s:
                found[key] = found.get(key, 0) + tokens
        return found


def test_periods_are_those_of_utc() -> None:
    """As `share/bounds.lua` calls them."""
    now = calendar.timegm((2028, 2, 29, 23, 59, 59))
    assert list(periods(now)) == [
        ("tokens_per_day", "20280229", calendar.timegm((2028, 2, 29, 0, 0, 0))),
        ("tokens_per_month", "202802", calendar.timegm((2028, 2, 1, 0, 0, 0))),
    ]


async def test_nginx_is_told_the_day_and_the_month_of_each_key(tmp_path: Path) -> None:
    """Of services that count usage and have keys; what is no key's name is left out."""
    now = calendar.timegm((2027, 1, 15, 12, 0, 0))
    usage = PlayedUsage()
    usage.used = [
        ("chat", now - 60, "alice", 5), ("chat", now - 86400, "alice", 7), ("chat", now - 40 * 86400, "alice", 9),
        ("chat", now, "certificate:CN=a b", 3), ("chat", now, "", 4), ("code", now, "alice", 6),
        ("open", now, "bob", 1),
    ]  # fmt: skip
    auth = AuthSettings(keys_file=tmp_path / "keys")
    wanted = {
        "chat": FrontendSettings(auth=auth, usage=UsageSettings()),
        "code": FrontendSettings(auth=auth),
        "open": FrontendSettings(usage=UsageSettings()),
    }
    places = FrontendPlaces(tmp_path)
    used_up = UsedUp(places, usage, lambda: wanted, lambda: now)
    await used_up.tell()
    assert places.used.read_text().splitlines() == [
        "chat alice tokens_per_day 20270115 5",
        "chat alice tokens_per_month 202701 12",
    ]
    assert usage.collected == 1


async def test_nginx_starts_where_the_disk_says_nothing(tmp_path: Path) -> None:
    """And the log says what that means."""
    usage = PlayedUsage()
    usage.fault = StateError("usage: no disk")
    wanted = {"chat": FrontendSettings(auth=AuthSettings(keys_file=tmp_path / "keys"), usage=UsageSettings())}
    used_up = UsedUp(FrontendPlaces(tmp_path), usage, lambda: wanted, lambda: 0.0)
    with capture_logs() as log:
        await used_up.tell()
    assert [(each["event"], each["reason"]) for each in log] == [("bounds.begin_anew", "usage: no disk")]
