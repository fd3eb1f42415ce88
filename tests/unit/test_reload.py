"""A reload touches only what changed, and what cannot be done is told and tried again by the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway_sidecar.config import ServiceSettings, load_config
from gateway_sidecar.control.process.reload import Reload
from gateway_sidecar.control.process.services import ServiceHost, Services
from gateway_sidecar.control.routers.process import RouterState
from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.errors import ConfigError, NotInForce, ProcessError
from gateway_sidecar.supervision.loops import cancelled
from gateway_sidecar.supervision.own_thread import OwnThread
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit import world as played
from tests.unit.fake_time import in_fake_time
from tests.unit.world import PlayedProcess, World


class Site:
    """A configuration file, the services that run by it, and nginx, which only counts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "gateway-sidecar.yaml"
        self.worlds: dict[str, World] = {}
        self.no_ports_for: set[str] = set()
        self.applied = 0
        self.metrics = Metrics()
        self.nginx = SimpleNamespace(up=True, problems={}, reason="", apply=self._apply)
        self.notifier = SimpleNamespace(reloading=lambda: None, ready=lambda: None)
        self.write("chat")
        host = ServiceHost(lambda: None, self._apply, self._apply)
        self.services = Services(
            self, host, PortLeases(range(24001, 24021)), cast("Any", SimpleNamespace()), self.metrics
        )
        settings = load_config(self.file)
        frontends = cast("Any", SimpleNamespace(look=self._look))
        self.its = Reload(self.file, settings, self.services, cast("Any", self.nginx), frontends, self.metrics)
        for service in settings.services:
            self.services.add(service, prepare=True)

    def write(self, *names: str, more: str = "", head: str = "") -> None:
        """The file as an operator has it now."""
        services = "".join(
            f"  - {{name: {name}, listen: '127.0.0.1:{30000 + len(name)}', "
            f"replicas: {{sockets: '{self.directory}/{name}/{{replica}}.sock'}}{more}}}\n"
            for name in names
        )
        self.file.write_text(f"{head}services:\n{services}")

    async def reload(self) -> list[str]:
        return await self.its.reload(cast("Any", self.notifier))

    # -- as `Adapters` has it

    def service(self, settings: ServiceSettings, host: ServiceHost) -> Service:
        if settings.name in self.no_ports_for:
            raise ProcessError("no free port")
        (self.directory / settings.name).mkdir(exist_ok=True)
        world = self.worlds[settings.name] = World(self.directory / settings.name, name=settings.name)
        world.service.settings = settings
        return world.service

    def source(self, settings: ServiceSettings) -> Any:
        return self.worlds[settings.name].source

    def router_setup(self, settings: ServiceSettings) -> Any:
        return SimpleNamespace()

    async def _apply(self) -> None:
        self.applied += 1

    async def _look(self, *, withdraw: bool = True) -> None:
        del withdraw


@asynccontextmanager
async def running(directory: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    patch.setattr(OwnThread, "run", played._at_once)
    patch.setattr(asyncio, "to_thread", played._here)
    site = Site(directory)
    site.services.start("chat")
    await asyncio.sleep(1)
    try:
        yield site
    finally:
        await cancelled(*site.services.tasks)


@in_fake_time
async def test_a_service_comes_and_another_goes_and_the_third_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as site:
        chat = site.services.by_name()["chat"]
        site.write("chat", "other")
        assert await site.reload() == ["other: added"]
        site.write("chat", "third1")
        assert sorted(await site.reload()) == ["other: removed", "third1: added"]
        assert site.services.by_name().keys() == {"chat", "third1"}
        assert site.services.by_name()["chat"] is chat
        assert len(chat.routers) == 1
        assert [address.service for address in site.services.addresses()] == ["chat", "third1"]
        assert await site.reload() == [], "nothing changed"
        assert site.metrics.reloads.labels("done")._value.get() == 3


@in_fake_time
async def test_new_settings_reach_a_service_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its router goes on: only what `router` says has it replaced."""
    async with running(tmp_path, monkeypatch) as site:
        chat = site.services.by_name()["chat"]
        router = cast("PlayedProcess", chat.router)
        site.write("chat", more=", drain: {timeout_s: 7}")
        assert await site.reload() == ["chat: drain"]
        assert chat.settings.drain.timeout_s == 7
        assert (id(chat.router), router.renewed) == (id(router), 1)
        site.write("chat", more=", router: {api_timeout_s: 9}, drain: {timeout_s: 7}")
        assert await site.reload() == ["chat: router"]
        assert id(chat.router) != id(router)
        assert site.its.settings.services[0].router.api_timeout_s == 9


@in_fake_time
async def test_a_router_that_is_not_replaced_leaves_its_settings_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as site:
        chat = site.services.by_name()["chat"]
        before = chat.settings.router
        run = PlayedProcess.run

        async def refuse(self: PlayedProcess) -> None:
            self._set(RouterState.REFUSED)
            self.reason = "no such option"
            await asyncio.Event().wait()

        monkeypatch.setattr(PlayedProcess, "run", refuse)
        site.write("chat", more=", router: {api_timeout_s: 9}, drain: {timeout_s: 7}")
        with pytest.raises(NotInForce) as told:
            await site.reload()
        assert told.value.changes == ["chat: drain"]
        assert "no such option" in told.value.problems[0]
        assert (chat.settings.router, chat.settings.drain.timeout_s) == (before, 7)
        monkeypatch.setattr(PlayedProcess, "run", run)
        await asyncio.sleep(1)
        assert await site.reload() == ["chat: router"]


@in_fake_time
async def test_a_service_without_ports_is_not_added_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as site:
        site.no_ports_for = {"other"}
        site.write("chat", "other")
        with pytest.raises(NotInForce, match="other: not added"):
            await site.reload()
        assert site.services.by_name().keys() == {"chat"}
        site.no_ports_for = set()
        assert await site.reload() == ["other: added"]


@in_fake_time
@pytest.mark.parametrize("bad", ["bridges: {ports: 25001-25100}\n", "nonsense: 1\n"])
async def test_a_file_that_cannot_be_used_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    """A mistake in it, or something that needs a restart, or files of others that belong to it."""
    async with running(tmp_path, monkeypatch) as site:
        taken: list[str] = []

        async def prepare() -> Callable[[], Awaitable[list[str]]]:
            if taken == ["refuse"]:
                raise ConfigError(["admin.tls: it cannot be read"])

            async def take_in() -> list[str]:
                return ["admin.tls"]

            return take_in

        site.its.include(prepare)
        before = site.its.settings
        site.write("chat", "other", head=bad)
        with pytest.raises(ConfigError):
            await site.reload()
        taken.append("refuse")
        site.write("chat", "other")
        with pytest.raises(ConfigError):
            await site.reload()
        assert site.its.settings is before
        assert site.services.by_name().keys() == {"chat"}
        assert site.metrics.reloads.labels("refused")._value.get() == 2
        taken.clear()
        assert await site.reload() == ["other: added", "admin.tls"]
