"""Certificates by ACME in fake time: when orders are made, what is kept, what is told. The ACME server is a fake."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway_sidecar.config import AcmeSettings, Endpoint, FrontendSettings, TlsSettings
from gateway_sidecar.control.edge.acme_host import AcmeHost, AcmeServer
from gateway_sidecar.control.edge.acme_shared import AcmeShared
from gateway_sidecar.control.edge.certificates import Certificates
from gateway_sidecar.domain.renewal import Tries, order_at
from gateway_sidecar.errors import AcmeError
from gateway_sidecar.frontend.acme_state import AcmeState, Wanted
from gateway_sidecar.frontend.challenges import Answers
from gateway_sidecar.nginx.frontend_places import FrontendPlaces
from gateway_sidecar.telemetry.metrics import Metrics
from tests.certificates import chain_and_key
from tests.unit.fake_time import in_fake_time, stall

T0 = 1_800_000_000.0
DAY_S = 86400.0
URL = "https://acme.example.com/dir"
NAME = "api.example.com"


def frontend(*names: str, redirect: bool = True) -> FrontendSettings:
    """One whose certificate is by ACME."""
    return FrontendSettings(
        listen=(Endpoint("0.0.0.0", 443),),
        redirect=(Endpoint("0.0.0.0", 80),) if redirect else (),
        server_names=names,
        tls=TlsSettings(acme=True),
    )


@dataclass
class World(AcmeServer):
    """What is around the certificates. `lifetime_s` is of what the server issues; `fails` is raised in its place."""

    directory: Path
    settings: AcmeSettings | None = field(default_factory=lambda: AcmeSettings(directory=URL, accept_terms=True))
    frontends: dict[str, FrontendSettings] = field(default_factory=lambda: {"chat": frontend(NAME)})
    served: dict[str, FrontendSettings] | None = None
    lifetime_s: float = 90 * DAY_S
    fails: Exception | None = None
    issue: Callable[[Wanted], bytes] | None = None
    ordered: list[float] = field(default_factory=list)
    wanted: list[Wanted] = field(default_factory=list)
    suggested_at: float | None = None
    asked: list[float] = field(default_factory=list)
    taken_in: int = 0
    clock_s: float = 0.0
    shared: AcmeShared | None = None

    def __post_init__(self) -> None:
        self.served = self.frontends
        self.state = AcmeState(self.directory / "acme")
        self.metrics = Metrics()

    def now(self) -> float:
        return T0 + self.clock_s + asyncio.get_running_loop().time()

    def begin(self) -> Certificates:
        """A daemon begins, with what another left."""

        def take_in() -> None:
            self.taken_in += 1

        host = AcmeHost(lambda: self.settings, lambda: self.frontends, lambda: self.served, take_in, self.shared)
        places = FrontendPlaces(self.directory / "frontends")
        return Certificates(self.state, places, host, self.metrics, now=self.now, server=self)

    def suggested_renewal(self, settings: AcmeSettings, pem: Path) -> tuple[float | None, float]:
        self.asked.append(self.now() - T0)
        if self.fails is not None:
            raise self.fails
        return self.suggested_at, 3600.0

    def order(
        self, settings: AcmeSettings, state: AcmeState, wanted: Wanted, answers: Answers, told: Callable[[str], None]
    ) -> bytes:
        self.ordered.append(self.now() - T0)
        self.wanted.append(wanted)
        if self.fails is not None:
            raise self.fails
        if self.issue is not None:
            return self.issue(wanted)
        return chain_and_key(wanted.names, self.now(), self.now() + self.lifetime_s)

    def pem(self, *names: str) -> bytes:
        """What is kept for these names."""
        return self.state.pem(Wanted.of(names or (NAME,), URL)).read_bytes()

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"gateway_sidecar_{name}", labels)


async def until_due(world: World, certificates: Certificates, names: tuple[str, ...] = (NAME,)) -> float:
    """The next order, which is not made before it is due; after how many seconds it was."""
    certificates_before, began = len(world.ordered), world.now()
    held = world.state.read(Wanted.of(names, URL), world.now())
    due_at = order_at(world.now(), held.validity, held.renewal_at, held.tries)
    stall(max(due_at - 1 - world.now(), 0.0))
    await certificates.look()
    assert len(world.ordered) == certificates_before
    stall(due_at - world.now() + 0.01)
    await certificates.look()
    assert len(world.ordered) == certificates_before + 1
    return world.now() - began


async def through(certificates: Certificates, seconds: float, *, step_s: float) -> None:
    """Looks at each step, for so long."""
    for _ in range(round(seconds / step_s)):
        stall(step_s)
        await certificates.look()


@in_fake_time
async def test_a_certificate_is_ordered_and_renewed_at_two_thirds_of_its_lifetime(tmp_path: Path) -> None:
    """Once each time, and everybody is told."""
    world = World(tmp_path)
    certificates = world.begin()
    await certificates.look()
    assert world.ordered == [0.0]
    assert world.taken_in == 1
    assert certificates.problems == {}
    files = certificates.with_files(world.frontends)["chat"].tls
    assert files is not None
    assert files.certificate_files == (world.state.pem(Wanted.of((NAME,), URL)),) * 2
    due = world.value("acme_renewal_timestamp_seconds", service="chat")
    assert due is not None
    await through(certificates, 56 * DAY_S, step_s=DAY_S)
    await until_due(world, certificates)
    assert 57 * DAY_S <= world.ordered[1] <= 60 * DAY_S + 1
    assert world.ordered[1] == pytest.approx(due - T0, abs=1)
    assert world.value("acme_orders_total", service="chat", outcome="issued") == 2


@in_fake_time
async def test_a_server_may_have_a_certificate_renewed_early(tmp_path: Path) -> None:
    """It will be revoked. The server is asked as often as it says, and one that does not answer changes nothing."""
    world = World(tmp_path)
    certificates = world.begin()
    await through(certificates, 7300, step_s=100)
    assert world.asked == [200, 3800]
    world.fails = AcmeError("away")
    await through(certificates, 3600, step_s=100)
    assert world.asked == [200, 3800, 7400]
    assert certificates.problems == {}
    world.fails, world.suggested_at = None, T0 + 40000
    await through(certificates, 21600 + 3600, step_s=100)
    assert len(world.ordered) == 1
    assert world.value("acme_renewal_timestamp_seconds", service="chat") == T0 + 40000
    world.fails = AcmeError("no")
    await through(certificates, 6000, step_s=100)
    assert world.ordered[1:] == [40000, 40100, 40700]
    await through(world.begin(), 100, step_s=50)
    assert world.ordered[1:] == [40000, 40100, 40700]


@in_fake_time
async def test_what_is_renewed_together_is_not_renewed_at_one_time(tmp_path: Path) -> None:
    """Each certificate has its share of the spread by itself, the same after a restart."""
    names = [f"s{number}.example.com" for number in range(12)]
    world = World(tmp_path, frontends={name.partition(".")[0]: frontend(name) for name in names})
    await world.begin().look()
    due = {world.value("acme_renewal_timestamp_seconds", service=service) for service in world.frontends}
    assert len(due) == len(names)
    await world.begin().look()
    assert due == {world.value("acme_renewal_timestamp_seconds", service=service) for service in world.frontends}
    assert len(world.ordered) == len(names)


@in_fake_time
async def test_a_failed_renewal_keeps_the_old_one_and_is_told_and_tried_with_growing_pauses(tmp_path: Path) -> None:
    """The next daemon goes on with the same pause."""
    world = World(tmp_path)
    certificates = world.begin()
    await certificates.look()
    kept = world.pem()
    world.fails = AcmeError("b.example.com: no; have that name lead here")
    await until_due(world, certificates)
    pauses = [await until_due(world, certificates) for _ in range(3)]
    certificates = world.begin()
    pauses += [await until_due(world, certificates) for _ in range(3)]
    assert [round(it, -1) for it in pauses] == [60, 600, 6000, 60000, DAY_S, DAY_S]
    assert world.pem() == kept
    problem = certificates.problems["chat: frontend acme"]
    assert problem.startswith("b.example.com: no; have that name lead here (7 orders in a row failed; the next is due ")
    assert world.value("frontend_problem", service="chat", part="acme") == 1
    world.fails = None
    await until_due(world, certificates)
    assert world.pem() != kept
    assert certificates.problems == {}
    assert world.value("frontend_problem", service="chat", part="acme") == 0


@in_fake_time
async def test_a_daemon_that_dies_in_an_order_does_not_order_at_once_again(tmp_path: Path) -> None:
    """Else one that is started again and again would meet the server's limits."""
    world = World(tmp_path)
    world.fails = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        await world.begin().look()
    world.fails = None
    certificates = world.begin()
    await certificates.look()
    assert world.ordered == [0.0]
    assert "the last order did not end" in certificates.problems["chat: frontend acme"]
    stall(61)
    await certificates.look()
    assert len(world.ordered) == 2
    assert certificates.problems == {}


