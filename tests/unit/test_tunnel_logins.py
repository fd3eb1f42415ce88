"""What may be tried where far sides count refused logins: an hour of it takes milliseconds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway_sidecar.domain.tunnels import PathState, SshRoute, SshServer
from gateway_sidecar.supervision import awake
from gateway_sidecar.tunnels.base import TunnelFault
from gateway_sidecar.tunnels.logins import Logins
from tests.unit.fake_time import beside, in_fake_time

GATE, GPU = SshServer("gate", user="ops", key_file="/k"), SshServer("gpu", user="ops", key_file="/k")


class FarSides:
    """Servers that refuse whom they are told to, and the tunnels that try them again for ever."""

    def __init__(self, *routes: SshRoute) -> None:
        self.routes = routes
        self.logins = Logins()
        self.logins.keep(routes)
        self.bad: set[SshServer] = set()
        self.refused: list[float] = []
        self.up: dict[SshRoute, float] = {}
        self.cut = {route: asyncio.Event() for route in routes}

    async def run(self) -> None:
        await asyncio.gather(*(self.keep(route) for route in self.routes))

    async def keep(self, route: SshRoute) -> None:
        while True:
            try:
                async with self.logins.login(route):
                    await self.enter(route)
            except TunnelFault:
                await asyncio.sleep(1)
                continue
            self.up[route] = awake.now()
            await self.cut[route].wait()
            self.cut[route].clear()
            del self.up[route]
            self.logins.note_lost(route)

    async def enter(self, route: SshRoute) -> None:
        for number, server in enumerate(route.servers):
            await asyncio.sleep(0.2)
            if server in self.bad:
                self.refused.append(awake.now())
                raise TunnelFault(PathState.AUTH_FAILED, "no", number, PathState.AUTH_FAILED)

    def most_in_ten_minutes(self) -> int:
        return max((sum(began <= at < began + 600 for at in self.refused) for began in self.refused), default=0)


@in_fake_time
async def test_wrong_key_costs_fewer_than_five_logins_in_ten_minutes() -> None:
    """Of a target, of a server to jump over, and of both: for an hour."""
    over = SshRoute((GATE, GPU))
    for bad in (GPU, GATE):
        world = FarSides(over)
        world.bad = {bad}
        async with beside(world.run()):
            await asyncio.sleep(3600)
        assert 10 < len(world.refused) <= 15
        assert world.most_in_ten_minutes() <= 3


@in_fake_time
async def test_whatever_changes_where_the_daemon_runs_gives_no_login_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without a list of known hosts, agent or key has no file that could change."""
    monkeypatch.chdir(tmp_path)
    bare = SshServer("gpu")
    world = FarSides(SshRoute((bare,)))
    world.bad = {bare}
    async with beside(world.run()):
        for number in range(600):
            (tmp_path / str(number)).touch()
            await asyncio.sleep(1)
    assert world.most_in_ten_minutes() <= 3


@in_fake_time
async def test_tunnels_to_one_far_side_share_what_they_may_fail() -> None:
    """Five users with five wrong keys, over one server and over two: each far side sees three logins."""
    users = [SshServer("gpu", user=f"u{number}", key_file="/k") for number in range(5)]
    behind = (SshRoute((user, SshServer(f"gpu{number}"))) for number, user in enumerate(users))
    for routes in ([SshRoute((user,)) for user in users], [SshRoute((GATE, user)) for user in users], behind):
        world = FarSides(*routes)
        world.bad = set(users)
        async with beside(world.run()):
            await asyncio.sleep(1900)
        assert len(world.refused) >= 9
        assert world.most_in_ten_minutes() <= 3


@in_fake_time
async def test_wrong_key_holds_up_no_tunnel_that_was_up() -> None:
    """Good tunnels come back at once when the server is back, beside those that it refuses."""
    good = [SshRoute((GATE, SshServer(f"gpu{number}"))) for number in range(10)]
    bad = [SshRoute((SshServer("gate", user=f"u{number}"),)) for number in range(10)]
    world = FarSides(*good, *bad)
    world.bad = {route.target for route in bad}
    async with beside(world.run()):
        await asyncio.sleep(1000)
        assert set(world.up) == set(good)
        for route in good:
            world.cut[route].set()
        await asyncio.sleep(5)
        assert set(world.up) == set(good)
    assert world.most_in_ten_minutes() <= 3


@in_fake_time
async def test_key_that_is_taken_away_from_good_tunnels_costs_one_login() -> None:
    """Of all the tunnels that had been let in with it, one tries it when they are cut off."""
    world = FarSides(*(SshRoute((GATE, SshServer(f"gpu{number}"))) for number in range(10)))
    async with beside(world.run()):
        await asyncio.sleep(10)
        assert len(world.up) == 10
        world.bad = {GATE}
        for cut in world.cut.values():
            cut.set()
        await asyncio.sleep(600)
    assert world.most_in_ten_minutes() <= 3


@in_fake_time
async def test_changed_key_or_settings_end_the_wait_at_once(tmp_path: Path) -> None:
    """A new key in the same file, and another file in the settings: each is tried within two seconds."""
    (tmp_path / "key").write_text("wrong")
    wrong = SshServer("gpu", key_file=str(tmp_path / "key"))
    world = FarSides(SshRoute((wrong,)))
    world.bad = {wrong}
    async with beside(world.run()):
        await asyncio.sleep(400)
        before = len(world.refused)
        (tmp_path / "key").write_text("right now")
        world.bad.clear()
        await asyncio.sleep(2)
        assert len(world.refused) == before
        assert world.up
    for left in ((), (SshRoute((wrong,)),)):
        world = FarSides(*(SshRoute((SshServer("gpu", user=f"u{number}"),)) for number in range(3)))
        world.bad = {route.target for route in world.routes}
        async with beside(world.run()):
            await asyncio.sleep(10)
        right = SshRoute((GPU,))
        world.logins.keep([right, *left])
        assert world.logins.pause_s(right) == 0


@in_fake_time
async def test_keys_that_first_use_enters_end_no_wait(tmp_path: Path) -> None:
    """The list of known hosts is about hosts that were refused, and not about refused keys."""
    (tmp_path / "known").write_text("")
    wrong = SshServer("gpu", known_hosts=str(tmp_path / "known"), trust_first_use=True)
    world = FarSides(SshRoute((wrong,)))
    world.bad = {wrong}
    async with beside(world.run()):
        for number in range(20):
            (tmp_path / "known").write_text("x" * number)
            await asyncio.sleep(1)
    assert len(world.refused) == 1
