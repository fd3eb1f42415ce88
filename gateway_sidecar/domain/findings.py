"""What `check` found. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, and how it is."""

    level: Level
    text: str

    @property
    def failed(self) -> bool:
        """Whether the daemon could not work like this."""
        return self.level is Level.FAIL

    def line(self) -> str:
        """The finding as `check` prints it."""
        return f"{self.level.value:<5} {self.text}"
