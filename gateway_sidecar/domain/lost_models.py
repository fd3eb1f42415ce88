"""Which models a service has answered for and does not now, though it answers for others. Pure; the time is passed in.

A router knows such a model no more, and says so: to a client that looks as if the model had never been there.
"""

from __future__ import annotations

from collections.abc import Collection

REMEMBERED_S = 600.0
"""Most engines whose socket went with them load their model again within this. A request waits for `hold.asleep_s`."""


class LostModels:
    """One service's. A model is lost while nobody answers for it. It is forgotten after a while, or at once if an
    engine that serves on has it no more.
    """

    def __init__(self) -> None:
        self._answered: frozenset[str] = frozenset()
        self._lost: dict[str, float] = {}

    @property
    def any_lost(self) -> bool:
        """Whether there may be one."""
        return bool(self._lost)

    def recall(self, models: Collection[str], now: float) -> None:
        """An earlier daemon's service had lost these."""
        self._lost |= dict.fromkeys(models, now)

    def note(self, answered: frozenset[str], dropped: Collection[str], now: float) -> None:
        """The service answers for these now; an engine that serves on has `dropped` those."""
        lost = dict.fromkeys(self._answered - answered, now) | self._lost
        self._lost = {it: since for it, since in lost.items() if it not in answered and it not in dropped}
        self._answered = answered

    def remembered(self, had: Collection[str], now: float) -> frozenset[str]:
        """Those that are waited for. `had`: the models of replicas that are not gone, whether they serve or not."""
        self._lost = {it: since for it, since in self._lost.items() if now - since <= REMEMBERED_S or it in had}
        return frozenset(self._lost)
