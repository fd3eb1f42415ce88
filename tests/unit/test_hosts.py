"""The host names that the metrics listener answers to."""

from __future__ import annotations

import socket

import pytest

from gateway_sidecar.api.hosts import OwnNames

OURS = [
    *("127.0.0.1:9464", "127.0.0.1", "10.1.2.3:9464", "[::1]:9464", "[fe80::1]", "localhost:9464", "LOCALHOST"),
    *("gw1:9464", "gw1.example.net:9464", "metrics.example.com", "Metrics.Example.Com:80", "a.b.inner.example:1"),
]
OTHERS = [
    *("evil.example:9464", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:9464", "xlocalhost"),
    *("metrics.example.com.evil.example", "inner.example", "xinner.example", "gw1.evil.example", "127.0.0.1x"),
    *("evil.example]:9464", "a@127.0.0.1", "127.0.0.1/", " ", "\x1b[2J"),
]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> OwnNames:
    monkeypatch.setattr(socket, "gethostname", lambda: "gw1.Example.net")
    return OwnNames(["metrics.example.com", "*.inner.example"])


@pytest.mark.parametrize("host", OURS)
def test_our_own(names: OwnNames, host: str) -> None:
    """Every address, this machine's name, long and short, and what the settings name."""
    assert names.include(host)


@pytest.mark.parametrize("host", OTHERS)
def test_names_that_somebody_else_may_own(names: OwnNames, host: str) -> None:
    """A web page under such a name must not read what is answered here."""
    assert not names.include(host)
