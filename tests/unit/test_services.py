"""The services of a daemon are added, given new settings, and removed. They are played."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.domain.model import ReplicaState
from gateway_sidecar.domain.tunnels import SshRoute, SshServer, Tunnel
from gateway_sidecar.errors import ProcessError
from tests.smg import smg_of
from tests.unit.fake_time import in_fake_time
from tests.unit.services import CHAT, CODE, Fleet, settings_of


@in_fake_time
async def test_all_that_is_wanted_of_nginx_follows_from_their_settings() -> None:
    fleet = Fleet(CHAT, CODE)
    assert [(it.service, it.listen, it.router) for it in fleet.services.addresses()] == [
        ("chat", "127.0.0.1:8000", "127.0.0.1:1"),
        ("code", "127.0.0.1:8001", "127.0.0.1:1"),
    ]
    assert fleet.services.frontends().keys() == {"chat", "code"}
    assert [router.service for router in fleet.services.routers] == ["chat", "code"]


@in_fake_time
async def test_they_share_the_ports_and_the_one_who_is_removed_leaves_its_share() -> None:
    fleet = Fleet(CHAT, CODE)
    assert fleet.leases.share == 5
    with capture_logs():
        await fleet.services.remove("code")
    assert fleet.leases.share == 10


@in_fake_time
async def test_what_a_removed_service_has_in_flight_is_known_by_its_ports() -> None:
    """Each rests until no connection to it is open."""
    fleet = Fleet(CHAT, CODE)
    port = fleet.leases.acquire("code/r1/1", service="code")
    with capture_logs():
        await fleet.services.remove("code")
    fleet.leases.release(port)
    assert fleet.services.may_have_in_flight("code")
    fleet.leases.note_quiet(port, 0.0)
    assert not fleet.services.may_have_in_flight("code")


@in_fake_time
async def test_everybody_has_looked_when_each_has() -> None:
    fleet = Fleet(CHAT, CODE)
    assert fleet.services.have_looked
    fleet.of("code").has_looked = False
    assert not fleet.services.have_looked


@in_fake_time
async def test_one_that_is_removed_runs_no_more_and_its_router_departs() -> None:
    """Its ports are looked after by nobody but the counter."""
    fleet = Fleet(CHAT, CODE)
    code = fleet.of("code")
    await code.running.wait()
    with capture_logs():
        await fleet.services.remove("code")
        assert fleet.departing.identities == [("code", code.router.process.identity)]
        await asyncio.sleep(1)
    assert code.is_abandoned
    assert fleet.services.by_name().keys() == {"chat"}
    assert len(fleet.services.tasks) == 1
    assert not code.router.process.running


@in_fake_time
async def test_one_that_cannot_be_prepared_is_not_added() -> None:
    fleet = Fleet(CHAT)
    fleet.adapters.without_ports = {"code"}
    (settings,) = settings_of(CODE).services
    with pytest.raises(ProcessError):
        fleet.services.add(settings, prepare=True)
    assert fleet.services.by_name().keys() == {"chat"}
    assert fleet.leases.share == 10


@in_fake_time
async def test_new_settings_touch_only_what_they_are_of() -> None:
    """A router is replaced for its own settings alone; what was given to it elsewhere it is told in place."""
    fleet = Fleet(CHAT)
    chat = fleet.of("chat")
    (settings,) = settings_of(CHAT).services
    assert await fleet.services.change(settings, ["drain"]) == ""
    assert (chat.sources, chat.replaced, chat.router.kinds) == (0, 0, 1)
    assert await fleet.services.change(settings, ["replicas"]) == ""
    assert (chat.sources, chat.replaced, chat.router.kinds) == (1, 0, 2)
    assert await fleet.services.change(settings, ["router"]) == ""
    assert (chat.sources, chat.replaced, chat.router.kinds) == (1, 1, 2)


@in_fake_time
async def test_a_router_that_cannot_be_replaced_keeps_its_settings_and_nothing_else_does() -> None:
    """The next reload tries it again."""
    fleet = Fleet(CHAT)
    chat = fleet.of("chat")
    chat.refuses = True
    changed = CHAT.replace("replicas:", "drain: {timeout_s: 5}, router: {args: [--odd]}, replicas:")
    (settings,) = settings_of(changed).services
    with capture_logs() as log:
        assert await fleet.services.change(settings, ["drain", "router"]) == "its arguments are refused"
    assert chat.settings.drain.timeout_s == 5
    assert list(smg_of(chat.settings).args) == []
    assert [each["event"] for each in log] == ["router.not_replaced"]


@in_fake_time
async def test_tunnels_are_needed_by_who_is_there_and_by_who_is_gone_until_it_has_drained() -> None:
    fleet = Fleet(CHAT)
    tunnel = Tunnel("chat/r1", SshRoute((SshServer("gpu"),)), "/e.sock")
    fleet.of("chat").has(ReplicaState.SERVING)
    fleet.of("chat").has(ReplicaState.DRAINING, tunnel)
    fleet.of("chat").tenures[1].gone = True
    assert fleet.services.tunnels == {tunnel}
