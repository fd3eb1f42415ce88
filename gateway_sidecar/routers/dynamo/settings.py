"""What may be said of Dynamo's frontend below `router`, and which of its options the daemon keeps to itself."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gateway_sidecar.config.router import CommandValue, RouterSettings
from gateway_sidecar.routers.arguments import not_reserved

_ADDRESS = "the daemon gives the router its private address; clients use `listen`"
_DISCOVERY = "the daemon writes the workers' entries into files of its own; replicas come from `replicas.sockets`"
_MODEL = "models are those of the replicas"
_TLS = "the service address reaches the router over loopback in the clear; put TLS in front of `listen`"
_GRPC = "clients reach the router by HTTP alone"
_ENDS = "the router would print something and exit"

INSTALL = (
    "make an environment of its own (python3 -m venv /opt/dynamo), install ai-dynamo 1.6 there"
    " (docs/routers/dynamo.md), and name its Python: `router: {type: dynamo, command: /opt/dynamo/bin/python}`"
)
RESERVED: dict[str, str] = {
    "--http-host": _ADDRESS,
    "--http-port": _ADDRESS,
    "--discovery-backend": _DISCOVERY,
    "--request-plane": "the bridges carry Dynamo's TCP request plane",
    "--response-plane": "the daemon sets up Dynamo's TCP response plane; see `router.response_host`",
    "--event-plane": "it would need a NATS server that the daemon does not run",
    "--namespace": "the gateway's own workers are in a namespace of theirs",
    "--namespace-prefix": "the gateway's own workers are in a namespace of theirs",
    "--router-mode": "use `router.policy`",
    "--migration-limit": "use `router.migration_limit`",
    "--metrics-prefix": "the daemon reads the router's metrics by their usual names",
    "--model-name": _MODEL,
    "--model-path": _MODEL,
    "--tls-cert-path": _TLS,
    "--tls-key-path": _TLS,
    "--tls-client-ca-cert-path": _TLS,
    "--kserve-grpc-server": _GRPC,
    "--grpc-metrics-port": _GRPC,
    "--interactive": _ENDS,
    "-i": _ENDS,
    "--version": _ENDS,
    "--help": _ENDS,
    "-h": _ENDS,
    "--": "it would end the options, and the daemon's own come after",
}


def check_argument(argument: str) -> str:
    """The argument itself, if the frontend may be given it; `ValueError` says whose it is otherwise."""
    return not_reserved(argument, RESERVED)


def check_address(value: str) -> str:
    """An IP address in its shortest spelling; `ValueError` for anything else."""
    try:
        return str(ip_address(value))
    except ValueError:
        raise ValueError(f"{value!r} is not an IP address; use one of this machine that the workers reach") from None


class DynamoSettings(RouterSettings):
    """The process that balances a service's requests: the frontend of NVIDIA Dynamo."""

    type: Literal["dynamo"] = Field(description="The kind of router.")
    policy: Literal["round-robin", "random", "power-of-two", "least-loaded", "kv"] = Field(
        default="round-robin",
        description="How a worker is chosen for a request. Among replicas that are Dynamo workers, `kv` prefers one"
        " that has the beginning of the prompt in its cache; plain engines then take turns.",
    )
    migration_limit: int = Field(
        default=3,
        ge=0,
        le=100,
        description="If a request's worker dies, the request goes on at another worker, at most this many times. In"
        " the middle of an answer only requests to Dynamo workers can go on.",
    )
    command: CommandValue = Field(
        default="python3",
        description="The Python that has ai-dynamo: an absolute path, or a name that is looked for beside the daemon's"
        " own Python and then in PATH.",
        examples=["/opt/dynamo/bin/python"],
    )
    args: Annotated[tuple[Annotated[str, AfterValidator(check_argument)], ...], Field(strict=False)] = Field(
        default=(),
        description="Further options of `python -m dynamo.frontend`. An option that the daemon sets itself is refused,"
        " with the reason.",
        examples=[["--router-kv-overlap-score-credit", "0.5"]],
    )
    log_level: Literal["debug", "info", "warn", "error"] = Field(
        default="warn",
        description="The least severe event that the router writes. `info` is some lines for each request.",
    )
    response_host: Annotated[str, AfterValidator(check_address)] = Field(
        default="127.0.0.1",
        description="The address of this machine to which replicas that are Dynamo workers send their answers.",
        examples=["10.0.0.1"],
    )
