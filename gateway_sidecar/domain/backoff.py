"""How long to wait before the next try."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays: `first_s`, then `factor` times more after each failure, `most_s` at the most."""

    first_s: float
    most_s: float
    factor: float = 2.0

    def delay_s(self, failures: int, *, jitter: float = 0.0) -> float:
        """The delay after `failures` failures in a row, in seconds; none after none.

        `jitter` in [0, 1) is drawn by the caller and spreads the delay over its upper half.
        """
        if failures <= 0:
            return 0.0
        full: float = min(self.most_s, self.first_s * self.factor ** min(failures - 1, 32))
        return full * (1.0 - jitter / 2)
