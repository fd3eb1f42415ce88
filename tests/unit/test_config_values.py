from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.config.values import (
    Endpoint,
    PathPattern,
    PortRange,
    parse_endpoint,
    parse_interface,
    parse_name,
    parse_network,
    parse_pattern,
    parse_ports,
    parse_run_dir,
)

PATTERNS = st.builds(
    lambda before, prefix, suffix, after: f"/{before}{prefix}{{replica}}{suffix}{after}",
    st.sampled_from(["", "run/", "run/a/"]),
    st.sampled_from(["", "r", "rr-", "x"]),
    st.sampled_from(["", ".sock", "k", ".so"]),
    st.sampled_from(["", "/e.sock", "/a/k"]),
).map(PathPattern)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("localhost:80", "127.0.0.1", 80),
        ("[::1]:65535", "::1", 65535),
        ("[0:0:0::1]:30000", "::1", 30000),
        ("0.0.0.0:30000", "0.0.0.0", 30000),
    ],
)
def test_an_address_has_one_spelling(text: str, host: str, port: int) -> None:
    """Equal addresses compare equal, however they were written; what is printed can be parsed again."""
    endpoint = parse_endpoint(text)
    assert endpoint == Endpoint(host, port)
    assert parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30000", "30000 has no host; use 127.0.0.1:30000"),
        ("127.0.0.1", "'127.0.0.1' has no port"),
        (":30000", "':30000' has no host; use 0.0.0.0:30000 for all interfaces"),
        ("*:30000", r"'\*:30000' has no host; use 0.0.0.0:30000 for all interfaces"),
        ("::1:30000", "'::1:30000' is an IPv6 address without brackets"),
        ("127.0.0.1:0", "port 0 leaves the port range; use 1-65535"),
        ("127.0.0.1:http", "'127.0.0.1:http' has no port number after the last colon"),
        ("127.0.0.1:٣", "has no port number after the last colon"),
        ("[fe80::1%lo]:1", "names an interface after %"),
        ("http://127.0.0.1:1", "IPv6 address without brackets"),
        ("0127.0.0.1:1", "host '0127.0.0.1' is not an IP address"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_refused(text: str, expected: str) -> None:
    """What nginx would guess at is not guessed at here."""
    with pytest.raises(ValueError, match=expected):
        parse_endpoint(text)


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("127.0.0.1:1", "0.0.0.0:1", True),
        ("[::]:1", "[::1]:1", True),
        ("[::]:1", "0.0.0.0:1", False),
        ("127.0.0.1:1", "127.0.0.2:1", False),
    ],
)
def test_addresses_clash_where_the_kernel_says_so(one: str, other: str, clash: bool) -> None:
    """A wildcard takes every address of its family, and of no other."""
    assert parse_endpoint(one).clashes(parse_endpoint(other)) is clash
    assert parse_endpoint(other).clashes(parse_endpoint(one)) is clash


def test_a_port_range_includes_both_ends() -> None:
    """24001-24003 is three ports; a single number is a range of one."""
    ports = parse_ports("24001-24003")
    assert len(ports) == 3
    assert [port in ports for port in (24000, 24001, 24003, 24004)] == [False, True, True, False]
    assert parse_ports(" 24001 - 24003".strip()) == ports
    assert parse_ports(5) == parse_ports("5") == PortRange(5, 5)
    assert parse_ports(str(ports)) == ports


@pytest.mark.parametrize("text", ["", "a-b", "1-", "-1", "0-5", "5-4", "1-65536", "1-10001", "1-2-3", "1_0"])
def test_what_is_no_port_range_is_refused(text: str) -> None:
    """Both ends lie in 1-65535, in order, and not more ports than one nginx can listen on."""
    with pytest.raises(ValueError, match="; use "):
        parse_ports(text)


