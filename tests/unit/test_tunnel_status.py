"""How a tunnel is shown: what a question through it found counts, and nothing that was asked while it was down."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway_sidecar.control.replicas.prober import far_end_of
from gateway_sidecar.control.replicas.tenure import BridgeHosts, Probed, Tenure
from gateway_sidecar.domain.model import Loading, ReplicaId, SocketIdentity
from gateway_sidecar.domain.tunnels import PathState, PathStatus, SshRoute, SshServer, Tunnel
from gateway_sidecar.sources.listing import Sighting

TUNNEL = Tunnel("chat/r1", SshRoute((SshServer("gpu"),)), "127.0.0.1:8000")
DOWN = PathStatus(PathState.REFUSED, "nobody there")
UP = PathStatus(PathState.UP)
COMPLAINT = PathStatus(PathState.UP, "administratively prohibited")
REFUSED, BUSY = Loading("closed without an answer", refused=True), Loading("/health answers 503")


def tenure(*, result: Loading, asked: bool, tunnel: Tunnel | None = TUNNEL) -> Tenure:
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
    shown = far_end_of(tenure(result=result, asked=asked), lambda _: path)
    assert shown is not None
    assert shown.state is state


def test_socket_of_somebody_elses_has_no_path() -> None:
    """Nothing is claimed about what is not ours."""
    assert far_end_of(tenure(result=REFUSED, asked=True, tunnel=None), lambda _: UP) is None
