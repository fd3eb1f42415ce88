"""Certificates by ACME of several gateways on a store in memory, in fake time: ordered by one, and all have them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway_sidecar.control.edge.acme_shared import AcmeShared, Alone
from gateway_sidecar.control.edge.certificates import Certificates
from gateway_sidecar.control.fleet.acme import FleetAcme
from gateway_sidecar.domain.renewal import Tries
from gateway_sidecar.errors import AcmeError, StoreAway, StoreConflict
from gateway_sidecar.frontend.acme_state import AcmeState, Wanted
from tests.certificates import chain_and_key
from tests.unit.fake_time import in_fake_time
from tests.unit.test_certificates import DAY_S, NAME, T0, URL, World
from tests.unit.test_fleet import Fleets, Site, fleets

WANTED = Wanted.of((NAME,), URL)
PEM, TRIES = f"tls/acme/{WANTED}.pem", f"tls/acme/{WANTED}.json"
ORDERER = "tls/orderer"
PROBLEM = "chat: frontend acme"


@dataclass
class Gateway(World):
    """One whose certificates are those of its fleet."""

    site: Site = field(init=False)
    certificates: Certificates = field(init=False)

    @classmethod
    async def start(cls, them: Fleets, name: str) -> Gateway:
        made = cls(them.directory / name)
        made.site = await them.start(name)
        await made.site.fleet.acme.load()
        made.state, made.shared = made.site.fleet.acme.state, made.site.fleet.acme
        made.certificates = made.begin()
        return made

    @property
    def acme(self) -> FleetAcme:
        return self.site.fleet.acme

    def pems(self) -> bytes | None:
        path = self.state.pem(WANTED)
        return path.read_bytes() if path.exists() else None


@in_fake_time
async def test_one_gateway_orders_and_all_have_the_certificate(tmp_path: Path) -> None:
    """Whichever looks first; the others take it, and nobody holds anything back afterwards. The same when it is due."""
    async with fleets(tmp_path) as them:
        gateways = [await Gateway.start(them, name) for name in ("a", "b", "c")]
        await asyncio.gather(*(it.certificates.look() for it in gateways))
        await asyncio.sleep(1)
        await asyncio.gather(*(it.certificates.look() for it in gateways))
        assert sum(len(it.ordered) for it in gateways) == 1
        first = {it.pems() for it in gateways}
        assert first == {them.held.entries[PEM].value.encode()}
        assert ORDERER not in them.held.entries
        for it in gateways:
            assert (it.certificates.problems, it.site.problems.told()) == ({}, {})
            assert it.state.pem(WANTED).stat().st_mode & 0o777 == 0o600
            it.clock_s += 61 * DAY_S
        for it in (*gateways, *gateways):
            await it.certificates.look()
            await asyncio.sleep(0.5)
        assert sum(len(it.ordered) for it in gateways) == 2
        assert {it.pems() for it in gateways} == {them.held.entries[PEM].value.encode()} != first


@in_fake_time
async def test_a_dead_gateways_order_is_gone_on_with_once_its_lease_has_ended(tmp_path: Path) -> None:
    """At once then; what comes of it counts as ever."""
    async with fleets(tmp_path) as them:
        a, b = await Gateway.start(them, "a"), await Gateway.start(them, "b")
        assert await a.acme.take(WANTED)
        begun = Tries().begun(a.now(), "the last order did not end, since the daemon did", None)
        await a.acme.put(TRIES.removeprefix("tls/acme/"), await asyncio.to_thread(a.state.note, WANTED, begun))
        await asyncio.sleep(1)
        lease = a.site.fleet.membership.lease
        assert lease is not None
        for _ in range(3):
            await asyncio.sleep(2)
            await b.certificates.look()
        assert b.ordered == []
        assert b.certificates.problems[PROBLEM].startswith(f"no certificate for {NAME} yet; gateway 'a' orders it")
        await them.stop(a.site)
        them.held.end(lease)
        await asyncio.sleep(1)
        b.fails = AcmeError("no")
        await b.certificates.look()
        assert len(b.ordered) == 1
        assert "2 orders in a row failed" in b.certificates.problems[PROBLEM]
        b.fails = None
        await b.certificates.look()
        assert len(b.ordered) == 1, "the usual pause"


@in_fake_time
async def test_orders_that_end_again_and_again_with_their_gateways_keep_the_usual_pauses(tmp_path: Path) -> None:
    """Else gateways that crash in turn would meet the server's limits. One that follows a failure is gone on with."""
    async with fleets(tmp_path) as them:
        a = await Gateway.start(them, "a")
        once = Tries().failed(a.now(), "no", None).begun(a.now(), "cut off", None)
        for tries, orders in ((once.begun(a.now(), "cut off", None), 0), (once, 1)):
            them.held.write(TRIES, await asyncio.to_thread(a.state.note, WANTED, tries))
            await asyncio.sleep(6)
            await a.certificates.look()
            assert len(a.ordered) == orders


