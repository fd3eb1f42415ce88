"""Where the daemon itself has to get to: read from settings and tunnels, looked up, kept while names fail."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

import pytest

from gateway_sidecar.config import parse_config
from gateway_sidecar.control.edge import destinations
from gateway_sidecar.control.edge.destinations import Destinations, hosts_of
from gateway_sidecar.domain.claims import Address
from gateway_sidecar.domain.tunnels import SshRoute, SshServer, Tunnel

SETTINGS = """
services:
  - name: chat
    listen: 127.0.0.1:30000
    replicas: {}
    frontend: {auth: {url: "http://10.1.0.9:8080/auth"}}
    scaling: {metric: rps, target: 5, hook: {webhook: "https://scaler.example.net/hook"}}
"""


def test_hosts_are_those_that_this_machine_connects_to_itself() -> None:
    """Behind a server to jump over the next one is reached from there."""
    gate, far = SshServer("gate.example.net"), SshServer("10.0.0.5", 2222)
    tunnels = [Tunnel("chat/r1", SshRoute((gate, far)), "[::1]:1"), Tunnel("chat/r2", SshRoute((far,)), "[::1]:1")]
    assert hosts_of(tunnels, parse_config(SETTINGS).services) == {
        "gate.example.net": "the SSH server gate.example.net:22 of chat/r1",
        "10.0.0.5": "the SSH server 10.0.0.5:2222 of chat/r2",
        "10.1.0.9": "frontend.auth.url of service chat",
        "scaler.example.net": "scaling.hook.webhook of service chat",
    }


async def test_last_good_answer_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that fails does not make an address free; a host that is not needed any more does."""
    hosts = {"gate": "a server"}
    answers: Mapping[str, frozenset[Address]] = {"gate": frozenset({ip_address("10.0.0.1")})}
    changes: list[Mapping[Address, str]] = []
    it = Destinations()
    it.use(lambda: hosts, lambda: changes.append(it.addresses()))
    monkeypatch.setattr(destinations, "look_up", lambda name: answers.get(name, frozenset()))
    await it.resolve()
    assert it.addresses() == {ip_address("10.0.0.1"): "a server"}
    answers = {}
    hosts["other"] = "another"
    await it.resolve()
    assert it.addresses() == {ip_address("10.0.0.1"): "a server"}
    del hosts["gate"]
    await it.resolve()
    assert it.addresses() == {}
    assert changes == [{ip_address("10.0.0.1"): "a server"}, {}]


def test_addresses_and_names_are_looked_up() -> None:
    """As ssh does it; what cannot be had is nothing, and no error."""
    assert destinations.look_up("10.0.0.5") == {ip_address("10.0.0.5")}
    assert ip_address("127.0.0.1") in destinations.look_up("localhost")
    assert destinations.look_up("nowhere.invalid") == frozenset()
    assert destinations.look_up("x" * 300) == frozenset()
