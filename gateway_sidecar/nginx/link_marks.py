"""Further names of bridges' links, which say which replica a link is for: `PORT~MARK.sock` beside `PORT.sock`.

A router in a mesh asks for a worker by a URL with its replica's mark (`domain/mesh.py`), and nginx takes the link with
that mark. So a URL that another gateway's router told it leads to the replica that is meant there, or nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path

from gateway_sidecar.files.replace import replace_link

LONGEST_LINK = "65535~123456.sock"


class LinkMarks:
    """The marks of all links in one directory. A port has one at the most."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._by_port: dict[int, str] | None = None

    def of(self, port: int) -> str:
        """The port's mark; empty if it has none."""
        return self._known().get(port, "")

    def make(self, port: int, mark: str) -> None:
        """The port's link is for this replica. Raises OSError."""
        if not (self._directory / _name(port, mark)).is_symlink():
            replace_link(self._directory / _name(port, mark), f"{port}.sock")
        self._known()[port] = mark

    def remove(self, port: int) -> None:
        """Nothing that has the port's mark leads anywhere. Raises OSError."""
        mark = self._known().get(port)
        if mark is not None:
            (self._directory / _name(port, mark)).unlink(missing_ok=True)
            del self._known()[port]

    def missing_in(self, names: Container[str]) -> set[int]:
        """The ports whose mark is not among these names, which are without `.sock`."""
        return {port for port, mark in self._known().items() if f"{port}~{mark}" not in names}

    def _known(self) -> dict[int, str]:
        """Port -> mark; an earlier daemon's are looked for once."""
        if self._by_port is None:
            names = (name.removesuffix(".sock").partition("~") for name in _names_in(self._directory))
            self._by_port = {int(port): mark for port, _, mark in names if mark and port.isdigit()}
        return self._by_port


def _names_in(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []  # It is made before the first link is.


def _name(port: int, mark: str) -> str:
    return f"{port}~{mark}.sock"
