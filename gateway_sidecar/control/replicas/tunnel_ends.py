"""What the tunnels of one service's replicas make of the questions that go through them."""

from __future__ import annotations

from collections.abc import Iterator

from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.domain.model import Loading, ProbeResult, Ready
from gateway_sidecar.domain.tunnels import PathOf, PathStatus, far_end
from gateway_sidecar.telemetry.metrics import Metrics


class TunnelEnds:
    """Those of one service; a tenure without a tunnel has none."""

    def __init__(self, service: str, tenures: Registry, path_of: PathOf, metrics: Metrics) -> None:
        self._service = service
        self._tenures = tenures
        self._path_of = path_of
        self._metrics = metrics

    def far_end_of(self, tenure: Tenure) -> PathStatus | None:
        """How a tenure's tunnel is, and what came of the last question through it; None if it has no tunnel."""
        tunnel, probe = tenure.sighting.tunnel, tenure.probe
        return None if tunnel is None else far_end(tunnel, self._path_of(tunnel), probe.result if probe.asked else None)

    def refusal_of(self, tenure: Tenure) -> Loading | None:
        """A tunnel that is down refuses connections, and knows better than the kernel why; None while it is up."""
        tunnel = tenure.sighting.tunnel
        path = None if tunnel is None else self._path_of(tunnel)
        return None if path is None or path.is_up else Loading(f"tunnel: {path}", refused=True)

    def as_seen_through(self, tenure: Tenure, result: ProbeResult) -> ProbeResult:
        """What a refusal means at the end of a tunnel that is up."""
        tunnel = tenure.sighting.tunnel
        if tunnel is None or not isinstance(result, Loading) or not result.refused:
            return result
        return Loading(f"{far_end(tunnel, self._path_of(tunnel), result)}", refused=True)

    def outdated(self) -> Iterator[Tenure]:
        """Whose last answers do not fit how their tunnels are now."""
        for tenure in self._tenures:
            tunnel = tenure.sighting.tunnel
            if tunnel is not None and self._path_of(tunnel).is_up is not isinstance(tenure.probe.result, Ready):
                yield tenure

    def measure(self) -> None:
        """Brings the metric of the tunnels' states up to date."""
        for tenure in self._tenures.current.values():
            path = self.far_end_of(tenure)
            if path is not None:
                self._metrics.note_tunnel(self._service, tenure.replica, path.state)
