"""Claiming addresses, on the kernel's own interfaces, in network namespaces."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.namespaces import Namespace, join, namespaces, why_not

WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

OURS = "gwsc0"


def ask(where: Namespace, *steps: str, run_dir: str = "/run/one", dropped: str = "") -> list[object]:
    """What the adapter says to each step, in a process of its own inside the namespace."""
    enter = [*where.enter, *(["setpriv", f"--bounding-set=-{dropped}", f"--inh-caps=-{dropped}"] if dropped else [])]
    command = [*enter, sys.executable, "-W", "error", "-m", "tests.contract.claims_in", OURS, run_dir, *steps]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def space() -> Iterator[Namespace]:
    with namespaces(1) as (one,):
        yield one


@pytest.fixture
def connected() -> Iterator[tuple[Namespace, Namespace]]:
    """A machine at 10.9.0.2 with a neighbour at 10.9.0.1, its default gateway."""
    with namespaces(2) as (one, other):
        join(one, "10.9.0.2/24", other, "10.9.0.1/24")
        one.ip("route", "add", "default", "via", "10.9.0.1")
        one.ip("route", "add", "10.50.0.0/16", "via", "10.9.0.77", "onlink", "dev", one_link(one))
        one.ip("route", "add", "10.60.0.1/32", "via", "10.9.0.1")
        yield one, other


def one_link(where: Namespace) -> str:
    return next(row.split(": ")[1].partition("@")[0] for row in where.ip("-o", "link").splitlines() if "to-" in row)


def test_addresses_are_claimed_and_given_back(space: Namespace) -> None:
    """Twice is once; the interface goes with the last of them, and what is not held is no error."""
    assert ask(space, "held:") == [[]]
    assert ask(space, "claim:10.0.0.5", "claim:10.0.0.5", "claim:fd00::5", "held:") == [
        "done", "done", "done", ["10.0.0.5", "fd00::5"],
    ]  # fmt: skip
    assert space.addresses(OURS) == ["10.0.0.5/32", "fd00::5/128"]
    assert ask(space, "release:10.0.0.5", "release:10.0.0.5", "held:") == ["done", "done", ["fd00::5"]]
    assert ask(space, "claim:10.0.0.6", "keep:10.0.0.6", "held:") == ["done", ["fd00::5"], ["10.0.0.6"]]
    assert ask(space, "keep:", "keep:", "held:") == [["10.0.0.6"], [], []]
    assert OURS not in space.ip("link")


def test_the_interface_is_a_dummy_one_where_the_kernel_has_those(space: Namespace) -> None:
    """Else a bridge without ports, which serves as well, and the log says why."""
    try:
        space.ip("link", "add", "probe", "type", "dummy")
        has_dummy = True
    except subprocess.CalledProcessError:
        has_dummy = False
    done = subprocess.run(
        [*space.enter, sys.executable, "-m", "tests.contract.claims_in", OURS, "/run/one", "claim:10.0.0.5"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert ("dummy" if has_dummy else "bridge") in space.ip("-d", "link", "show", "dev", OURS)
    assert "peer.interface_made" in done.stderr
    assert ("this kernel has no dummy interfaces" in done.stderr) is not has_dummy


def test_a_claimed_address_can_be_listened_on_at_once(space: Namespace) -> None:
    """IPv6 too: no waiting for duplicate address detection."""
    code = "import socket; [socket.create_server((h, 8000), family=f) for f, h in ((2, '10.0.0.5'), (10, 'fd00::5'))]"
    ask(space, "claim:10.0.0.5", "claim:fd00::5")
    subprocess.run([*space.enter, sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("10.9.0.2", "own"),
        ("10.9.0.255", "lies in 10.9.0.0/24"),
        ("10.9.0.1", "gateway"),
        ("10.9.0.77", "gateway"),
        ("10.60.0.1", "route of its own"),
        ("10.9.0.30", "lies in 10.9.0.0/24"),
    ],
)
def test_what_the_machine_needs_is_refused(connected: tuple[Namespace, Namespace], address: str, why: str) -> None:
    """As the kernel's own tables say; nothing is changed then, not even an interface made."""
    one, _ = connected
    before = one.ip("-4", "addr")
    looked, claimed = ask(one, f"look:{address}", f"claim:{address}")
    assert why in str(looked)
    assert claimed == f"AddressRefused: {looked}"
    assert one.ip("-4", "addr") == before
    assert OURS not in one.ip("link")


