"""Several gateways recommend with one voice, in fake time: never two at once, and nothing is told twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.config import HookSettings, ScalingSettings
from gateway_sidecar.control.autoscaling import hook as hook_module
from gateway_sidecar.control.autoscaling.hook import HookFailedError, Notice
from gateway_sidecar.control.autoscaling.service_signals import FleetSignals
from gateway_sidecar.control.autoscaling.voice import ScalingVoice
from gateway_sidecar.control.fleet import membership
from gateway_sidecar.domain import fleet_signals
from gateway_sidecar.domain.fleet_signals import Measured, Recommended, Record, RoleMeasured, Together, Voice
from gateway_sidecar.domain.model import WorkerType
from gateway_sidecar.domain.scaling import Metric
from gateway_sidecar.domain.signals import Outcome, RequestEnd, Traffic
from gateway_sidecar.errors import StoreAway
from gateway_sidecar.routers.base import RouterReading
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import Tasks
from tests.fake_store import FakeStore, Held
from tests.unit.fake_time import in_fake_time
from tests.unit.test_fleet import Site
from tests.unit.test_service_signals import Replica, service

LEASE_S = 15
REGULAR = WorkerType.REGULAR


# -- what several gateways measured, added up


def measured(*took: float, covered_s: float = 59.0, first: float | None = None) -> Measured:
    traffic = Traffic(60.0 - covered_s)
    for seconds in took:
        traffic.record(59.0, RequestEnd("chat", 200, seconds, first))
    return Measured(0, 0.0, not took, traffic.tallies(60.0, (60,)), {REGULAR: RoleMeasured()})


def roundtrip(it: Measured) -> Measured:
    record = Record("i", 1, False, {"chat": it})
    read = Record.from_json(record.to_json())
    assert read is not None
    return read.services["chat"]


@given(st.lists(st.lists(st.floats(0.01, 100), max_size=30), min_size=1, max_size=4))
def test_the_quantiles_of_merged_histograms_are_those_of_the_union(parts: list[list[float]]) -> None:
    """To within a bucket, which is a tenth wide; whatever way they took through the store."""
    together = Together([roundtrip(measured(*took)) for took in parts])
    union, found = sorted(seconds for took in parts for seconds in took), together.took(60)
    if found is None:
        assert union == []
        return
    assert found.samples == len(union)
    for share, value in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        exact = union[max(0, min(len(union) - 1, -(-int(share * 100) * len(union) // 100) - 1))]
        assert exact / 1.11 <= value <= exact * 1.11


def test_rates_are_summed_each_over_what_its_gateway_watched() -> None:
    """A gateway that began ten seconds ago has as much traffic as it had in these."""
    long, short = measured(*[1.0] * 59), measured(*[1.0] * 24, covered_s=12.0)
    together = Together([long, short])
    assert together.rps(60) == pytest.approx(1 + 2)
    assert together.errors_per_s(60) == 0
    assert together.outcomes(60) == {Outcome.OK: 83}
    assert together.covered_s(60) == 12
    assert together.value(REGULAR, Metric.RPS, 60, is_alone=True) == pytest.approx(3)
    fresh = Together([long, measured(1.0, covered_s=2.0)])
    assert fresh.value(REGULAR, Metric.RPS, 60, is_alone=True) is None, "nobody knows what that one will have"


def test_what_one_gateway_does_not_know_is_not_known_unless_it_has_nothing_to_do() -> None:
    it = Measured(
        1, 2.0, False, {}, {REGULAR: RoleMeasured(1, {60: 2.0}, {60: 5.0}, {60: {0.5: 9.0}}, {60: {0.1: 9.0}})}
    )
    quiet, unknown = Measured(0, 0.0, True), Measured(2, None, None)
    both, in_doubt = Together([it, quiet]), Together([it, unknown])
    assert (both.waiting, both.in_flight, both.idle, both.waiting_for(REGULAR)) == (1, 2.0, False, 1)
    assert (in_doubt.waiting, in_doubt.in_flight, in_doubt.idle) == (3, None, False)
    assert (Together([quiet, quiet]).idle, Together([quiet, unknown]).idle) == (True, None)
    for metric, value in ((Metric.RPS, 5.0), (Metric.CONCURRENCY, 3.0), (Metric.TTFT, 0.45), (Metric.ITL, 0.09)):
        assert both.value(REGULAR, metric, 60, is_alone=False) == pytest.approx(value)
        if not metric.is_latency:
            assert in_doubt.value(REGULAR, metric, 60, is_alone=False) is None
    assert both.ttft(60, REGULAR) == (both.ttft(60) or (None,))[:2]
    assert Together([roundtrip(it), quiet]) == both
    assert Together([measured(first=None), measured(1.0, first=0.2)]).ttft(60) is not None


def test_a_record_that_is_too_long_for_the_store_has_no_histograms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then latencies are not known, and rates are."""
    it = measured(*[0.01 * 1.1**n for n in range(60)])
    length = len(Record("i", 1, False, {"a": it}).to_json())
    monkeypatch.setattr(fleet_signals, "MOST_BYTES", length)
    text = Record("i", 1, False, {"a": it, "b": it}).to_json()
    assert len(text) < 1.5 * length
    read = Record.from_json(text)
    assert read is not None
    assert (read.services["a"].is_cut, read.services["b"].is_cut) == (False, True)
    together = Together([it, read.services["b"]])
    assert (together.took(60), together.ttft(60), together.itl(60)) == (None, None, None)
    assert together.value(REGULAR, Metric.TTFT, 60, is_alone=True) is None
    assert together.rps(60) == pytest.approx(2 * 60 / 59)


