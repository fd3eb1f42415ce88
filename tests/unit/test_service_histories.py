"""Whatever happens to a service, in any order: once it is quiet, everything is as it should be.

Histories are drawn and played in fake time (`tests/unit/world.py`). `HISTORIES=500 SEED=random` plays more of them.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway_sidecar.domain.model import Foreign, Loading, ProbeResult, Ready, ReplicaId, ReplicaState, Unknown
from tests.unit.fake_time import in_fake_time
from tests.unit.test_states import REPLICA_WAYS, walked
from tests.unit.world import FACTS, READY, REFUSED, World, running_world

_HISTORIES = int(os.environ.get("HISTORIES", "25"))

REPLICAS = st.sampled_from(["r1", "r2", "r3"])
ANSWERS: dict[str, ProbeResult | Exception] = {
    "ready": READY,
    "ready as another engine": Ready(replace(FACTS, model="other", instance="another")),
    "refused": REFUSED,
    "loading": Loading("503: loading"),
    "silent": Unknown("no answer"),
    "foreign": Foreign("it speaks Redis"),
    "a fault of ours": ZeroDivisionError("a fault of ours"),
}


@dataclass(frozen=True)
class Step:
    """One thing that happens, and how long nothing else does then."""

    what: str
    replica: str = ""
    answer: str = "ready"
    then_s: float = 0.0


STEPS = st.builds(
    Step,
    what=st.sampled_from(
        ["appear", "appear", "answer", "answer", "vanish", "drain", "resume", "connect", "disconnect", "kill router",
         "silence router", "replace router", "fault in a worker operation", "lose workers", "blind", "sight",
         "restart the daemon"]
    ),
    replica=REPLICAS,
    answer=st.sampled_from(sorted(ANSWERS)),
    then_s=st.sampled_from([0.0, 0.0005, 0.002, 0.03, 0.3, 2.0, 20.0]),
)  # fmt: skip


@dataclass
class Story:
    """A world, what has happened in it, and what has to hold all the time."""

    world: World
    engines: dict[str, str] = field(default_factory=dict)
    undisturbed: dict[str, str] = field(default_factory=dict)
    """Replicas of which nothing was ever heard but good, and the URL that each first served at."""
    replacing: list[asyncio.Task[None]] = field(default_factory=list)

    def happens(self, step: Step) -> None:
        acts: dict[str, Callable[[Step], None]] = {
            "appear": self._appear,
            "answer": self._answer,
            "vanish": self._vanish,
            "drain": self._drain,
            "resume": self._resume,
            "connect": lambda it: self._connect(it, 2),
            "disconnect": lambda it: self._connect(it, 0),
            "kill router": lambda _: self.world.process.end(),
            "silence router": lambda _: setattr(self.world.router, "silent", True),
            "replace router": self._replace,
            "fault in a worker operation": lambda _: self.world.router.faults.append(ZeroDivisionError("ours")),
            "lose workers": lambda _: self.world.router.workers.clear(),
            "blind": lambda _: setattr(self.world.source, "trouble", "it hangs"),
            "sight": lambda _: setattr(self.world.source, "trouble", None),
        }
        acts[step.what](step)

    async def restart(self) -> None:
        """What the old daemon was doing ends with it."""
        for task in self.replacing:
            task.cancel()
        await asyncio.gather(*self.replacing, return_exceptions=True)
        self.replacing.clear()
        await self.world.restart()

    def holds(self) -> None:
        """Grow before shrink: who gives no cause keeps its URL, whatever happens to the others."""
        for replica in self.engines.keys() - self.undisturbed.keys():
            tenure = self.world.service.current(ReplicaId(replica))
            if tenure is not None and tenure.status.state is ReplicaState.SERVING and self.engines[replica] == "ready":
                self.undisturbed[replica] = str(tenure.url)
        for replica, url in self.undisturbed.items():
            if url:
                assert self.world.tenure(replica).url == url

    def _disturb(self, replica: str) -> None:
        self.undisturbed[replica] = ""

    def _appear(self, step: Step) -> None:
        if step.replica in self.engines or step.answer != "ready":
            self._disturb(step.replica)
        self.engines[step.replica] = step.answer
        self.world.appear(step.replica, ANSWERS[step.answer])

    def _answer(self, step: Step) -> None:
        if step.replica in self.engines:
            self._disturb(step.replica)
            self.engines[step.replica] = step.answer
            self.world.answer(step.replica, ANSWERS[step.answer])

    def _vanish(self, step: Step) -> None:
        if self.engines.pop(step.replica, None) is not None:
            self._disturb(step.replica)
            self.world.vanish(step.replica)

    def _drain(self, step: Step) -> None:
        if self.world.service.current(ReplicaId(step.replica)) is not None:
            self._disturb(step.replica)
            draining = self.world.service.drains.drain(ReplicaId(step.replica), 5.0)
            self.replacing.append(asyncio.create_task(_forget(draining)))

    def _resume(self, step: Step) -> None:
        if self.world.service.current(ReplicaId(step.replica)) is not None:
            self.world.service.drains.resume(ReplicaId(step.replica))

    def _connect(self, step: Step, connections: int) -> None:
        tenure = self.world.service.current(ReplicaId(step.replica))
        if tenure is not None and tenure.bridge.port is not None:
            self.world.connections[tenure.bridge.port] = connections

    def _replace(self, _: Step) -> None:
        self.replacing.append(asyncio.create_task(_forget(self.world.service.slots.replace())))


async def _forget(work: object) -> None:
    try:
        await work  # type: ignore[misc]
    except Exception:  # noqa: BLE001 - it may be refused, or the router may end: what counts is how it stands in the end
        return


@given(st.lists(STEPS, min_size=3, max_size=25))
@settings(
    max_examples=_HISTORIES,
    derandomize=os.environ.get("SEED") != "random",
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_once_it_is_quiet_all_is_as_it_should_be(history: list[Step]) -> None:
    """Everybody who is ready serves, nobody else does, nothing is left over, and nothing is left to do."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        in_fake_time(_play)(history, Path(directory), patch)


