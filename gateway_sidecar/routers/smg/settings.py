"""What may be said of SMG below `router`, and which of its options the daemon keeps to itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gateway_sidecar.config.router import CommandValue, RouterSettings
from gateway_sidecar.routers.arguments import EVERYWHERE, FOREIGN, WORKERS, not_reserved

Policy = Literal[
    "random",
    "round_robin",
    "passthrough",
    "cache_aware",
    "power_of_two",
    "least_load",
    "manual",
    "consistent_hashing",
    "prefix_hash",
]

_PD = "prefill, decode and encode workers are told apart by their own answers, and mixed in one router"
_TLS = "the service address reaches the router over loopback in the clear; put TLS in front of `listen`"
_MESH = "use `router.mesh`, for which the daemon gives each router its place, peers and certificates"
_RECOVERY = "the daemon decides by evidence when a worker goes; see `health` and `refused`"

FAMILIES: Mapping[str, str] = {
    "--admin-": "the daemon controls the router at its private address",
    "--consul-": FOREIGN,
    "--discovery-": FOREIGN,
    "--mesh-": _MESH,
    "--service-discovery": FOREIGN,
    "--slurm-": FOREIGN,
}
"""All options that begin like this, also those that a later SMG may have, and why they are the daemon's own."""

RESERVED: Mapping[str, str] = {
    **EVERYWHERE,
    "--control-plane-api-keys": "the daemon makes a key of its own at every start",
    "--enable-igw": "the daemon always sets it; without it gRPC workers get no traffic",
    "--trust-tenant-header": "the daemon always sets it; nginx says whose a request is",
    "--tenant-header-name": "nginx says whose a request is in X-Smg-Tenant-Id",
    "--log-json": "the daemon reads the router's log in this form",
    "--encode": WORKERS,
    "--pd-disaggregation": _PD,
    "--epd-disaggregation": _PD,
    "--selector": FOREIGN,
    "--encode-selector": FOREIGN,
    "--prefill-selector": FOREIGN,
    "--decode-selector": FOREIGN,
    "--router-selector": _MESH,
    "--enable-mesh": _MESH,
    "--health-check-port": "two routers run side by side while one is replaced, and one of them could not listen there",
    "--max-connections": "the daemon asks at the same address, and takes a router that is full for one that hangs;"
    " use `frontend.limits`",
    "--drain-settle-secs": "use `drain.settle_s`",
    "--remove-unhealthy-workers": _RECOVERY,
    "--no-remove-unhealthy-workers": _RECOVERY,
    "--worker-auto-recovery": _RECOVERY,
    "--no-worker-auto-recovery": _RECOVERY,
    "--tls-cert-path": _TLS,
    "--tls-key-path": _TLS,
}


def check_argument(argument: str) -> str:
    """The argument itself, if SMG may be given it; `ValueError` says whose it is otherwise."""
    return not_reserved(argument, RESERVED, FAMILIES)


class SmgSettings(RouterSettings):
    """The process that balances a service's requests: SMG, the Shepherd Model Gateway."""

    type: Literal["smg"] = Field(default="smg", description="The kind of router.")
    policy: Policy = Field(default="cache_aware", description="How a worker is chosen for a request.")
    command: CommandValue = Field(
        default="smg",
        description="The router's program: an absolute path, or a name that is looked for beside the daemon's own"
        " Python and then in PATH.",
        examples=["smg"],
    )
    args: Annotated[tuple[Annotated[str, AfterValidator(check_argument)], ...], Field(strict=False)] = Field(
        default=(),
        description="Further options of `smg launch`. An option that the daemon sets itself is refused, with the"
        " reason.",
        examples=[["--max-payload-size", "1073741824"]],
    )
    mesh: bool = Field(
        default=False,
        description="Whether the service's routers at all gateways of the fleet tell each other which prefixes are"
        " cached where, so that a prompt meets the same replica whichever gateway it comes through. It needs `store`,"
        " and replicas that were put over the API.",
    )
    log_level: Literal["debug", "info", "warn", "error"] = Field(
        default="warn",
        description="The least severe event that the router writes. `info` is two lines for each request.",
    )
