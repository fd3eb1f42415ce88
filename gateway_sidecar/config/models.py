"""The settings: their names, defaults and bounds. Frozen; equal settings compare equal.

Durations are seconds, as each name says with `_s`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)

from gateway_sidecar.config.access import AccessSection
from gateway_sidecar.config.access_log import AccessLogSettings
from gateway_sidecar.config.acme import AcmeSettings
from gateway_sidecar.config.addresses import AddressSettings
from gateway_sidecar.config.endpoints import EndpointsSettings
from gateway_sidecar.config.frontend import FrontendSettings, PrefixValue, ServerNameValue
from gateway_sidecar.config.places import RUN_DIR, STATE_DIR, stored_certificates_in, stored_keys_in
from gateway_sidecar.config.router import CommandValue, RouterValue, default_router
from gateway_sidecar.config.scaling import ScalingSettings
from gateway_sidecar.config.section import Section
from gateway_sidecar.config.section import number as _number
from gateway_sidecar.config.store import StoreValue
from gateway_sidecar.config.tunnels import SshDefaults
from gateway_sidecar.config.values import (
    INTERFACE_PATTERN,
    NAME_PATTERN,
    Endpoint,
    PortRange,
    parse_bridge_host,
    parse_directory,
    parse_endpoint,
    parse_file,
    parse_interface,
    parse_name,
    parse_network,
    parse_ports,
    parse_run_dir,
    show,
)
from gateway_sidecar.domain.model import Access
from gateway_sidecar.kinds import SOURCES

_TO_TEXT = PlainSerializer(str, return_type=str)
_ABSOLUTE = {"type": "string", "pattern": r"""^/[^\s"'$;{}\\#%*?\[\]]+$"""}
_FILE = {"type": "string", "pattern": "^/"}

EndpointValue = Annotated[
    Endpoint,
    PlainValidator(parse_endpoint),
    _TO_TEXT,
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^(localhost|[0-9]{1,3}(\.[0-9]{1,3}){3}|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$",
        }
    ),
]
PortsValue = Annotated[
    PortRange,
    PlainValidator(parse_ports),
    _TO_TEXT,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"^[0-9]{1,5}(\s*-\s*[0-9]{1,5})?$"},
                {"type": "integer", "minimum": 1, "maximum": 65535},
            ]
        }
    ),
]
DirectoryValue = Annotated[Path, PlainValidator(parse_directory), _TO_TEXT, WithJsonSchema(_ABSOLUTE)]
RunDirValue = Annotated[Path, PlainValidator(parse_run_dir), _TO_TEXT, WithJsonSchema(_ABSOLUTE)]
BridgeHostValue = Annotated[
    str,
    PlainValidator(parse_bridge_host),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^(localhost|[0-9]{1,3}(\.[0-9]{1,3}){3}|\[?[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]?)$",
        }
    ),
]
FileValue = Annotated[str, PlainValidator(parse_file), WithJsonSchema(_FILE)]
InterfaceValue = Annotated[
    str, PlainValidator(parse_interface), WithJsonSchema({"type": "string", "pattern": INTERFACE_PATTERN})
]
NetworkValue = Annotated[
    str, PlainValidator(parse_network), WithJsonSchema({"type": "string", "pattern": r"^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$"})
]
NameValue = Annotated[str, PlainValidator(parse_name), WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})]


class LogSettings(Section):
    """The daemon's own log, on standard error."""

    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="The form of each line. `auto` is `console` on a terminal and `json` elsewhere."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe event that is written."
    )


