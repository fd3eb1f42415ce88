"""One nginx, kept: started, told of changes, started again. In fake time, with an nginx that is played."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.config import FrontendSettings
from gateway_sidecar.control.edge import nginx_supervisor
from gateway_sidecar.control.edge.nginx_supervisor import NginxSupervisor
from gateway_sidecar.errors import NginxError
from gateway_sidecar.nginx.config import ServiceAddress
from gateway_sidecar.nginx.dispatch import Behind, Dispatch, Model, Target, Way
from gateway_sidecar.supervision.process import Identity
from gateway_sidecar.telemetry.metrics import Metrics
from tests.smg import smg_address
from tests.unit.fake_time import beside, in_fake_time
from tests.unit.processes import PlayedProcess

OTHER = FrontendSettings(max_body_mb=7)
CHAT = smg_address("chat", "127.0.0.1:30000", "127.0.0.1:1", "127.0.0.1:2")
CODE = smg_address("code", "127.0.0.1:30001", "127.0.0.1:3", "127.0.0.1:4")


class PlayedNginx:
    """Serves what it is told to. `busy`: services whose addresses it cannot have; `fault`: it refuses everything;
    `refuses`: it refuses this one address; `mute`: it does not say that it is alive."""

    def __init__(self) -> None:
        self.process: PlayedProcess | None = None
        self.served: Sequence[ServiceAddress] | None = None
        self.busy: dict[str, str] = {}
        self.fault: Exception | None = None
        self.refuses = ""
        self.logs_elsewhere = False
        self.mute = False
        self.known = True
        self.starts = 0
        self.tries = 0
        self.log = SimpleNamespace(read_tail=self._tail, trouble=None, file=None)

    async def start(self, services: Sequence[ServiceAddress]) -> None:
        self._take(services)
        self.starts += 1
        self.process = PlayedProcess(self.starts)

    async def adopt(self, identity: Identity) -> bool:
        if identity.pid != 77:
            return False
        self.process = PlayedProcess(77)
        return True

    async def objections(self, services: Sequence[ServiceAddress]) -> dict[str, str]:
        return {it.service: self.busy[it.service] for it in services if it.service in self.busy}

    async def in_force(self) -> Sequence[ServiceAddress] | None:
        return self.served if self.known else None

    async def serves(self, services: Sequence[ServiceAddress]) -> bool:
        return self.served == services

    async def apply(self, services: Sequence[ServiceAddress]) -> bool:
        is_new = services != self.served
        self._take(services)
        return is_new

    async def is_mute(self, patience_s: float) -> bool:
        await asyncio.sleep(patience_s if self.mute else 0)
        return self.mute

    def kill(self) -> None:
        assert self.process is not None
        self.process.end()

    def _take(self, services: Sequence[ServiceAddress]) -> None:
        self.tries += 1
        if self.fault is not None:
            raise self.fault
        if any(it.listen == self.refuses for it in services):
            raise NginxError(f"nginx refuses {self.refuses}")
        self.served = list(services)

    async def _tail(self, _: int) -> list[str]:
        return ["[alert] worker exited on signal 9"]


class Kept:
    """nginx and its supervisor, and what it is to serve."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.nginx = PlayedNginx()
        self.wanted: list[ServiceAddress] = [CHAT, CODE]
        self.metrics = Metrics()
        self.changes: list[bool] = []
        self.log: list[Any] = []
        self.orphans_of: list[int] = []
        self.made_ready = 0
        patch.setattr(nginx_supervisor, "stop_orphans", self._orphans)
        self.supervisor = NginxSupervisor(
            cast("Any", self.nginx), lambda: list(self.wanted), self.metrics,
            lambda: self.changes.append(self.supervisor.up), self._make_ready,
        )  # fmt: skip

    def request(self, *services: ServiceAddress) -> None:
        self.wanted = list(services)
        self.supervisor.touch()

    @property
    def events(self) -> list[str]:
        return [each["event"] for each in self.log]

    async def _make_ready(self) -> None:
        self.made_ready += 1

    async def _orphans(self, master: Identity) -> int:
        self.orphans_of.append(master.pid)
        return 1


