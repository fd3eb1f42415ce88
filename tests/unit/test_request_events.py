"""nginx's events: what is one, what is not, and what nginx is told to write."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import Callable

import pytest

from gateway_sidecar.domain.signals import RequestEnd
from gateway_sidecar.nginx.access_events import EventAddress, EventListener, placeholder, read_event
from tests.smg import smg_address
from tests.unit.test_nginx_config import config

TAG = b"0123456789abcdef01234567"
HEAD = b"<190>Nov 20 22:33:13 " + TAG + b": "
ABSURD = (b"nan", b"inf", b"-1", b"1e300", b"9" * 400, b"1_0", b"+1")
"""Numbers to Python, and none that nginx writes."""


def test_an_event() -> None:
    """A streamed answer has a time to its headers, one in one piece has none."""
    streamed = HEAD + b"chat|POST|200|1.031|0.004|http://127.0.0.1:24001|text/event-stream; charset=utf-8"
    assert read_event(streamed, TAG) == RequestEnd("chat", 200, 1.031, 0.004, "http://127.0.0.1:24001")
    whole = HEAD + b"chat|POST|503|0.031|0.004|-|application/json"
    assert read_event(whole, TAG) == RequestEnd("chat", 503, 0.031, None)


def test_of_several_upstreams_the_last_one_answered() -> None:
    """After the waiting room: `-` for the router that was away, the room's time, the router's."""
    times = b"-, 0.502 : 0.013"
    assert read_event(HEAD + b"chat|POST|200|0.6|" + times + b"|-|text/event-stream", TAG) == RequestEnd(
        "chat", 200, 0.6, 0.013
    )
    assert read_event(HEAD + b"chat|POST|499|0.6|-|-|text/event-stream", TAG) == RequestEnd("chat", 499, 0.6, None)


@pytest.mark.parametrize(
    "datagram",
    [
        HEAD + b"chat|GET|200|0.001|0.001|-|application/json",
        HEAD.replace(b"0123", b"3210") + b"chat|POST|200|0.001|0.001|-|text/plain",
        b"chat|POST|200|0.001|0.001|-|text/plain",
        HEAD + b"chat|POST|200|0.001",
        HEAD + b"chat|POST|two|0.001|0.001|-|text/plain",
        HEAD + b"ch\xff|POST|200|0.001|0.001|-|text/plain",
        *(HEAD + b"chat|POST|200|" + took + b"|0.001|-|text/plain" for took in ABSURD),
        *(HEAD + b"chat|POST|200|0.001|" + took + b"|-|text/event-stream" for took in ABSURD),
        *(HEAD + b"chat|POST|" + status + b"|0.001|0.001|-|text/plain" for status in (b"-1", b"2_0", b"99999", b"600")),
        b"",
        b"\0" * 2000,
    ],
)
def test_what_is_no_event(datagram: bytes) -> None:
    """Other methods, other people's datagrams, halves."""
    assert read_event(datagram, TAG) is None


def test_a_websocket_counts() -> None:
    """It is asked for with GET."""
    assert read_event(HEAD + b"chat|GET|101|9.5|0.004|-|-", TAG) == RequestEnd("chat", 101, 9.5, None)


def test_each_service_has_its_own_line_and_nginx_knows_no_other_log() -> None:
    """And nginx tells the next daemon the address."""
    address = EventAddress(4711, "ab12" * 6)
    services = [smg_address(name, f"127.0.0.1:{port}", "127.0.0.1:1", "127.0.0.1:2") for name, port in
                (("chat", 30000), ("embed", 30001))]  # fmt: skip
    text = config(services=services, events=address)
    for name in ("chat", "embed"):
        assert f"log_format gateway_{name} '{name}|$request_method|" in text
        assert f"access_log syslog:server=127.0.0.1:4711,nohostname,tag={address.tag} gateway_{name};" in text
    assert re.search(rf'return 200 "[0-9a-f]{{16}} state 4711 {address.tag}";', text)
    assert "syslog" not in config()


def an_event(address: EventAddress) -> bytes:
    return b"<190>Nov 20 22:33:13 " + address.tag.encode() + b": chat|POST|200|0.1|0.1|-|text/plain"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
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