class MetricsSettings(Section):
    """Prometheus metrics, `/healthz`, `/readyz` and the live page."""

    listen: EndpointValue | None = Field(
        default=Endpoint("127.0.0.1", 9464),
        description="Address of `/metrics`, `/healthz`, `/readyz` and the live page. `null` turns the listener off.",
        examples=["127.0.0.1:9464", None],
    )
    hosts: Annotated[tuple[ServerNameValue, ...], Field(strict=False)] = Field(
        default=(),
        description="Names by which clients may ask the listener, besides any IP address, `localhost` and this"
        " machine's host name. `*.example.net` stands for all names below `example.net`. A request with another name"
        " in its Host gets 421, because a web page could have sent that request here.",
        examples=[["gateway1.example.net"]],
    )
    page: bool = Field(
        default=True,
        description="Whether the listener serves the live page at `/`, which shows services, replicas and why, plots of"
        " the last hour, and events.",
    )

    @property
    def has_page(self) -> bool:
        """Whether there is a live page."""
        return self.page and self.listen is not None


class AdminTlsSettings(Section):
    """The certificate of the admin API, and the CA of its clients. PEM files; read again at each reload."""

    certificate: FileValue = Field(
        description="The listener's certificate, followed by the certificates between it and its CA.",
        examples=["/etc/gateway-sidecar/admin.crt"],
    )
    key: FileValue = Field(
        description="The certificate's private key, without a passphrase.", examples=["/etc/gateway-sidecar/admin.key"]
    )
    client_ca: FileValue = Field(
        description="The CA that signed the certificates of clients. A client with such a certificate may use the "
        "whole API.",
        examples=["/etc/gateway-sidecar/clients.crt"],
    )


class AdminSettings(Section):
    """The admin API over TCP, beside `admin.sock`; with mutual TLS, 1.2 or later, and in no other way."""

    listen: EndpointValue = Field(
        description="The listener's address. Clients can change replicas, routers and the daemon there.",
        examples=["127.0.0.1:9465"],
    )
    tls: AdminTlsSettings


class BridgeSettings(Section):
    """The TCP ports that lead to replica sockets: a router's workers."""

    host: BridgeHostValue = Field(
        default="127.0.0.1",
        description="The address of the bridges of HTTP engines, and so of the router's workers.",
        examples=["127.0.0.1"],
    )
    grpc_host: BridgeHostValue = Field(
        default="127.0.0.2",
        description="The address of the bridges of gRPC engines. They use the same ports as those of HTTP engines, so"
        " this address must differ from `host`.",
        examples=["127.0.0.2"],
    )
    paths: Annotated[tuple[PrefixValue, ...], Field(strict=False)] = Field(
        default=(),
        description="Path prefixes that a router may ask HTTP engines for, beside inference and what routers ask by"
        " themselves. Anyone who can make the router ask can reach these paths, engines' control routes too.",
        examples=[["/v1/score"]],
    )
    key_file: FileValue | None = Field(
        default=None,
        description="A file with a key of 20 to 200 letters, digits, `-` and `_`. Routers that somebody else runs show"
        " this key: `Authorization: Bearer KEY`. Without it the bridges serve only the daemon's own routers. The file"
        " is read at the start of the daemon.",
        examples=["/etc/gateway-sidecar/bridges.key"],
    )
    ports: PortsValue = Field(
        default=PortRange(24001, 24999),
        description="Ports of the bridges: one for each replica, and some to spare, because a port rests after use."
        " The services share the range in equal parts. Keep the range out of the kernel's ephemeral ports.",
        examples=["24001-24999"],
    )


class NginxProgramSettings(Section):
    """The nginx that leads from bridges to replica sockets, and from service addresses to routers."""

    command: CommandValue = Field(
        default="nginx",
        description="The nginx program: a name in PATH or an absolute path.",
        examples=["nginx"],
    )
    workers: Literal["auto"] | int = Field(
        default="auto",
        description="The number of nginx's worker processes. `auto` is one for each CPU that the daemon may use by"
        " affinity and control groups, and 16 at most.",
        json_schema_extra={"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 256}]},
    )
    max_bodies_mb: int = Field(
        default=8192,
        ge=64,
        le=16777216,
        description="Request bodies that do not fit into memory are kept in `state_dir` while their requests are in"
        " flight. Together they may take this much room. A request whose body would exceed it gets 429.",
    )

    @field_validator("workers", mode="before")
    @classmethod
    def _workers(cls, value: object) -> object:
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 256):
            return value
        raise ValueError(f"{show(value)} is not a number of processes; use auto, or 1 to 256")