def test_what_no_gateway_wrote_is_not_read() -> None:
    for text in (
        "",
        "[]",
        "{}",
        '{"instance": "a", "turn": 1, "services": {"chat": 3}}',
        '{"roles": {"x": {}}}',
        '{"instance": "a", "turn": Infinity, "services": {}}',
    ):
        assert Record.from_json(text) is None
        assert Voice.from_json(text) is None
    voice = Voice("a", "i", {REGULAR: Recommended(3, "why", is_told=True)})
    assert Voice.from_json(voice.to_json()) == voice


# -- who speaks


class Mortal(Held):
    """Its leases end unless they are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.until: dict[str, float] = {}

    def pass_by(self, now: float) -> None:
        for lease in [it for it, until in self.until.items() if until <= now]:
            del self.until[lease]
            self.end(lease)


class MortalStore(FakeStore):
    """One client, whose way to the store may be slow, or cut."""

    held: Mortal

    async def grant(self, ttl_s: int) -> str:
        lease = await super().grant(ttl_s)
        self.held.until[lease] = asyncio.get_running_loop().time() + ttl_s
        return lease

    async def keep(self, lease: str) -> None:
        await super().keep(lease)
        self.held.until[lease] = asyncio.get_running_loop().time() + LEASE_S

    async def _answer(self) -> None:
        await super()._answer()
        self.held.pass_by(asyncio.get_running_loop().time())


class Node:
    """One gateway with one service, which is scaled by requests per second, about one for each replica."""

    def __init__(self, directory: Path, held: Mortal, name: str) -> None:
        self.site = Site(directory / name, held, name, MortalStore)
        self.store = self.site.store
        scaling = ScalingSettings(
            metric="rps", target=1.06, min=1, max=50, window_s=30, down_after_s=20.0,
            hook=HookSettings(command=(f"/hook/{name}",), timeout_s=60.0),
        )  # fmt: skip
        self.signals, self.stub = service(Replica(1), scaling=scaling)
        self.signals.traffic = Traffic(awake.monotonic())
        fleet = self.site.fleet
        self.voice = ScalingVoice(fleet.store, fleet.reflector, fleet.membership, fleet.remembered)
        self.name, self.rps, self.leaving, self.alive = name, 0, False, True
        self._tasks = Tasks("-", self.site.metrics)

    def measures(self) -> tuple[dict[str, Any], bool]:
        return {"chat": self.signals}, self.leaving

    async def start(self) -> None:
        fleet = self.site.fleet
        await fleet.replicas.load({})
        own = [lambda: self.voice.run(self.measures), lambda: self.voice.mind(self.measures), self._traffic]
        for loop in [*fleet.loops(self.site.telling()), fleet.replicas.run, *own]:
            self._tasks.run_forever(loop)

    async def kill(self) -> None:
        """All that it does ends; its lease does not, yet."""
        self.alive = False
        await self._tasks.close()
        await self.signals.hook.close()

    @property
    def speaks(self) -> bool:
        return self.alive and self.voice.speaks("chat")

    @property
    def fleet(self) -> FleetSignals:
        assert self.signals.fleet is not None
        return self.signals.fleet

    @property
    def desired(self) -> int | None:
        return self.signals.roles[REGULAR].scaler.desired

    async def _traffic(self) -> None:
        while True:
            now = awake.monotonic()
            self.signals.take_routers(now, {"r": RouterReading(0.0, {}, {}, {}, {})})
            for _ in range(self.rps):
                self.signals.record(now, RequestEnd("chat", 200, 0.1))
            await asyncio.sleep(1)


class World:
    """Gateways of one store, and the hook that all of them call."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.held = Mortal()
        self.nodes: dict[str, Node] = {}
        self.told: list[tuple[str, int]] = []
        self.calls = 0
        self.without_voice: list[str] = []
        self.takes_s = 0.1
        self.fails = False
        monkeypatch.setattr(hook_module, "call", self._call)

    async def _call(self, settings: HookSettings, notice: Notice) -> None:
        assert settings.command is not None
        node = self.nodes[Path(settings.command[0]).name]
        if not node.speaks:
            self.without_voice.append(node.name)
        self.calls += 1
        await asyncio.sleep(self.takes_s)
        if self.fails:
            raise HookFailedError("no")
        self.told.append((node.name, notice.desired))

    async def start(self, name: str, rps: int = 0) -> Node:
        node = self.nodes[name] = Node(self.directory, self.held, name)
        node.rps = rps
        await node.start()
        return node

    @property
    def voices(self) -> list[str]:
        return [node.name for node in self.nodes.values() if node.speaks]

    async def watched(self) -> None:
        """Never two."""
        while True:
            self.held.pass_by(asyncio.get_running_loop().time())
            assert len(self.voices) <= 1, self.voices
            await asyncio.sleep(0.2)