@asynccontextmanager
async def kept(
    patch: pytest.MonkeyPatch, *left: int, before: Callable[[PlayedNginx], None] = lambda _: None
) -> AsyncIterator[Kept]:
    """left: the processes that an earlier daemon may have left; 77 is one that lives."""
    with capture_logs() as log:
        made = Kept(patch)
        made.log = log
        before(made.nginx)
        await made.supervisor.begin([Identity(pid, 1, "boot") for pid in left])
        async with beside(made.supervisor.run()):
            yield made


@in_fake_time
async def test_the_first_of_the_earlier_ones_that_lives_is_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    """And none is started beside it."""
    async with kept(monkeypatch, 5, 77) as it:
        assert it.nginx.starts == 0
        assert it.supervisor.up
        assert it.nginx.served == [CHAT, CODE]
        assert it.supervisor.not_in_force == {}


@in_fake_time
async def test_where_none_lives_one_is_started_or_the_daemon_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    async with kept(monkeypatch, 5) as it:
        assert it.nginx.starts == 1
        assert it.changes == [True]
    fresh = Kept(monkeypatch)
    fresh.nginx.fault = NginxError("no ports")
    with pytest.raises(NginxError):
        await fresh.supervisor.begin([])


@in_fake_time
async def test_one_that_ends_is_started_again_after_its_orphans_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dead master's workers still hold, nobody else could listen on."""
    async with kept(monkeypatch) as it:
        assert it.nginx.process is not None
        it.nginx.process.end()
        await asyncio.sleep(0.05)
        assert it.orphans_of == [1]
        assert it.nginx.starts == 2
        assert it.changes == [True, False, True]


@in_fake_time
async def test_starts_that_fail_are_tried_ever_less_often_and_at_once_when_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with kept(monkeypatch) as it:
        assert it.nginx.process is not None
        it.nginx.fault = NginxError("the port is taken")
        it.nginx.process.end()
        await asyncio.sleep(100)
        assert 8 <= it.nginx.tries <= 30
        assert it.supervisor.reason == "the port is taken"
        assert it.supervisor.not_in_force == {}, "while it is down as a whole nobody asks for each"
        it.nginx.fault = None
        await it.supervisor.apply()
        assert it.supervisor.up
        assert it.supervisor.problems == {}


@in_fake_time
async def test_a_change_is_told_at_once_and_only_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = replace(CHAT, router="127.0.0.1:9")
    async with kept(monkeypatch) as it:
        it.request(moved, CODE)
        await asyncio.sleep(0.01)
        assert it.nginx.served == [moved, CODE]
        tries = it.nginx.tries
        it.supervisor.touch()
        await asyncio.sleep(60)
        assert it.nginx.tries == tries


@in_fake_time
async def test_a_shared_addresss_models_are_in_force_only_when_nginx_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As everything else that a file says of an address: `status`, `plan` and `check` name it until then."""
    models = tuple(Model(name, (Target("chat"),)) for name in ("one", "two"))
    before = replace(CODE, dispatch=Dispatch(models[:1], (Behind("chat", Way()),)))
    async with kept(monkeypatch) as it:
        it.request(CHAT, before)
        await asyncio.sleep(0.01)
        assert it.supervisor.not_in_force == {}
        it.nginx.fault = NginxError("no files")
        it.request(CHAT, replace(before, dispatch=Dispatch(models, (Behind("chat", Way()),))))
        await asyncio.sleep(0.01)
        assert it.supervisor.not_in_force == {"code": "no files"}
        it.nginx.fault = None
        await asyncio.sleep(60)
        assert it.supervisor.not_in_force == {}


@in_fake_time
async def test_what_nginx_reads_is_ready_before_it_gets_another_frontend(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frontend that is brought back goes on with what its keys had used. A router's new port waits for no disk."""
    async with kept(monkeypatch) as it:
        assert it.made_ready == 1, "it was started"
        for wanted, made_ready in ((replace(CHAT, router="127.0.0.1:9"), 1), (replace(CHAT, frontend=OTHER), 2)):
            it.request(wanted, CODE)
            await asyncio.sleep(0.01)
            assert it.nginx.served == [wanted, CODE]
            assert it.made_ready == made_ready