class PeersSettings(Section):
    """Replicas that their peers must find under an address of their own: `advertise` in a `<replica>.yaml`."""

    interface: InterfaceValue = Field(
        default="gwsc0",
        description="The network interface that advertised addresses are put on. It belongs to this daemon alone: two"
        " daemons on one machine need two names.",
        examples=["gwsc0"],
    )
    networks: Annotated[tuple[NetworkValue, ...], Field(strict=False)] = Field(
        default=(),
        description="Only addresses in these networks may be advertised, direct or not. Name the replicas' own"
        " networks, and no network that has addresses which this machine itself needs. An empty list allows no"
        " address.",
        examples=[["10.0.0.0/24"]],
    )


class UsageKeepingSettings(Section):
    """How long the use of services with `frontend.usage` is kept."""

    keep_days: int = Field(
        default=400,
        ge=8,
        le=3660,
        description="Usage is kept for this long: the last eight days by the hour, older usage by the day (UTC).",
    )


class _Replicas(Section):
    """What all sources together are held to."""

    if TYPE_CHECKING:
        ssh_defaults: SshDefaults

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for kind in SOURCES:
            if kind.setting is not None:
                kind.check(getattr(self, kind.name), self.ssh_defaults)
        return self


def _replica_settings() -> Any:
    """A model with one field for each kind of source that has a setting."""
    named = {kind.name: kind.setting for kind in SOURCES if kind.setting is not None}
    *others, last = (f"`{name}`" for name in named)
    fields: dict[str, Any] = {**named, "ssh_defaults": (SshDefaults, SshDefaults())}
    return create_model(
        "ReplicaSettings",
        __base__=_Replicas,
        __doc__=f"Where a service's replicas are found: any of {', '.join(others)} and {last}, and the admin API.\n\n"
        "A replica that two of them name is the one of the first, in this order. `{}` leaves all to the admin API.",
        **fields,
    )


if TYPE_CHECKING:
    ReplicaSettings = _Replicas
else:
    ReplicaSettings = _replica_settings()


class ProbeSettings(Section):
    """Asking a replica what it is."""

    timeout_s: float = _number(
        5.0,
        0.1,
        60,
        "All questions of one probe together may take this long. SGLang over HTTP generates a token for its `/health`,"
        " which takes a second or more.",
    )


class HealthSettings(AccessSection):
    """Asking replicas for their health, which also finds those that hang: they accept connections and never answer."""

    interval_s: float = _number(10.0, 0.5, 3600, "The time from one health question to the next.")
    timeout_s: float = _number(5.0, 0.1, 600, "A health question that is not answered in this time has failed.")
    failures: int = _number(3, 1, 100, "A replica is taken out after this many failed health questions in a row.")
    hung_after_s: float = _number(
        8.0,
        0,
        3600,
        "A replica is `dead` if its requests wait for this long and its own metrics show no work, although it says"
        " that it is well and other replicas answer. If no other replica answers, it takes a quarter longer. 0 turns"
        " this off.",
    )


class RefusedSettings(Section):
    """Finding replicas whose socket file is left with nobody listening."""

    failures: int = _number(3, 1, 100, "A replica is taken out after this many refused connections in a row.")
    over_s: float = _number(0.5, 0, 60, "The refused connections in a row must also span this time.")