@in_fake_time
async def test_what_failed_at_one_gateway_puts_all_of_them_off(tmp_path: Path) -> None:
    """Else each of them would meet the server's limits."""
    async with fleets(tmp_path) as them:
        a, b = await Gateway.start(them, "a"), await Gateway.start(them, "b")
        a.fails = b.fails = AcmeError("b.example.com: no")
        await a.certificates.look()
        await asyncio.sleep(1)
        await b.certificates.look()
        assert (len(a.ordered), len(b.ordered)) == (1, 0)
        assert "b.example.com: no (1 order in a row failed" in b.certificates.problems[PROBLEM]
        b.fails = None
        await asyncio.sleep(61)
        await b.certificates.look()
        await asyncio.sleep(1)
        await a.certificates.look()
        assert (len(a.ordered), len(b.ordered)) == (1, 1)
        assert a.certificates.problems == b.certificates.problems == {}


@in_fake_time
async def test_a_renewal_waits_for_a_store_that_is_away_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is in force stays; once in the log. It is renewed when the store is back."""
    async with fleets(tmp_path) as them:
        a = await Gateway.start(them, "a")
        await a.certificates.look()
        first = a.pems()
        a.site.store.failing = StoreAway("no answer in 2 s")
        await asyncio.sleep(20)
        await a.certificates.look()
        assert a.certificates.problems == {}
        a.clock_s = 61 * DAY_S
        for _ in range(3):
            await asyncio.sleep(2)
            await a.certificates.look()
        assert a.certificates.problems[PROBLEM].startswith("it is due, and waits: the store")
        out = capsys.readouterr()
        assert (out.out + out.err).count("acme.waits") == 1
        assert (len(a.ordered), a.pems()) == (1, first)
        a.site.store.failing = None
        await asyncio.sleep(20)
        await a.certificates.look()
        assert (len(a.ordered), a.certificates.problems) == (2, {})
        assert a.pems() != first


@in_fake_time
async def test_what_others_bring_forgets_nothing_that_the_server_said(tmp_path: Path) -> None:
    """It would have the certificate renewed early, and is asked again only after hours."""
    async with fleets(tmp_path) as them:
        a = await Gateway.start(them, "a")
        await a.certificates.look()
        await asyncio.sleep(1)
        a.suggested_at = T0 + 40000
        await a.certificates.look()
        asked = len(a.asked)
        them.held.write("tls/acme/account-0123456789ab.json", "{}")
        await asyncio.sleep(6)
        await a.certificates.look()
        assert a.value("acme_renewal_timestamp_seconds", service="chat") == T0 + 40000
        assert len(a.asked) == asked


@in_fake_time
async def test_what_was_issued_while_the_store_went_away_is_not_ordered_again(tmp_path: Path) -> None:
    """It is in force everywhere once it can be shared."""
    async with fleets(tmp_path) as them:
        a, b = await Gateway.start(them, "a"), await Gateway.start(them, "b")

        def issue(wanted: Wanted) -> bytes:
            a.site.store.failing = StoreAway("no answer in 2 s")
            return chain_and_key(wanted.names, a.now(), a.now() + 90 * DAY_S)

        a.issue = issue
        await a.certificates.look()
        assert "cannot be shared with the other gateways" in a.certificates.problems[PROBLEM]
        a.site.store.failing = None
        await asyncio.sleep(70)
        await a.certificates.look()
        await asyncio.sleep(1)
        assert len(a.ordered) == 1
        assert a.pems() == b.pems() == them.held.entries[PEM].value.encode()


@in_fake_time
async def test_what_a_gateway_had_before_it_had_a_store_is_that_of_all(tmp_path: Path) -> None:
    """It orders no other one. The account, too; another gateway's own is replaced by it."""
    old = {name: AcmeState(tmp_path / name / "acme") for name in ("a", "b")}
    pems = {}
    for number, (name, state) in enumerate(old.items()):
        pems[name] = chain_and_key((NAME,), T0, T0 + (90 + number) * DAY_S)
        state.keep(WANTED, pems[name], T0)
        state.keep_account(URL, None, {"key": name})
    async with fleets(tmp_path) as them:
        a, b = await Gateway.start(them, "a"), await Gateway.start(them, "b")
        await a.certificates.look()
        await asyncio.sleep(1)
        await b.certificates.look()
        assert a.ordered == b.ordered == []
        assert a.pems() == b.pems() == pems["a"]
        assert b.state.account(URL, None) == {"key": "a"}
        assert ORDERER not in them.held.entries


