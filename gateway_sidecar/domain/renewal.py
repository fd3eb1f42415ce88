"""When a certificate is ordered anew, and when again after a failure. Times are seconds since 1970."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from gateway_sidecar.domain.backoff import Backoff
from gateway_sidecar.domain.printable import printable

DAY_S = 86400.0

_DUE = 2 / 3
"""Of its lifetime: as Let's Encrypt's integration guide advises, a third is left for failures."""
_SPREAD = 1 / 30
"""So much of its lifetime earlier at the most (3 of 90 days): what was ordered together is not renewed together."""
_LAST = 1 / 6
"""Half of what is left when it is due: then people are told."""
_FIRST_S, _FACTOR = 60.0, 10.0
"""Let's Encrypt's integration guide: after 1, 10 and 100 minutes, then once a day. So no more than three orders fail in
an hour; its limit is five failed validations of a name an hour."""
_HOUR_S = 3600.0
"""While there is no certificate that can be served, clients wait: an hour is within that limit, too."""
_MOST_ASKED_S = 8 * DAY_S
"""Let's Encrypt's longest limits count over a week."""
_OF_LIFETIME = 1 / 24
"""A certificate of a day is ordered again after an hour, as one of 24 days and more is after a day."""
_LATEST = 253_402_300_799.0
"""The end of the year 9999: no later time can be told."""


@dataclass(frozen=True, slots=True)
class Validity:
    """From when to when a certificate is good."""

    begins_at: float
    ends_at: float

    @property
    def lifetime_s(self) -> float:
        """How long it is good as a whole."""
        return self.ends_at - self.begins_at

    def renewal_at(self, share: float, suggested_at: float | None = None) -> float:
        """When the next one is to be ordered. share: 0 to 1, the certificate's own part of the spread.

        suggested_at: when the server would have it renewed, if it says so; not later than when people are told.
        """
        if suggested_at is not None:
            return min(suggested_at, self.ends_at - self.last_s)
        return self.begins_at + self.lifetime_s * (_DUE - share * _SPREAD)

    @property
    def last_s(self) -> float:
        """How long before its end people are told, if it is still there."""
        return self.lifetime_s * _LAST


@dataclass(frozen=True, slots=True)
class Tries:
    """The orders in a row that brought nothing.

    next_at: the next one is not before that. reason: of the last failure. asked: whether the server named the time.
    unended: how many of them, the last ones, have only begun: each counts as failed until it ends.
    """

    failures: int = 0
    next_at: float = 0.0
    reason: str = ""
    asked: bool = False
    unended: int = 0

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Tries:
        """As somebody has written it down: this gateway, another one, or neither.

        Raises ValueError, TypeError, AttributeError, OverflowError for what no gateway wrote.
        """
        it = cls(**{each.name: said[each.name] for each in fields(cls) if each.name in said})
        counts, next_at = (it.failures, it.unended), float(it.next_at)
        if not (all(type(count) is int and count >= 0 for count in counts) and math.isfinite(next_at)):
            raise ValueError("they are no tries")
        return cls(it.failures, min(next_at, _LATEST), printable(str(it.reason)), it.asked is True, it.unended)

    def begun(self, now: float, reason: str, validity: Validity | None) -> Tries:
        """One more, which has not ended yet."""
        return replace(self.failed(now, reason, validity), unended=self.unended + 1)

    def failed(self, now: float, reason: str, validity: Validity | None, asked_s: float = 0.0) -> Tries:
        """One more. asked_s: how long the server wants to be left alone."""
        wait_s = longest_wait_s(now, validity)
        wait_s = Backoff(_FIRST_S, wait_s, _FACTOR).delay_s(self.failures + 1)
        asked_s = min(asked_s, _MOST_ASKED_S)
        return Tries(self.failures + 1, now + max(wait_s, asked_s), reason, asked_s > wait_s)


def longest_wait_s(now: float, validity: Validity | None) -> float:
    """The longest pause after failures, unless the server asks for more."""
    if validity is None or now >= validity.ends_at:
        return _HOUR_S
    return min(DAY_S, max(validity.lifetime_s * _OF_LIFETIME, _FIRST_S))


def order_at(now: float, validity: Validity | None, renewal_at: float, tries: Tries) -> float:
    """When the next order is due; not later than `now` if it is due already. renewal_at: if nothing had failed.

    No pause is so long as one that a clock made that was wrong when the last one failed: it is over.
    """
    due = 0.0 if validity is None else renewal_at
    most_s = _MOST_ASKED_S if tries.asked else longest_wait_s(now, validity)
    is_pause = tries.next_at <= now + 2 * most_s  # Clocks of gateways may differ by some seconds.
    return max(due, tries.next_at if is_pause else now)