@asynccontextmanager
async def world(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    made = World(directory, monkeypatch)
    watch = asyncio.create_task(made.watched())
    try:
        yield made
    finally:
        for node in made.nodes.values():
            if node.alive:
                await node.kill()
        if not watch.done():
            watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        if not watch.cancelled():
            watch.result()
        assert made.without_voice == []


@in_fake_time
async def test_one_adds_up_all_and_tells_and_when_it_dies_the_next_one_does_so_within_a_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was told is not told again; what changes is told by the next one."""
    monkeypatch.setattr(membership, "_GONE_S", 120.0)
    async with world(tmp_path, monkeypatch) as it:
        a = await it.start("a", rps=2)
        await asyncio.sleep(5)
        b, c = await it.start("b", rps=3), await it.start("c", rps=1)
        await asyncio.sleep(60)
        assert it.voices == ["a"]
        assert a.fleet.together is not None
        assert a.fleet.together.rps(30) == pytest.approx(6, rel=0.1)
        assert (a.desired, b.desired, c.desired) == (6, 6, 6)
        assert (b.fleet.voice, b.fleet.is_own, b.fleet.gateways) == ("a", False, ("a", "b", "c"))
        told = list(it.told)
        assert told[-1] == ("a", 6)
        assert {name for name, _ in told} == {"a"}
        await a.kill()
        await asyncio.sleep(LEASE_S + 1)
        assert it.voices in (["b"], ["c"])
        next_one = it.nodes[it.voices[0]]
        await asyncio.sleep(30)
        assert it.told == told, "nothing new, and nothing goes down while a's nginx may serve on"
        assert "nothing goes down while gateways are gone: a" in next_one.signals.roles[REGULAR].scaler.reason
        b.rps = 12
        await asyncio.sleep(40)
        assert it.told[-1] == (next_one.name, next_one.desired)
        assert next_one.desired in (12, 13)
        assert len(it.told) == len(set(it.told))
        await asyncio.sleep(100)
        b.rps = 1
        await asyncio.sleep(90)
        assert it.told[-1] == (next_one.name, 2), "it is gone for good"


@in_fake_time
async def test_who_is_cut_off_falls_silent_before_another_one_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a call under way, and with one that fails and would be tried again."""
    async with world(tmp_path, monkeypatch) as it:
        a = await it.start("a", rps=4)
        await asyncio.sleep(5)
        b = await it.start("b")
        await asyncio.sleep(40)
        assert (it.voices, it.told[-1]) == (["a"], ("a", 4))
        it.fails = True
        a.rps = 8
        await asyncio.sleep(40)
        assert (it.voices, it.told[-1]) == (["a"], ("a", 4))
        a.store.failing = StoreAway("no route")
        await asyncio.sleep(LEASE_S)
        assert not a.speaks
        assert (a.fleet.voice, a.fleet.together) == (None, None)
        assert "no route" in a.fleet.problem
        calls = it.calls
        await asyncio.sleep(3)
        assert it.voices == ["b"]
        assert it.calls == calls + 1, "the next one tells what nobody accepted"
        it.fails = False
        await asyncio.sleep(60)
        assert it.told[-1] == ("b", b.desired)
        assert b.desired in (7, 8)
        told = list(it.told)
        a.store.failing = None
        await asyncio.sleep(40)
        assert (it.voices, a.fleet.voice, it.told) == (["b"], "b", told)


@in_fake_time
async def test_a_call_that_takes_long_ends_with_the_voice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, monkeypatch) as it:
        it.takes_s = 50.0
        a = await it.start("a", rps=4)
        await asyncio.sleep(30)
        assert (it.calls, it.told) == (1, [])
        a.store.failing = StoreAway("no route")
        await asyncio.sleep(60)
        assert it.told == [], "it was ended"


