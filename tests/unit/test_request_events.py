"""nginx's events: what is one, what is not, and what nginx is told to write."""

from __future__ import annotations

import re

import pytest

from gateway_sidecar.domain.signals import RequestEnd
from gateway_sidecar.nginx.access_events import EventAddress, read_event
from tests.smg import smg_address
from tests.unit.test_nginx_config import config

TAG = b"0123456789abcdef01234567"
HEAD = b"<190>Nov 20 22:33:13 " + TAG + b": "
ABSURD = (b"nan", b"inf", b"-1", b"1e300", b"9" * 400, b"1_0", b"+1")
"""Numbers to Python, and none that nginx writes."""


def test_an_event() -> None:
    """A streamed answer has a time to its headers, one in one piece has none. A client may leave a stream."""
    streamed = HEAD + b"chat|POST|200|1.031|0.004|http://127.0.0.1:24001|OK|text/event-stream; charset=utf-8"
    assert read_event(streamed, TAG) == RequestEnd("chat", 200, 1.031, 0.004, "http://127.0.0.1:24001")
    left = HEAD + b"chat|POST|200|1.031|0.004|http://127.0.0.1:24001||text/event-stream"
    assert read_event(left, TAG) == RequestEnd("chat", 200, 1.031, 0.004, "http://127.0.0.1:24001", is_whole=False)
    whole = HEAD + b"chat|POST|503|0.031|0.004|-|OK|application/json"
    assert read_event(whole, TAG) == RequestEnd("chat", 503, 0.031, None)


def test_of_several_upstreams_the_last_one_answered() -> None:
    """After the waiting room: `-` for the router that was away, the room's time, the router's."""
    times = b"-, 0.502 : 0.013"
    assert read_event(HEAD + b"chat|POST|200|0.6|" + times + b"|-|OK|text/event-stream", TAG) == RequestEnd(
        "chat", 200, 0.6, 0.013
    )
    assert read_event(HEAD + b"chat|POST|499|0.6|-|-|OK|text/event-stream", TAG) == RequestEnd("chat", 499, 0.6, None)


@pytest.mark.parametrize(
    "datagram",
    [
        HEAD + b"chat|GET|200|0.001|0.001|-|OK|application/json",
        HEAD.replace(b"0123", b"3210") + b"chat|POST|200|0.001|0.001|-|OK|text/plain",
        b"chat|POST|200|0.001|0.001|-|OK|text/plain",
        HEAD + b"chat|POST|200|0.001",
        HEAD + b"chat|POST|two|0.001|0.001|-|OK|text/plain",
        HEAD + b"ch\xff|POST|200|0.001|0.001|-|OK|text/plain",
        *(HEAD + b"chat|POST|200|" + took + b"|0.001|-|OK|text/plain" for took in ABSURD),
        *(HEAD + b"chat|POST|200|0.001|" + took + b"|-|OK|text/event-stream" for took in ABSURD),
        *(
            HEAD + b"chat|POST|" + status + b"|0.001|0.001|-|OK|text/plain"
            for status in (b"-1", b"2_0", b"99999", b"600")
        ),
        b"",
        b"\0" * 2000,
    ],
)
def test_what_is_no_event(datagram: bytes) -> None:
    """Other methods, other people's datagrams, halves."""
    assert read_event(datagram, TAG) is None


def test_a_websocket_counts() -> None:
    """It is asked for with GET."""
    assert read_event(HEAD + b"chat|GET|101|9.5|0.004|-|OK|-", TAG) == RequestEnd("chat", 101, 9.5, None)


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
