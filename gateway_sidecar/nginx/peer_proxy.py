"""One small nginx for one address by which a replica's peers know it: it listens there and leads to a bridge's link.

It serves as the bridge does: HTTP engines to the router alone, gRPC engines to its user alone.

It has no master (3 MB), and serves connections of this machine only. Its directory is named after its address.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

from gateway_sidecar.config import parse_endpoint
from gateway_sidecar.domain.model import PeerAddress
from gateway_sidecar.domain.routing import BridgeRules
from gateway_sidecar.errors import NginxError
from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import replace_file
from gateway_sidecar.nginx.config import OWNER_SCRIPT, QUEUE_LUA, PeerConfig
from gateway_sidecar.nginx.connections import listening_at
from gateway_sidecar.nginx.server import busy_ports, own_user, write_script
from gateway_sidecar.nginx.small import SmallNginx, SmallPlaces, small_left_running
from gateway_sidecar.supervision.process import Identity


@dataclass(frozen=True, slots=True)
class PeerPlaces(SmallPlaces):
    """What all of them share: what the router shows bridges, what these pass, and where the
    bridges' nginx tells whose a connection is."""

    bridge_key: Callable[[], str]
    bridge_rules: BridgeRules
    owner_url: str


class PeerNginx(SmallNginx):
    """The nginx of one address. `port` names the bridge whose link it follows, `grpc` what its engine speaks."""

    def __init__(self, places: PeerPlaces, address: PeerAddress, port: int, grpc: bool) -> None:
        super().__init__(places, places.directory / str(address), f"nginx for {address}")
        self._address = address
        self._link = places.links / f"{port}.sock"
        self._grpc = grpc
        self._key, self._rules = places.bridge_key, places.bridge_rules
        self._owner_url = places.owner_url

    async def start(self) -> None:
        """Starts it and returns when it listens. Raises NginxError."""
        program = await self._places.find()
        self.process = None
        if busy := await self._busy():
            raise NginxError(f"cannot listen on {self._address} ({busy[0][2]}); stop what uses the port")
        host, port = self._address.host, self._address.port
        try:
            make_directory(self._directory, 0o700)
            make_directory(self._directory / "temp", 0o700)
            streams = (program.stream_module, program.owner_module)
            modules = [it for it in streams if it is not None] if self._grpc else program.lua_modules or ()
            text = PeerConfig(
                host,
                port,
                self._link,
                self._directory,
                self._grpc,
                self._key(),
                self._rules,
                modules,
                None if program.owner_module is None or program.lua_modules is None else self._owner_url,
                program.lua_modules is not None,
                own_user(),
            ).text()
            for script in (OWNER_SCRIPT, QUEUE_LUA):
                write_script(self._directory, script)
            replace_file(self._directory / "nginx.conf", text)
        except OSError as error:
            raise NginxError(f"cannot start {self._name}: {error}") from error
        await self._spawn(program, self._listens)

    async def stop(self) -> None:
        """Ends it, with the connections it has."""
        await super().stop()
        for name in ("nginx.conf", "nginx.pid", OWNER_SCRIPT, QUEUE_LUA):
            (self._directory / name).unlink(missing_ok=True)
        shutil.rmtree(self._directory / "temp", ignore_errors=True)
        if self._directory.is_dir() and not any(self._directory.iterdir()):
            self._directory.rmdir()

    async def _listens(self) -> bool:
        """Whether this nginx listens there: another process that took the address meanwhile does not serve the
        replica.
        """
        assert self.process is not None
        listening = await asyncio.to_thread(listening_at, self.process.pid)
        return (ip_address(self._address.host), self._address.port) in listening

    async def _busy(self) -> list[tuple[str, int, str]]:
        return await asyncio.to_thread(busy_ports, [(self._address.host, self._address.port)])


@dataclass(frozen=True, slots=True)
class LeftRunning:
    """One that an earlier daemon started; `port` is the bridge that it leads to, `grpc` what it passes."""

    address: PeerAddress
    port: int
    grpc: bool
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
        leads_to = re.search(r"/(\d+)\.sock:?;", config)
        if leads_to is not None:
            address = PeerAddress(endpoint.host, endpoint.port)
            found.append(LeftRunning(address, int(leads_to[1]), "\nstream {" in config, identity))
    return found
