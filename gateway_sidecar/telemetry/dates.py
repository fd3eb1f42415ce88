"""Dates of events: they stand in the log, and people ask for them. Nothing is decided by them."""

from __future__ import annotations

from datetime import UTC, datetime


def seconds_of(text: str) -> float:
    """Seconds since 1970 of a date and time in RFC 3339. Raises ValueError, OverflowError."""
    return datetime.fromisoformat(text.upper()).timestamp()


def ago_s(seconds: float) -> float:
    """Seconds since 1970, so many seconds ago."""
    return datetime.now(UTC).timestamp() - seconds


def local_time(text: str) -> str:
    """A date and time for people, in their own time: with the day, unless that is today. `-` for what is no date."""
    try:
        at = datetime.fromisoformat(text).astimezone()
    except ValueError:
        return "-"
    is_today = at.date() == datetime.now(at.tzinfo).date()
    return at.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S")


def utc_now() -> str:
    """Now, as the log has it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
