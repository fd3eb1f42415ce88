"""`/metrics`, `/healthz` and `/readyz`, for Prometheus and other monitors. A Prometheus on another machine also gets
the metrics of what it cannot reach: of each replica, through its socket, and of each router, which listens on loopback.
`/sd` lists all of these pages, in the form of Prometheus' HTTP service discovery. `/` is the live page (`page.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway_sidecar.api.bounded_server import BoundedServer, tcp_listener
from gateway_sidecar.api.hosts import OwnNames, only_by
from gateway_sidecar.api.page import add_page, feed_of
from gateway_sidecar.config import Endpoint, MetricsSettings
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.control.process.readiness import LEAVING
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.model import ReplicaId, ReplicaState
from gateway_sidecar.errors import MetricsError
from gateway_sidecar.supervision.loops import Tasks

_DAEMON = web.AppKey("daemon", Daemon)
_MOST_BODY_BYTES = 1024  # of a request: there is nothing to send here.
_TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


class Recorded(Collector):
    """What is read from the daemon's records when Prometheus asks: which replica a worker of the routers' own metrics
    is, and whether the file on disk is what is in force.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def collect(self) -> Iterable[Metric]:
        """One series for each URL that a router knows, or is to know, a replica by; and one for the file."""
        yield GaugeMetricFamily(
            "gateway_sidecar_config_file_in_force",
            "1 while the configuration file on disk means what is in force. Comments and order do not count.",
            value=self._daemon.file.found.state == "in force",
        )
        family = GaugeMetricFamily(
            "gateway_sidecar_worker_info",
            "Always 1: the replica that a worker is; the router's own metrics name the worker by its URL.",
            labels=("service", "replica", "worker"),
        )
        for name, service in self._daemon.services.items():
            for tenure in service.tenures.values():
                for url in tenure.urls:
                    family.add_metric((name, tenure.replica, url), 1)
        yield family


async def serve_metrics(daemon: Daemon, listen: Endpoint, settings: MetricsSettings) -> BoundedServer:
    """Listens there; the caller closes it. Raises OSError if the address is taken."""
    listening = tcp_listener(listen)
    app = web.Application(middlewares=[only_by(OwnNames(settings.hosts))], client_max_size=_MOST_BODY_BYTES)
    app[_DAEMON] = daemon
    daemon.metrics.registry.register(Recorded(daemon))
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/readyz", _readyz)
    app.router.add_get("/sd", _discovery)
    app.router.add_get("/routers/{service}/metrics", _metrics_of)
    app.router.add_get("/replicas/{service}/{replica}/metrics", _metrics_of)
    if settings.page:
        add_page(app, feed_of(daemon), daemon.taken_up)
    server = BoundedServer(app, Tasks("-", daemon.metrics))
    await server.listen(listening)
    return server


async def _metrics(request: web.Request) -> web.Response:
    body = generate_latest(request.app[_DAEMON].metrics.registry)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _healthz(request: web.Request) -> web.Response:
    if request.app[_DAEMON].healthy:
        return web.Response(text="ok\n")
    return web.Response(status=503, text="a loop makes no progress\n")


async def _readyz(request: web.Request) -> web.Response:
    """Of the whole gateway, or with `?service=NAME` of one service or shared address."""
    daemon, name = request.app[_DAEMON], request.query.get("service")
    if name is None:
        if daemon.ready:
            return web.Response(text="ready\n")
        why = LEAVING if daemon.readiness.is_leaving else daemon.summary()
        return web.Response(status=503, text=f"not ready: {why}\n")
    try:
        objection = daemon.readiness.objection(name)
    except KeyError:
        return web.Response(status=404, text=f"no service '{name}'; there are: {', '.join(daemon.readiness.names)}\n")
    return web.Response(status=503, text=f"not ready: {objection}\n") if objection else web.Response(text="ready\n")


async def _discovery(request: web.Request) -> web.Response:
    """Every router that runs, and every replica that serves and may have metrics, at this listener's own address."""
    daemon, here = request.app[_DAEMON], request.host
    groups = []
    for name, service in sorted(daemon.services.items()):
        if service.router.ports is not None:
            groups.append(_group(here, f"/routers/{name}/metrics", job="router", service=name))
        for tenure in sorted(service.tenures.values(), key=lambda t: t.replica):
            if tenure.status.state is ReplicaState.SERVING and daemon.signals.may_have_a_page(tenure):
                path = f"/replicas/{name}/{quote(tenure.replica, safe='')}/metrics"
                groups.append(_group(here, path, job="replica", service=name, **_labels(service, tenure)))
    return web.json_response(groups)


def _group(target: str, path: str, *, job: str, **labels: str) -> dict[str, object]:
    return {"targets": [target], "labels": {"__metrics_path__": path, "gateway_sidecar_job": job, **labels}}


def _labels(service: Service, tenure: Tenure) -> dict[str, str]:
    assert tenure.probe.facts is not None
    worker = service.book.workers.get(tenure.url) if tenure.url else None
    return {
        "replica": tenure.replica,
        "worker_type": (tenure.notes.overrides.worker_type or tenure.probe.facts.worker_type).value,
        "runtime_type": tenure.probe.facts.runtime_type,
        "model": (worker.model_id if worker else None) or tenure.probe.facts.model or "",
    }


async def _metrics_of(request: web.Request) -> web.Response:
    """The page of a service's router, or of one of its replicas."""
    daemon, name, replica = request.app[_DAEMON], request.match_info["service"], request.match_info.get("replica")
    service = daemon.services.get(name)
    if service is None:
        return web.Response(status=404, text=f"no service '{name}'\n")
    try:
        if replica is None:
            text = await daemon.signals.router_page(service.router)
        else:
            text = await daemon.signals.replica_page(service, ReplicaId(replica))
    except KeyError:
        return web.Response(status=404, text=f"service '{name}' has no replica '{replica}'\n")
    except MetricsError as error:
        return web.Response(status=404 if error.absent else 502, text=f"{error}\n")
    # Said anew, whatever the engine calls it: what is a web page elsewhere shall be none here.
    return web.Response(body=text, headers={"Content-Type": _TEXT_FORMAT, "X-Content-Type-Options": "nosniff"})
