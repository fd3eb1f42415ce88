"""The keys of the store: `keys/NAME` for each key, `keys/@NAME` for each plan. Only hashes are there.

This gateway has them in a file of its own, with its share of their limits, which frontends look at like at any other
file of keys. While the store is away that file stays as it is, and so does nginx.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from gateway_sidecar.control.fleet.membership import Membership
from gateway_sidecar.control.fleet.reflector import KEYS, StoreReflector
from gateway_sidecar.domain.store_memory import Snapshot
from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import replace_file
from gateway_sidecar.frontend.keys import KeyFile
from gateway_sidecar.frontend.stored_keys import lines_of, read_stored, share_of
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import beating, heartbeat
from gateway_sidecar.supervision.own_thread import DISK_S, OwnThread
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.problems import Problem

_HEAD = (
    "# Keys of the store, with this gateway's share of their limits. Change them with `gateway-sidecar key --store`.\n"
)
_AGAIN_S = 2.0  # After a write that failed: as often as other loops look.
_FEW = 3  # As many as a line of `status` has room for.


class FleetKeys:
    """What the store has of keys, as far as this gateway believes it. place: the file of this gateway."""

    def __init__(self, reflector: StoreReflector, membership: Membership, place: Path, problem: Problem) -> None:
        self._reflector = reflector
        self._membership = membership
        self.place = place
        self._problem = problem
        self._thread = OwnThread("keys of the store")
        self._logger = get_logger()
        self._due = asyncio.Event()
        self._seen: tuple[dict[str, str], int] | None = None
        self._text = _HEAD
        self._written: str | None = None
        self._trouble = ""
        self.refused: dict[str, str] = {}
        """Entries that do not count -> why."""
        reflector.on_change(self._take_in)

    @property
    def shared_by(self) -> int:
        """How many gateways are alive, and so share the limits."""
        return 1 + len(self._membership.others)

    def entries(self) -> dict[str, tuple[str, int]]:
        """The name of each entry -> its line, and its revision."""
        known = self._reflector.known
        entries = known.entries if known is not None else {}
        return {key.removeprefix(KEYS): (it.value, it.revision) for key, it in entries.items() if key.startswith(KEYS)}

    async def write(self, name: str, line: str | None, seen: int | None) -> int:
        """Writes one entry, or removes it for None, if its revision is still `seen`; the revision of that write.

        Raises ValueError if then an entry could not count that does now, or the new one; StoreConflict, StoreError.
        """
        entries = {entry: text for entry, (text, _) in self.entries().items() if entry != name}
        fresh = read_stored(entries if line is None else {**entries, name: line}).refused
        for entry in sorted(fresh.keys() - self.refused.keys() | (fresh.keys() & {name})):
            raise ValueError(f"{entry}: {fresh[entry]}")
        return await self._reflector.swap(KEYS + name, line, seen=seen)

    async def load(self) -> None:
        """Before frontends look: the file is as it was known last. Where nothing is known, one that is there stays."""
        await self._write(keep=self._seen is None)

    async def run(self) -> None:
        """Brings the file up to date until cancelled."""
        while True:
            heartbeat()
            self._due.clear()
            if self._seen is not None and self._text != self._written:
                await beating(self._write())
            await awake.until_set(self._due, _AGAIN_S)

    def _take_in(self, snapshot: Snapshot) -> None:
        entries = {key.removeprefix(KEYS): it.value for key, it in snapshot.entries.items() if key.startswith(KEYS)}
        if self._seen == (entries, self.shared_by):
            return
        self._seen = entries, self.shared_by
        stored = read_stored(entries)
        self._text = _text(share_of(stored.file, self.shared_by))
        for name, why in stored.refused.items():
            if self.refused.get(name) != why:
                self._logger.error("store.key_refused", key=name, reason=why)
        self.refused = dict(stored.refused)
        self._tell()
        self._due.set()

    async def _write(self, *, keep: bool = False) -> None:
        text = self._text
        try:
            await self._thread.run(partial(_put, self.place, text, keep=keep), patience_s=DISK_S)
        except OSError as error:  # A TimeoutError is one, too.
            self._trouble = f"{self.place}: {error or 'the disk does not answer'}; the keys before stay in force"
        else:
            self._written, self._trouble = text, ""
        self._tell()

    def _tell(self) -> None:
        names = sorted(self.refused)
        more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
        refused = ", ".join(f"'{name}' {self.refused[name]}" for name in names[:_FEW]) + more
        self._problem.set("; ".join(filter(None, [refused, self._trouble])))


def _text(file: KeyFile) -> str:
    return _HEAD + "".join(f"{line}\n" for line in lines_of(file).values())


def _put(place: Path, text: str, *, keep: bool) -> None:
    """keep: a file that is there stays as it is."""
    if keep and place.exists():
        return
    make_directory(place.parent)
    replace_file(place, text)
