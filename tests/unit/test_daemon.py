"""How the daemon comes and goes, in fake time: what it begins in which order, and what it leaves or takes down."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.config.load import load_config
from gateway_sidecar.control.autoscaling import collector
from gateway_sidecar.control.process import adoption, child_logs, shutdown
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.control.process.left_running import LeftRunning
from gateway_sidecar.control.routers.process import SavedRouter
from gateway_sidecar.control.state import records
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.errors import ConfigError, MetricsError, NginxError
from gateway_sidecar.nginx.access_events import EventAddress
from gateway_sidecar.nginx.balance import Endpoints, InFlight
from gateway_sidecar.nginx.frontend_places import FrontendPlaces
from gateway_sidecar.routers.base import RouterPorts
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.process import Identity
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problems
from tests.unit.fake_time import in_fake_time
from tests.unit.processes import PlayedProcess
from tests.unit.ready_marks import PlayedMarks
from tests.unit.services import CHAT, CODE, PlayedAdapters, PlayedService, configured
from tests.unit.test_collector import PlayedListener


class Outside:
    """All that a daemon shares among its services, in one: nginx, peers, keys, tunnels, the API's record.

    `done` says what was asked of it, in order.
    """

    def __init__(self, directory: Path) -> None:
        self.done: list[str] = []
        self.process: PlayedProcess | None = None
        self.fault: Exception | None = None
        self.left: dict[int, Path] = {}
        self.problem = self.trouble = self.bridge_key = ""
        self.events, self.file = EventAddress(4711, "ab12" * 6), None
        self.connections: list[Any] = []
        self.places: tuple[Path, ...] = ()
        self.changed = asyncio.Event()
        self.frontends = FrontendPlaces(directory / "frontends")
        self.log = self.access_log = self
        self.logs_elsewhere = False
        self.told: Any = None
        self.has_looked: Callable[[], bool] = bool
        self.in_flight = InFlight(directory, 24001, 24002)
        self.endpoints = Endpoints(directory / "endpoints", self.in_flight.note_change)
        self.ready_marks = PlayedMarks()
        self.bridge_hosts = ("127.0.0.1", "127.0.0.2")

    # nginx

    def prepare(self) -> None:
        """Its directories are there."""

    async def start(self, services: object) -> None:
        if self.fault is not None:
            raise self.fault
        self.done.append("nginx started")
        self.process = PlayedProcess(7)

    async def adopt(self, identity: Identity) -> bool:
        self.process = PlayedProcess(identity.pid)
        self.done.append("nginx adopted")
        return True

    async def objections(self, services: object) -> dict[str, str]:
        return {}

    async def in_force(self) -> None:
        return None

    async def apply(self, services: list[object]) -> bool:
        self.done.append("addresses closed" if not services else "applied")
        return False

    async def is_mute(self, patience_s: float) -> bool:
        return False

    def pointed(self, service: str) -> str:
        return service

    def linked(self) -> dict[int, Path]:
        return dict(self.left)

    def linked_at(self, port: int) -> int:
        return 0

    def linked_ports(self) -> set[int]:
        return set(self.left)

    def unlink(self, port: int) -> None:
        del self.left[port]

    async def repair_files(self, services: object) -> bool:
        return False

    async def keep_up_temp(self) -> None:
        return

    async def look(self) -> None:
        return

    def take_over_key(self, key: str) -> None:
        self.bridge_key = key

    async def read(self) -> list[str]:
        return []

    async def read_tail(self, _: int) -> list[str]:
        return []

    async def stop(self, grace_s: float) -> None:
        self.done.append("nginx ended")

    # peers, keys, destinations, tunnels, the API's record

    def use(self, hosts: object, then: object) -> None:
        return

    def recheck_soon(self) -> None:
        return

    async def load(self, told: object) -> None:
        self.told = told

    async def begin(self, has_looked: Callable[[], bool]) -> None:
        self.has_looked = has_looked

    async def run(self) -> None:
        while True:
            await asyncio.sleep(60)

    def request(self, tunnels: object, *, complete: bool) -> None:
        return

    async def collect_last(self) -> None:
        return

    async def close(self) -> None:
        self.done.append("given back")

    async def end(self) -> None:
        self.done.append("tunnels ended")

    def detach(self) -> asyncio.Future[None]:
        """Of all of them: that of tunnels is awaited."""
        self.done.append("detached")
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class Site:
    """A daemon that begins. `in_flight`: connections to its routers."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.path = directory / "gateway-sidecar.yaml"
        self.path.write_text(self.text(CHAT))
        self.outside = Outside(directory)
        self.adapters = PlayedAdapters()
        self.in_flight = 0
        self.log: list[Any] = []
        self.ended: list[int] = []
        for module in (adoption, shutdown):
            patch.setattr(module, "open_connections", lambda _, **_hosts: Counter({23001: self.in_flight}))
        patch.setattr(adoption, "writers_below", lambda _: {})
        patch.setattr(adoption, "writers_of", lambda *_: [])
        patch.setattr(child_logs, "rss_bytes", lambda _: None)
        patch.setattr(collector, "MetricsPages", lambda: SimpleNamespace(read=_no_page, close=_nothing))
        patch.setattr(collector, "EventListener", lambda _: PlayedListener())
        patch.setattr(shutdown, "Process", SimpleNamespace(adopt=self._adopt))
        outside = cast("Any", self.outside)
        shared = SimpleNamespace(
            nginx=outside, leases=PortLeases(range(24001, 24011)), peers=outside, destinations=outside, keys=outside,
            tunnels=outside, api=outside, usage=outside, problems=Problems(), fleet=None,
        )  # fmt: skip
        self.daemon = Daemon(self.path, load_config(self.path), cast("Any", shared), self.adapters, Metrics())

    def text(self, *services: str) -> str:
        return (
            configured(*services)
            .replace("/run/gateway", f"{self.directory}/run")
            .replace("/var/gateway", f"{self.directory}/state")
        )

    @property
    def chat(self) -> PlayedService:
        return self.adapters.made[0]

    @property
    def events(self) -> list[str]:
        return [each["event"] for each in self.log]

    async def serve(self, _: Daemon) -> Callable[[], Awaitable[None]]:
        self.outside.done.append("listeners opened")

        async def close() -> None:
            self.outside.done.append("listeners closed")

        return close

    def _adopt(self, identity: Identity) -> PlayedProcess:
        process = PlayedProcess(identity.pid)
        asyncio.get_running_loop().create_task(process.wait()).add_done_callback(
            lambda _: self.ended.append(identity.pid)
        )
        return process


