"""A short piece of chaos of three gateways, the same each time; `make chaos FLEET=3` is the long one."""

from __future__ import annotations

import shutil

import pytest

from examples.demo.outside import PATH
from tests.chaos.fleet.check import check
from tests.chaos.fleet.events import AddAndRevoke, AwayMembers, DrainAndRemove, LoseGateway, Put
from tests.chaos.fleet.report import story, summary
from tests.chaos.fleet.schedule import Mix, make_schedule
from tests.chaos.fleet.stage import FleetStage
from tests.namespaces import why_not
from tests.ssh_servers import SSHD

WHY_NOT = why_not()
SHORT = Mix(round_s=12.0, longest_s=5.0)
SEED = 2916

pytestmark = [
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.skipif(SSHD is None, reason="openssh-server is not installed; `make test` installs it"),
    *(
        pytest.mark.skipif(shutil.which(name, path=PATH) is None, reason=f"{name} is not installed; `make test` does")
        for name in ("etcd", "haproxy", "keepalived")
    ),
]


@pytest.mark.timeout(600)
async def test_faults_of_gateways_etcd_networks_and_engines_break_no_law() -> None:
    """Drains, ports, keys and what clients see, while a gateway is lost, etcd is away, and engines come and go."""
    schedule = make_schedule(SEED, 3, 1, SHORT)
    kinds = {type(event) for event in schedule.rounds[0].events}
    assert {LoseGateway, AwayMembers, DrainAndRemove, AddAndRevoke, Put} <= kinds, "what the test is about"
    stage = FleetStage(schedule)
    history = await stage.play()
    violations = check(history)
    assert not violations, "\n\n".join(story(history, one) for one in violations[:3])
    assert len(history.requests) > 50, summary(history)
    assert history.safe, summary(history)
    shutil.rmtree(stage.directory)
