"""What may be said of vllm-router below `router`, and which of its options the daemon keeps to itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gateway_sidecar.config.router import CommandValue, RouterSettings
from gateway_sidecar.routers.arguments import EVERYWHERE, FOREIGN, WORKERS, not_reserved

# Not kv_aware: it needs `--kv-event-source` for each worker, before the router starts.
Policy = Literal["random", "round_robin", "cache_aware", "power_of_two", "consistent_hash", "sticky_least_loaded"]

_MODELS = "use `router.models: many`, which sets it"
_PD = "prefill and decode workers are told apart by their own answers; use `router.models: many`"
_EVENTS = "it names workers' addresses before there are workers; use `router.policy: cache_aware`"

RESERVED: Mapping[str, str] = {
    **EVERYWHERE,
    "--api-key": "the daemon gives the router the bridges' key",
    "--enable-igw": _MODELS,
    "--vllm-pd-disaggregation": _PD,
    "--vllm-discovery-address": FOREIGN,
    "--intra-node-data-parallel-size": "it makes a worker of each rank, which the daemon does not know; use smg",
    "--mini-lb": "it is a router of another kind, for debugging",
    "--kv-event-source": _EVENTS,
    "--kv-event-replay-source": _EVENTS,
    "--pd-kv-events": _EVENTS,
    "--worker-startup-timeout-secs": WORKERS,
}


def check_argument(argument: str) -> str:
    """The argument itself, if vllm-router may be given it; `ValueError` says whose it is otherwise."""
    return not_reserved(argument, RESERVED)


class VllmRouterSettings(RouterSettings):
    """The router of the vLLM project, for engines that speak HTTP."""

    type: Literal["vllm-router"] = Field(description="The kind of router.")
    models: Literal["one", "many"] = Field(
        default="one",
        description="`one`: all replicas serve one model, and every path of vLLM's API passes. `many`: requests go to"
        " the replicas of their model, prefill and decode replicas pair, and chat, completions and embeddings pass.",
    )
    policy: Policy = Field(default="cache_aware", description="How a worker is chosen for a request.")
    command: CommandValue = Field(
        default="vllm-router",
        description="The router's program: an absolute path, or a name that is looked for beside the daemon's own"
        " Python and then in PATH.",
        examples=["/opt/vllm-router/bin/vllm-router"],
    )
    args: Annotated[tuple[Annotated[str, AfterValidator(check_argument)], ...], Field(strict=False)] = Field(
        default=(),
        description="Further options of `vllm-router`. An option that the daemon sets itself is refused, with the"
        " reason.",
        examples=[["--request-timeout-secs", "3600"]],
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="warning", description="The least severe event that the router writes."
    )