async def _nothing() -> None:
    return None


async def _no_page(*_: object) -> bytes:
    raise MetricsError("no page")


@asynccontextmanager
async def running(directory: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Site, asyncio.Task[None]]]:
    with capture_logs() as log:
        site = Site(directory, patch)
        site.log = log
        task = asyncio.create_task(site.daemon.run(site.serve))
        await asyncio.sleep(1)
        try:
            yield site, task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@in_fake_time
async def test_whoever_has_to_wait_finds_where_before_nginx_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that is taken ends the daemon with nothing begun."""
    async with running(tmp_path, monkeypatch) as (site, _):
        done = site.outside.done
        assert done.index("listeners opened") < done.index("nginx started")
        assert site.daemon.taken_up.is_set()
        assert site.chat.running.is_set()
        assert site.events == ["service.not_ready", "nginx.started", "daemon.started", "service.ready"]
        assert site.daemon.ready
        assert site.daemon.healthy


@in_fake_time
async def test_a_daemon_without_nginx_ends_and_closes_what_it_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, monkeypatch)
    site.outside.fault = NginxError("the port is taken")
    with capture_logs(), pytest.raises(NginxError):
        await site.daemon.run(site.serve)
    assert site.outside.done[-1] == "listeners closed"
    assert not site.daemon.taken_up.is_set()
    assert not site.chat.running.is_set()


@in_fake_time
async def test_what_an_earlier_daemon_left_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = SavedRouter("chat", Identity(8, 1, "boot"), RouterPorts(23001, 23002), "key", "smg")
    records.write_record(
        tmp_path / "run" / "processes.json",
        {
            "nginx": records.identity_to_json(Identity(77, 1, "boot")),
            "bridge_key": "k" * 32,
            "routers": {"chat": [records.router_to_json(saved)]},
        },
    )
    records.write_record(
        tmp_path / "state" / "leases.json", {"services": {"chat": [{"replica": "a", "source": "api"}]}}
    )
    async with running(tmp_path, monkeypatch) as (site, _):
        assert "nginx adopted" in site.outside.done
        assert "nginx started" not in site.outside.done
        assert site.outside.bridge_key == "k" * 32
        assert site.chat.router.adopted == [saved]
        assert site.outside.told == {"chat": ["a"]}


@in_fake_time
async def test_it_ends_and_all_goes_on_for_the_next_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, monkeypatch) as (site, task):
        site.outside.done.clear()
        site.daemon.end(stop_all=False)
        await task
        assert site.outside.done == ["listeners closed", "detached", "detached", "detached"]
        assert site.chat.router.is_let_go
        assert site.chat.router.process.running
        assert site.outside.process is not None
        assert site.outside.process.is_let_go
        assert records.read_record(tmp_path / "run" / "processes.json")["nginx"]["pid"] == 7
        assert not site.daemon.takes_all_down


@in_fake_time
async def test_it_takes_all_down_in_order_and_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, monkeypatch) as (site, task):
        site.outside.done.clear()
        site.outside.left = {24001: Path("/run/r1.sock")}
        site.daemon.end(stop_all=True, by_command=True)
        await task
        assert site.outside.done == [
            "listeners closed", "addresses closed", "nginx ended", "given back", "given back", "tunnels ended",
        ]  # fmt: skip
        assert not site.chat.router.process.running
        assert site.outside.left == {}
        assert list((tmp_path / "run").iterdir()) == []
        assert site.daemon.takes_all_down
        assert site.daemon.ended_by_command


@in_fake_time
async def test_what_is_in_flight_has_its_time_unless_it_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as (site, task):
        site.in_flight = 2
        began = awake.monotonic()
        site.daemon.end(stop_all=True, timeout_s=100)
        await asyncio.sleep(50)
        assert not task.done()
        site.daemon.end(stop_all=True)
        await task
        assert awake.monotonic() - began < 52
        assert "daemon.cut_off" in site.events


@in_fake_time
async def test_a_loop_that_ends_ends_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd starts it again; all else goes on meanwhile."""
    async with running(tmp_path, monkeypatch) as (site, task):
        site.chat.fault = ZeroDivisionError("a fault of ours")
        with pytest.raises(ZeroDivisionError):
            await task
        assert site.outside.done[-4:] == ["listeners closed", "detached", "detached", "detached"]


