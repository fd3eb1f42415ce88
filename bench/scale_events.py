"""Figures: nginx reloads, and requests failed, over 200 scale events under steady load, streamed and not.

Twelve lanes change the fleet at the same time, four replicas stay. An event is one of these, and has ended when it is
complete:

up           an engine starts at a new socket; the daemon says serving.
down         the replica is drained through the admin API; when that returns, its engine is stopped.
replacement  up, then down of the old one.
unlinked     (counted apart, after the 200) the socket is unlinked while the engine lives on; the engine is stopped when
             the daemon does not know the replica any more.

Meanwhile clients ask the service address without a pause; a request fails if it is not answered 200, whole and with its
last token. Reloads are what the daemon counts, and nginx's worker processes must be the same ones at the end: a reload
replaces them.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field

from bench.chat import MODEL
from bench.engines import EngineHost, EngineKind, settings
from bench.gateway import Ours, running_gateway
from bench.load import Failure, Load
from bench.place import scratch_directory
from bench.report import Row, Scale

NAME = "scale-events"
_LANES = 12
_CLIENTS = 28
_TOKEN_INTERVAL_S = 0.01
_KINDS = (EngineKind.SGLANG_HTTP, EngineKind.VLLM_GRPC)


@dataclass(slots=True)
class _Event:
    """One scale event, for the explanation of failures. Steps are (monotonic instant, what was done)."""

    kind: str
    replicas: tuple[str, ...]
    began: float
    ended: float = 0.0
    steps: list[tuple[float, str]] = field(default_factory=list)

    def step(self, what: str) -> None:
        self.steps.append((time.monotonic(), what))


class _Fleet:
    """The replicas that come and go, and the events so far."""

    def __init__(self, ours: Ours, engines: EngineHost) -> None:
        self._ours = ours
        self._engines = engines
        self._numbers = itertools.count()
        self.events: list[_Event] = []

    async def up(self) -> str:
        """A new replica that serves; its name."""
        name = self._name()
        await self._recorded("up", (name,), lambda event: self._start(name, event))
        return name

    async def down(self, name: str) -> None:
        """Drain, then stop the engine."""
        await self._recorded("down", (name,), lambda event: self._retire(name, event))

    async def replace(self, old: str) -> str:
        """A new one up, the old one down; the new one's name."""
        new = self._name()

        async def work(event: _Event) -> None:
            await self._start(new, event)
            await self._retire(old, event)

        await self._recorded("replacement", (old, new), work)
        return new

    async def unlink(self, name: str) -> None:
        """The socket goes, the engine stays until the daemon has let go of it."""

        async def work(event: _Event) -> None:
            self._ours.socket(name).unlink()
            event.step("unlinked")
            await self._ours.until(lambda rows: name not in rows)
            event.step("daemon let go")
            await self._stop(name, event)

        await self._recorded("unlinked", (name,), work)

    def _name(self) -> str:
        return f"r{next(self._numbers)}"

    async def _recorded(self, kind: str, replicas: tuple[str, ...], work: Callable[[_Event], Awaitable[None]]) -> None:
        event = _Event(kind, replicas, time.monotonic())
        self.events.append(event)
        await work(event)
        event.ended = time.monotonic()

    async def _start(self, name: str, event: _Event) -> None:
        kind = _KINDS[int(name[1:]) % len(_KINDS)]
        options = {"name": name, "model": MODEL, "token_interval_s": _TOKEN_INTERVAL_S}
        await self._engines.start(settings(self._ours.socket(name), kind, **options))
        event.step(f"{name} ({kind}) listens")
        await self._ours.until(lambda rows: name in rows and rows[name]["state"] == "serving")
        event.step(f"{name} serving")

    async def _retire(self, name: str, event: _Event) -> None:
        event.step(f"drain {name}")
        await self._ours.drain(name)
        event.step(f"{name} drained")
        await self._stop(name, event)

    async def _stop(self, name: str, event: _Event) -> None:
        in_flight = (await self._engines.counts())[name]["in_flight"]
        event.step(f"stop {name} with {in_flight} in flight")
        await self._engines.stop(name, grace_s=10)


async def _lane(fleet: _Fleet, events: int) -> None:
    """up, replacement, down, and so on."""
    steps = itertools.cycle(("up", "replacement", "down"))
    newest = ""
    for kind in itertools.islice(steps, events):
        if kind == "up":
            newest = await fleet.up()
        elif kind == "replacement":
            newest = await fleet.replace(newest)
        else:
            await fleet.down(newest)


async def _unlinking_lane(fleet: _Fleet, events: int) -> None:
    for _ in range(events):
        await fleet.unlink(await fleet.up())


async def run(scale: Scale) -> list[Row]:
    """200 events, 10,000 requests at least and 48 unlinked sockets; 24 events, 12 unlinked with `--quick`."""
    events, unlinked, requests = scale.pick(204, 24), scale.pick(48, 12), scale.pick(10_000, 1_000)
    with scratch_directory() as directory:
        async with EngineHost(directory / "engines.log") as engines, running_gateway() as ours:
            fleet = _Fleet(ours, engines)
            for _ in range(4):
                await fleet.up()
            workers = await ours.nginx_pids()
            fleet.events.clear()
            async with Load("127.0.0.1", ours.gateway.ports["chat"], clients=_CLIENTS) as orderly:
                await asyncio.gather(*[_lane(fleet, events // _LANES) for _ in range(_LANES)])
                await orderly.until(requests, within_s=120)
            counted = list(fleet.events)
            async with Load("127.0.0.1", ours.gateway.ports["chat"], clients=_CLIENTS) as abrupt:
                await asyncio.gather(*[_unlinking_lane(fleet, unlinked // _LANES) for _ in range(_LANES)])
            reloads = await ours.reloads()
            same_workers = await ours.nginx_pids() == workers
            troubles = ours.troubles()
    return [
        Row("reloads", f"{len(fleet.events)} scale events", "0", "-", str(reloads), _same(same_workers),
            reloads == 0 and same_workers, {"reloads": reloads, "same_nginx_processes": same_workers}),
        _row("up, down, replacement", counted, orderly, troubles),
        _row("unlinked, engine lives on", fleet.events[len(counted):], abrupt, troubles),
    ]  # fmt: skip


def _same(same: bool) -> str:
    return "same nginx processes" if same else "other nginx processes"


def _row(case: str, events: list[_Event], load: Load, troubles: list[str]) -> Row:
    kinds = Counter(event.kind for event in events)
    took_s = max(event.ended for event in events) - events[0].began
    return Row(
        NAME,
        f"{len(events)} events: {case}",
        "0 failed",
        "-",
        f"{len(load.failures)} of {load.requests}",
        f"{len(load.failures)} failed",
        not load.failures,
        {
            "events": dict(kinds),
            "answered": dict(load.answered),
            "requests_per_s": round(load.requests / took_s, 1),
            "failed": len(load.failures),
            "failures": [_explained(failure, events) for failure in load.failures[:50]],
            "daemon_said": troubles if load.failures else [],
        },
    )


def _explained(failure: Failure, events: list[_Event]) -> dict[str, object]:
    """A failure with every event that was under way while its request was; times in ms since it was sent."""

    def ms(instant: float) -> float:
        return round((instant - failure.sent_at) * 1000, 1)

    around = [event for event in events if event.began <= failure.failed_at and event.ended >= failure.sent_at]
    return {
        **asdict(failure),
        "lasted_ms": ms(failure.failed_at),
        "events": [
            {"kind": event.kind, "replicas": event.replicas, "steps": [(ms(at), what) for at, what in event.steps]}
            for event in around
        ],
    }
