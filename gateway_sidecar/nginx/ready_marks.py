"""The files by which nginx knows what to answer a load balancer that asks whether it should send requests here.

They lie beside the gates and need no reload, and nginx goes on answering by them while no daemon runs.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from gateway_sidecar.nginx.config import LAST_ANSWERS, LEAVING, UNREADY


class ReadyMarks:
    """The marks in the directory of the gates. Its methods raise OSError."""

    def __init__(self, gates: Path) -> None:
        self._gates = gates

    def mark(self, name: str, *, ready: bool) -> bool:
        """Says of a service or a shared address whether it is ready; whether that is news."""
        file = self._gates / (name + UNREADY)
        if file.exists() is not ready:
            return False
        if ready:
            file.unlink(missing_ok=True)
        else:
            file.touch()
        return True

    def keep_only(self, names: set[str]) -> None:
        """Forgets services that are no more: one that comes again is another."""
        marks: list[str] = []
        with suppress(FileNotFoundError):  # Somebody removed the run directory, which is made again.
            marks = os.listdir(self._gates)  # No glob: it takes longer than all else of a look, every two seconds.
        for marked in marks:
            if marked.endswith(UNREADY) and marked.removesuffix(UNREADY) not in names:
                (self._gates / marked).unlink(missing_ok=True)

    @property
    def is_leaving(self) -> bool:
        """Whether the gateway is leaving, as nginx has it."""
        return (self._gates / LEAVING).exists()

    def leave(self, *, leaving: bool) -> None:
        """Says that the gateway is leaving, or that it is not. Of one that is leaving each answer ends its client's
        connection: who keeps one goes elsewhere for the next request.
        """
        # In this order: a file that says `last` stays only beside one that says why.
        for name in (LEAVING, LAST_ANSWERS) if leaving else (LAST_ANSWERS, LEAVING):
            if leaving:
                (self._gates / name).touch()
            else:
                (self._gates / name).unlink(missing_ok=True)