@in_fake_time
async def test_it_is_ready_when_everybody_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, monkeypatch) as (site, _):
        assert site.daemon.ready
        assert site.outside.has_looked()
        site.chat.has_looked = False
        assert not site.daemon.ready
        assert not site.outside.has_looked(), "nothing that was left is ended yet"
        site.chat.has_looked = True
        site.outside.process = None
        assert not site.daemon.ready


@in_fake_time
async def test_a_reload_is_written_down_whatever_comes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, monkeypatch) as (site, _):
        site.path.write_text(site.text(CHAT, CODE))
        assert await site.daemon.reload() == ["code: added"]
        assert site.daemon.services.keys() == {"chat", "code"}
        assert [service.name for service in site.daemon.settings.services] == ["chat", "code"]
        await asyncio.sleep(1)
        assert records.read_record(tmp_path / "run" / "processes.json")["routers"].keys() == {"chat", "code"}
        site.path.write_text("services: 7\n")
        with pytest.raises(ConfigError):
            await site.daemon.reload()
        assert site.daemon.services.keys() == {"chat", "code"}
        assert site.daemon.summary().startswith("chat: no replicas")


@in_fake_time
async def test_a_reload_under_way_ends_before_the_daemon_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would go on to start routers that nobody writes down, and connections that nobody closes."""
    async with running(tmp_path, monkeypatch) as (site, task):
        ended = asyncio.Event()

        async def replace() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                assert "detached" not in site.outside.done
                ended.set()

        monkeypatch.setattr(site.chat, "replace", replace)
        site.path.write_text(site.text(CHAT.replace("replicas:", "router: {api_timeout_s: 9}, replicas:")))
        site.daemon.reload_soon()
        await asyncio.sleep(10)
        assert "config.refused" not in site.events
        assert not ended.is_set()
        site.daemon.end(stop_all=False)
        await task
        assert ended.is_set()


@in_fake_time
async def test_a_signal_that_asks_for_what_cannot_be_taken_in_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as (site, _):
        site.path.write_text("services: 7\n")
        site.daemon.reload_soon()
        await asyncio.sleep(1)
        assert site.events[-1] == "config.refused"
        assert site.daemon.services.keys() == {"chat"}


@in_fake_time
async def test_what_is_left_is_ended_without_a_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of a daemon's own end; what could not be given back is told, and how to."""
    site = Site(tmp_path, monkeypatch)
    left = LeftRunning(
        nginx=(Identity(1, 1, "boot"), Identity(2, 1, "boot")),
        routers={Identity(3, 1, "boot"): "chat"},
        ports={Identity(3, 1, "boot"): RouterPorts(23001, 23002)},
        small=(Identity(4, 1, "boot"),),
        holders=(Identity(5, 1, "boot"),),
    )
    with capture_logs():
        await site.daemon.end_left(left, timeout_s=1)
        await asyncio.sleep(1)
    assert site.outside.done[0] == "nginx adopted"
    assert site.outside.done[-4:] == ["nginx ended", "given back", "given back", "tunnels ended"]
    assert sorted(site.ended) == [2, 3, 4, 5], "the second nginx, which is nobody's; the first is ended as ours"
    site.outside.problem = "no permission"
    with capture_logs(), pytest.raises(NginxError, match="ip link delete"):
        await site.daemon.end_left(LeftRunning(), timeout_s=1)
