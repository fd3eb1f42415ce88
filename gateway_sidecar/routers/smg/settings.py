"""What may be said of SMG below `router`, and which of its options the daemon keeps to itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gateway_sidecar.config.router import CommandValue, RouterSettings

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

_ADDRESS = "the daemon gives the router its private address; clients use `listen`"
_METRICS = "the daemon gives the router's metrics a private address; `status --json` has it as metrics_url"
_WORKERS = "the daemon registers the workers; replicas come from `replicas.sockets`"
_FOREIGN = "it brings workers that the daemon does not know and would remove"
_PD = "prefill, decode and encode workers are told apart by their own answers, and mixed in one router"
_TLS = "the service address reaches the router over loopback in the clear; put TLS in front of `listen`"
_MESH = "it brings other gateways' workers, whose loopback addresses mean other engines here"
_RECOVERY = "the daemon decides by evidence when a worker goes; see `health` and `refused`"

FAMILIES: dict[str, str] = {
    "--admin-": "the daemon controls the router at its private address",
    "--consul-": _FOREIGN,
    "--discovery-": _FOREIGN,
    "--mesh-": _MESH,
    "--service-discovery": _FOREIGN,
    "--slurm-": _FOREIGN,
}
"""All options that begin like this, also those that a later SMG may have, and why they are the daemon's own."""

RESERVED: dict[str, str] = {
    "--host": _ADDRESS,
    "--port": _ADDRESS,
    "--prometheus-host": _METRICS,
    "--prometheus-port": _METRICS,
    "--control-plane-api-keys": "the daemon makes a key of its own at every start",
    "--enable-igw": "the daemon always sets it; without it gRPC workers get no traffic",
    "--trust-tenant-header": "the daemon always sets it; nginx says whose a request is",
    "--tenant-header-name": "nginx says whose a request is in X-Smg-Tenant-Id",
    "--policy": "use `router.policy`",
    "--log-json": "the daemon reads the router's log in this form",
    "--log-level": "use `router.log_level`",
    "--worker-urls": _WORKERS,
    "--encode": _WORKERS,
    "--prefill": _WORKERS,
    "--decode": _WORKERS,
    "--pd-disaggregation": _PD,
    "--epd-disaggregation": _PD,
    "--selector": _FOREIGN,
    "--encode-selector": _FOREIGN,
    "--prefill-selector": _FOREIGN,
    "--decode-selector": _FOREIGN,
    "--router-selector": _MESH,
    "--enable-mesh": _MESH,
    "--health-check-port": "two routers run side by side while one is replaced, and one of them could not listen there",
    "--max-connections": "the daemon asks at the same address, and takes a router that is full for one that hangs;"
    " use `frontend.limits`",
    "--drain-settle-secs": "use `drain.settle_s`",
    "--disable-circuit-breaker": "the daemon always sets it, and decides by evidence when a worker goes",
    "--remove-unhealthy-workers": _RECOVERY,
    "--no-remove-unhealthy-workers": _RECOVERY,
    "--worker-auto-recovery": _RECOVERY,
    "--no-worker-auto-recovery": _RECOVERY,
    "--tls-cert-path": _TLS,
    "--tls-key-path": _TLS,
    "--": "it would end the options, and the daemon's own come after",
    "--help": "the router would print its help and exit",
    "-h": "the router would print its help and exit",
}


def check_argument(argument: str) -> str:
    """The argument itself, if SMG may be given it; `ValueError` says whose it is otherwise.

    SMG takes any unambiguous beginning for the whole option, so beginnings are refused too.
    """
    name = argument.partition("=")[0]
    family = next((family for family in FAMILIES if name.startswith(family)), None)
    whole = name if family or name in RESERVED else _whole_option(name)
    if whole is not None:
        short = "" if name == whole else f" (short for {whole})"
        why = FAMILIES[family] if family else RESERVED[whole]
        raise ValueError(f"{name!r}{short} is the daemon's own; leave it out: {why}")
    if "\0" in argument:
        raise ValueError(f"{argument!r} holds a NUL character; leave it out")
    return argument


def _whole_option(name: str) -> str | None:
    if not name.startswith("--"):
        return None
    return next((option for option in RESERVED if option.startswith(name)), None)


class SmgSettings(RouterSettings):
    """The process that balances a service's requests: SMG, the Shepherd Model Gateway."""

    type: Literal["smg"] = Field(default="smg", description="The kind of router.")
    policy: Policy = Field(default="cache_aware", description="How a worker is chosen for a request.")
    command: CommandValue = Field(
        default="smg",
        description="The router's program: a name, looked for beside the daemon's own Python and then in"
        " PATH, or an absolute path.",
        examples=["smg"],
    )
    args: Annotated[tuple[Annotated[str, AfterValidator(check_argument)], ...], Field(strict=False)] = Field(
        default=(),
        description="Further options of `smg launch`. Those that the daemon sets itself are refused by name.",
        examples=[["--max-payload-size", "1073741824"]],
    )
    log_level: Literal["debug", "info", "warn", "error"] = Field(
        default="warn", description="The least severe event that the router writes; `info` is two lines a request."
    )