def other_key(at: float) -> bytes:
    """A chain with another chain's key."""
    one, other = (chain_and_key((NAME,), at, at + 90 * DAY_S) for _ in range(2))
    end = b"-----END CERTIFICATE-----\n"
    return one.rpartition(end)[0] + end + other.rpartition(end)[2]


@in_fake_time
async def test_what_is_not_good_is_not_taken(tmp_path: Path) -> None:
    """The key must fit, the names, and the dates of the certificate and its issuer's. What was there stays."""
    world = World(tmp_path)
    certificates = world.begin()
    await certificates.look()
    kept = world.pem()
    bad: list[tuple[str, Callable[[float], bytes]]] = [
        ("it is not the key of the certificate", other_key),
        ("is not for api.example.com", lambda at: chain_and_key(("x.example.com",), at, at + 90 * DAY_S)),
        ("it expired at", lambda at: chain_and_key((NAME,), at - 90 * DAY_S, at - 1)),
        ("has expired", lambda at: chain_and_key((NAME,), at - 9, at + DAY_S, issuer_ends_at=at - 1)),
        ("it holds no certificate", lambda at: b"rubbish"),
    ]
    for words, made in bad:
        world.issue = lambda _, made=made: made(world.now())
        await until_due(world, certificates)
        assert words in certificates.problems["chat: frontend acme"]
        assert world.pem() == kept
        assert sorted(path.suffix for path in (tmp_path / "acme").iterdir()) == [".json", ".pem"]