@in_fake_time
async def test_a_service_whose_address_is_busy_keeps_what_it_has_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One service's mistake is nobody else's."""
    moved, code = replace(CHAT, listen="127.0.0.1:30005"), replace(CODE, listen="127.0.0.1:30006")
    async with kept(monkeypatch) as it:
        it.nginx.busy = {"chat": "127.0.0.1:30005 is in use"}
        it.request(moved, code)
        await asyncio.sleep(1)
        assert it.nginx.served == [CHAT, code]
        assert it.supervisor.not_in_force == {"chat": "127.0.0.1:30005 is in use"}
        assert it.supervisor.unserved == frozenset()
        assert "nginx serves what was in force before" in it.supervisor.problems["chat: listen and frontend"]
        assert it.metrics.service_in_force.labels("chat")._value.get() == 0
        it.nginx.busy = {}
        await asyncio.sleep(10)
        assert it.nginx.served == [moved, code]
        assert it.metrics.service_in_force.labels("chat")._value.get() == 1
        assert (it.events.count("service.not_in_force"), it.events.count("service.in_force")) == (1, 1)


@in_fake_time
async def test_a_new_service_that_cannot_be_served_has_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    new = replace(CODE, service="new", listen="127.0.0.1:30007")
    async with kept(monkeypatch) as it:
        it.nginx.busy = {"new": "in use"}
        it.request(CHAT, CODE, new)
        await asyncio.sleep(1)
        assert it.supervisor.unserved == {"new"}
        assert "it has no address until then" in it.supervisor.problems["new: listen and frontend"]


@in_fake_time
async def test_of_a_change_that_nginx_refuses_only_the_routers_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that took another port must be found, whatever else is wrong."""
    async with kept(monkeypatch) as it:
        it.nginx.refuses = "127.0.0.1:30005"
        it.request(replace(CHAT, listen="127.0.0.1:30005"), replace(CODE, router="127.0.0.1:9"))
        await asyncio.sleep(1)
        assert it.nginx.served == [CHAT, replace(CODE, router="127.0.0.1:9")]
        assert it.supervisor.not_in_force == {"chat": "nginx refuses 127.0.0.1:30005"}


@in_fake_time
async def test_an_nginx_that_cannot_be_told_goes_on_and_is_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async with kept(monkeypatch) as it:
        it.nginx.fault = OSError("disk full")
        it.request(CHAT)
        await asyncio.sleep(60)
        assert it.supervisor.up
        assert it.supervisor.problems == {"nginx": "disk full"}
        assert it.events.count("nginx.not_reloaded") == 1
        assert it.nginx.tries <= 16
        it.nginx.fault = None
        await asyncio.sleep(10)
        assert it.nginx.served == [CHAT]
        assert it.supervisor.problems == {}


@in_fake_time
async def test_what_an_earlier_daemons_nginx_serves_is_kept_while_nobody_knows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is changed that could not be put back."""

    def earlier(nginx: PlayedNginx) -> None:
        nginx.served, nginx.known, nginx.busy = [CHAT], False, {"code": "in use"}

    async with kept(monkeypatch, 77, before=earlier) as it:
        assert it.nginx.served == [CHAT]
        assert it.supervisor.applied == [CHAT], "it serves just what can be served"
    other = replace(CHAT, listen="127.0.0.1:1")

    def another(nginx: PlayedNginx) -> None:
        nginx.served, nginx.known, nginx.busy = [other], False, {"code": "in use"}

    async with kept(monkeypatch, 77, before=another) as it:
        await asyncio.sleep(60)
        assert it.nginx.served == [other]
        assert it.supervisor.applied is None
        assert it.supervisor.reason == "code: in use"
        assert it.supervisor.unserved == frozenset(), "who has an address is not known"


@in_fake_time
async def test_one_that_hangs_is_ended_and_one_that_stumbles_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async with kept(monkeypatch) as it:
        it.nginx.mute = True
        await asyncio.sleep(12)
        it.nginx.mute = False
        await asyncio.sleep(60)
        assert it.nginx.starts == 1
        it.nginx.mute = True
        await asyncio.sleep(40)
        assert it.events.count("nginx.hung") >= 1
        it.nginx.mute = False
        await asyncio.sleep(5)
        assert it.supervisor.up
        assert it.nginx.starts == 2


@in_fake_time
async def test_before_it_begins_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Kept(monkeypatch)
    await fresh.supervisor.apply()
    assert fresh.nginx.tries == 0
