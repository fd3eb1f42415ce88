"""How SMG is started, and what its program says of itself without being started."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway_sidecar.errors import ProcessError
from gateway_sidecar.routers.base import LaunchCommand, RouterPorts, find_program
from gateway_sidecar.routers.program import keeping_secret
from gateway_sidecar.routers.smg.settings import SmgSettings
from gateway_sidecar.supervision.awake import within

_CONNECTION_GAP_S = 1
"""Between those attempts: SMG's own 30 s keep an engine that was away for a moment out for half a minute."""


def find_smg(command: str) -> Path:
    """The `smg` to run. Raises ProcessError."""
    return find_program(command, "pip install 'gateway-sidecar[smg]' into the daemon's environment")


def launch_command(program: Path, ports: RouterPorts, settings: SmgSettings, *, key: str) -> LaunchCommand:
    """The command that starts SMG on private loopback ports, its key kept off the command line."""
    options = [
        "launch",
        *("--host", "127.0.0.1", "--port", str(ports.api)),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(ports.metrics)),
        "--enable-igw",  # without it a gRPC worker that is registered at run time gets no traffic
        *("--worker-startup-check-interval", str(_CONNECTION_GAP_S)),
        "--disable-circuit-breaker",  # ten failures, a client's or nginx's own, shut an engine out that was well
        "--trust-tenant-header",  # nginx names the tenant, so that one key does not see what another stored
        *("--policy", settings.policy),
        *("--log-json", "--log-level", settings.log_level),
        *settings.args,
    ]
    keys = ["--control-plane-api-keys", f"gateway-sidecar:gateway-sidecar:admin:{key}"]
    return keeping_secret(program, options, keys, settings.env)


async def version_of(program: Path) -> str:
    """What `smg --version` says. Raises ProcessError."""
    try:
        process = await asyncio.create_subprocess_exec(
            str(program),
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with within(30):
            output, _ = await process.communicate()
    except (OSError, TimeoutError) as error:
        raise ProcessError(f"{program} --version: {error or 'no answer within 30 s'}") from error
    if process.returncode != 0:
        raise ProcessError(
            f"{program} --version ended with {process.returncode}: {output[-200:].decode('utf-8', 'replace')}"
        )
    return output.decode("utf-8", "replace").strip()
