"""`/metrics`, `/healthz` and `/readyz` for Prometheus and for whoever watches the daemon."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from gateway_sidecar.control.daemon import Daemon

_DAEMON = web.AppKey("daemon", Daemon)


async def serve_metrics(daemon: Daemon, host: str, port: int) -> web.AppRunner:
    """Listens on `host:port`; the caller cleans the runner up. Raises OSError if the address is taken."""
    app = web.Application()
    app[_DAEMON] = daemon
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/readyz", _readyz)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, host, port, reuse_address=True).start()
    return runner


async def _metrics(request: web.Request) -> web.Response:
    body = generate_latest(request.app[_DAEMON].metrics.registry)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _healthz(request: web.Request) -> web.Response:
    if request.app[_DAEMON].healthy:
        return web.Response(text="ok\n")
    return web.Response(status=503, text="a loop makes no progress\n")


async def _readyz(request: web.Request) -> web.Response:
    daemon = request.app[_DAEMON]
    if daemon.ready:
        return web.Response(text="ready\n")
    return web.Response(status=503, text=f"not ready: {daemon.summary()}\n")
