"""A short piece of random churn, the same each time; `make chaos` is the long one."""

from __future__ import annotations

import shutil

import pytest

from tests.chaos.check import check, story, summary
from tests.chaos.events import AwayDaemon, KillNginx, KillRouter
from tests.chaos.schedule import Mix, make_schedule
from tests.chaos.stage import Stage

SHORT = Mix(round_s=12.0, slot_gap_s=0.5, shared_gap_s=2.0, calm_slots=4, wild_slots=5)
SEED = 276


@pytest.mark.timeout(180)
async def test_churn_with_faults_breaks_no_law() -> None:
    """Replicas, daemon, router and nginx come and go under load; every failure has its cause, and all come to rest."""
    schedule = make_schedule(SEED, 1, SHORT)
    kinds = {type(event) for event in schedule.rounds[0].events}
    assert {AwayDaemon, KillRouter, KillNginx} <= kinds, "what the test is about"
    stage = Stage(schedule, clients=6, muster_every=0)
    history = await stage.play()
    violations = check(history)
    assert not violations, "\n\n".join(story(history, one) for one in violations[:3])
    assert len(history.requests) > 50, summary(history)
    shutil.rmtree(stage.gateway.directory)
