"""How long to wait before the next try."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays: `first_s`, then `factor` times more after each failure, `most_s` at the most."""

    first_s: float
    most_s: float
    factor: float = 2.0

    def delay_s(self, failures: int) -> float:
        """The delay after `failures` failures in a row, in seconds; none after none."""
        if failures <= 0:
            return 0.0
        return float(min(self.most_s, self.first_s * self.factor ** min(failures - 1, 32)))
