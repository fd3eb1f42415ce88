"""How the supervisors of small nginx processes sleep, and who is told of a change."""

from __future__ import annotations

import asyncio

import pytest

from gateway_sidecar.control.edge.supervisor import Supervisor
from gateway_sidecar.supervision.loops import LOOK_S
from tests.unit.fake_time import in_fake_time


class Sleeper(Supervisor):
    """Only sleeps, and tells of it."""

    def __init__(self, longest_s: float) -> None:
        super().__init__()
        self.longest_s = longest_s
        self.rounds: list[float] = []
        self.took_over = False

    async def run(self) -> None:
        while True:
            self._comes_round()
            self.rounds.append(asyncio.get_running_loop().time())
            await self._sleep(self.longest_s)

    def hurry(self) -> None:
        self._look_soon()

    def tell(self) -> None:
        self._tell()

    def may_end(self) -> bool:
        return self._has_looked()

    async def _take_over(self) -> None:
        self.took_over = True


@in_fake_time
@pytest.mark.parametrize(("longest_s", "gap_s"), [(60.0, LOOK_S), (0.25, 0.25)])
async def test_it_looks_as_often_as_it_must_and_every_two_seconds_at_least(longest_s: float, gap_s: float) -> None:
    sleeper = Sleeper(longest_s)
    task = asyncio.create_task(sleeper.run())
    await asyncio.sleep(5)
    task.cancel()
    assert sleeper.rounds[1] - sleeper.rounds[0] == pytest.approx(gap_s)


@in_fake_time
async def test_it_is_woken_by_what_is_wanted_even_while_it_does_not_sleep() -> None:
    """What was said while it worked is looked at in the next round, at once, and once."""
    sleeper = Sleeper(60.0)
    task = asyncio.create_task(sleeper.run())
    await asyncio.sleep(0.1)
    sleeper.hurry()
    sleeper.hurry()
    await asyncio.sleep(0.1)
    task.cancel()
    assert sleeper.rounds == pytest.approx([0.0, 0.1])


@in_fake_time
async def test_whoever_listens_is_told_until_he_does_not() -> None:
    sleeper, told = Sleeper(1.0), []
    one, other = (lambda: told.append("one")), (lambda: told.append("other"))
    sleeper.listen(one)
    sleeper.listen(other)
    sleeper.tell()
    sleeper.unlisten(one)
    sleeper.tell()
    assert told == ["one", "other", "other"]


@in_fake_time
async def test_before_it_is_told_otherwise_nobody_was_seen() -> None:
    """What an earlier daemon left is taken over first, and may be ended only when everybody was looked at."""
    sleeper, looked = Sleeper(1.0), False
    assert not sleeper.may_end()
    await sleeper.begin(lambda: looked)
    assert sleeper.took_over
    assert not sleeper.may_end()
    looked = True
    assert sleeper.may_end()