def test_open_connections_are_refused(connected: tuple[Namespace, Namespace]) -> None:
    """Somebody who is talked to now: the far end of an SSH connection, say."""
    one, other = connected
    other.ip("addr", "add", "10.70.0.1/32", "dev", "lo")
    assert ask(one, "look:10.70.0.1") == [None], "reached by the default route, and nobody talks to it"
    server = subprocess.Popen(
        [*other.enter, sys.executable, "-c",
         "import socket; s = socket.create_server(('10.70.0.1', 22)); print('up', flush=True); s.accept(); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert server.stdout is not None
    server.stdout.readline()
    client = subprocess.Popen(
        [*one.enter, sys.executable, "-c",
         "import socket; s = socket.create_connection(('10.70.0.1', 22)); print('up', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert client.stdout is not None
    client.stdout.readline()
    try:
        (said,) = ask(one, "claim:10.70.0.1")
        assert str(said).startswith("AddressRefused: 10.70.0.1 is the far end of an open connection")
    finally:
        for process in (client, server):
            process.communicate(b"\n")


def test_host_of_two_networks_is_bridged_in_the_one_that_no_route_leads_to() -> None:
    """Linux answers on its first link for its address on the second, where its peers are: that is no way there."""
    with namespaces(3) as (one, host, peer):
        join(one, "10.9.0.2/24", host, "10.9.0.1/24")
        join(host, "10.40.0.5/24", peer, "10.40.0.6/24")
        one.ip("route", "add", "default", "via", "10.9.0.77")
        link = one_link(one)
        one.ip("neigh", "replace", "10.40.0.6", "lladdr", "02:00:00:00:00:01", "dev", link, "nud", "stale")
        one.ip("neigh", "replace", "10.40.0.5", "dev", link, "use")
        assert ask(one, "look:10.40.0.5", "claim:10.40.0.5", "claim:10.40.0.6") == [None, "done", "done"]
        assert ask(one, "objections:") == [{}]


def test_who_answers_on_a_link_that_leads_to_all_is_refused(connected: tuple[Namespace, Namespace]) -> None:
    """A default route without a next hop: this machine reaches whoever is there, and others do not answer."""
    one, other = connected
    link = one_link(one)
    one.ip("route", "replace", "default", "dev", link)
    other.ip("addr", "add", "10.40.0.5/24", "dev", one_link(other))
    refused, claimed = ask(one, "claim:10.40.0.5", "claim:10.40.0.6")
    assert str(refused).startswith(f"AddressRefused: 10.40.0.5 is a neighbour of this machine, on {link}; set direct")
    assert claimed == "done"


def test_what_the_machine_comes_to_need_later_is_told(connected: tuple[Namespace, Namespace]) -> None:
    """Of what is held already; connections of our own to it are no reason."""
    one, _ = connected
    link = one_link(one)
    for address in ("10.20.0.1", "10.20.0.2", "10.20.0.3", "10.20.0.4", "fd00::5"):
        assert ask(one, f"claim:{address}") == ["done"]
    assert ask(one, "objections:") == [{}]
    one.ip("route", "add", "10.20.0.1/32", "dev", link)
    one.ip("route", "replace", "default", "dev", link)
    one.ip("neigh", "replace", "10.20.0.2", "lladdr", "02:00:00:00:00:02", "dev", link, "nud", "stale")
    one.ip("addr", "add", "10.20.0.3/32", "dev", link)
    one.ip("addr", "add", "fd00::1/64", "dev", link, "nodad")
    (said,) = ask(one, "objections:")
    assert isinstance(said, dict)
    assert {address: str(why).split(", ")[0].split(" by ")[0] for address, why in said.items()} == {
        "10.20.0.1": "10.20.0.1 has a route of its own",
        "10.20.0.2": "10.20.0.2 is a neighbour of this machine",
        "10.20.0.3": "10.20.0.3 is this machine's own",
        "fd00::5": "fd00::5 lies in fd00::/64",
    }


def test_an_interface_of_somebody_else_is_left_alone(space: Namespace) -> None:
    """Neither an operator's own, nor another daemon's: the reason names the cure."""
    space.ip("link", "add", OURS, "type", "bridge")
    space.ip("link", "set", OURS, "up")
    space.ip("addr", "add", "10.0.0.9/32", "dev", OURS)
    for step in ("claim:10.0.0.5", "release:10.0.0.9", "keep:", "held:"):
        (said,) = ask(space, step)
        assert said == "NginxError: the interface gwsc0 is not the daemon's; set peers.interface to another name"
    assert space.addresses(OURS) == ["10.0.0.9/32"]
    space.ip("link", "del", OURS)
    assert ask(space, "claim:10.0.0.5", run_dir="/run/two") == ["done"]
    assert ask(space, "keep:", run_dir="/run/one") == [
        "NginxError: the interface gwsc0 belongs to 'gateway-sidecar /run/two'; set peers.interface to another name"
    ]
    assert space.addresses(OURS) == ["10.0.0.5/32"]


def test_an_interface_that_was_only_begun_is_finished(space: Namespace) -> None:
    """A daemon that dies between making the interface and naming its owner does not lock out the next."""
    space.ip("link", "add", OURS, "type", "bridge")
    assert ask(space, "held:", "claim:10.0.0.5", "held:") == [[], "done", ["10.0.0.5"]]


def test_without_the_privilege_it_says_so(space: Namespace) -> None:
    """Looking needs none; claiming says which one, and how to give it."""
    looked, claimed = ask(space, "look:10.0.0.5", "claim:10.0.0.5", dropped="net_admin")
    assert looked is None
    assert claimed == (
        "NginxError: the daemon may not change addresses; give it CAP_NET_ADMIN (gateway-sidecar install --peers)"
    )
    assert ask(space, "held:", dropped="net_admin") == [[]]