@in_fake_time
async def test_what_was_on_its_way_to_the_hook_when_its_gateway_died_is_told_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether it arrived."""
    async with world(tmp_path, monkeypatch) as it:
        a = await it.start("a")
        await asyncio.sleep(5)
        await it.start("b")
        await asyncio.sleep(20)
        assert it.told == [("a", 1)]
        it.takes_s, a.rps = 30.0, 4
        await asyncio.sleep(25)
        assert (it.calls, it.told) == (2, [("a", 1)])
        await a.kill()
        it.takes_s = 0.1
        await asyncio.sleep(30)
        assert it.told[1:] == [("b", a.desired)]


@in_fake_time
async def test_one_that_leaves_or_scales_no_more_hands_the_voice_on_and_one_that_knows_the_service_not_never_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch) as it:
        other = await it.start("other")
        other.stub.settings.scaling = None
        a = await it.start("a", rps=2)
        await asyncio.sleep(5)
        b = await it.start("b", rps=2)
        await asyncio.sleep(40)
        assert (it.voices, other.signals.fleet) == (["a"], None)
        assert a.fleet.gateways == ("a", "b")
        told = list(it.told)
        a.leaving = True
        await asyncio.sleep(6)
        assert (it.voices, b.fleet.gateways) == (["b"], ("a", "b")), "what it still serves counts"
        a.leaving = False
        scaling, b.stub.settings.scaling = b.stub.settings.scaling, None
        await asyncio.sleep(8)
        assert it.voices == ["a"]
        b.stub.settings.scaling = scaling
        await asyncio.sleep(10)
        assert (it.voices, it.told) == (["a"], told)


@in_fake_time
async def test_a_gateway_that_tells_nothing_is_not_taken_for_a_quiet_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version, or one whose loop hangs."""
    async with world(tmp_path, monkeypatch) as it:
        a, b = await it.start("a", rps=4), await it.start("b", rps=4)
        await asyncio.sleep(60)
        speaker = it.nodes[it.voices[0]]
        silent = b if speaker is a else a
        assert speaker.desired == 8

        async def nothing(*_: object, **__: object) -> None:
            silent.voice._told_under = None

        monkeypatch.setattr(silent.voice, "_tell", nothing)
        silent.rps = 0
        await asyncio.sleep(120)
        assert speaker.desired == 8
        assert f"gateway '{silent.name}' has told no new signals for" in speaker.fleet.problem


@pytest.mark.parametrize("seed", range(3))
@in_fake_time
async def test_there_are_never_two_voices_whatever_becomes_of_the_store_and_the_gateways(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cuts, slow ways, writes in doubt, kills, starts of the same name, late writes. In the end one speaks."""
    chance = random.Random(seed)
    async with world(tmp_path, monkeypatch) as it:
        for name in "abc":
            await it.start(name, rps=chance.randrange(5))
        for _ in range(25):
            name = chance.choice("abc")
            node = it.nodes[name]
            match chance.randrange(8):
                case 0:
                    node.store.failing = StoreAway("cut")
                case 1:
                    node.store.delay_s = chance.uniform(0, 8)
                case 2:
                    node.store.in_doubt = not node.store.in_doubt
                case 3:
                    await node.kill()
                    await it.start(name, rps=chance.randrange(5))
                case 4:
                    node.leaving = not node.leaving
                case 5:
                    node.rps = chance.randrange(20)
                case _:
                    node.store.failing, node.store.delay_s, node.store.in_doubt = None, 0.0, False
            await asyncio.sleep(chance.uniform(0.1, 20))
        for node in it.nodes.values():
            node.store.failing, node.store.delay_s, node.store.in_doubt, node.leaving = None, 0.0, False, False
            node.rps = 5
        await asyncio.sleep(120)
        assert len(it.voices) == 1
        assert it.told[-1][1] == it.nodes[it.voices[0]].desired in (13, 14, 15, 16), "within the tolerance"
        told = len(it.told)
        await asyncio.sleep(60)
        assert len(it.told) == told
        assert replace(it.nodes["a"].fleet, is_own=False).voice == it.voices[0]
