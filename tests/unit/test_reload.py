"""The configuration file is taken in again, and only what changed is touched. In fake time, with services played."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.config.load import load_config
from gateway_sidecar.control.process.reload import Reload
from gateway_sidecar.control.routers.router import RouterState
from gateway_sidecar.errors import ConfigError, NotInForce
from gateway_sidecar.supervision import awake
from tests.smg import smg_of
from tests.unit.fake_time import in_fake_time
from tests.unit.services import CHAT, CODE, Fleet, configured


class Site:
    """A daemon's file, its services, nginx and frontends. `done` says what was done, in order."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "gateway-sidecar.yaml"
        self.path.write_text(configured(CHAT))
        self.fleet = Fleet(CHAT)
        self.done: list[str] = []
        self.up, self.reason = True, ""
        self.problems: Mapping[str, str] = {}
        self.reload_ = Reload(
            self.path, load_config(self.path), self.fleet.services, cast("Any", self), cast("Any", self),
            self.fleet.metrics,
        )  # fmt: skip

    async def reload(self, *services: str, head: str = "") -> list[str]:
        self.path.write_text(configured(*services, head=head))
        with capture_logs():
            return await self.reload_.reload(cast("Any", self))

    def count(self, outcome: str) -> float:
        return float(self.fleet.metrics.reloads.labels(outcome)._value.get())

    async def look(self, *, withdraw: bool = True) -> None:
        self.done.append("look and withdraw" if withdraw else "look")

    async def apply(self) -> None:
        self.done.append("apply")

    def reloading(self) -> None:
        self.done.append("reloading")

    def ready(self) -> None:
        self.done.append("ready")


@in_fake_time
async def test_an_unchanged_file_changes_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path)
    chat = site.fleet.of("chat")
    assert await site.reload(CHAT) == []
    assert site.fleet.of("chat") is chat
    assert (chat.sources, chat.replaced, chat.router.kinds) == (0, 0, 0)
    assert site.count("done") == 1


@in_fake_time
async def test_a_file_that_asks_for_the_router_as_it_is_ends_what_was_said_of_another(tmp_path: Path) -> None:
    """A problem of settings that are in the file no more would send an operator looking for nothing."""
    site = Site(tmp_path)
    chat = site.fleet.of("chat")
    odd = CHAT.replace("replicas:", "router: {args: [--odd]}, replicas:")
    chat.refuses = True
    with pytest.raises(NotInForce):
        await site.reload(odd)
    with pytest.raises(NotInForce):
        await site.reload(odd)
    assert chat.kept == 0
    await site.reload(CHAT)
    assert chat.kept == 1


@in_fake_time
async def test_services_are_added_removed_and_changed_and_all_others_left_alone(tmp_path: Path) -> None:
    site = Site(tmp_path)
    chat = site.fleet.of("chat")
    assert await site.reload(CHAT, CODE) == ["code: added"]
    code = site.fleet.of("code")
    await code.running.wait()
    assert site.fleet.of("chat") is chat
    changed = CHAT.replace("replicas:", "drain: {timeout_s: 5}, replicas:")
    assert sorted(await site.reload(changed)) == ["chat: drain", "code: removed"]
    assert chat.settings.drain.timeout_s == 5
    assert code.is_abandoned
    assert (chat.sources, chat.replaced) == (0, 0)


@in_fake_time
async def test_a_file_with_mistakes_or_what_needs_a_restart_changes_nothing(tmp_path: Path) -> None:
    """The line is named."""
    site = Site(tmp_path)
    with pytest.raises(ConfigError):
        await site.reload("- {name: chat}\n")
    with pytest.raises(ConfigError) as refused:
        await site.reload(CHAT, CODE, head="rescan_interval_s: 7\n")
    assert refused.value.problems == [
        f"{site.path}:1: rescan_interval_s: cannot change while the daemon runs; restart it"
    ]
    assert site.fleet.services.by_name().keys() == {"chat"}
    assert site.done == []
    assert site.count("refused") == 2
    assert site.reload_.settings.rescan_interval_s != 7


