"""What nginx has counted of its clients' use. `share/usage.lua` is the other half, and says what is in the files.

Each worker has a file, which stays when it ends: so nothing is lost with an nginx that is killed. A file of which all
is known elsewhere can be removed once no worker has it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway_sidecar.domain.usage import Usage, UsageKey

MOST_ROWS = 65536
"""Combinations that one worker tells apart: 10,000 keys with six models each."""

_HEADER, _FIELDS, _NUMBER, _NAMES_EACH = 512, 8, 8, 160  # as in usage.lua
_MADE = 20261129.0  # as in usage.lua: the files' form, by the day it was made
_HEAD = struct.Struct("=d16sd")
_ROW = struct.Struct("=8d")
_LENGTH = struct.Struct("<H")
_LONGEST = 1024
"""A name with its length: two of services, one of a key and one of a model, each of which nginx cuts."""


def counts_at(directory: Path) -> Path:
    """Where the files are, in nginx's directory."""
    return directory / "usage"


@dataclass(frozen=True, slots=True)
class Counted:
    """One file: `epoch` is its own for ever, and `numbers` has a row for each of `keys`."""

    name: str
    epoch: str
    numbers: bytes
    keys: Sequence[UsageKey]

    def row(self, number: int) -> bytes:
        """The numbers of one row, as they are in the file."""
        return self.numbers[number * _ROW.size : (number + 1) * _ROW.size]


def usage_in(row: bytes) -> Usage:
    """What a row says."""
    return Usage(*map(int, _ROW.unpack(row)))


def packed(usage: Usage) -> bytes:
    """The row that says this."""
    return _ROW.pack(*usage)


class UsageCounts:
    """The files of all workers that have counted since they were last removed. All methods block, and raise OSError."""

    def __init__(self, directory: Path, most_rows: int = MOST_ROWS) -> None:
        self.directory = directory
        self._names_at = _NUMBER * (_HEADER + most_rows * _FIELDS)
        self._names: dict[str, _Names] = {}

    def read(self) -> Sequence[Counted]:
        """What each file says now."""
        found = (self._read(name) for name in sorted(os.listdir(self.directory)) if name.isdigit())
        counted = [it for it in found if it is not None]
        self._names = {it.epoch: self._names[it.epoch] for it in counted}
        return counted

    def remove(self, counted: Counted) -> bool:
        """Removes a file of which all is known, if no worker has it, and it still says the same; whether it did."""
        with (self.directory / counted.name).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if self._read(counted.name) != counted:
                return False
            (self.directory / counted.name).unlink()
            return True

    def _read(self, name: str) -> Counted | None:
        """One file; None for one that its worker has not made yet."""
        with (self.directory / name).open("rb") as file:
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return None
            made, raw, used = _HEAD.unpack(head)
            if made != _MADE:
                return None
            rows, epoch = int(used), raw.hex()
            names = self._names.setdefault(epoch, _Names([], self._names_at))
            if len(names.keys) < rows:
                names.read(os.pread(file.fileno(), (rows - len(names.keys)) * _LONGEST, names.at), rows)
            return Counted(name, epoch, os.pread(file.fileno(), rows * _ROW.size, _NUMBER * _HEADER), names.keys[:rows])


@dataclass(slots=True)
class _Names:
    """Whose the rows of a file are, as far as they have been read, and where the next name is."""

    keys: list[UsageKey]
    at: int

    def read(self, text: bytes, rows: int) -> None:
        """Takes the names of so many rows in all."""
        at = 0
        while len(self.keys) < rows:
            (length,) = _LENGTH.unpack_from(text, at)
            at += _LENGTH.size + length
            frontend, service, key, model = text[at - length : at].decode("utf-8", "replace").split("\0")
            self.keys.append(UsageKey(frontend, service, key, model))
        self.at += at
