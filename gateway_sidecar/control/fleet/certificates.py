"""The certificates of the store: `tls/certificates/NAME` is one with its chain and its key, in PEM.

This gateway has each in a file of its own, which frontends look at like at any other certificate. What cannot be served
changes nothing there, whoever wrote it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from gateway_sidecar.config.frontend_values import NAME
from gateway_sidecar.control.fleet.reflector import CERTIFICATES, StoreReflector
from gateway_sidecar.control.fleet.stored_files import StoredFiles
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.domain.store_memory import Entry
from gateway_sidecar.errors import FrontendError
from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import replace_file
from gateway_sidecar.frontend.certificate import Certificate, break_in, prove_certificate, today
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.problems import Problem

_NO_NAME = "is no name; use letters, digits and . _ -, 64 at most"


class FleetCertificates:
    """What the store has of them, as far as this gateway believes it. place: the directory of this gateway's files."""

    def __init__(
        self, reflector: StoreReflector, place: Path, problem: Problem, *, now: Callable[[], float] = today
    ) -> None:
        self._reflector = reflector
        self._place = place
        self._now = now
        self._logger = get_logger()
        take = partial(_take, place, now)
        self._files = StoredFiles(reflector, CERTIFICATES, take, problem, self._refuse)
        self.run = self._files.run

    @property
    def refused(self) -> Mapping[str, str]:
        """Entries that cannot be served -> why."""
        return self._files.refused

    def entries(self) -> Mapping[str, Entry]:
        """The name of each -> its PEM, with the key."""
        return self._files.entries()

    async def load(self) -> None:
        """Before frontends look: the files are as it was known last, and there is a directory that can be watched."""
        with suppress(OSError):  # The files tell.
            await asyncio.to_thread(make_directory, self._place, 0o700)
        await self._files.load()

    async def prove(self, pem: str) -> Certificate:
        """What is to be written can be served. Raises FrontendError."""
        return await asyncio.to_thread(_proved, pem, self._now())

    async def write(self, name: str, pem: str | None, seen: int | None) -> int:
        """Writes one that is proved, or removes it for None, if its revision is still `seen`; the revision of that.

        Raises FrontendError for what is no name, StoreConflict, StoreError.
        """
        if pem is not None and not re.fullmatch(NAME, name):  # What somebody else put there can be removed.
            raise FrontendError([f"'{printable(name)}' {_NO_NAME}"])
        return await self._reflector.swap(CERTIFICATES + name, pem, seen=seen)

    def _refuse(self, name: str, why: str) -> None:
        self._logger.error("store.certificate_refused", certificate=printable(name), reason=why)


def _proved(pem: str, now: float) -> Certificate:
    """As a person who puts it has to hear of it: the order of the chain counts, too."""
    proved = prove_certificate(pem.encode(), now)
    if wrong := break_in(proved.pem):
        raise FrontendError([f"the certificate: {wrong}"])
    return proved


def _take(place: Path, now: Callable[[], float], entries: Mapping[str, str]) -> dict[str, str]:
    """Has the files say what the entries do; what of it is refused, whose file stays as it was."""
    make_directory(place, 0o700)
    refused = {}
    for name, pem in entries.items():
        if not re.fullmatch(NAME, name):
            refused[name] = _NO_NAME
            continue
        file, content = place / f"{name}.pem", pem.encode()
        if _content(file) == content:
            continue  # It was good when it came. That it expires is told of what is served.
        try:
            prove_certificate(content, now())
        except FrontendError as error:
            refused[name] = f"{error}; put another one there with `gateway-sidecar certificate put`"
            continue
        replace_file(file, content, synced=True)
    for file in place.glob("*.pem"):
        if file.stem not in entries:
            file.unlink()
    return refused


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
