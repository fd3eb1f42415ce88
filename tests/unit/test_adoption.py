"""What an earlier daemon left is taken up: routers, nginx, ports, tenures. All of them are played."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.process import adoption
from gateway_sidecar.control.process.adoption import Adoption
from gateway_sidecar.control.replicas.tenure import SavedTenure
from gateway_sidecar.control.routers.process import SavedRouter
from gateway_sidecar.control.state import records
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.domain.model import ReplicaId, SocketIdentity
from gateway_sidecar.errors import StateError
from gateway_sidecar.routers.base import RouterPorts, RouterSetup
from gateway_sidecar.sources.listing import Sighting
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.process import Identity
from tests.smg import SMG
from tests.unit.fake_time import in_fake_time
from tests.unit.processes import PlayedProcess

PORT = 24001


class PlayedService:
    """Remembers what it was given."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.restored: list[tuple[SavedTenure, bool]] = []
        self.preferred: list[int | None] = []
        self.claimed: set[int] = set()
        self.begun_in = ""
        self.adopted: list[tuple[str, int]] = []
        self.prepared = 0
        self.routers: list[PlayedProcess] = []
        self.models: list[str] = []
        self.hold_policy = SimpleNamespace(restore=self.models.extend)
        self.slots = self.router = self.restoring = self
        self.setup = SMG
        self.kind, self.is_nginx, self.process = "smg", False, None
        self.settings: Any = None

    def begin_in(self, slot: str, _kind: str) -> None:
        self.begun_in = slot

    def prepare(self) -> None:
        self.prepared += 1

    async def adopt(self, saved: SavedRouter, identity: Identity, setup: RouterSetup) -> bool:
        return self._take("in service", identity, setup)

    async def adopt_leaving(self, saved: SavedRouter, identity: Identity, setup: RouterSetup) -> bool:
        return self._take("leaving", identity, setup)

    def restore(self, saved: SavedTenure, *, linked: bool) -> None:
        self.restored.append((saved, linked))

    def claim(self, port: int, socket: Path, at: int) -> bool:
        if socket.stem == "mine":
            self.claimed.add(port)
        return socket.stem == "mine"

    def prefer(self, saved: SavedTenure) -> None:
        self.preferred.append(saved.port)

    def _take(self, how: str, identity: Identity, setup: RouterSetup) -> bool:
        assert setup is SMG
        if identity.pid >= 900:
            return False  # That process is gone.
        self.adopted.append((how, identity.pid))
        self.routers.append(PlayedProcess(identity.pid))
        return True


