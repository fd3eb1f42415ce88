"""The access log's file: made for nginx, bounded, and rotated. nginx writes it; the daemon renames it and has nginx
open it anew, and nothing of it is in the path of a request.

A rotation that was cut off is finished by the next look, also by the next daemon's: what counts is which files there
are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from gateway_sidecar.config.access_log import AccessLogSettings
from gateway_sidecar.files.own import keep_directory
from gateway_sidecar.files.replace import open_to_append, put_in_place
from gateway_sidecar.supervision.own_thread import BRIEF_DISK_S, OwnThread

_SYSLOG = ",nohostname,tag=gateway_sidecar,severity=info"


class AccessLog:
    """Where lines go, and how many are kept.

    target: what nginx is to be given: a file, or `syslog:...`; None for nowhere. trouble: why it is None, or the file
    is not rotated as it should be.
    """

    def __init__(self, settings: AccessLogSettings, state_dir: Path, reopen: Callable[[], None]) -> None:
        self._settings = settings
        self.path = settings.file(state_dir)
        self._reopen = reopen
        self._thread = OwnThread("access log")
        self._is_on = False
        self._is_open = False
        self.trouble = ""
        self.target: str | None = None

    async def switch(self, *, on: bool) -> None:
        """Whether any service logs: nothing is made where none does."""
        was, self._is_on = self._is_on, on
        if on != was:
            self._is_open = False
            await self.look()

    async def look(self) -> None:
        """Makes the file if it is not there, rotates it if it has grown too long. Never raises."""
        if not self._is_on:
            self.trouble, self.target = "", None
            return
        if self._settings.syslog is not None:
            self.target = f"syslog:server={self._settings.syslog}{_SYSLOG}"
            return
        try:
            changed, trouble = await self._thread.run(partial(self._keep, self.path), patience_s=BRIEF_DISK_S)
        except TimeoutError:
            self.trouble = f"cannot look at {self.path}: the file system does not answer"
            return  # nginx has it open, or does not: nothing is known that would change anything.
        except OSError as error:
            self.trouble = f"cannot write {self.path}: {error.strerror or error}"
            self.target = None
            return
        self.trouble, self.target = trouble, str(self.path)
        if changed or not self._is_open:  # Also if an earlier daemon ended between the two.
            self._is_open = True
            self._reopen()

    def _keep(self, path: Path) -> tuple[bool, str]:
        """Whether nginx has to open another file, and what could not be done. Raises OSError. Blocks."""
        keep_directory(path.parent)
        made = not os.path.lexists(path)
        descriptor = open_to_append(path)
        try:
            if os.fstat(descriptor).st_size <= self._settings.max_mb << 20:
                return made, ""
            try:
                self._shift(path)
            except OSError as error:
                os.ftruncate(descriptor, 0)  # Its bound comes before what is in it.
                return False, f"cannot rotate {path}: {error.strerror}; its lines were thrown away"
        finally:
            os.close(descriptor)
        os.close(open_to_append(path))
        return True, ""

    def _shift(self, path: Path) -> None:
        """The file gets the first number, and each numbered one the next; those beyond the last are removed."""
        numbered = [path.with_name(f"{path.name}.{number}") for number in range(1, self._settings.keep + 1)]
        for old, new in reversed(list(zip([path, *numbered], numbered, strict=False))):
            with suppress(FileNotFoundError):
                put_in_place(old, new)
        if not numbered:
            path.unlink()
