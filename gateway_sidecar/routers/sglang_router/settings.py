"""What may be said of sglang-router below `router`, and which of its options the daemon keeps to itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gateway_sidecar.config.router import CommandValue, RouterSettings
from gateway_sidecar.routers.arguments import EVERYWHERE, not_reserved

Policy = Literal["random", "round_robin", "cache_aware", "power_of_two", "manual"]

_TLS = "the service address reaches the router over loopback in the clear; put TLS in front of `listen`"

RESERVED: Mapping[str, str] = {
    **EVERYWHERE,
    "--control-plane-api-keys": "the daemon makes a key of its own at every start",
    "--api-key": "the daemon gives the router the bridges' key, worker by worker",
    "--enable-igw": "it downloads a vocabulary when it starts; use router.type: smg for many models and gRPC",
    "--pd-disaggregation": "use `router.mode: prefill_decode`",
    "--dp-aware": "it makes a worker of each rank, which the daemon does not know; use router.type: smg",
    "--mini-lb": "it is a router of another kind, for debugging",
    "--tls-cert-path": _TLS,
    "--tls-key-path": _TLS,
}


def check_argument(argument: str) -> str:
    """The argument itself, if sglang-router may be given it; `ValueError` says whose it is otherwise."""
    return not_reserved(argument, RESERVED)


class SglangRouterSettings(RouterSettings):
    """The older router of the SGLang project, for engines that speak HTTP and serve one model."""

    type: Literal["sglang-router"] = Field(description="The kind of router.")
    mode: Literal["regular", "prefill_decode"] = Field(
        default="regular",
        description="Which replicas the router takes: those that answer by themselves, or prefill and decode replicas.",
    )
    policy: Policy = Field(default="cache_aware", description="How a worker is chosen for a request.")
    command: CommandValue = Field(
        default="sglang-router",
        description="The router's program: an absolute path, or a name that is looked for beside the daemon's own"
        " Python and then in PATH.",
        examples=["/opt/sglang-router/bin/sglang-router"],
    )
    args: Annotated[tuple[Annotated[str, AfterValidator(check_argument)], ...], Field(strict=False)] = Field(
        default=(),
        description="Further options of `sglang-router launch`. An option that the daemon sets itself is refused, with"
        " the reason.",
        examples=[["--request-timeout-secs", "3600"]],
    )
    log_level: Literal["debug", "info", "warn", "error"] = Field(
        default="warn",
        description="The least severe event that the router writes. `info` is two lines for each request.",
    )
