"""How SMG is started."""

from __future__ import annotations

from pathlib import Path

from gateway_sidecar.routers.base import LaunchCommand, RouterPorts, find_program
from gateway_sidecar.routers.program import keeping_secret
from gateway_sidecar.routers.smg.settings import SmgSettings

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
