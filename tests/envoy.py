"""A real Envoy that reads a service's endpoints from a file, as somebody else would run it."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from pathlib import Path

import aiohttp

ENVOY = Path(os.environ.get("ENVOY", Path(__file__).parents[1] / ".venv-envoy" / "bin" / "envoy"))
FILTERS = "type.googleapis.com/envoy.extensions.filters"
WHY_NOT = "Envoy is not installed; `make test` installs it into .venv-envoy"


def configuration(port: int, admin: int, endpoints: Path, cluster: str, key: str) -> str:
    """A listener that balances over the file's endpoints and shows the bridges the key."""
    shows_key = {"header": {"key": "authorization", "value": f"Bearer {key}"}, "append_action": 2}
    manager = {
        "@type": f"{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "chat",
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{FILTERS}.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "request_headers_to_add": [shows_key],
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}],
                }
            ],
        },
    }
    source = {"path_config_source": {"path": str(endpoints)}, "resource_api_version": "V3"}
    clusters = [{"name": cluster, "type": "EDS", "eds_cluster_config": {"eds_config": source}}]
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return json.dumps(
        {
            "node": {"id": "test", "cluster": "test"},
            "admin": {"address": _address(admin)},
            "static_resources": {
                "listeners": [{"name": "http", "address": _address(port), "filter_chains": [chain]}],
                "clusters": clusters,
            },
        }
    )


def _address(port: int) -> object:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


class Envoy:
    """One that runs; `url` is where clients ask it."""

    def __init__(self, directory: Path, port: int, admin: int) -> None:
        self._directory = directory
        self._port, self._admin = port, admin
        self.url = f"http://127.0.0.1:{port}"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, endpoints: Path, cluster: str, key: str) -> None:
        config = self._directory / "envoy.json"
        config.write_text(configuration(self._port, self._admin, endpoints, cluster, key))
        with (self._directory / "envoy.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                str(ENVOY), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", stdout=log, stderr=log
            )

    async def until_knows(self, wanted: dict[int, str], within_s: float = 60.0) -> None:
        """Waits until it has just these: port -> state as Envoy names it."""
        known: dict[int, str] = {}
        try:
            async with asyncio.timeout(within_s), aiohttp.ClientSession() as session:
                while known != wanted:
                    await asyncio.sleep(0.05)
                    with suppress(aiohttp.ClientError):
                        known = await self._known(session)
        except TimeoutError:
            log = (self._directory / "envoy.log").read_text()[-3000:]
            raise AssertionError(f"{known} and not {wanted}: {log}") from None

    async def _known(self, session: aiohttp.ClientSession) -> dict[int, str]:
        async with session.get(f"http://127.0.0.1:{self._admin}/clusters?format=json") as answer:
            said = json.loads(await answer.text())
        hosts = [host for cluster in said["cluster_statuses"] for host in cluster.get("host_statuses", [])]
        return {
            host["address"]["socket_address"]["port_value"]: host["health_status"]["eds_health_status"]
            for host in hosts
        }

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
