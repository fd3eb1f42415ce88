"""Whether the configuration file on disk is what is in force: looked at when it changed, in a thread of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from gateway_sidecar.config import Settings, load_config
from gateway_sidecar.config.differences import Change, differences
from gateway_sidecar.errors import ConfigError, KindError
from gateway_sidecar.files.stamp import stamp_of
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import LOOK_S, heartbeat
from gateway_sidecar.supervision.own_thread import DISK_S, OwnThread

Verdict = Literal["in force", "differs", "invalid", "unreadable"]


class Loaded(Protocol):
    """Who has the settings in force, and since when, in monotonic seconds."""

    settings: Settings
    loaded_at: float


@dataclass(frozen=True, slots=True)
class OnDisk:
    """state: `in force` if a reload would change nothing. changes: what it would change. problems: what is wrong.
    settings: what the file says; None if it cannot be used.
    """

    state: Verdict
    problems: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    settings: Settings | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """Either of them, as text."""
        return self.problems or tuple(str(change) for change in self.changes)


class FileOnDisk:
    """The daemon's file. `found` is what the last look showed, two seconds ago at most, and a while more if the disk
    hangs.
    """

    def __init__(self, path: Path, loaded: Loaded) -> None:
        self.path = path
        self.found = OnDisk("in force")
        self.began_at = awake.monotonic()
        self._loaded = loaded
        self._thread = OwnThread("configuration file")
        self._seen: tuple[object, ...] | None = None

    @property
    def loaded_at(self) -> float:
        """Since when what is in force is, in monotonic seconds; the daemon began at `began_at`."""
        return self._loaded.loaded_at

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            heartbeat()
            await self.look()
            await awake.rest(LOOK_S)

    async def look(self) -> None:
        """One look. A file that has not changed is not read again, unless other settings are in force now."""
        in_force = self._loaded.settings
        look = partial(_look, self.path, in_force, self._seen)
        try:
            seen, found = await self._thread.run(look, patience_s=DISK_S)
        except TimeoutError:
            self._seen, self.found = None, OnDisk("unreadable", ("the file system does not answer",))
            return
        self._seen = seen
        if found is not None:
            self.found = found


def _look(
    path: Path, in_force: Settings, before: tuple[object, ...] | None
) -> tuple[tuple[object, ...] | None, OnDisk | None]:
    """How the file is known again, and what it shows; None where it is the same as before."""
    try:
        there = path.stat()
    except OSError as error:
        return None, OnDisk("unreadable", (f"{path}: {error.strerror}",))
    seen = (stamp_of(there), id(in_force))
    if seen == before:
        return seen, None
    try:
        fresh = load_config(path)
    except ConfigError as error:
        return seen, OnDisk("unreadable" if not os.access(path, os.R_OK) else "invalid", tuple(error.problems))
    except KindError as error:
        return seen, OnDisk("invalid", (str(error),))
    changes = tuple(differences(in_force, fresh))
    return seen, OnDisk("differs" if changes else "in force", changes=changes, settings=fresh)