class DrainSettings(Section):
    """Letting requests in flight finish before a replica goes."""

    timeout_s: float = _number(
        600.0,
        0,
        86400,
        "`drain` waits this long for requests in flight. Then it reports that stopping the engine is not "
        "safe yet, and the engine stays out of rotation. A replica whose socket is gone is shown for at "
        "most this long while connections to it are open. No connection is cut.",
    )
    settle_s: float = _number(
        0.0,
        0,
        60,
        "A worker that is out of rotation stays with the router for this long. If it is the last HTTP worker, or the"
        " last gRPC worker, of a model, a router may meanwhile answer 503 to a part of the requests, even if other"
        " workers serve the model.",
    )
    handover_s: float = _number(
        5.0,
        0,
        600,
        "A drained prefill engine of vLLM can be stopped safely this long after its last answer, because decode"
        " engines may still fetch its KV blocks.",
    )


class LeaveSettings(Section):
    """How the gateway leaves, with `gateway-sidecar leave`."""

    quiet_s: float = _number(
        10.0,
        0,
        3600,
        "When no request has come for this long, load balancers have noticed that the gateway is leaving. Make it"
        " longer than they need to notice: the time between two of their checks, times the number of checks that must"
        " fail.",
    )
    balancer_s: float = _number(
        60.0, 0, 86400, "The gateway waits for load balancers for this long at most. Then it takes no new requests."
    )
    timeout_s: float = _number(
        600.0,
        0,
        86400,
        "The whole leave takes this long at most. What is still in flight then is cut. `leave --timeout` sets another"
        " time.",
    )


class HoldSettings(Section):
    """The hold: requests that come while the router is away, or no replica serves, wait and then go on."""

    timeout_s: float = _number(
        30.0, 0, 3600, "A request waits this long for a router. Then it gets 503 with Retry-After."
    )
    asleep_s: float = _number(
        30.0, 0, 3600, "A request waits this long for a replica while none serves. Then it gets 503 with Retry-After."
    )
    max_waiting: int = _number(
        1000, 0, 100000, "At most this many requests may wait at once. The next one gets 503 with Retry-After."
    )
    retry_in_flight: bool = Field(
        default=True,
        description="If a router dies after it took a request and before it began to answer, the request is sent"
        " again, once. An engine may then work on it twice. Only requests that store nothing are sent again: chats,"
        " completions, embeddings, rerank, classify, tokenize and the like, and requests that only read. A response or"
        " a conversation that is stored is never sent again.",
    )


class ServiceSettings(Section):
    """One inference service: a stable address, one router, any number of replicas."""

    name: NameValue = Field(
        description="The service's name in logs, metrics and commands: a-z, 0-9 and `-`, 63 characters at most.",
        examples=["chat"],
    )
    listen: EndpointValue = Field(
        description="The stable address that clients, or the gateway's own nginx, talk to: an IP address or localhost,"
        " and a port. An IPv6 address stands in brackets.",
        examples=["127.0.0.1:30000", "[::1]:30000"],
    )
    replicas: ReplicaSettings
    engine: Literal["auto", "http"] = Field(
        default="auto",
        description="`auto` asks each replica which inference engine it is. `http` is any HTTP application: it is"
        " asked only at `health.path`, or `/`, whether it is well, and clients may use all of its paths. `http` needs"
        " `router: {type: none}`.",
    )
    router: RouterValue = Field(default_factory=default_router)
    probe: ProbeSettings = ProbeSettings()
    health: HealthSettings = HealthSettings()
    refused: RefusedSettings = RefusedSettings()
    drain: DrainSettings = DrainSettings()
    hold: HoldSettings = HoldSettings()
    frontend: FrontendSettings = FrontendSettings()
    endpoints: Annotated[tuple[EndpointsSettings, ...], Field(strict=False)] = Field(
        default=(),
        description="Files that tell routers which somebody else runs of the serving replicas.",
    )
    scaling: ScalingSettings | None = Field(default=None, description="How many replicas there should be.")

    def access(self) -> Access:
        """How its replicas are asked, where nothing beside their sockets says otherwise."""
        return replace(self.health.access(), engine=None if self.engine == "auto" else self.engine)


