"""Real SSH servers for tests: OpenSSH's, run by us on a loopback port with keys of its own, and asyncssh's."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gateway_sidecar.nginx.server import busy_ports
from tests.stopping import stop
from tests.system.gateway import PortBlock

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin:/usr/local/sbin")


def _own_ports() -> Iterator[int]:
    """Those of one block, again and again: no other run of the tests, and no client, is given them meanwhile."""
    block = PortBlock(60)
    atexit.register(block.release)
    yield from itertools.cycle(range(block.first, block.first + 60))


_ports = _own_ports()


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on now."""
    return next(port for port in _ports if not busy_ports([(host, port)]))


def make_key(path: Path) -> Path:
    """A private key, and its public one beside it."""
    for old in (path, path.with_name(f"{path.name}.pub")):
        old.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def public_of(path: Path) -> str:
    """`ssh-ed25519 AAAA...`"""
    return " ".join(path.with_name(f"{path.name}.pub").read_text().split()[:2])


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *_children(int(child))]
    return found


def _is_logged_in(pid: int) -> bool:
    """Whether this process of an sshd is past its login, where its title has `[accepted]`, `[net]` or `[priv]`."""
    try:
        return "[" not in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


class Sshd:
    """One sshd of OpenSSH. What it started is known by being its child."""

    def __init__(self, directory: Path, *, host: str = "127.0.0.1", prefix: tuple[str, ...] = (), options: str = ""):
        assert SSHD is not None
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.host, self.port = host, free_port(host) if not prefix else 2222
        self._prefix = prefix
        self._options = options
        self.host_key = make_key(directory / "host_key")
        self.user_key = make_key(directory / "user_key")
        (directory / "authorized").write_text(public_of(self.user_key) + "\n")
        self.known_hosts = directory / "known_hosts"
        self.trust()
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen: list[int] = []

    def trust(self) -> None:
        """Writes the server's present key down as the one to expect."""
        self.known_hosts.write_text(f"[{self.host}]:{self.port} {public_of(self.host_key)}\n")

    def start(self) -> None:
        """Returns when it listens."""
        Path("/run/sshd").mkdir(exist_ok=True)
        config = self.directory / "sshd.conf"
        config.write_text(
            f"Port {self.port}\nListenAddress {self.host}\nHostKey {self.host_key}\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.directory / 'authorized'}\nStrictModes no\nPasswordAuthentication no\n"
            f"PermitRootLogin prohibit-password\nMaxStartups 500\n{self._options}\n"
        )
        with (self.directory / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, str(SSHD), "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stderr=log
            )
        if not self._prefix:
            deadline = time.monotonic() + 60
            while True:
                with suppress(OSError), socket.create_connection((self.host, self.port), timeout=1):
                    return
                said = (self.directory / "sshd.log").read_text("utf-8", "replace")[-2000:]
                assert self._process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.02)

    def kill(self) -> None:
        """Ends it and its connections at once."""
        if self._process is None:
            return
        self.thaw()
        pids = _children(self._process.pid)
        self._process.kill()
        self._process.wait()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process = None

    def cut(self, *, logged_in: bool = False) -> None:
        """Ends its connections; it goes on. logged_in: only those whose login is done, which no client may take for a
        refusal.
        """
        assert self._process is not None
        for pid in _children(self._process.pid):
            with suppress(ProcessLookupError):
                if not logged_in or _is_logged_in(pid):
                    os.kill(pid, signal.SIGKILL)

    def freeze(self) -> None:
        """Stops it and its connections in their tracks."""
        assert self._process is not None
        self._frozen = [self._process.pid, *_children(self._process.pid)]
        for pid in self._frozen:
            stop(pid)

    def thaw(self) -> None:
        """Lets it go on."""
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen = []
