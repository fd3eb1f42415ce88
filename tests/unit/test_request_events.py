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
    """A streamed answer has a time to its first event, one in one piece has none. A client may leave a stream."""
    streamed = HEAD + b"chat|POST|200|1.031|0.204|http://127.0.0.1:24001|OK"
    assert read_event(streamed, TAG) == RequestEnd("chat", 200, 1.031, 0.204, "http://127.0.0.1:24001")
    left = HEAD + b"chat|POST|200|1.031|0.204|http://127.0.0.1:24001|"
    assert read_event(left, TAG) == RequestEnd("chat", 200, 1.031, 0.204, "http://127.0.0.1:24001", is_whole=False)
    assert read_event(HEAD + b"chat|POST|503|0.031||-|OK", TAG) == RequestEnd("chat", 503, 0.031, None)


@pytest.mark.parametrize(
    "datagram",
    [
        HEAD + b"chat|GET|200|0.001|0.001|-|OK",
        HEAD.replace(b"0123", b"3210") + b"chat|POST|200|0.001|0.001|-|OK",
        b"chat|POST|200|0.001|0.001|-|OK",
        HEAD + b"chat|POST|200|0.001",
        HEAD + b"chat|POST|two|0.001|0.001|-|OK",
        HEAD + b"ch\xff|POST|200|0.001|0.001|-|OK",
        *(HEAD + b"chat|POST|200|" + took + b"|0.001|-|OK" for took in ABSURD),
        *(HEAD + b"chat|POST|200|0.001|" + took + b"|-|OK" for took in ABSURD),
        *(HEAD + b"chat|POST|" + status + b"|0.001|0.001|-|OK" for status in (b"-1", b"2_0", b"99999", b"600")),
        b"",
        b"\0" * 2000,
    ],
)
def test_what_is_no_event(datagram: bytes) -> None:
    """Other methods, other people's datagrams, halves."""
    assert read_event(datagram, TAG) is None


def test_a_websocket_counts() -> None:
    """It is asked for with GET."""
    assert read_event(HEAD + b"chat|GET|101|9.5||-|OK", TAG) == RequestEnd("chat", 101, 9.5, None)


def test_each_service_has_its_own_line_and_nginx_knows_no_other_log() -> None:
    """And nginx tells the next daemon the address."""
    address = EventAddress(4711, "ab12" * 6)
    services = [smg_address(name, f"127.0.0.1:{port}", "127.0.0.1:1", "127.0.0.1:2") for name, port in
                (("chat", 30000), ("embed", 30001))]  # fmt: skip
    text = config(services=services, events=address)
    for name in ("chat", "embed"):
        assert f"log_format gateway_{name}\n        '{name}|$request_method|" in text
        assert f"access_log syslog:server=127.0.0.1:4711,nohostname,tag={address.tag} gateway_{name};" in text
    assert re.search(rf'return 200 "[0-9a-f]{{16}} state 4711 {address.tag}";', text)
    assert "syslog" not in config()


def test_streams_are_timed_where_nginx_can() -> None:
    """By its module `sub`, which only looks for the first event: of streams, and never of an answer in one piece."""
    service = [smg_address("chat", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")]
    address = EventAddress(4711, "ab12" * 6)
    text = config(services=service, events=address)
    assert 'sub_filter "{" "{$gateway_nothing";' in text
    assert "sub_filter_types text/event-stream;" in text
    assert "sub_filter" not in config(services=service, events=address, times_streams=False)
    assert "sub_filter" not in config(services=service)
