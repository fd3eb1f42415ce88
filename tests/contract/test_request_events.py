"""The port of nginx's events: who gets them, what is lost, and who else may not have it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable

import pytest

from gateway_sidecar.domain.signals import RequestEnd
from gateway_sidecar.nginx.access_events import EventAddress, EventListener, placeholder


def an_event(address: EventAddress) -> bytes:
    return b"<190>Nov 20 22:33:13 " + address.tag.encode() + b": chat|POST|200|0.1|0.1|-|OK"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_port_is_lent_and_given_back() -> None:
    """While a daemon listens it gets the events; nobody's are an error to the sender, before and after.

    A daemon that comes while its predecessor is still there goes on where that one ends, and loses nothing.
    """
    held, address = placeholder()
    got: list[RequestEnd] = []
    event = an_event(address)
    with held, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nginx:
        nginx.connect(("127.0.0.1", address.port))

        def send(count: int) -> None:
            for _ in range(count):
                nginx.send(event)  # A port that nobody has open would raise at the second.

        send(3)
        listener = EventListener(got.append)
        listener.listen(address)
        send(500)
        await until(lambda: len(got) + listener.lost == 500)
        successor = EventListener(got.append)
        successor.listen(address)
        got.clear()
        send(5)
        await until(lambda: len(got) == 5)
        listener.close()
        send(5)
        await until(lambda: len(got) == 10)
        successor.close()
        send(3)
        assert len(got) == 10
        again = EventListener(got.append)
        again.listen(address)
        send(5)
        await until(lambda: len(got) == 15)
        again.close()


async def test_what_is_too_much_is_dropped_and_counted() -> None:
    """A daemon that does not get to read loses events, knows how many, and blocks nobody."""
    held, address = placeholder()
    got: list[RequestEnd] = []
    with held, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nginx:
        listener = EventListener(got.append)
        listener.listen(address)
        nginx.connect(("127.0.0.1", address.port))
        for _ in range(20_000):
            nginx.send(an_event(address))
        await until(lambda: len(got) + listener.lost == 20_000)
        assert listener.lost > 0
        listener.close()
        assert listener.lost + len(got) == 20_000, "what was lost stays counted"


async def test_a_flood_without_the_tag_costs_no_event() -> None:
    """The kernel keeps it from the daemon's socket: whoever may send to the port cannot make the rates too low."""
    held, address = placeholder()
    got: list[RequestEnd] = []
    event = an_event(address)
    forged = (b"", b"x" * 60_000, event[:40], event.replace(address.tag.encode(), b"0" * 24), event[1:])
    with held, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as somebody:
        listener = EventListener(got.append)
        listener.listen(address)
        for _ in range(2000):
            for datagram in forged:
                somebody.sendto(datagram, ("127.0.0.1", address.port))
        somebody.sendto(event, ("127.0.0.1", address.port))
        await until(lambda: len(got) == 1)
        assert listener.lost == 0
        listener.close()


def test_two_daemons_of_one_user_do_not_share_a_port() -> None:
    """The kernel would give the second's placeholder a port of the first's, and the second would hear of its events."""
    held = [placeholder() for _ in range(900)]
    assert len({address.port for _, address in held}) == 900
    assert len({address.tag for _, address in held}) == 900
    for sock, _ in held:
        sock.close()


STRANGER = 64_999


_TRY = """
import itertools, os, socket, sys
port, stranger = map(int, sys.argv[1:])
os.setgroups([])
os.setgid(stranger)
os.setuid(stranger)
options = [socket.SO_REUSEADDR, socket.SO_REUSEPORT]
for some in itertools.chain.from_iterable(itertools.combinations(options, n) for n in range(3)):
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, ""), (socket.AF_INET6, "::")):
        with socket.socket(family, socket.SOCK_DGRAM) as thief:
            for option in some:
                thief.setsockopt(socket.SOL_SOCKET, option, 1)
            try:
                thief.bind((host, port))
            except OSError:
                continue
            print("bound", family, host, some)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
async def test_no_other_user_can_take_the_port() -> None:
    """Neither while the daemon listens nor while only nginx holds it, whatever he asks of the kernel."""
    held, address = placeholder()
    listener = EventListener(lambda _end: None)

    async def tries() -> str:
        thief = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _TRY, str(address.port), str(STRANGER),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await thief.communicate()
        return out.decode()

    with held:
        assert await tries() == ""
        listener.listen(address)
        assert await tries() == ""
        listener.close()
        assert await tries() == ""
