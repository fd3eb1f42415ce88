"""How a tunnel is shown and measured, and what it makes of a question through it: what was asked while it was down says
nothing of its far end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway_sidecar.control.replicas.tenure import BridgeHosts, Probed, Tenure
from gateway_sidecar.control.replicas.tunnel_ends import TunnelEnds
from gateway_sidecar.domain.model import (
    ConnectionMode,
    EngineFacts,
    Loading,
    ProbeResult,
    Ready,
    ReplicaId,
    SocketIdentity,
)
from gateway_sidecar.domain.tunnels import PathState, PathStatus, SshRoute, SshServer, Tunnel
from gateway_sidecar.sources.listing import Sighting
from gateway_sidecar.telemetry.metrics import Metrics

TUNNEL = Tunnel("chat/r1", SshRoute((SshServer("gpu"),)), "127.0.0.1:8000")
DOWN = PathStatus(PathState.REFUSED, "nobody there")
UP = PathStatus(PathState.UP)
COMPLAINT = PathStatus(PathState.UP, "administratively prohibited")
REFUSED, BUSY = Loading("closed without an answer", refused=True), Loading("/health answers 503")


READY = Ready(EngineFacts("vllm", ConnectionMode.HTTP))


class Stays(list[Tenure]):
    """In place of the registry."""

    current: dict[ReplicaId, Tenure]


def ends(path: PathStatus, *tenures: Tenure, metrics: Metrics | None = None) -> TunnelEnds:
    registry: Any = Stays(tenures)
    registry.current = {each.replica: each for each in tenures}
    return TunnelEnds("chat", registry, lambda _: path, metrics or Metrics())


def tenure(*, result: ProbeResult, asked: bool = True, tunnel: Tunnel | None = TUNNEL) -> Tenure:
    sighting = Sighting(ReplicaId("r1"), Path("/t.sock"), SocketIdentity(0, 0, 0, "t"), "ssh", tunnel=tunnel)
    return Tenure(
        1,
        "chat/r1",
        0,
        sighting,
        0.0,
        None,
        BridgeHosts("127.0.0.1", "127.0.0.2"),
        probe=Probed(result=result, asked=asked),
    )


@pytest.mark.parametrize(
    ("path", "result", "asked", "state"),
    [
        (UP, REFUSED, True, PathState.REMOTE_CLOSED),
        (UP, REFUSED, False, PathState.UP),
        (UP, BUSY, True, PathState.UP),
        (COMPLAINT, REFUSED, True, PathState.FORBIDDEN),
        (DOWN, REFUSED, True, PathState.REFUSED),
    ],
)
def test_far_end(path: PathStatus, result: Loading, asked: bool, state: PathState) -> None:
    """A tunnel that has just come up is up until somebody has been refused through it."""
    shown = ends(path).far_end_of(tenure(result=result, asked=asked))
    assert shown is not None
    assert shown.state is state


def test_socket_of_somebody_elses_has_no_path() -> None:
    """Nothing is claimed about what is not ours."""
    assert ends(UP).far_end_of(tenure(result=REFUSED, tunnel=None)) is None
    assert ends(DOWN).refusal_of(tenure(result=REFUSED, tunnel=None)) is None


def test_a_tunnel_that_is_down_refuses_and_says_why() -> None:
    refusal = ends(DOWN).refusal_of(tenure(result=READY))
    assert refusal == Loading("tunnel: connection refused: nobody there", refused=True)
    assert ends(UP).refusal_of(tenure(result=READY)) is None


def test_a_refusal_through_a_tunnel_that_is_up_is_the_far_ends() -> None:
    seen = ends(UP).as_seen_through(tenure(result=READY), REFUSED)
    assert isinstance(seen, Loading)
    assert seen.refused
    assert seen.reason.endswith("nothing listens on 127.0.0.1:8000 at gpu:22")
    assert ends(UP).as_seen_through(tenure(result=READY), BUSY) is BUSY


@pytest.mark.parametrize(
    ("path", "result", "outdated"), [(UP, READY, False), (UP, REFUSED, True), (DOWN, READY, True), (DOWN, BUSY, False)]
)
def test_who_is_asked_again_once_a_tunnel_changed(path: PathStatus, result: ProbeResult, *, outdated: bool) -> None:
    """Who said before what the tunnel makes likely now is left alone."""
    stay = tenure(result=result)
    assert list(ends(path, stay).outdated()) == [stay] * outdated


def test_each_tunnel_is_measured_in_the_state_that_is_shown() -> None:
    metrics = Metrics()
    ends(UP, tenure(result=REFUSED), metrics=metrics).measure()
    assert metrics.tunnel_state.labels("chat", "r1", PathState.REMOTE_CLOSED)._value.get() == 1