def _metrics_off(value: object) -> object:
    return {"listen": None} if value is None or value is False else value


class Settings(Section):
    """The whole configuration of one daemon."""

    state_dir: DirectoryValue = Field(
        default=STATE_DIR,
        description="The directory of what must outlive a reboot: port leases, certificates by ACME, the routers'"
        " logs.",
        examples=["/var/lib/gateway-sidecar"],
    )
    run_dir: RunDirValue = Field(
        default=RUN_DIR,
        description="The directory of `admin.sock`, the bridges' symlinks and nginx's files. The path has 80 bytes at"
        " most.",
        examples=["/run/gateway-sidecar"],
    )
    log: LogSettings = LogSettings()
    access_log: AccessLogSettings = AccessLogSettings()
    usage: UsageKeepingSettings = UsageKeepingSettings()
    metrics: Annotated[MetricsSettings, BeforeValidator(_metrics_off)] = MetricsSettings()
    admin: AdminSettings | None = None
    acme: AcmeSettings | None = None
    rescan_interval_s: float = _number(
        2.0, 0.2, 60, "Every socket pattern is listed again this often, whatever inotify reports or misses."
    )
    leave: LeaveSettings = LeaveSettings()
    nginx: NginxProgramSettings = NginxProgramSettings()
    bridges: BridgeSettings = BridgeSettings()
    peers: PeersSettings = PeersSettings()
    router_ports: PortsValue = Field(
        default=PortRange(23001, 23999),
        description="Private ports on 127.0.0.1 for the routers. Each service takes four: the API and the metrics of"
        " the router that runs, and of the router that may replace it.",
        examples=["23001-23999"],
    )
    services: Annotated[tuple[ServiceSettings, ...], Field(strict=False)] = Field(
        description="The services, one router each; at least one.", json_schema_extra={"minItems": 1}
    )
    addresses: Annotated[tuple[AddressSettings, ...], Field(strict=False)] = Field(
        default=(), description="Addresses for the models of several services, beside the services' own."
    )

    store: StoreValue = Field(
        default=None, description="What this gateway shares with others; without it, it works alone."
    )

    @property
    def in_mesh(self) -> list[int]:
        """The numbers of the services whose routers are to be in a mesh with those of other gateways."""
        return [number for number, it in enumerate(self.services) if getattr(it.router, "mesh", False)]

    @property
    def all_addresses(self) -> tuple[ServiceSettings | AddressSettings, ...]:
        """All that clients find at an address of its own: the services, and the shared addresses."""
        return (*self.services, *self.addresses)

    # Before the items, as pydantic's own minimum counts only valid ones.
    @field_validator("services", mode="before")
    @classmethod
    def _services(cls, value: object) -> object:
        if value == []:
            raise ValueError("is empty; list at least one service")
        return value

    @model_validator(mode="after")
    def _of_store(self) -> Self:
        """For all that follows, keys and certificates of the store are those in this gateway's files of them."""
        services = tuple(it.model_copy(update=_stored(it.frontend, self.state_dir)) for it in self.services)
        addresses = tuple(it.model_copy(update=_stored(it.frontend, self.state_dir)) for it in self.addresses)
        return self.model_copy(update={"services": services, "addresses": addresses})


def _stored(frontend: FrontendSettings, state_dir: Path) -> dict[str, FrontendSettings]:
    auth, tls = frontend.auth, frontend.tls
    if auth is not None and auth.store:
        auth = auth.model_copy(update={"keys_file": stored_keys_in(state_dir), "store": False})
    if tls is not None and tls.store is not None:
        place = stored_certificates_in(state_dir) / f"{tls.store}.pem"
        tls = tls.model_copy(update={"certificate": place, "key": place})
    if auth is frontend.auth and tls is frontend.tls:
        return {}
    return {"frontend": frontend.model_copy(update={"auth": auth, "tls": tls})}