class Left:
    """What there is when the daemon begins, and the daemon's part that takes it up."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.links: dict[int, Path] = {}
        self.connections: Counter[int] = Counter()
        self.running: dict[str, list[Identity]] = {}
        self.nginx_writers: list[Identity] = []
        self.chat = PlayedService("chat")
        self.leases = PortLeases(range(PORT, PORT + 10))
        self.ended: list[tuple[str, int]] = []
        self.begun_with: list[Identity] | None = None
        self.in_service = "chat"
        self.log: list[Any] = []
        patch.setattr(adoption, "open_connections", self._count)
        patch.setattr(adoption, "boot_id", lambda: "boot")
        patch.setattr(adoption, "writers_below", self._writers)
        patch.setattr(adoption, "writers_of", lambda *_: self.nginx_writers)
        patch.setattr(adoption, "Process", SimpleNamespace(adopt=lambda identity: PlayedProcess(identity.pid)))
        nginx = SimpleNamespace(
            bridge_hosts=(), log=SimpleNamespace(places=()), linked=lambda: dict(self.links), linked_at=lambda _: 0,
            unlink=self._unlink, pointed=lambda _: self.in_service,
            in_flight=SimpleNamespace(count=dict), endpoints=SimpleNamespace(keep_only=lambda _: None),
        )  # fmt: skip
        departing = SimpleNamespace(end=lambda service, process: self.ended.append((service, process.pid)))
        self.adoption = Adoption(
            cast("Any", SimpleNamespace(state_dir=Path("/state"), run_dir=Path("/run"))),
            lambda: cast("Any", {"chat": self.chat}),
            cast("Any", SimpleNamespace(nginx=nginx, begin=self._begin)),
            self.leases,
            cast("Any", departing),
            self._setup_of,
        )

    def _setup_of(self, settings: ServiceSettings, kind: str) -> RouterSetup:
        if kind != "smg":
            raise StateError(f"nothing is known of {kind}")
        return SMG

    def _count(self, ports: Container[int], *, hosts: Collection[str]) -> Counter[int]:
        return self.connections

    def _writers(self, directory: Path) -> dict[str, list[Identity]]:
        return self.running if directory == Path("/state/log") else {}

    def _unlink(self, port: int) -> None:
        del self.links[port]

    async def _begin(self, candidates: list[Identity]) -> None:
        self.begun_with = candidates


def process(pid: int) -> Identity:
    return Identity(pid, 1, "boot")


def router(slot: str, pid: int | None) -> dict[str, object]:
    identity = None if pid is None else process(pid)
    return records.router_to_json(SavedRouter(slot, identity, RouterPorts(23001, 23002), "key", "smg"))


def tenure(port: int | None = PORT, socket: str = "/run/r1.sock", **more: bool) -> dict[str, object]:
    sighting = Sighting(ReplicaId("r1"), Path(socket), SocketIdentity(1, 2, 3), "sockets")
    return records.tenure_to_json(SavedTenure(sighting, 0, port, None, more.get("drain", False)))


# -- routers


@in_fake_time
async def test_the_router_that_the_address_leads_to_is_adopted_and_the_other_goes_on_leaving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = Left(monkeypatch)
    left.in_service = "chat.next"
    await left.adoption.take_routers({"routers": {"chat": [router("chat", 1), router("chat.next", 2)]}})
    assert left.chat.adopted == [("leaving", 1), ("in service", 2)]
    assert left.chat.begun_in == "chat.next", "should it be gone, it is started there"
    assert left.chat.prepared == 1
    assert left.ended == []


@in_fake_time
async def test_a_router_that_was_being_started_is_found_by_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ports and its key were written down before it had a pid."""
    left = Left(monkeypatch)
    left.running = {"router-chat.log": [process(901), process(5)], "nginx.log": [process(6)]}
    await left.adoption.take_routers({"routers": {"chat": [router("chat", None)]}})
    assert left.chat.adopted == [("in service", 5)]
    assert left.ended == [("chat", 901)]


@in_fake_time
async def test_routers_that_nobody_has_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A removed service's, and one whose start was not written down: nobody has its key."""
    left = Left(monkeypatch)
    left.running = {"router-chat.log": [process(1), process(7)]}
    with capture_logs():
        await left.adoption.take_routers(
            {
                "routers": {"chat": [router("chat", 1)], "code": [router("code", 8)]},
                "departing": records.departing_to_json([("old", process(9))]),
            }
        )
    assert left.chat.adopted == [("in service", 1)]
    assert sorted(left.ended) == [("chat", 7), ("code", 8), ("old", 9)]


@in_fake_time
async def test_a_router_of_a_kind_that_is_not_installed_any_more_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    left = Left(monkeypatch)
    left.running = {"router-chat.log": [process(1)]}
    with capture_logs() as log:
        await left.adoption.take_routers({"routers": {"chat": [router("chat", 1) | {"kind": "gone"}]}})
    assert (left.chat.adopted, left.ended) == ([], [("chat", 1)])
    assert [each["event"] for each in log] == ["state.ignored", "router.leftover_stopped"]