async def _play(history: list[Step], directory: Path, patch: pytest.MonkeyPatch) -> None:
    async with running_world(directory, patch) as world:
        story = Story(world)
        for step in history:
            if step.what == "restart the daemon":
                await story.restart()
            else:
                story.happens(step)
            await asyncio.sleep(step.then_s)
            story.holds()
        await _calm_down(story)
        ready = {name for name, answer in story.engines.items() if answer.startswith("ready")}
        await asyncio.sleep(120)  # Longer than any back-off there is.
        await world.until(lambda: serving(world) == ready, within_s=600.0)
        await world.until(lambda: len(world.service.routers) == 1 and world.service.book.listed, within_s=600.0)
        await world.until(lambda: world.links.closed is not bool(ready))
        await world.at_rest()
        story.holds()
        for name in ("r1", "r2", "r3"):
            assert walked(world, name) <= REPLICA_WAYS, "docs/architecture.md draws no such way"
        tenures = [world.tenure(name) for name in sorted(ready)]
        assert world.router.ready() == {str(tenure.url) for tenure in tenures}
        assert set(world.router.workers) == world.router.ready()
        bridged = {t.bridge.port: t.sighting.place for t in world.service.tenures.values() if t.bridge.port is not None}
        assert world.leases.leased.keys() == bridged.keys()
        assert {t.bridge.port for t in tenures} <= world.links.led.keys() <= bridged.keys()
        assert all(bridged[port] == place for port, place in world.links.led.items())
        assert world.links.closed is not bool(ready)


async def _calm_down(story: Story) -> None:
    """Nothing else happens, and nobody is in the way any more."""
    world = story.world
    world.source.trouble = None
    world.connections.clear()
    for router in world.routers:
        if router.router is not None:
            router.router.faults.clear()
    for name, answer in story.engines.items():
        if answer == "a fault of ours":
            story.engines[name] = "ready"
            world.answer(name, READY)
    await asyncio.gather(*story.replacing)
    await world.until(lambda: story.engines.keys() == world.states().keys(), within_s=600.0)
    for name in story.engines:
        world.service.drains.resume(ReplicaId(name))


def serving(world: World) -> set[str]:
    return {name for name, state in world.states().items() if state is ReplicaState.SERVING}
