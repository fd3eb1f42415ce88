"""Counting open connections on bridge ports."""

from __future__ import annotations

from pathlib import Path

from gateway_sidecar.domain.model import PeerAddress
from gateway_sidecar.nginx.connections import clients_at, connections_at, kernel_address, open_connections


def test_the_kernels_table_is_read_as_it_is(tmp_path: Path) -> None:
    """Ports and states are hexadecimal; a machine without IPv6 has one table."""
    table = tmp_path / "tcp"
    table.write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n"
        "   0: 0100007F:5DC1 0100007F:A001 01 00000000:00000000 00:00000000 00000000\n"
        "   1: 0100007F:5DC1 0100007F:A002 08 00000000:00000000 00:00000000 00000000\n"
        "   2: 0100007F:5DC1 0100007F:A003 06 00000000:00000000 00:00000000 00000000\n"
        "   3: 0100007F:5DC1 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n"
        "   4: 0100007F:A001 0100007F:5DC1 01 00000000:00000000 00:00000000 00000000\n"
    )
    assert open_connections({0x5DC1}, (table, tmp_path / "tcp6")) == {24001: 2}


def test_what_another_gateway_has_at_the_same_port_of_another_address_is_not_counted(tmp_path: Path) -> None:
    """Two gateways of one machine have the same bridge ports, and each its own addresses; so have their services."""
    tcp, tcp6 = tmp_path / "tcp", tmp_path / "tcp6"
    tcp.write_text(
        "  sl  local_address rem_address   st\n"
        "   0: 0100007F:5DC1 0100007F:A001 01 00:0 0:0 0 0\n"
        "   1: 0200007F:5DC1 0100007F:A002 01 00:0 0:0 0 0\n"
        "   2: 0109007F:5DC1 0100007F:A003 01 00:0 0:0 0 0\n"
    )
    tcp6.write_text(
        "  sl  local_address                         remote_address                        st\n"
        "   0: 00000000000000000000000001000000:5DC1 00000000000000000000000001000000:A004 01 00:0 0:0 0 0\n"
        "   1: 0000000000000000FFFF00000100007F:5DC1 0000000000000000FFFF00000100007F:A005 01 00:0 0:0 0 0\n"
    )
    counts = {(): 5, ("127.0.0.1", "127.0.0.2"): 3, ("127.0.9.1",): 1, ("::1",): 1, ("0.0.0.0",): 5}
    for hosts, count in counts.items():
        assert open_connections({24001}, (tcp, tcp6), hosts=hosts) == {24001: count}, hosts
        assert len(clients_at([(host, 24001) for host in hosts or ("::",)], (tcp, tcp6))) == count, hosts
    assert open_connections({24001}, (tcp, tcp6), hosts=("127.0.9.2",)) == {}
    assert clients_at([("127.0.0.1", 24002)], (tcp, tcp6)) == frozenset()


def test_connections_are_counted_by_address(tmp_path: Path) -> None:
    """By this machine's end of a bridged one, by the far end of one that goes to another machine, each once."""
    tcp, tcp6 = tmp_path / "tcp", tmp_path / "tcp6"
    tcp.write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n"
        "   0: 0500000A:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n"
        "   1: 0500000A:1F40 0500000A:A1D4 01 00000000:00000000 00:00000000 00000000\n"
        "   2: 0500000A:A1D4 0500000A:1F40 01 00000000:00000000 00:00000000 00000000\n"
        "   3: 0207A8C0:A1E0 0600000A:1F40 01 00000000:00000000 00:00000000 00000000\n"
        "   4: 0207A8C0:A1E1 0600000A:1F40 06 00000000:00000000 00:00000000 00000000\n"
        "   5: 0600000A:A1E1 0500000A:1F41 01 00000000:00000000 00:00000000 00000000\n"
    )
    tcp6.write_text(
        "  sl  local_address                         remote_address                        st\n"
        "   0: 000000FD000000000000000005000000:1F40 000000FD000000000000000005000000:A000 01 00:0 0:0 0 0\n"
        "   1: 0000000000000000FFFF00000207A8C0:A1E2 0000000000000000FFFF00000600000A:1F40 08 00:0 0:0 0 0\n"
    )
    here, there, six = PeerAddress("10.0.0.5", 8000), PeerAddress("10.0.0.6", 8000), PeerAddress("fd00::5", 8000)
    assert connections_at({here, there, six, PeerAddress("10.0.0.7", 8000)}, (tcp, tcp6)) == {here: 1, there: 2, six: 1}


def test_the_kernels_addresses_are_read() -> None:
    """Four-byte words in this machine's order; IPv4 in an IPv6 socket is IPv4."""
    assert str(kernel_address(b"0500000A:1F40")) == "10.0.0.5"
    assert str(kernel_address(b"000000FD000000000000000005000000:1F40")) == "fd00::5"
    assert str(kernel_address(b"0000000000000000FFFF00000600000A:1F40")) == "10.0.0.6"
