"""Network namespaces for tests: networks of their own, made and removed here."""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

AddressInfo = tuple[Any, ...]
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET, _CLONE_NEWNS = 0x40000000, 0x20000
_MS_REC, _MS_SLAVE, _MNT_DETACH = 0x4000, 0x80000, 2
_numbers = itertools.count()


class Namespace:
    """One network namespace, with its loopback up."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def enter(self) -> list[str]:
        """What to put before a command that is to run inside."""
        return ["ip", "netns", "exec", self.name]

    def join(self) -> None:
        """This process, which has one thread, is inside from now on, as by `enter`: its `/sys` shows this network."""
        with Path(f"/run/netns/{self.name}").open() as inside:
            _enter(inside.fileno())
        done = (
            _LIBC.unshare(_CLONE_NEWNS) == 0
            and _LIBC.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None) == 0
            and _LIBC.umount2(b"/sys", _MNT_DETACH) == 0
            and _LIBC.mount(b"sysfs", b"/sys", b"sysfs", 0, None) == 0
        )
        if not done:
            raise OSError(ctypes.get_errno(), f"/sys of {self.name}")

    def ip(self, *words: str) -> str:
        """`ip WORDS` inside."""
        return run("ip", "-n", self.name, *words)

    def socket(self, info: AddressInfo) -> socket.socket:
        """A socket inside, for a client outside."""
        with Path("/proc/thread-self/ns/net").open() as outside, Path(f"/run/netns/{self.name}").open() as inside:
            _enter(inside.fileno())
            try:
                return socket.socket(info[0], info[1], info[2])
            finally:
                _enter(outside.fileno())

    def addresses(self, interface: str) -> list[str]:
        """`ADDRESS/LENGTH` of everything on an interface but link-local ones; empty if there is none such."""
        try:
            rows = self.ip("-o", "addr", "show", "dev", interface).splitlines()
        except subprocess.CalledProcessError:
            return []
        return sorted(row.split()[3] for row in rows if not row.split()[3].startswith("fe80"))


def _enter(namespace: int) -> None:
    """Moves this thread, and no other, to a network namespace."""
    if _LIBC.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def run(*command: str) -> str:
    """A command's output; it must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def why_not() -> str | None:
    """Why namespaces cannot be made here; None where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with namespaces(1) as (one,):
            one.ip("link", "add", "x0", "type", "bridge")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces cannot be made here: {getattr(error, 'stderr', None) or error}"
    return None


@contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """So many namespaces, gone afterwards with all that is in them."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            name = f"gwsc-{os.getpid()}-{next(_numbers)}"
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "del", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
            made.append(Namespace(name))
        yield made


def join(one: Namespace, address: str, other: Namespace, other_address: str) -> None:
    """A cable between two namespaces, `ADDRESS/LENGTH` at each end; the interfaces are called after each other."""
    here, there = f"to-{other.name.rpartition('-')[2]}", f"to-{one.name.rpartition('-')[2]}"
    run("ip", "-n", one.name, "link", "add", here, "type", "veth", "peer", "name", there, "netns", other.name)
    for space, interface, its in ((one, here, address), (other, there, other_address)):
        space.ip("addr", "add", its, "dev", interface, *(["nodad"] if ":" in its else []))
        space.ip("link", "set", interface, "up")


class Lan:
    """A network of its own that namespaces are plugged into; nothing else reaches it."""

    def __init__(self, switch: Namespace) -> None:
        self._switch = switch
        switch.ip("link", "add", "lan", "type", "bridge")
        switch.ip("link", "set", "lan", "up")

    def plug(self, host: Namespace, *addresses: str) -> None:
        """Gives a host its `ADDRESS/LENGTH`s on the network."""
        port = _port_of(host)
        run(
            "ip",
            "-n",
            host.name,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            port,
            "netns",
            self._switch.name,
        )
        self._switch.ip("link", "set", port, "master", "lan", "up")
        for address in addresses:
            host.ip("addr", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
        host.ip("link", "set", "eth0", "up")

    def unplug(self, host: Namespace) -> None:
        """The cable is out: nothing that the host sends arrives, and nobody is told."""
        self._switch.ip("link", "set", _port_of(host), "down")

    def plug_again(self, host: Namespace) -> None:
        """The cable is in again; the host has the addresses that it had."""
        self._switch.ip("link", "set", _port_of(host), "up")


def _port_of(host: Namespace) -> str:
    return f"p-{host.name.rpartition('-')[2]}"
