"""Connections and listeners that the kernel really has."""

from __future__ import annotations

import socket

from gateway_sidecar.nginx.connections import open_connections
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
        assert open_connections({port}) == {}


def test_busy_ports_are_named() -> None:
    """One busy port in the range would fail nginx's whole start."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert busy_ports([("127.0.0.1", port)]) == [("127.0.0.1", port, "EADDRINUSE")]
    assert busy_ports([("192.0.2.1", 1)])[0][2] == "EADDRNOTAVAIL"
