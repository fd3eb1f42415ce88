"""When it is an engine's turn to be asked, and what it is asked then."""

from __future__ import annotations

import asyncio

from gateway_sidecar.domain.model import Access, ProbeResult, Unknown
from tests.unit.engines import PlayedProbe, prober_of, tenure_of
from tests.unit.fake_time import in_fake_time


class SilentEngines(PlayedProbe):
    """They take connections and say nothing; whom of them was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def identify(self, address: str, *, timeout_s: float, access: Access) -> ProbeResult:
        del timeout_s, access
        self.asked.append(address)
        await asyncio.Event().wait()
        raise AssertionError


@in_fake_time
async def test_who_comes_after_silent_ones_is_asked_before_their_time_is_up() -> None:
    """Each of them keeps its turn for a moment; those that were silent before have turns of their own."""
    probe = SilentEngines()
    names = [f"silent{number}" for number in range(40)]
    tenures = [tenure_of(name) for name in names]
    prober = prober_of(tenures, probe)
    asking = [asyncio.create_task(prober._ask(tenure, tenure.replica)) for tenure in tenures]
    async with asyncio.timeout(60):
        while set(probe.asked) != set(names):
            await asyncio.sleep(0.01)
    for task in asking:
        task.cancel()
    known = [tenure_of(f"known{number}") for number in range(40)]
    for tenure in known:
        tenure.probe.result = Unknown("no answer")
    asking += [asyncio.create_task(prober._ask(tenure, tenure.replica)) for tenure in known]
    await asyncio.sleep(0)
    fresh = tenure_of("fresh")
    asking.append(asyncio.create_task(prober._ask(fresh, "fresh")))
    await asyncio.sleep(0)
    assert probe.asked[-1] == "fresh"
    assert len(probe.asked) < 40 + 40 + 1
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
