"""What nginx balances by itself, for services without a router: which engines there are, and what is on each.

`share/balance.lua` is the other half. The engines of a slot are a file, named by a symbolic link that is replaced: it
says which bridges get requests from the next one on, and all that the daemon wants to know of them when it comes back.
The counts are a file that nginx's workers have mapped, one row for each worker, which counts while its worker lives.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from secrets import token_hex

from gateway_sidecar.domain.model import ConnectionMode, Registered, WorkerStatus, WorkerType
from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import replace_file, replace_link

ENDPOINTS = "endpoints"
"""The directory of the slots' engines, in `run_dir`."""
ROWS = 512
"""Workers of one nginx that may live at the same time: those of reloads before live as long as their last stream."""

_FIELDS, _HEADER = 4, 512  # as in balance.lua
_ROWS_USED, _CHANGES = range(2)
_IN_FLIGHT, _REQUESTS, _FLOWS = range(3)
_NUMBER = 8  # bytes of a double, as in balance.lua
_DOUBLE = struct.Struct("d")
_LOCK = struct.Struct("hhqqi4x")


def in_flight_at(directory: Path, first_port: int, last_port: int) -> Path:
    """The file of counts, in nginx's directory; of another shape, for another range of ports, it is another file."""
    return directory / f"in-flight-{first_port}-{last_port}"


class Endpoints:
    """The engines that each slot's requests go to."""

    def __init__(self, directory: Path, on_change: Callable[[], None]) -> None:
        self.directory = directory
        self._on_change = on_change
        self._read: dict[str, tuple[str, dict[str, Registered]]] = {}

    def read(self, slot: str) -> dict[str, Registered]:
        """Worker URL -> worker, as they are in force; empty for a slot without any. Raises OSError."""
        try:
            name = str((self.directory / slot).readlink())
            known, workers = self._read.get(slot, ("", {}))
            if known != name or not (self.directory / name).exists():
                lines = (self.directory / name).read_text().splitlines()
                workers = {it.url: it for it in map(_registered, lines) if it is not None}
                self._read[slot] = name, workers
            return dict(workers)
        except FileNotFoundError:
            return {}

    def write(self, slot: str, workers: Mapping[int, list[Registered]]) -> None:
        """Puts these in force: a bridge's port -> its workers. Raises OSError."""
        make_directory(self.directory, 0o700)
        lines = [
            f"{port} {json.dumps(asdict(worker))}\n" for port, those in sorted(workers.items()) for worker in those
        ]
        link = self.directory / slot
        fresh = f"{slot}.{token_hex(6)}"
        replace_file(self.directory / fresh, "".join(lines))
        replace_link(link, fresh)
        self._on_change()
        self._tidy(slot, fresh)

    def remove(self, slot: str) -> None:
        """There are none any more. Raises OSError."""
        (self.directory / slot).unlink(missing_ok=True)
        self._tidy(slot, "")

    def keep_only(self, slots: Container[str]) -> None:
        """Removes those of all other slots: nobody is to find them there later. Raises OSError."""
        with suppress(FileNotFoundError):
            for link in list(self.directory.iterdir()):
                if link.is_symlink() and link.name not in slots:
                    self.remove(link.name)

    def _tidy(self, slot: str, kept: str) -> None:
        for file in self.directory.glob(f"{slot}.*"):
            if file.name != kept and not file.is_symlink() and file.name.rpartition(".")[0] == slot:
                file.unlink(missing_ok=True)


def _registered(line: str) -> Registered | None:
    """One worker of a file; None for what another version has written."""
    try:
        said = json.loads(line.partition(" ")[2])
        said["status"] = WorkerStatus(said["status"])
        said["worker_type"] = WorkerType(said["worker_type"])
        said["connection_mode"] = ConnectionMode(said["connection_mode"])
        return Registered(**said)
    except (ValueError, TypeError, KeyError):
        return None


class InFlight:
    """What nginx has counted at each bridge's port. Nothing is in flight while it has not been begun."""

    def __init__(self, directory: Path, first_port: int, last_port: int) -> None:
        self._path = in_flight_at(directory, first_port, last_port)
        self._first = first_port
        self._row_size = (last_port - first_port + 1) * _FIELDS
        self._size = _NUMBER * (_HEADER + ROWS * self._row_size)
        self._fd = -1
        self._map: mmap.mmap | None = None

    def begin(self) -> None:
        """For an nginx that starts: nothing is in flight. Raises OSError."""
        self._path.unlink(missing_ok=True)
        self.keep()

    def keep(self) -> None:
        """Takes up the file as it is, or makes it: nginx is about to be told of it. Raises OSError."""
        if self._map is not None and self._path.exists():
            return
        if self._map is not None:
            self._map.close()
            os.close(self._fd)
        self._map = None
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, self._size)  # Only what is written to takes memory.
        self._map = mmap.mmap(self._fd, self._size)

    def note_change(self) -> None:
        """Has nginx's workers look at their engines anew with the next request."""
        if self._map is not None:
            number = _DOUBLE.unpack_from(self._map, _NUMBER * _CHANGES)[0]
            _DOUBLE.pack_into(self._map, _NUMBER * _CHANGES, number + 1)

    def count(self, ports: Iterable[int] | None = None) -> Counter[int]:
        """Requests that are on the engines behind these ports, or all, now."""
        ports = range(self._first, self._first + self._row_size // _FIELDS) if ports is None else ports
        return Counter({port: int(number) for port, number in self._sums(_IN_FLIGHT, ports).items() if number > 0})

    def requests(self, ports: Iterable[int]) -> Mapping[int, float]:
        """Requests that each has got since nginx began."""
        return self._sums(_REQUESTS, ports)

    def flows(self, ports: Iterable[int]) -> Mapping[int, float]:
        """Pieces of answers that have passed since nginx began."""
        return self._sums(_FLOWS, ports)

    def _sums(self, field: int, ports: Iterable[int]) -> dict[int, float]:
        """What workers say together: of what is in flight those that live."""
        counts = self._map
        if counts is None:
            return {}
        sums = dict.fromkeys(ports, 0.0)
        used = int(_DOUBLE.unpack_from(counts, _NUMBER * _ROWS_USED)[0])
        for row in self._living() if field == _IN_FLIGHT else (*range(min(used, ROWS - 1)), ROWS - 1):
            for port in sums:
                at = _HEADER + row * self._row_size + (port - self._first) * _FIELDS + field
                sums[port] += _DOUBLE.unpack_from(counts, _NUMBER * at)[0]
        return sums

    def _living(self) -> Iterator[int]:
        """Rows whose worker lives: it holds a lock there. The last one is that of all who found no other free."""
        at, last = 0, ROWS - 1
        while at < last:
            asked = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, last - at, 0)
            kind, _, start, _, _ = _LOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_GETLK, asked))
            if kind == fcntl.F_UNLCK:
                break
            yield start
            at = start + 1
        yield last
