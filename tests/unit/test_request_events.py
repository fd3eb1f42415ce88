"""nginx's events: what is one, what is not, and what nginx is told to write."""

from __future__ import annotations

import asyncio
import socket

import pytest

from gateway_sidecar.bridges.nginx_config import ServiceAddress
from gateway_sidecar.bridges.request_events import EventAddress, EventListener, placeholder, read_event
from gateway_sidecar.domain.signals import RequestEnd
from tests.unit.test_nginx_config import config

TAG = b"0123456789abcdef01234567"
HEAD = b"<190>Nov 20 22:33:13 " + TAG + b": "


def test_an_event() -> None:
    """A streamed answer has a time to its headers, one in one piece has none."""
    streamed = HEAD + b"chat|POST|200|1.031|0.004|text/event-stream; charset=utf-8"
    assert read_event(streamed, TAG) == RequestEnd("chat", 200, 1.031, 0.004)
    whole = HEAD + b"chat|POST|503|0.031|0.004|application/json"
    assert read_event(whole, TAG) == RequestEnd("chat", 503, 0.031, None)


def test_of_several_upstreams_the_last_one_answered() -> None:
    """After the waiting room: `-` for the router that was away, the room's time, the router's."""
    times = b"-, 0.502 : 0.013"
    assert read_event(HEAD + b"chat|POST|200|0.6|" + times + b"|text/event-stream", TAG) == RequestEnd(
        "chat", 200, 0.6, 0.013
    )
    assert read_event(HEAD + b"chat|POST|499|0.6|-|text/event-stream", TAG) == RequestEnd("chat", 499, 0.6, None)


@pytest.mark.parametrize(
    "datagram",
    [
        HEAD + b"chat|GET|200|0.001|0.001|application/json",
        HEAD.replace(b"0123", b"3210") + b"chat|POST|200|0.001|0.001|text/plain",
        b"chat|POST|200|0.001|0.001|text/plain",
        HEAD + b"chat|POST|200|0.001",
        HEAD + b"chat|POST|two|0.001|0.001|text/plain",
        HEAD + b"ch\xff|POST|200|0.001|0.001|text/plain",
        b"",
        b"\0" * 2000,
    ],
)
def test_what_is_no_event(datagram: bytes) -> None:
    """Other methods, other people's datagrams, halves."""
    assert read_event(datagram, TAG) is None


def test_a_websocket_counts() -> None:
    """It is asked for with GET."""
    assert read_event(HEAD + b"chat|GET|101|9.5|0.004|-", TAG) == RequestEnd("chat", 101, 9.5, None)


def test_each_service_has_its_own_line_and_nginx_knows_no_other_log() -> None:
    """The address stands in the configuration, where the next daemon finds it."""
    address = EventAddress(4711, "ab12" * 6)
    services = [ServiceAddress(name, f"127.0.0.1:{port}", "127.0.0.1:1", "127.0.0.1:2") for name, port in
                (("chat", 30000), ("embed", 30001))]  # fmt: skip
    text = config(services=services, events=address)
    for name in ("chat", "embed"):
        assert f"log_format gateway_{name} '{name}|$request_method|" in text
        assert f"access_log syslog:server=127.0.0.1:4711,nohostname,tag={address.tag} gateway_{name};" in text
    assert EventAddress.in_config(text) == address
    assert EventAddress.in_config(config()) is None
    assert "syslog" not in config()


async def test_the_port_is_lent_and_given_back() -> None:
    """While a daemon listens it gets the events; nobody's are an error to the sender, before and after."""
    held, address = placeholder()
    got: list[RequestEnd] = []
    event = b"<190>x " + address.tag.encode() + b": chat|POST|200|0.1|0.1|text/plain"
    with held, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nginx:
        nginx.connect(("127.0.0.1", address.port))

        def send(count: int) -> None:
            for _ in range(count):
                nginx.send(event)  # A port that nobody has open would raise at the second.

        send(3)
        listener = EventListener(got.append)
        listener.listen(address)
        send(500)
        async with asyncio.timeout(5):
            while len(got) < 500 - listener.lost:
                await asyncio.sleep(0.01)
        assert len(got) + listener.lost == 500
        successor = EventListener(got.append)
        successor.listen(address)
        got.clear()
        send(5)
        async with asyncio.timeout(5):
            while len(got) < 5:
                await asyncio.sleep(0.01)
        listener.close()
        successor.close()
        send(3)
        assert len(got) == 5


async def test_what_is_too_much_is_dropped_and_counted() -> None:
    """A daemon that does not get to read loses events, knows how many, and blocks nobody."""
    held, address = placeholder()
    got: list[RequestEnd] = []
    with held, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nginx:
        listener = EventListener(got.append)
        listener.listen(address)
        nginx.connect(("127.0.0.1", address.port))
        for _ in range(20_000):
            nginx.send(b"<190>x " + address.tag.encode() + b": chat|POST|200|0.1|0.1|text/plain")
        async with asyncio.timeout(10):
            while len(got) + listener.lost < 20_000:
                await asyncio.sleep(0.01)
        assert listener.lost > 0
        listener.close()
        assert listener.lost + len(got) == 20_000, "what was lost stays counted"