@in_fake_time
async def test_keys_are_withdrawn_only_after_nginx_was_told(tmp_path: Path) -> None:
    """And what a new frontend needs is there before."""
    site = Site(tmp_path)
    await site.reload(CHAT)
    assert site.done == ["reloading", "look", "apply", "look and withdraw", "ready"]


@in_fake_time
async def test_what_is_not_in_force_is_told_after_all_else_was_done(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.problems = {"chat: listen and frontend": "in use"}
    site.fleet.adapters.without_ports = {"code"}
    with pytest.raises(NotInForce) as told:
        await site.reload(CHAT.replace("replicas:", "drain: {timeout_s: 5}, replicas:"), CODE)
    assert told.value.problems == ["code: not added: no ports", "chat: listen and frontend: in use"]
    assert site.fleet.of("chat").settings.drain.timeout_s == 5
    assert site.count("refused") == 1
    assert site.done[-1] == "ready"
    site.problems, site.up, site.reason = {}, False, "the port is taken"
    with pytest.raises(NotInForce) as down:
        await site.reload(CHAT)
    assert down.value.problems == ["nginx does not run: the port is taken"]


@in_fake_time
async def test_a_router_that_could_not_be_replaced_is_tried_again_by_the_next_reload(tmp_path: Path) -> None:
    site = Site(tmp_path)
    chat = site.fleet.of("chat")
    changed = CHAT.replace("replicas:", "router: {args: [--odd]}, replicas:")
    chat.refuses = True
    with pytest.raises(NotInForce) as told:
        await site.reload(changed)
    assert told.value.problems == ["chat: router: its arguments are refused"]
    assert list(smg_of(site.reload_.settings.services[0]).args) == []
    chat.refuses = False
    assert await site.reload(changed) == ["chat: router"]
    assert chat.replaced == 1


@in_fake_time
async def test_a_new_services_router_is_waited_for_and_its_end_told(tmp_path: Path) -> None:
    """For a while: one that loads long is no mistake of the file."""
    site = Site(tmp_path)

    def begin(service: Any) -> None:
        service.router.state, service.router.reason = RouterState.STARTING, "exit code 2"

    make = site.fleet.adapters.service

    def made(settings: Any, host: Any) -> Any:
        service = make(settings, host)
        begin(service)
        asyncio.get_running_loop().call_later(3, setattr, service.router, "state", RouterState.REFUSED)
        return service

    site.fleet.adapters.service = made  # type: ignore[method-assign]
    with pytest.raises(NotInForce) as told:
        await site.reload(CHAT, CODE)
    assert told.value.problems == ["code: router: exit code 2"]
    begin(site.fleet.of("code"))
    began = awake.monotonic()
    site.fleet.adapters.service = lambda settings, host: _starting(make(settings, host))  # type: ignore[method-assign]
    await site.reload(CHAT, CODE.replace("code", "embed").replace("8001", "8002"))
    assert 9 < awake.monotonic() - began < 12


def _starting(service: Any) -> Any:
    service.router.state = RouterState.STARTING
    return service


@in_fake_time
async def test_what_else_is_read_with_it_is_read_before_anything_is_taken_in(tmp_path: Path) -> None:
    """One file with mistakes, and nothing of the others comes in."""
    site = Site(tmp_path)
    mistakes = [ConfigError(["tls.pem: no such file"])]

    async def prepare() -> Any:
        if mistakes:
            raise mistakes.pop()

        async def take_in() -> list[str]:
            site.done.append("taken in")
            return ["admin: certificate"]

        return take_in

    site.reload_.include(prepare)
    with pytest.raises(ConfigError):
        await site.reload(CHAT, CODE)
    assert site.done == []
    assert sorted(await site.reload(CHAT, CODE)) == ["admin: certificate", "code: added"]
    assert site.done.index("apply") < site.done.index("taken in")


@in_fake_time
async def test_two_at_once_are_one_after_the_other(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.path.write_text(configured(CHAT, CODE))
    with capture_logs():
        both = await asyncio.gather(*(site.reload_.reload(cast("Any", site)) for _ in range(2)))
    assert sorted(both) == [[], ["code: added"]]
    assert site.done.count("reloading") == 2
    assert site.done.index("ready") < len(site.done) - 1 - site.done[::-1].index("reloading")
