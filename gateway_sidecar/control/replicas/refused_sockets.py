"""Sockets at which nothing listens. Where there are many, each is asked seldom: they are touched in between, so that an
engine which listens at last is found within a second or so.
"""

from __future__ import annotations

import asyncio
import socket

from gateway_sidecar.control.replicas.prober import Prober
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.domain.model import Loading
from gateway_sidecar.supervision import awake

_GAP_S = 0.4  # Up to 20 sockets are asked this often by the prober itself (`Crowd.least_gap_s`).
_TURN_S = 0.05  # So that a thousand sockets have had their turn after a second.
_AT_ONCE = 50
"""With the turns: a thousand touches a second, which is 3 % of one CPU."""
_LATEST = 10  # A choice: few beside `_AT_ONCE`, and as many as come in the moment between binding and listening.


def is_refused(address: str) -> bool:
    """Whether the kernel says that no process listens at a Unix socket. Never blocks; about 30 us."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as touch:
        try:
            touch.connect(address)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False  # Its backlog is full, or something else that does not prove death.
    return False


class RefusedSockets:
    """Those of one service. One that refuses no more is asked by the prober."""

    def __init__(self, tenures: Registry, prober: Prober) -> None:
        self._tenures = tenures
        self._prober = prober

    async def touch(self) -> None:
        """Runs until cancelled. All of them in turn, and the latest to come each time, as an engine binds its socket a
        moment before it listens.
        """
        turn = 0
        while True:
            await self._prober.refusals.wait()  # At rest nobody is.
            tenures = list(self._tenures)
            batch = tenures[turn : turn + _AT_ONCE]
            turn = turn + _AT_ONCE if batch else 0
            now = awake.now()
            if turn == 0 and not any(_waits(tenure, now) for tenure in tenures):
                self._prober.refusals.clear()
            for tenure in {t.key: t for t in (*batch, *tenures[-_LATEST:])}.values():
                if _waits(tenure, now) and tenure.address and not is_refused(tenure.address):
                    self._prober.suspect(tenure)
            await asyncio.sleep(_TURN_S if len(tenures) > _AT_ONCE else _GAP_S)


def _waits(tenure: Tenure, now: float) -> bool:
    """Whether nothing listened there when it was last asked, so that the next question comes later."""
    result = tenure.probe.result
    refused = isinstance(result, Loading) and result.refused and not result.closed
    at_rest = tenure.gone or tenure.drain.requested or tenure.probe.task is not None
    return refused and not at_rest and tenure.sighting.tunnel is None and tenure.probe.due > now + _GAP_S
