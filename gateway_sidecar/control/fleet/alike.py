"""Says where other gateways have other settings than this one, which should be alike."""

from __future__ import annotations

from gateway_sidecar.control.fleet.membership import Describe, Membership
from gateway_sidecar.domain.fleet_alike import ALIKE, differences
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import LOOK_S, heartbeat
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.problems import Problem


class Alike:
    """Compares what all gateways tell of their settings."""

    def __init__(self, membership: Membership, problem: Problem) -> None:
        self._membership = membership
        self._problem = problem
        self._logger = get_logger()

    async def run(self, describe: Describe) -> None:
        """Runs until cancelled."""
        while True:
            heartbeat()
            reason = differences(describe().get(ALIKE, {}), self._membership.others)
            cure = "; give all gateways of the fleet the same" if reason else ""
            if self._problem.set(reason + cure) and reason:
                self._logger.warning("store.settings_differ", reason=reason)
            await awake.rest(LOOK_S)
