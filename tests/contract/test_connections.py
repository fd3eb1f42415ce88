"""Connections and listeners that the kernel really has."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from gateway_sidecar.domain.model import PeerAddress
from gateway_sidecar.nginx.connections import (
    bytes_to_routers,
    holds_listener,
    listening_at,
    open_connections,
    waiting_at,
)
from gateway_sidecar.nginx.server import busy_ports


def test_real_connections_are_counted_until_both_sides_are_done() -> None:
    """A half-closed stream is still somebody's; a listening or a closed socket is nobody's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert open_connections({port}) == {}
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = server.accept()
        assert open_connections({port}) == {port: 1}
        assert open_connections({port + 1}) == {}
        client.shutdown(socket.SHUT_WR)
        assert open_connections({port}) == {port: 1}
        served.close()
        client.close()
        while open_connections({port}) != {}:  # A busy kernel delivers the last packet a moment later.
            pass


def until_acknowledged(port: int, count: int) -> None:
    """The kernel counts what an engine sends once the other side's word of it has come, which may be delayed."""
    while sum(bytes_to_routers({port}).values()) < count:
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_bytes_that_an_engine_sends_are_counted_on_each_connection(host: str) -> None:
    """Those that it is sent are not, and its port and its advertised address show the same."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        with socket.create_connection((host, port)) as client, server.accept()[0] as engine:
            client.sendall(b"x" * 5000)
            engine.sendall(b"x" * 100)
            assert len(client.recv(100)) == 100
            until_acknowledged(port, 100)
            assert list(bytes_to_routers({port}).values()) == [100]
            assert set(bytes_to_routers({PeerAddress(host, port)}).values()) == {100}
            assert bytes_to_routers({port + 1}) == {}


def test_what_flows_and_waits_at_another_address_of_the_same_port_is_not_ours() -> None:
    """The kernel is asked for the whole machine, and another gateway may have this port elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0] as engine:
            engine.sendall(b"x" * 100)
            assert len(client.recv(100)) == 100
            until_acknowledged(port, 100)
            while port not in waiting_at({port}):  # The kernel's clock may stand still for some milliseconds.
                client.sendall(b"x")
            for hosts, is_ours in ((("127.0.0.1", "127.0.0.2"), True), (("127.0.9.1",), False), ((), True)):
                assert list(bytes_to_routers({port}, hosts).values()) == ([100] if is_ours else [])
                assert open_connections({port}, hosts=hosts)[port] == is_ours
                assert (port in waiting_at({port}, hosts)) == is_ours


def test_busy_ports_are_named() -> None:
    """One busy port in the range would fail nginx's whole start."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert busy_ports([("127.0.0.1", port)]) == [("127.0.0.1", port, "EADDRINUSE")]
    assert busy_ports([("192.0.2.1", 1)])[0][2] == "EADDRNOTAVAIL"


def test_a_process_that_ends_while_it_is_looked_at_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nginx's old worker does, each time that it is reloaded. Its directory is found, and gone when it is opened."""
    path = tmp_path / "in.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert holds_listener(os.getpid(), path)
        own = f"/proc/{os.getpid()}/fd"
        scandir = os.scandir

        def is_gone(at: str | os.PathLike[str]) -> Any:
            if os.fspath(at) == own:
                raise FileNotFoundError(own)
            return scandir(at)

        monkeypatch.setattr(os, "scandir", is_gone)
        assert not holds_listener(os.getpid(), path)
        assert listening_at(os.getpid()) == frozenset()