@in_fake_time
async def test_a_certificate_of_the_future_is_kept_and_not_ordered_again(tmp_path: Path) -> None:
    """This machine's clock is slow, and another one would be of the future as well."""
    world = World(tmp_path)
    world.issue = lambda it: chain_and_key(it.names, world.now() + 7200, world.now() + 90 * DAY_S)
    certificates = world.begin()
    await through(certificates, 3600, step_s=300)
    assert len(world.ordered) == 1
    await world.begin().look()
    assert len(world.ordered) == 1


@in_fake_time
async def test_a_full_disk_orders_nothing_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be counted is not ordered, and what was issued and cannot be written is not ordered again."""
    world = World(tmp_path)
    certificates = world.begin()
    full = OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(world.state, "note", refuse)
        await certificates.look()
        assert world.ordered == []
        assert "No space left on device" in certificates.problems["chat: frontend acme"]
    with monkeypatch.context() as patch:
        patch.setattr(world.state, "keep", refuse)
        await through(certificates, 7200, step_s=600)
        assert len(world.ordered) == 1
        assert "No space left on device" in certificates.problems["chat: frontend acme"]
    await through(certificates, 7200, step_s=600)
    assert len(world.ordered) == 1
    assert world.taken_in == 1
    assert certificates.problems == {}


@in_fake_time
async def test_a_daemon_that_dies_once_it_has_the_certificate_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure that was written down before the order is over."""
    world = World(tmp_path)
    note, noted = world.state.note, []

    def only_once(wanted: Wanted, tries: Tries) -> None:
        noted.append(tries)
        if len(noted) > 1:
            raise OSError(errno.EIO, "the end")
        note(wanted, tries)

    monkeypatch.setattr(world.state, "note", only_once)
    certificates = world.begin()
    await certificates.look()
    for daemon in (certificates, world.begin()):
        await through(daemon, 7200, step_s=600)
        assert daemon.problems == {}
    assert len(noted) == 2
    assert len(world.ordered) == 1


