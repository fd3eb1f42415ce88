"""What leads to an engine: its port, its link, its advertised address, what shows its key."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway_sidecar.control.edge.key_proxies import KeyState
from gateway_sidecar.domain.model import Overrides, ReplicaState
from tests.unit.fake_time import in_fake_time
from tests.unit.world import PlayedKeys, PlayedLinks, World, Worlds


def keyed(patch: pytest.MonkeyPatch) -> None:
    """Notes beside a socket are its engine's key."""
    patch.setattr(World, "_read_notes", lambda _self, path, _owner: Overrides(api_key=path.read_text() or None))


def events(world: World) -> list[str]:
    return [each["event"] for each in world.log]


@in_fake_time
async def test_a_link_that_cannot_be_made_is_told_once_and_tried_again(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is registered whom nothing leads to."""

    def fail(*_: object) -> None:
        raise OSError("disk full")

    async with worlds() as world:
        with monkeypatch.context() as patch:
            patch.setattr(PlayedLinks, "link", fail)
            world.appear("r1")
            await asyncio.sleep(60)
            assert world.tenure("r1").bridge.problem == "cannot make the bridge's symlink: disk full"
            assert world.router.workers == {}
            assert events(world).count("replica.not_bridged") == 1
        await world.until(lambda: world.serves("r1"))
        assert world.tenure("r1").bridge.problem is None


@in_fake_time
async def test_a_link_that_cannot_be_removed_is_tried_again_and_its_port_given_to_nobody(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("read-only file system")

    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        tenure = world.tenure("r1")
        with monkeypatch.context() as patch:
            patch.setattr(PlayedLinks, "unlink", fail)
            world.vanish("r1")
            await asyncio.sleep(30)
            assert tenure.bridge.port in world.leases.leased
            assert "cannot remove the bridge's symlink" in str(tenure.bridge.problem)
        await world.at_rest()
        assert world.links.led == {}


@in_fake_time
async def test_a_replica_that_comes_back_gets_another_port_while_its_own_rests(worlds: Worlds) -> None:
    """Somebody may still be connected by the old one."""
    async with worlds() as world:
        before = await world.in_use("r1")
        world.vanish("r1")
        await asyncio.sleep(1)
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        assert world.tenure("r1").bridge.port != before
        world.connections.clear()
        await world.at_rest()


@in_fake_time
async def test_an_engine_with_a_key_is_led_to_by_what_shows_it(worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    keyed(monkeypatch)
    async with worlds() as world:
        (world.directory / "r1.yaml").write_text("secret")
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        port = world.tenure("r1").bridge.port
        assert world.links.led == {port: Path(f"/run/keyed/{port}.sock")}


@in_fake_time
async def test_nothing_leads_to_an_engine_before_its_key_is_shown(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request would be refused."""
    keyed(monkeypatch)
    monkeypatch.setattr(PlayedKeys, "request", lambda *_: KeyState(None, "nginx refuses it"))
    async with worlds() as world:
        (world.directory / "r1.yaml").write_text("secret")
        world.appear("r1")
        await asyncio.sleep(30)
        assert world.links.led == {}
        assert world.router.workers == {}
        assert world.tenure("r1").bridge.key_problem == "nginx refuses it"
        assert world.states() == {"r1": ReplicaState.REGISTERING}
        monkeypatch.setattr(PlayedKeys, "request", lambda _self, port, _to: KeyState(Path(f"/k/{port}"), None))
        await world.until(lambda: world.serves("r1"))


@in_fake_time
async def test_a_key_that_is_taken_away_leads_to_the_engine_itself(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same port; the router, which shows the key too, is told."""
    keyed(monkeypatch)
    left: list[int] = []
    monkeypatch.setattr(PlayedKeys, "withdraw", lambda _self, port: left.append(port))
    async with worlds() as world:
        (world.directory / "r1.yaml").write_text("secret")
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        port = world.tenure("r1").bridge.port
        (world.directory / "r1.yaml").write_text("")
        world.source.hint()
        await world.until(lambda: world.links.led == {port: world.directory / "r1.sock"})
        assert left == [port]
        await world.until(lambda: [call for call, _ in world.router.calls] == ["register", "deregister", "register"])
        await world.until(lambda: world.serves("r1"))
        assert world.tenure("r1").bridge.port == port
