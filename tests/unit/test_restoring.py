"""What an earlier daemon left of tenures is taken up, each on its port, before the loop runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway_sidecar.control.replicas.tenure import SavedTenure
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.files.identity import socket_identity
from gateway_sidecar.sources.listing import Sighting
from tests.unit.fake_time import in_fake_time
from tests.unit.world import FACTS, World

R1 = ReplicaId("r1")


def saved_in(world: World, port: int = 24003) -> SavedTenure:
    """A replica whose socket is there."""
    path = world.directory / "r1.sock"
    path.touch()
    return SavedTenure(Sighting(R1, path, socket_identity(path), "sockets"), 0, port, FACTS, drain=False)


@in_fake_time
async def test_a_replica_goes_on_at_its_port_and_url(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.service.restoring.restore(saved_in(world), linked=True)
    tenure = world.tenure("r1")
    assert (tenure.bridge.port, tenure.bridge.linked, tenure.url) == (24003, True, "http://127.0.0.1:24003")
    assert world.leases.leased.keys() == {24003}


@in_fake_time
async def test_a_port_that_is_another_ones_already_is_not_taken(tmp_path: Path) -> None:
    """Two records of one port: the first counts."""
    world = World(tmp_path)
    world.service.restoring.restore(saved_in(world), linked=True)
    other = replace(saved_in(world), generation=1)
    world.service.restoring.restore(other, linked=True)
    assert [tenure.generation for tenure in world.service.tenures.values()] == [0]


@in_fake_time
async def test_who_was_leaving_is_no_replica_any_more_and_keeps_its_port_until_it_is_quiet(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.service.restoring.restore(replace(saved_in(world), leaving=True), linked=False)
    assert world.service.current(R1) is None
    assert [tenure.gone for tenure in world.service.tenures.values()] == [True]


@pytest.mark.parametrize(("bound_later_s", "gone"), [(-1, False), (1, True), (None, True)])
def test_a_bridge_that_nobody_wrote_down_is_claimed_by_its_link(
    tmp_path: Path, bound_later_s: int | None, gone: bool
) -> None:
    """A socket that was bound after the link was made is another engine's: the one before has left, as without any."""

    async def go() -> None:
        world = World(tmp_path)
        socket = tmp_path / "r1.sock"
        linked_at_ns = 0
        if bound_later_s is not None:
            socket.touch()
            bound_at_ns = socket_identity(socket).born_ns or socket.lstat().st_mtime_ns
            linked_at_ns = bound_at_ns - bound_later_s * 10**9
        assert world.service.restoring.claim(24004, socket, linked_at_ns)
        assert [(tenure.replica, tenure.gone) for tenure in world.service.tenures.values()] == [("r1", gone)]
        assert world.leases.leased.keys() == {24004}

    in_fake_time(go)()


@in_fake_time
async def test_a_bridge_beside_that_of_a_replica_that_is_there_is_one_that_leaves(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.service.restoring.restore(saved_in(world), linked=True)
    assert world.service.restoring.claim(24004, tmp_path / "r1.sock", 10**18)
    assert world.service.restoring.claim(24005, tmp_path / "r1.sock", 10**18 + 1)
    assert [tenure.gone for tenure in world.service.tenures.values()] == [False, True, True]
    assert world.leases.leased.keys() == {24003, 24004, 24005}


@in_fake_time
async def test_a_bridge_to_what_is_no_replicas_socket_is_not_claimed(tmp_path: Path) -> None:
    assert not World(tmp_path).service.restoring.claim(24004, tmp_path / "r1.txt", 0)


@in_fake_time
async def test_after_a_reboot_a_replica_gets_its_port_again_if_it_can(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.service.restoring.prefer(saved_in(world, 24017))
    (tmp_path / "r1.sock").unlink()
    assert not world.leases.leased
    assert world.service.bridges._preferred == {R1: 24017}