@in_fake_time
async def test_nothing_is_ordered_before_nginx_could_prove_the_names(tmp_path: Path) -> None:
    """It would fail, and count."""
    world = World(tmp_path)
    world.served = None
    certificates = world.begin()
    await through(certificates, DAY_S, step_s=7200)
    world.served = {"chat": frontend("other.example.com"), "code": frontend(NAME, redirect=False)}
    await through(certificates, DAY_S, step_s=7200)
    assert world.ordered == []
    assert "as soon as nginx serves frontend.redirect" in certificates.problems["chat: frontend acme"]
    assert "no client gets in until it is there" in certificates.problems["chat: frontend acme"]
    world.served = world.frontends
    await certificates.look()
    assert len(world.ordered) == 1


@in_fake_time
async def test_services_with_the_same_names_have_one_certificate(tmp_path: Path) -> None:
    """In whatever order they say them. Other names, and another server, are another certificate."""
    names = ("a.example.com", "b.example.com")
    world = World(tmp_path, frontends={"chat": frontend(*names), "code": frontend(*reversed(names), redirect=False)})
    certificates = world.begin()
    await certificates.look()
    assert [it.names for it in world.wanted] == [names]
    world.frontends["code"] = frontend("a.example.com")
    await certificates.look()
    assert [it.names for it in world.wanted] == [names, ("a.example.com",)]
    world.settings = AcmeSettings(directory=f"{URL}/other", accept_terms=True)
    await certificates.look()
    assert len(world.wanted) == 4
    world.settings = AcmeSettings(directory=URL, accept_terms=True)
    await certificates.look()
    assert len(world.wanted) == 4


@in_fake_time
async def test_a_reload_tries_again_at_once_unless_the_server_wants_to_be_left_alone(tmp_path: Path) -> None:
    """Somebody has put something right, most likely."""
    world = World(tmp_path)
    world.fails = AcmeError("no")
    certificates = world.begin()
    await certificates.look()
    await (await certificates.prepare())()
    world.fails = AcmeError("too many", asked_s=7200.0)
    await certificates.look()
    assert len(world.ordered) == 2
    await (await certificates.prepare())()
    assert await until_due(world, certificates) == pytest.approx(7200, abs=1)


@in_fake_time
async def test_a_service_without_acme_has_no_series_and_no_problem(tmp_path: Path) -> None:
    """Nor has one that is gone. What is not needed is removed once it has expired."""
    world = World(tmp_path)
    certificates = world.begin()
    await certificates.look()
    world.frontends, world.settings = {"chat": FrontendSettings()}, None
    await certificates.look()
    assert world.value("acme_orders_total", service="chat", outcome="issued") is None
    assert world.value("acme_renewal_timestamp_seconds", service="chat") is None
    assert world.value("frontend_problem", service="chat", part="acme") is None
    world.settings = AcmeSettings(directory=URL, accept_terms=True)
    await through(certificates, 89 * DAY_S, step_s=DAY_S)
    assert world.pem()
    await through(certificates, 2 * DAY_S, step_s=DAY_S)
    assert list((tmp_path / "acme").iterdir()) == []


@in_fake_time
async def test_files_that_are_damaged_are_as_good_as_none(tmp_path: Path) -> None:
    """Another certificate is ordered."""
    world = World(tmp_path)
    await world.begin().look()
    for path in (tmp_path / "acme").iterdir():
        path.write_bytes(b"\x00{")
    await world.begin().look()
    assert len(world.ordered) == 2
    assert world.pem().startswith(b"-----BEGIN")


def test_a_long_name_has_a_file(tmp_path: Path) -> None:
    """A host name may be as long as a file's."""
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    state, wanted = AcmeState(tmp_path), Wanted.of((name,), URL)
    state.keep(wanted, chain_and_key((name,), T0, T0 + DAY_S), T0)
    assert state.read(wanted, T0).validity is not None
    assert str(wanted) != str(Wanted.of((name, "c"), URL))
