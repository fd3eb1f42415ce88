"""A short piece of freezes, the same each time; `make freezes` is the long one."""

from __future__ import annotations

import shutil

import pytest

from tests.chaos.check import story, summary
from tests.chaos.events import (
    DAEMON,
    EVERYTHING,
    NGINX,
    Event,
    Freeze,
    Round,
    Schedule,
    Starve,
    Stopped,
    engines_in,
    router_of,
)
from tests.chaos.freezes import check_freezes, engines
from tests.chaos.schedule import CHAT, PAIRS
from tests.chaos.stage import Stage

SEED = 1
PAUSED = Freeze(at=0.3, parts=(Stopped(who=EVERYTHING, for_s=4.5),))
ROUTERS_AND_DAEMON = tuple(
    Freeze(
        at=0.3,
        parts=(
            Stopped(who=router_of(CHAT), for_s=6.0),
            Stopped(who=router_of(PAIRS), for_s=6.0),
            Stopped(who=DAEMON, after_s=after_s, for_s=4.5),
        ),
    )
    for after_s in (0.5, 1.2)
)
"""The routers are silent for six seconds, of three that they may be; the daemon could hear that for one and a half."""
SOME = Freeze(
    at=0.3,
    parts=(
        Stopped(who=DAEMON, for_s=3.0),
        Stopped(who=NGINX, after_s=0.5, for_s=2.0),
        Stopped(who=engines_in(1), for_s=3.5),
    ),
)
STARVED = Starve(at=0.3, load=20, for_s=4.0)


@pytest.mark.timeout(240)
async def test_freezes_and_starvation_cost_nobody_their_life() -> None:
    """Nobody is killed, or taken out, for a silence that the daemon slept through; no request fails for it."""
    events: tuple[Event, ...] = (PAUSED, *ROUTERS_AND_DAEMON, SOME, STARVED)
    schedule = Schedule(SEED, engines(SEED), tuple(Round(0.0, (event,)) for event in events))
    stage = Stage(schedule, clients=6, muster_every=0)
    history = await stage.play()
    violations = check_freezes(history)
    assert not violations, "\n\n".join(story(history, one) for one in violations[:3])
    assert len(history.requests) > 50, summary(history)
    assert not any(one.lost for one in history.frozen)
    shutil.rmtree(stage.gateway.directory)