@in_fake_time
async def test_a_row_of_another_form_is_told_and_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    left = Left(monkeypatch)
    with capture_logs() as log:
        await left.adoption.take_routers({"routers": {"chat": [{"slot": 7}, router("chat", 1)]}})
        await left.adoption.take_bridge({"nginx": {"pid": "x"}})
        await left.adoption.take_tenures({"services": {"chat": [{"replica": 7}]}, "resting": "soon"})
    assert left.chat.adopted == [("in service", 1)]
    assert left.begun_with == []
    assert left.chat.restored == []
    assert [each["event"] for each in log] == ["state.ignored"] * 4


# -- nginx


@in_fake_time
async def test_nginx_is_looked_for_where_it_was_and_by_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    left = Left(monkeypatch)
    left.nginx_writers = [process(3)]
    await left.adoption.take_bridge({"nginx": records.identity_to_json(process(2))})
    assert left.begun_with == [process(2), process(3)]
    await left.adoption.take_bridge({})
    assert left.begun_with == [process(3)]


# -- tenures and ports


@in_fake_time
async def test_a_tenure_whose_link_leads_to_its_socket_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    left = Left(monkeypatch)
    left.links = {PORT: Path("/run/r1.sock")}
    await left.adoption.take_tenures({"boot_id": "boot", "services": {"chat": [tenure()]}})
    ((saved, is_linked),) = left.chat.restored
    assert (saved.port, is_linked, saved.leaving) == (PORT, True, False)
    assert left.links == {PORT: Path("/run/r1.sock")}
    assert left.leases.quarantined == frozenset()


@in_fake_time
async def test_a_tenure_whose_link_leads_elsewhere_or_nowhere_was_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its port is still somebody's until that is seen through; one that is drained is only drained."""
    left = Left(monkeypatch)
    left.links = {PORT: Path("/run/other.sock")}
    rows = [tenure(), tenure(PORT + 1), tenure(PORT + 2, drain=True), tenure(None)]
    await left.adoption.take_tenures({"services": {"chat": rows}})
    assert [(saved.leaving, is_linked) for saved, is_linked in left.chat.restored] == [
        (True, False),
        (True, False),
        (False, False),
        (False, False),
    ]
    assert left.links == {}


@in_fake_time
async def test_a_link_that_no_record_tells_of_is_whoevers_socket_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last daemon had no time to write it down."""
    left = Left(monkeypatch)
    left.links = {PORT: Path("/run/mine.sock"), PORT + 1: Path("/run/nobodys.sock")}
    await left.adoption.take_tenures({})
    assert left.chat.claimed == {PORT}
    assert left.links == {PORT: Path("/run/mine.sock")}
    assert left.leases.quarantined == {PORT + 1}, "it rests until it is quiet"


@in_fake_time
async def test_ports_that_rest_or_are_in_use_rest_no_longer_than_a_late_connection_may_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = Left(monkeypatch)
    left.connections = Counter({PORT + 3: 1})
    now = awake.now()
    await left.adoption.take_tenures({"resting": [[PORT, now + 1, "chat"], [PORT + 1, now + 1e6, "chat"]]})
    assert left.leases.quarantined == {PORT, PORT + 1, PORT + 3}
    assert left.leases.rests_until[PORT] == pytest.approx(now + 1)
    assert left.leases.rests_until[PORT + 1] == pytest.approx(now + SMG.late_s)
    assert left.leases.holder_of(PORT + 1) == "chat"


@in_fake_time
async def test_after_a_reboot_only_the_ports_are_worth_a_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of what was written down lives any more, and nobody is connected."""
    left = Left(monkeypatch)
    left.links = {PORT: Path("/run/r1.sock")}
    rows = {"chat": [tenure(), {"replica": 7}]}
    with capture_logs():
        await left.adoption.take_tenures({"boot_id": "earlier", "services": rows, "models": {"chat": ["tiny"]}})
    assert left.chat.preferred == [PORT]
    assert left.chat.restored == []
    assert left.links == {}
    assert left.leases.quarantined == frozenset()
    assert left.chat.models == ["tiny"], "who asks while it sleeps is told of them"