@in_fake_time
async def test_an_order_that_is_late_changes_nothing_of_its_successors(tmp_path: Path) -> None:
    """It was cut off until after its lease: compare-and-set."""
    async with fleets(tmp_path) as them:
        a, b = await Gateway.start(them, "a"), await Gateway.start(them, "b")
        assert await a.acme.take(WANTED)
        lease = a.site.fleet.membership.lease
        assert lease is not None
        a.site.store.failing = StoreAway("no answer in 2 s")
        them.held.end(lease)
        await asyncio.sleep(1)
        await b.certificates.look()
        assert len(b.ordered) == 1
        a.site.store.failing = None
        late = chain_and_key((NAME,), T0, T0 + 90 * DAY_S)
        await asyncio.sleep(20)
        with pytest.raises(StoreConflict):
            await a.acme.put(PEM.removeprefix("tls/acme/"), late.decode())
        await asyncio.sleep(20)
        assert a.pems() == b.pems() == them.held.entries[PEM].value.encode() != late


@in_fake_time
async def test_every_gateway_answers_before_the_server_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And none does afterwards. One that hangs is waited for, but not for long."""
    token, text = "t" * 43, "t" * 43 + ".thumb"
    async with fleets(tmp_path) as them:
        a, b = await Gateway.start(them, "a"), await Gateway.start(them, "b")
        files = [tmp_path / name / "challenges" / token for name in ("a", "b")]
        await a.acme.ask({token: text})
        assert [it.read_text() for it in files] == [text, text]
        assert a.acme.says() == b.acme.says() == [token]
        await a.acme.ask_no_more({token: text})
        await asyncio.sleep(1)
        assert not any(it.parent.exists() for it in files)
        assert not any(key.startswith("tls/challenges/") for key in them.held.entries)
        await them.stop(b.site)
        await a.acme.ask({token: text})
        assert [it.exists() for it in files] == [True, False]
        out = capsys.readouterr()
        assert "acme.unanswered" in out.out + out.err


@in_fake_time
async def test_what_others_put_there_is_looked_at(tmp_path: Path) -> None:
    """A file of no name of ours, no certificate, no JSON, no token: refused, told, and nothing is written elsewhere."""
    async with fleets(tmp_path) as them:
        a = await Gateway.start(them, "a")
        await a.certificates.look()
        good = a.pems()
        for key, value in (
            (PEM, "rubbish"),
            (TRIES, "[" * 100_000),
            ("tls/acme/../../x-0123456789ab.pem", "x"),
            ("tls/challenges/../evil", "x"),
            (ORDERER, "nobody"),
        ):
            them.held.write(key, value)
        await asyncio.sleep(12)
        told = a.site.problems.told()
        assert "holds no certificate" in told["store: acme"]
        assert "is no JSON" in told["store: acme"]
        assert "is no name of a file" in told["store: acme"]
        assert "is no token" in told["store: acme challenges"]
        assert a.pems() == good
        assert {it.name for it in tmp_path.iterdir()} == {"a"}
        a.clock_s = 61 * DAY_S
        await a.certificates.look()
        await asyncio.sleep(1)
        assert a.pems() == them.held.entries[PEM].value.encode() != good


@pytest.mark.parametrize(
    "tries", [{"failures": 1, "next_at": "soon"}, {"asked": True, "next_at": 1e300}, 5, {"failures": -1}]
)
def test_failures_that_no_gateway_wrote_put_nobody_off(tmp_path: Path, tries: object) -> None:
    """Nor do those of a gateway whose clock was wrong by years, for longer than a server is left alone."""

    @in_fake_time
    async def test() -> None:
        async with fleets(tmp_path) as them:
            a = await Gateway.start(them, "a")
            them.held.write(TRIES, json.dumps({"before": "none", "tries": tries}))
            await asyncio.sleep(6)
            await a.certificates.look()
            a.clock_s += 9 * DAY_S
            await a.certificates.look()
            assert len(a.ordered) == 1

    test()


@in_fake_time
async def test_a_name_that_is_too_long_for_a_file_refuses_only_itself(tmp_path: Path) -> None:
    """What somebody keeps beside the files is not shared, either."""
    async with fleets(tmp_path) as them:
        a = await Gateway.start(them, "a")
        them.held.write(f"tls/acme/{'x' * 300}-0123456789ab.json", "{}")
        (tmp_path / "a" / "acme").mkdir()
        (tmp_path / "a" / "acme" / "mine.pem").write_text("a key of my own")
        await asyncio.sleep(6)
        await a.certificates.look()
        assert a.pems() == them.held.entries[PEM].value.encode()
        assert "tls/acme/mine.pem" not in them.held.entries
        assert "is no name of a file" in a.site.problems.told()["store: acme"]


@in_fake_time
async def test_what_a_server_asked_for_is_removed_even_if_the_store_went_away(tmp_path: Path) -> None:
    """With the orders, and before another gateway has them: it may be asked for the same, as it is after a failure."""
    token, text = "t" * 43, "t" * 43 + ".thumb"
    async with fleets(tmp_path) as them:
        a, b = await Gateway.start(them, "a"), await Gateway.start(them, "b")
        assert await a.acme.take(WANTED)
        await a.acme.ask({token: text})
        await a.acme.ask({token: text})
        a.site.store.failing = StoreAway("no answer in 2 s")
        with pytest.raises(StoreAway):
            await a.acme.ask_no_more({token: text})
        await a.acme.release()
        assert not await b.acme.take(WANTED)
        a.site.store.failing = None
        await asyncio.sleep(10)
        assert not [key for key in them.held.entries if key.startswith(("tls/challenges/", ORDERER))]


@in_fake_time
async def test_orders_are_not_given_back_that_were_taken_again_meanwhile(tmp_path: Path) -> None:
    """What is left of the order before is tidied up late, by a store that is slow just then."""
    async with fleets(tmp_path) as them:
        a, b = await Gateway.start(them, "a"), await Gateway.start(them, "b")
        assert await a.acme.take(WANTED)
        a.site.store.delay_s = 1.0
        release = asyncio.create_task(a.acme.release())
        await asyncio.sleep(0.1)
        a.site.store.delay_s = 0.0
        assert await a.acme.take(WANTED)
        await release
        assert not await b.acme.take(WANTED)


def test_a_gateway_that_works_alone_shares_nothing(tmp_path: Path) -> None:
    """And answers by a file of its own."""
    alone: AcmeShared = Alone(tmp_path / "challenges")
    assert (alone.goes_on, alone.ordered_at(WANTED), alone.lacks(WANTED)) == (False, None, False)
    with alone.answers({"t" * 43: "x"}):
        assert [it.read_text() for it in (tmp_path / "challenges").iterdir()] == ["x"]
    assert not (tmp_path / "challenges").exists()