@pytest.mark.parametrize("name", ["a", "chat", "a-b", "0", "x" * 63])
def test_a_service_name_is_a_dns_label(name: str) -> None:
    """It is used as it stands in paths, metrics and nginx's configuration."""
    assert parse_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "a\n", "ä", "x" * 64])
def test_other_names_are_refused(name: str) -> None:
    """No character that would need quoting anywhere."""
    with pytest.raises(ValueError, match="; use "):
        parse_name(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/run/a.sock", "has no {replica}"),
        ("/run/{replica}/{replica}", "has more than one {replica}"),
        ("run/{replica}", "is relative"),
        ("/run/*/{replica}", "holds '\\*'; {replica} is the only wildcard"),
        ("/run/{name}/{replica}", "holds '{'; {replica} is the only wildcard"),
        ("/run/{replica}/", "is a directory; name the socket in it"),
        ("/run/../{replica}", "holds '..'"),
    ],
)
def test_a_pattern_has_one_wildcard_and_no_other(text: str, expected: str) -> None:
    """The id of a replica must be readable from its path, and from nothing else."""
    with pytest.raises(ValueError, match=expected):
        parse_pattern(text)


@pytest.mark.parametrize(
    ("path", "replica"),
    [
        ("/run/r-a.sock/e", "a"),
        ("/run/r-a b\n.sock/e", "a b\n"),
        ("/run/r-.sock/e", None),
        ("/run/r-a/b.sock/e", None),
        ("/run/r-a.sock", None),
    ],
)
def test_a_pattern_reads_the_id_from_a_path(path: str, replica: str | None) -> None:
    """One component or a part of it, never empty, never across a slash."""
    pattern = parse_pattern("/run//r-{replica}.sock/./e")
    assert pattern.replica_of(Path(path)) == replica
    if replica is not None:
        assert pattern.path_of(replica) == Path(path)


@given(PATTERNS, PATTERNS)
def test_patterns_share_a_path_only_if_both_match_it(one: PathPattern, other: PathPattern) -> None:
    """The example in the message is a real one, and the question has the same answer both ways."""
    shared = one.shared_path(other)
    assert (shared is None) == (other.shared_path(one) is None)
    if shared is not None and "{replica}" not in shared:
        assert one.replica_of(Path(shared)) is not None
        assert other.replica_of(Path(shared)) is not None


@given(PATTERNS, PATTERNS, st.sampled_from(["a", "r", "rr-", "k", ".sock", "rr-x.sock", "e.sock"]))
def test_patterns_that_match_one_path_are_found(one: PathPattern, other: PathPattern, replica: str) -> None:
    """No overlap goes unseen."""
    if other.replica_of(one.path_of(replica)) is not None:
        assert one.shared_path(other) is not None


def test_the_run_directory_leaves_room_for_socket_names() -> None:
    """A socket's path has 107 bytes at most; the longest below run_dir is a bridge's link."""
    longest = "/" + "r" * 79
    assert parse_run_dir(longest) == Path(longest)
    assert len(f"{longest}/bridges/65535.sock".encode()) <= 107
    with pytest.raises(ValueError, match="81 bytes long"):
        parse_run_dir(longest + "r")


def test_networks_and_interfaces() -> None:
    """A network in its plain spelling; a name that is the daemon's alone."""
    assert [parse_network(text) for text in ("10.0.0.0/8", "10.0.0.5", "fd00:0::/8")] == [
        "10.0.0.0/8",
        "10.0.0.5/32",
        "fd00::/8",
    ]
    with pytest.raises(ValueError, match=r"'10.0.0.1/8' is not a network \(10.0.0.1/8 has host bits set\); use"):
        parse_network("10.0.0.1/8")
    assert parse_interface("gwsc-2.b_") == "gwsc-2.b_"
    for name in ("lo", "all", "a" * 16, "a b", "a/b", "."):
        with pytest.raises(ValueError, match="is not a name for the daemon's interface; use a name of its own"):
            parse_interface(name)
