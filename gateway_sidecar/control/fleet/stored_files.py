"""Texts of the store in files of this gateway's own, which others look at like at any other file.

While the store is away, or not believed, the files stay as they are; so does each whose text cannot be used. What is
refused is looked at again every minute: this machine's clock may have been wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from gateway_sidecar.control.fleet.reflector import StoreReflector
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.domain.store_memory import Entry, Snapshot
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import beating, heartbeat
from gateway_sidecar.supervision.own_thread import DISK_S, OwnThread
from gateway_sidecar.telemetry.problems import Problem

Take = Callable[[Mapping[str, str]], Mapping[str, str]]
"""Has files say what these texts do, by their names; which of them it refuses, and why. Blocks. Raises OSError."""
_AGAIN_S = 2.0  # After a write that failed: as often as other loops look.
_REFUSED_AGAIN_S = 60.0  # A choice: a clock that was wrong, or a disk that was full, is mended in minutes.
_FEW = 3  # As many as a line of `status` has room for.


class StoredFiles:
    """What is below one prefix of the store.

    refuse: hears of each text that is refused, once for each reason.
    on_taken: called when the files are as the store says.
    """

    def __init__(
        self,
        reflector: StoreReflector,
        prefix: str,
        take: Take,
        problem: Problem,
        refuse: Callable[[str, str], None] = lambda name, why: None,
        on_taken: Callable[[], None] = lambda: None,
    ) -> None:
        self._reflector = reflector
        self._prefix = prefix
        self._take = take
        self._problem = problem
        self._refuse = refuse
        self._on_taken = on_taken
        self._thread = OwnThread(f"files of {prefix}")
        self._due = asyncio.Event()
        self._wanted: dict[str, str] | None = None
        self._again_at = 0.0
        """When what is refused is looked at again (awake seconds)."""
        self.taken: dict[str, str] | None = None
        """What the files say, but for what is refused; None before the first look."""
        self.refused: dict[str, str] = {}
        """Texts that cannot be used -> why."""
        reflector.on_change(self._note)

    def entries(self) -> dict[str, Entry]:
        """What the store has, as it was known last."""
        known = self._reflector.known
        return {} if known is None else below(self._prefix, known)

    async def load(self) -> None:
        """Before others look: the files are as it was known last. Where nothing is known, they stay as they are."""
        if self._wanted is not None:
            await self._bring()

    async def run(self) -> None:
        """Brings the files up to date until cancelled."""
        while True:
            heartbeat()
            self._due.clear()
            if self._wanted is not None and (self._wanted != self.taken or self._is_again_due()):
                await beating(self._bring())
            await awake.until_set(self._due, _AGAIN_S)

    def _is_again_due(self) -> bool:
        return bool(self.refused) and awake.now() >= self._again_at

    def _note(self, snapshot: Snapshot) -> None:
        wanted = {name: entry.value for name, entry in below(self._prefix, snapshot).items()}
        if wanted != self._wanted:
            self._wanted = wanted
            self._due.set()

    async def _bring(self) -> None:
        assert self._wanted is not None
        wanted = self._wanted
        try:
            refused = await self._thread.run(partial(self._take, wanted), patience_s=DISK_S)
        except OSError as error:  # A TimeoutError is one, too.
            self._tell(f"{error or 'the disk does not answer'}; what was there before stays in force")
            return
        for name, why in refused.items():
            if self.refused.get(name) != why:
                self._refuse(name, why)
        self.refused, self.taken = dict(refused), wanted
        self._again_at = awake.now() + _REFUSED_AGAIN_S
        self._tell()
        self._on_taken()

    def _tell(self, trouble: str = "") -> None:
        names = sorted(self.refused)
        more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
        told = ", ".join(f"'{printable(name)}': {self.refused[name]}" for name in names[:_FEW]) + more
        self._problem.set("; ".join(filter(None, [told, trouble])))


def below(prefix: str, snapshot: Snapshot) -> dict[str, Entry]:
    """What is there of a prefix, by the rest of its names."""
    return {key.removeprefix(prefix): it for key, it in snapshot.entries.items() if key.startswith(prefix)}
