"""Opens sockets to keep hold of their inodes. A file system that hangs delays only its own callers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from gateway_sidecar.supervision.own_thread import OwnThread

_PATIENCE_S = 2.0


def open_path(path: Path) -> int:
    """A descriptor of what is at the path, be it a link, not of a connection to it. Raises OSError. Blocks."""
    return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)


class Handles:
    """Opens paths in a thread of its own."""

    def __init__(
        self, name: str, *, opened_by: Callable[[Path], int] = open_path, patience_s: float = _PATIENCE_S
    ) -> None:
        self._thread = OwnThread(f"pins {name}")
        self._open = opened_by
        self._patience_s = patience_s

    async def open(self, paths: Iterable[Path]) -> list[int | OSError]:
        """For each path, in order, its descriptor, which is the caller's to close, or why there is none.

        What does not come in time is missing at the end, and closed should it come later.
        """
        if self._thread.hangs:
            return []  # It was waited for once: others are looked for meanwhile.
        batch = _Batch(paths, self._open)
        try:
            await self._thread.run(batch.open, patience_s=self._patience_s)
        except TimeoutError:
            return batch.take()
        except BaseException:
            _close(batch.take())
            raise
        return batch.take()


class _Batch:
    """Paths that are opened one after the other, for as long as somebody waits for them."""

    def __init__(self, paths: Iterable[Path], opened_by: Callable[[Path], int]) -> None:
        self._paths = list(paths)
        self._open = opened_by
        self._lock = threading.Lock()
        self._opened: list[int | OSError] = []
        self._is_taken = False

    def open(self) -> None:
        for path in self._paths:
            try:
                opened: int | OSError = self._open(path)
            except OSError as error:
                opened = error
            with self._lock:
                if self._is_taken:
                    _close([opened])
                    return
                self._opened.append(opened)

    def take(self) -> list[int | OSError]:
        """What there is by now."""
        with self._lock:
            self._is_taken = True
            return self._opened


def _close(opened: Iterable[int | OSError]) -> None:
    for each in opened:
        if isinstance(each, int):
            os.close(each)
