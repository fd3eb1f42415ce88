"""One small nginx for one address by which a replica's peers know it: it listens there and leads to a bridge's link.

It has no master (3 MB), and serves connections of this machine only. Its directory is named after its address.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from gateway_sidecar.bridges.nginx import busy_ports
from gateway_sidecar.bridges.nginx_config import peer_config
from gateway_sidecar.bridges.small_nginx import SmallNginx, SmallPlaces, small_left_running
from gateway_sidecar.config import parse_endpoint
from gateway_sidecar.domain.model import PeerAddress
from gateway_sidecar.errors import BridgeError
from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import replace_file
from gateway_sidecar.supervision.process import Identity


class PeerNginx(SmallNginx):
    """The nginx of one address. `port` names the bridge whose link it follows."""

    def __init__(self, places: SmallPlaces, address: PeerAddress, port: int) -> None:
        super().__init__(places, places.directory / str(address), f"nginx for {address}")
        self._address = address
        self._link = places.links / f"{port}.sock"

    async def start(self) -> None:
        """Starts it and returns when it listens. Raises BridgeError."""
        program = await self._places.find()
        self.process = None
        if busy := await self._busy():
            raise BridgeError(f"cannot listen on {self._address} ({busy[0][2]}); stop what uses the port")
        host, port = self._address.host, self._address.port
        try:
            make_directory(self._directory, 0o700)
            text = peer_config(host, port, self._link, self._directory, program.stream_module)
            replace_file(self._directory / "nginx.conf", text)
        except OSError as error:
            raise BridgeError(f"cannot start {self._name}: {error}") from error
        await self._spawn(program, self._listens)

    async def stop(self) -> None:
        """Ends it, with the connections it has."""
        await super().stop()
        for name in ("nginx.conf", "nginx.pid"):
            (self._directory / name).unlink(missing_ok=True)
        if self._directory.is_dir() and not any(self._directory.iterdir()):
            self._directory.rmdir()

    async def _listens(self) -> bool:
        return bool(await self._busy())

    async def _busy(self) -> list[tuple[str, int, str]]:
        return await asyncio.to_thread(busy_ports, [(self._address.host, self._address.port)])


@dataclass(frozen=True, slots=True)
class LeftRunning:
    """One that an earlier daemon started; `port` is the bridge that it leads to."""

    address: PeerAddress
    port: int
    identity: Identity


def peers_left_running(places: SmallPlaces) -> list[LeftRunning]:
    """All that an earlier daemon started and that still run. Blocks: call in a thread."""
    found = []
    for directory, identity in small_left_running(places):
        try:
            endpoint = parse_endpoint(directory.name)
            config = (directory / "nginx.conf").read_text()
        except (OSError, ValueError):
            continue  # Gone meanwhile, or one of another kind.
        leads_to = re.search(r"/(\d+)\.sock;", config)
        if leads_to is not None:
            found.append(LeftRunning(PeerAddress(endpoint.host, endpoint.port), int(leads_to[1]), identity))
    return found
