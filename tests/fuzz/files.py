"""The edge of watched directories: sockets, links, notes and inventories that anybody may have placed there."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from gateway_sidecar.config.overrides import load_overrides
from gateway_sidecar.config.tunnels import SshDefaults
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.sources.inventory import read_inventory
from gateway_sidecar.sources.placed import OwnSockets
from gateway_sidecar.sources.socket_pattern import SocketPattern
from gateway_sidecar.supervision.own_thread import OwnThread
from tests.fuzz.frame import Edge, Trial
from tests.fuzz.mutation import EVIL_TEXTS, mutated

_NOTES = (
    b"labels: {tier: gold}\nworker_type: prefill\nkv_role: kv_producer\nbootstrap_port: 8998\npriority: 3\n"
    b"advertise: 10.0.0.5:8000\nmodel: tiny\n"
)
_INVENTORY = (
    b"r1: {socket: /run/x/r1.sock, labels: {a: b}}\n"
    b"r2: {ssh: {host: gpu7, forward: 127.0.0.1:8000, agent: /run/agent.sock}}\nr3: {socket: /run/x/r3.sock}\n"
)
_HEAVY = (
    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
    b"c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c]\n",
    b"[" * 5000,
    b"{a: " * 5000,
    b"- " * 5000,
    b"? " * 3000,
    b"a: " + b'"\\x41' * 3000,
    b"!!python/object/apply:os.system [id]\n",
    b"labels: {" + b"".join(b"k%d: v, " % number for number in range(5000)) + b"}\n",
    b"&a " * 2000,
    b"%TAG ! x\n" * 500,
    b"a: 1\n" * 5000,
    b"0x" + b"f" * 5000 + b": 1e9999\n",
)
_NAMES = ("r1.sock", "r1.yaml", "r2.sock", "r2.yaml", "..sock", ".sock", "a" * 250, "r3.sock", "r3.yaml", "r1.key")
_MOST_FILES = 12
_LONGEST = 5000


@contextlib.asynccontextmanager
async def _open(directory: Path) -> AsyncIterator[Trial]:
    run_dir = directory / "run"
    run_dir.mkdir()
    own = socket.socket(socket.AF_UNIX)
    own.bind(str(run_dir / "admin.sock"))
    thread = OwnThread("notes")

    async def trial(source: random.Random) -> str:
        place = directory / "replicas"
        place.mkdir()
        try:
            _litter(source, place, run_dir)
            pattern = source.choice(("{replica}.sock", "{replica}", "{replica}/engine.sock"))
            listing = await SocketPattern(f"{place}/{pattern}", OwnSockets([run_dir])).look()
            for replica, sighting in listing.present.items():
                assert str(replica).isprintable(), repr(replica)
                real = os.path.realpath(sighting.place)
                assert not real.startswith(str(run_dir)), f"{sighting.place} is the daemon's own"
            for name, reason in listing.refused.items():
                assert f"{name}{reason}".isprintable(), repr((name, reason))
            return f"{len(listing.present)} replicas, notes {await _read(source, thread, place)}"
        finally:
            shutil.rmtree(place)

    try:
        yield trial
    finally:
        thread.end()
        own.close()


def _litter(source: random.Random, place: Path, run_dir: Path) -> None:
    for _ in range(source.randrange(_MOST_FILES)):
        name = source.choice((*_NAMES, *(text[:50] for text in EVIL_TEXTS))).replace("/", "-").replace("\0", "-")
        path = place / (name or "x")
        with contextlib.suppress(OSError):
            match source.randrange(7):
                case 0 | 1:
                    with socket.socket(socket.AF_UNIX) as listener:
                        listener.bind(str(path))
                case 2:
                    path.symlink_to(source.choice((run_dir / "admin.sock", path, place / "r1.sock", run_dir)))
                case 3:
                    os.mkfifo(path)
                case 4:
                    path.mkdir()
                    (path / "engine.sock").symlink_to(run_dir / "admin.sock")
                case 5:
                    os.link(run_dir / "admin.sock", path)
                case 6:
                    with path.open("xb") as file:  # A FIFO may lie there already.
                        file.write(_text(source, _NOTES))


def _text(source: random.Random, good: bytes) -> bytes:
    return source.choice((mutated(source, good, 3), source.choice(_HEAVY), source.randbytes(300)))


async def _read(source: random.Random, thread: OwnThread, place: Path) -> str:
    """Notes and an inventory, read as the daemon reads them: not in the event loop."""
    notes, inventory = place / "n.yaml", place / "i.yaml"
    if source.random() < 0.1:
        os.mkfifo(notes)
    else:
        notes.write_bytes(_text(source, _NOTES))
    inventory.write_bytes(_text(source, _INVENTORY))
    said = []
    for read in (lambda: load_overrides(notes, os.getuid()), lambda: read_inventory(inventory, "chat", SshDefaults())):
        try:
            await thread.run(read, patience_s=20)
        except ConfigError as error:
            _judge(error.problems)
            said.append("refused")
        else:
            said.append("read")
    return " and ".join(said)


def _judge(problems: Sequence[str]) -> None:
    for problem in problems:
        assert problem.isprintable(), repr(problem)
        assert len(problem) < _LONGEST, len(problem)


EDGE = Edge("files", _open)
