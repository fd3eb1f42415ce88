"""What clients use: requests and tokens, by frontend, service, key and model. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

OTHERS = "(others)"
"""In the place of a name where there are more than can be told apart."""


class UsageKey(NamedTuple):
    """Whose use it is.

    frontend: the service or shared address whose frontend let the request in.
    service: the service that answered; that of `frontend` where none was found.
    key: the name of the client's key, or of its certificate; empty for none.
    model: as the client named it; empty where it is not known.
    """

    frontend: str
    service: str
    key: str
    model: str


class Usage(NamedTuple):
    """How much it is. All that a client asks of an engine is one of `requests`.

    refused: got a status of 4xx. failed: got 5xx. aborted: its answer did not reach its client as a whole.
    streams: of all that were answered, those that were streamed.
    tokens_in, tokens_out: as the answers say.
    unknown: answers whose tokens nobody knows: cut off, or not said.
    """

    requests: int = 0
    refused: int = 0
    failed: int = 0
    aborted: int = 0
    streams: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    unknown: int = 0

    def since(self, before: Usage) -> Usage:
        """What came after `before`."""
        return Usage(*(one - two for one, two in zip(self, before, strict=True)))


NONE = Usage()


def total(usages: Iterable[Usage]) -> Usage:
    """All together."""
    return Usage(*map(sum, zip(NONE, *usages, strict=True)))


Series = tuple[str, str, str]
"""A service, a key's name and a model, as metrics are labelled with them."""


class NamedSeries:
    """Which series have labels of their own: `most` at once, those with the most use. All others share one.

    A series that gets its own labels counts there from then on, so that no sum ever shrinks.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._use: dict[Series, int] = {}
        self._named: set[Series] = set()

    def note(self, changes: Sequence[tuple[UsageKey, Usage]]) -> tuple[list[tuple[Series, Usage]], set[Series]]:
        """What is to be added to which labels, and which labels are to go."""
        for key, usage in changes:
            series = (key.service, key.key, key.model)
            self._use[series] = self._use.get(series, 0) + usage.requests + usage.tokens_in + usage.tokens_out
        gone = self._rank()
        added = []
        for key, usage in changes:
            series = (key.service, key.key, key.model)
            added.append((series if series in self._named else (key.service, OTHERS, OTHERS), usage))
        return added, gone

    def _rank(self) -> set[Series]:
        """Names those that are used most. One that is named gives way to one with twice its use: they change seldom."""
        free = self._most - len(self._named)
        waiting = sorted(self._use.keys() - self._named, key=lambda it: (-self._use[it], it))
        self._named.update(waiting[:free])
        gone = set()
        least = sorted(self._named, key=lambda it: (self._use[it], it))
        for fresh, old in zip(waiting[max(0, free) :], least, strict=False):
            if self._use[fresh] <= 2 * self._use[old]:
                break
            self._named.remove(old)
            self._named.add(fresh)
            gone.add(old)
        return gone
