"""What the admin API answers, and takes for the store: each field once, with its name, type, unit and meaning.

The handlers fill these in, the client and the table read them, and mypy holds all of them to the names and types here.
pydantic makes the schemas of `/v1/openapi.json` from them (`openapi.py`): from the types, and from the line below each
field.

They are typed dictionaries, so an answer is just what becomes JSON: there is nothing to build, check or copy, and a
`status` of 1,000 replicas costs 8 ms of CPU. Commands import this module for mypy alone (`TYPE_CHECKING`), and so
wait for neither pydantic (100 ms of CPU) nor typing_extensions (15 ms).
"""

from __future__ import annotations

from typing import Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from gateway_sidecar.api.signal_models import Count, Rate, Scaling, Seconds
from gateway_sidecar.control.routers.router import RouterState
from gateway_sidecar.domain.explain import StepState
from gateway_sidecar.domain.fleet import StoreState
from gateway_sidecar.domain.leaving import LeavePhase
from gateway_sidecar.domain.model import ConnectionMode, ReplicaState, WorkerType
from gateway_sidecar.domain.planning import Missing
from gateway_sidecar.domain.tunnels import PathState

_TAKEN = ConfigDict(extra="forbid", use_attribute_docstrings=True)
"""Of what is sent to the daemon: a field that it does not know is a mistake."""


class Tunnel(TypedDict):
    """The SSH forward that makes a replica's socket."""

    to: str
    """The SSH server and what it forwards to."""
    state: PathState
    """How the tunnel is."""
    reason: str | None
    """Why it is not up, in words."""


class Replica(TypedDict):
    """A replica: the occupant of its socket, or an entry of the API whose socket is absent."""

    id: str
    """The replica's id in its service."""
    state: ReplicaState | Literal["absent"]
    """Where the replica stands. `absent`: the API has it, and its socket is not there."""
    state_age_s: Seconds
    """How long it has been in this state, in seconds."""
    socket: str | None
    """Path of its Unix socket; null for an absent replica behind an SSH server."""
    bridge: str | None
    """HOST:PORT of its bridge, which the router connects to; null while it has no port."""
    advertise: str | None
    """The address that other replicas know it by, where one is configured."""
    direct: bool
    """Whether the advertised address is the engine's own, with no bridge in between."""
    worker_id: str | None
    """The router's id of its worker; null while it has none."""
    worker_type: WorkerType | None
    """The part that it plays in the service; null until it is known."""
    connection_mode: ConnectionMode | None
    """The protocol that the engine speaks; null until it is known."""
    runtime_type: str | None
    """The engine, such as `vllm`; `external` is any other OpenAI API. Null until it is known."""
    model: str | None
    """The model that it serves; null until it is known."""
    models: list[str]
    """The names that the router has ready workers for: of the model, and of adapters."""
    in_flight: Rate | None
    """Requests that the router has sent to it and that have not ended, up to 15 s old; null if not known."""
    reason: str | None
    """Why it is in this state, in words."""
    source: str
    """The source that owns it, such as `sockets` or `api`."""
    tunnel: Tunnel | None
    """Its tunnel; null for a socket that is there without one."""


class Source(TypedDict):
    """A service's sources."""

    settings: dict[str, str]
    """Kind of source -> where the configuration has replicas looked for."""
    blind: str | None
    """Why a source cannot be read; its replicas stay as they were."""
    refused: dict[str, str]
    """Replica, socket or entry -> why it was refused."""


class Router(TypedDict):
    """The router that serves a service now."""

    type: str
    """Its kind, as in `router.type`."""
    state: RouterState
    """Where its process stands."""
    url: str | None
    """Its address; null while it has no ports."""
    pid: int | None
    """Its process; null while there is none."""
    restarts: Count
    """How often it was started again since the daemon began."""
    metrics_url: str | None
    """Where its metrics are; null while it has no ports."""
    reason: str | None
    """Why it is not up, why it ended last, or why it could not be replaced."""
    mesh: str | None
    """With which gateways' routers it is in the mesh of its service, in words; null where `router.mesh` is off."""


class Traffic(TypedDict):
    """What clients saw over the last minute, from `signals`. Null: not known."""

    covered_s: Seconds
    """How much of that minute was watched, in seconds."""
    requests_per_s: Rate | None
    """Requests that ended, per second."""
    errors_per_s: Rate | None
    """Answers of 500 and more, per second."""
    in_flight: Rate | None
    """Requests that the router works on, up to 15 s old."""
    ttft_p50_s: Seconds | None
    """Time to the first token of streams, in seconds: half of them were quicker. Without streams the engines' own."""
    ttft_p99_s: Seconds | None
    """99 of 100 were quicker."""


class Service(TypedDict):
    """One service."""

    name: str
    """Its name in the configuration."""
    listen: str
    """The stable address that nginx serves, as `listen` sets it."""
    frontend_listen: list[str]
    """The addresses that nginx serves as `frontend.listen` sets them."""
    not_in_force: str | None
    """Why nginx does not serve `listen` and `frontend` as the configuration has them."""
    source: Source
    """Its sources, and what they could not show."""
    router: Router
    """Its router."""
    serving: Count
    """Replicas that serve."""
    expected: Count
    """Replicas that serve or should: all but those that are leaving."""
    traffic: Traffic
    """What its clients see."""
    waiting: Count
    """Requests that wait for a router or a replica now."""
    missing: Missing | None
    """What the service lacks to answer requests; null if it lacks nothing."""
    reason: str | None
    """The same in words."""
    unanswered: dict[str, str]
    """Model -> why no replica can answer for it although workers of it are there."""
    bridge_ports: Count
    """Bridge ports that it holds, those at rest included."""
    replicas: list[Replica]
    """By id. An id is there twice while an old occupant drains beside the new one, which comes first."""
    scaling: Scaling | None
    """What is recommended; null where nothing is configured or measured."""


class Target(TypedDict):
    """One of the services that a model's requests go to."""

    service: str
    """The service."""
    weight: Count
    """Its share of the requests is this number divided by the sum of all weights."""
    model: str | None
    """The name that requests go on with; null where it is the one that the client sent."""
    asleep: bool
    """Whether it has no replica that could answer."""


class Model(TypedDict):
    """One model of a shared address."""

    name: str
    """What clients call it."""
    services: list[Target]
    """The services that share its requests."""
    fallback: Target | None
    """The service that gets the requests while none of `services` has a replica."""
    asleep: bool
    """Whether no service could answer for it now, so that requests wait."""


class Address(TypedDict):
    """One shared address."""

    name: str
    """Its name in the configuration."""
    listen: str
    """The stable address that nginx serves, as `listen` sets it."""
    frontend_listen: list[str]
    """The addresses that nginx serves as `frontend.listen` sets them."""
    not_in_force: str | None
    """Why nginx does not serve it as the configuration has it."""
    default: str | None
    """The service of requests that name no model."""
    models: list[Model]
    """By name."""


class Nginx(TypedDict):
    """The nginx of all services."""

    state: Literal["up", "down"]
    """Whether its process runs."""
    pid: int | None
    """Its master process; null while there is none."""
    reason: str | None
    """Why nginx is down, or what it refused."""
    reloads: Count
    """How often it has read its configuration again since the daemon began."""


class BridgePorts(TypedDict):
    """The ports of `bridges.ports`, which all services share."""

    total: Count
    """All ports of the range."""
    leased: Count
    """Ports of replicas that are there."""
    quarantined: Count
    """Ports at rest, because somebody may still be connected to the replica that had them."""
    share: Count
    """How many ports each service is guaranteed."""


class Configuration(TypedDict):
    """The configuration file, and what is in force of it."""

    path: str
    """The file's path."""
    age_s: Seconds
    """How long ago the settings in force were loaded, in seconds."""
    on_disk: Literal["in force", "differs", "invalid", "unreadable"]
    """Whether the file on disk, as it is now, means what is in force. Comments and order do not count."""
    lines: list[str]
    """What a reload would change, or what is wrong in the file: a line each."""


class About(TypedDict):
    """The daemon itself."""

    version: str
    """The version that runs."""
    pid: Count
    """The daemon's process."""
    uptime_s: Seconds
    """How long the daemon has run, in seconds."""
    configuration: Configuration
    """The daemon's configuration."""


class FleetGateway(TypedDict):
    """A gateway that is alive."""

    name: str
    """Its name in the fleet."""
    version: str
    """The version that it runs."""
    ready: bool
    """Whether it takes requests."""
    leaving: bool
    """Whether it is about to stop."""


class Store(TypedDict):
    """The store that this gateway shares with others, and whether it can be read."""

    where: str
    """The kind of store, and where it is."""
    gateway: str
    """This gateway's own name in the fleet."""
    state: StoreState
    """Whether it can be read (`up`, `away`; `unread` before the first try). `refused`: what it says is not believed."""
    state_age_s: Seconds
    """How long it has been in this state, in seconds."""
    read_age_s: Seconds | None
    """Age of the last good read, in seconds; null before the first."""
    reason: str | None
    """Why it is away or refused."""
    others: list[FleetGateway]
    """The other gateways that are alive, as far as the last good read says; by name."""


class Leave(TypedDict):
    """A gateway that is leaving, or one that stays."""

    phase: LeavePhase | None
    """The phase; null for a gateway that stays."""
    reason: str | None
    """What it waits for, in words."""
    took_s: Seconds
    """How long it has been leaving, in seconds."""
    left_s: Seconds
    """When what is still in flight will be cut, in seconds from now."""
    in_flight: Count
    """Connections of clients, at all addresses of services. Those that are idle count until it drains."""
    connections: dict[str, Count]
    """The same by address; addresses without one are left out."""
    requests: dict[str, float | None]
    """Service -> requests that its routers work on; null where that is not known."""
    cut: Count | None
    """Connections that had requests in flight when their time was over; null before it stops."""
    pid: Count
    """The daemon's process, which ends last."""


class Joined(TypedDict):
    """What came of a join."""

    joined: bool
    """Whether the gateway was leaving."""


class NearQuota(TypedDict):
    """A key that has used most of its tokens of the day or the month, or all of them."""

    service: str
    """The service or shared address whose frontend knows the key."""
    key: str
    """The key's name."""
    bound: str
    """`tokens_per_day` or `tokens_per_month`."""
    used: float
    """The share that it has used; 1 is all of it."""


class Status(TypedDict):
    """The whole daemon."""

    daemon: About
    """The daemon that answers, and its configuration."""

    leave: Leave | None
    """How the gateway leaves; null while it stays."""
    services: list[Service]
    """By name."""
    addresses: list[Address]
    """The shared addresses, by name."""
    nginx: Nginx
    """The nginx that serves all addresses and bridges."""
    bridge_ports: BridgePorts
    """The ports that bridges listen on."""
    store: Store | None
    """The store that several gateways share; null for a gateway that works alone."""
    near_quota: list[NearQuota]
    """Keys that have used at least 80 % of a bound, up to five minutes ago; those that have used most first."""
    problems: list[str]
    """What is not as it should be and belongs to no replica: a line each."""
    ready: bool
    """Whether nginx runs, every service has an address, a router that answers and has read its sources, and the gateway
    is not leaving."""


class Action(TypedDict):
    """One step that the daemon would take next."""

    service: str
    """The service; `-` for all."""
    replica: str
    """The replica; `-` for none or all."""
    action: str
    """The step, in words."""


class TouchedReplica(TypedDict):
    """A replica that a change of its service touches."""

    replica: str
    """The replica's id."""
    effect: str
    """What becomes of it, in words."""
    in_flight: Rate | None
    """Requests in flight on it now; null if not known."""


class Change(TypedDict):
    """One thing that a reload would change."""

    part: str
    """The service or shared address; `-` for the daemon."""
    what: str
    """What differs from what is in force, in words."""
    interrupts: str | None
    """What the change costs clients; null for nothing."""
    replicas: list[TouchedReplica]
    """The replicas that come, leave or move, or whose requests in flight stay with the old router; by id."""


class ReloadPlan(TypedDict):
    """What a reload of the file as it is on disk would do."""

    file: str
    """The file."""
    on_disk: Literal["in force", "differs", "invalid", "unreadable"]
    """Whether the file means what is in force."""
    changes: list[Change]
    """What would change."""
    problems: list[str]
    """What is wrong in the file, so that a reload would change nothing: a line each."""


class Plan(TypedDict):
    """What the daemon would do next."""

    actions: list[Action]
    """In order; empty at rest."""
    reload: ReloadPlan
    """What a reload would do."""


class Replicas(TypedDict):
    """The replicas of a service."""

    replicas: list[Replica]
    """By id. An id is there twice while an old occupant drains beside the new one, which comes first."""


class Put(TypedDict):
    """What came of a PUT."""

    created: bool
    """Whether the API had no such replica before."""
    changed: bool
    """Whether the body differs from what the API had."""
    replica: Replica
    """The replica as it is now."""


class Unanswered(TypedDict):
    """What a service could not answer without a replica."""

    unanswered: dict[str, str]
    """Model -> why no replica could answer for it any more."""


class FleetMember(TypedDict):
    """A gateway of the fleet."""

    name: str
    """Its name in the fleet."""
    is_this: bool
    """Whether it is the one that answers."""
    state: Literal["ready", "not ready", "leaving", "gone"]
    """`gone`: its lease ended less than ten minutes ago, and it did not stop in order."""
    gone_s: Seconds | None
    """How long ago its lease ended, in seconds; null for one that is alive."""
    version: str | None
    """Of its program; null for one that is gone."""
    since: str | None
    """When its daemon began, by its own clock; null for one that is gone."""
    services: list[str]
    """Those that it serves."""
    heard_s: Seconds | None
    """How long ago it kept its lease, in seconds: what it says is no older; null for one that is gone."""


class SeenReplica(TypedDict):
    """A replica as one gateway sees it."""

    state: str
    """As that gateway's `status` has it."""
    port: int | None
    """Its bridge port there; null while it has none."""
    in_flight: Count | None
    """Connections to it there, while the fleet drains it; null if that is not known."""
    safe: bool | None
    """Whether nothing is in flight there, while the fleet drains it; null if it does not."""


class FleetReplica(TypedDict):
    """A replica as all gateways see it."""

    id: str
    """Its id in its service."""
    drain: str | None
    """The gateway at which its drain was asked for; null if the fleet does not drain it."""
    gateways: dict[str, SeenReplica]
    """By gateway; one that does not have the replica is left out."""


class FleetService(TypedDict):
    """A service of the fleet."""

    name: str
    """Its name."""
    voice: str | None
    """The gateway that recommends how many replicas there should be; null while none does, or nothing is scaled."""
    scaled: bool
    """Whether a gateway tells signals of it, for `scaling`."""
    replicas: list[FleetReplica]
    """By id."""


class FleetStatus(TypedDict):
    """What all gateways say, as it stands in the store; up to two seconds old."""

    gateways: list[FleetMember]
    """By name."""
    services: list[FleetService]
    """By name."""


class GatewayDrain(TypedDict):
    """How another gateway stands with a drain."""

    name: str
    """Its name in the fleet."""
    safe: bool
    """Whether nothing is in flight there, or it counts as dead."""
    in_flight: Count | None
    """Connections to its bridge of the replica; null if that is not known."""
    reason: str | None
    """Why it is not safe, or does not count; null for one that is done."""
    silent_s: Seconds | None
    """For how long it has not answered, in seconds; null for one that has."""


class Drained(TypedDict):
    """What came of a drain, or of a DELETE."""

    drained: bool
    """Whether nothing is in flight, at no gateway that is alive, so that its engine can be stopped without a client
    noticing."""
    in_flight: Count | None
    """Connections to the replica's bridge at this gateway; null if they were not counted."""
    reason: str | None
    """Why it is not safe to stop the engine, in words; null if it is."""
    gateways: list[GatewayDrain]
    """The other gateways of the fleet that were asked, by name; empty for a replica that only this one has."""
    took_s: Seconds
    """How long this took, in seconds."""
    unanswered: dict[str, str]
    """Model -> why no replica can answer for it without this one."""


class Resumed(TypedDict):
    """What came of a resume."""

    resumed: Literal[True]
    """The replica goes back into rotation once its engine answers."""


class Restarted(TypedDict):
    """What came of a router's replacement."""

    pid: int | None
    """The new router's process."""
    took_s: Seconds
    """How long this took, in seconds."""


class Reloaded(TypedDict):
    """What came of a reload."""

    changes: list[str]
    """What changed: a line each."""


class Accepted(TypedDict):
    """What came of accepting a store."""

    changed: Count
    """Keys of the store that were put back."""


class StoredKey(TypedDict):
    """A key or a plan of the store."""

    name: str
    """The key's name; `@` and the plan's name for a plan."""
    line: str
    """What the store has of it: the hash, and the bounds, as in a file of keys."""
    revision: Count
    """The store's revision when it was written."""
    refused: str | None
    """Why it does not count; null if it does."""


class StoredKeys(TypedDict):
    """The keys and plans of the store, as this gateway knows them."""

    away: str | None
    """Why the store cannot be read, so that this is what was known last; null if it can be."""
    gateways: Count
    """How many gateways are alive, and so share the limits."""
    keys: list[StoredKey]
    """All of them, by name."""


class KeyStored(TypedDict):
    """What came of writing a key or a plan."""

    revision: Count
    """The store's revision of this write."""


@with_config(_TAKEN)
class KeyToStore(TypedDict):
    """What is to be written of a key or a plan."""

    line: str | None
    """The line of a file of keys, with the hash of the key; null removes it."""
    seen: Count | None
    """The revision of the line that this one takes the place of; null for a new one."""


class StoredCertificate(TypedDict):
    """A certificate of the store."""

    name: str
    """What it is called in the store."""
    names: list[str]
    """The host names that it is for."""
    expires_at: float | None
    """When it expires, in seconds since 1970; null for what is no certificate."""
    services: list[str]
    """The services and shared addresses of this gateway that have it."""
    revision: Count
    """The store's revision when it was written."""
    refused: str | None
    """Why it is not served; null if it can be."""


class StoredCertificates(TypedDict):
    """The certificates of the store, as this gateway knows them."""

    away: str | None
    """Why the store cannot be read, so that this is what was known last; null if it can be."""
    certificates: list[StoredCertificate]
    """All of them, by name."""


class CertificateStored(TypedDict):
    """What came of writing a certificate."""

    revision: Count
    """The store's revision of this write."""


@with_config(_TAKEN)
class CertificateToStore(TypedDict):
    """What is to be written of a certificate."""

    pem: str | None
    """The certificate, its chain and its private key, in PEM; null removes it."""
    seen: Count | None
    """The revision of the certificate that this one takes the place of; null for a new one."""


class Stopped(TypedDict):
    """What came of a stop."""

    pid: Count
    """The daemon's process, which is about to end."""


class Events(TypedDict):
    """The last events of the log."""

    events: list[dict[str, object]]
    """In order, each with `seq`, `timestamp`, `level`, `event`, and what it says (docs/reference/events.md)."""
    last: Count
    """The `seq` of the latest event of all. Nothing comes `after` it yet."""


class Step(TypedDict):
    """One step of the way that a replica takes."""

    name: Literal["seen", "socket", "probe", "bridge", "router", "drain"]
    """Which step it is; `drain` is there once the replica leaves."""
    state: StepState
    """How it stands. `not reached`: a step before it has to be well first, or it is over."""
    says: str
    """The same in words."""
    evidence: list[str]
    """The evidence for it, and how old the evidence is."""
    change: str | None
    """What would change it; null where nothing has to."""


class Stay(TypedDict):
    """Why one occupant of a replica is in its state."""

    state: ReplicaState | Literal["absent", "refused", "gone"]
    """As in `status`. `refused`: its source will not have it. `gone`: only its events are left."""
    state_age_s: Seconds
    """How long it has been in this state, in seconds."""
    why: str
    """The first step that holds it up, or that all is well."""
    steps: list[Step]
    """In order."""


class Explained(TypedDict):
    """Why a replica is in its state."""

    service: str
    """Its service."""
    replica: str
    """Its id."""
    stays: list[Stay]
    """The present occupant first, then those before it that are still leaving."""
    events: list[dict[str, object]]
    """Its last events, as `/v1/events` has them."""


class UsageRow(TypedDict):
    """What one key has used of one model."""

    frontend: str
    """The service or shared address whose frontend let the requests in."""
    service: str
    """The service that answered; that of `frontend` for requests that found none."""
    key: str
    """The name of the client's key or certificate; empty for none."""
    model: str
    """The model as clients named it; empty where that is not known."""
    requests: Count
    """All requests for an answer that have ended."""
    refused: Count
    """Those of them with a status of 4xx."""
    failed: Count
    """Those of them with a status of 5xx."""
    aborted: Count
    """Those of them whose answer did not reach the client as a whole."""
    streams: Count
    """Those of them that were answered by a stream."""
    tokens_in: Count
    """Tokens of prompts, as the answers say."""
    tokens_out: Count
    """Tokens of answers, as the answers say."""
    unknown: Count
    """Answers whose tokens are not known, because the answers were cut off or did not say them."""


class Usage(TypedDict):
    """What clients have used."""

    since: str
    """From this moment on: the beginning of an hour, in UTC."""
    until: str
    """Before this moment."""
    rows: list[UsageRow]
    """Each service, key and model once; those with most tokens first."""


class UsedTokens(TypedDict):
    """Tokens of a key, in and out."""

    day: Count
    """Of this day (UTC)."""
    month: Count
    """Of this month (UTC)."""


class FleetUsageRow(TypedDict):
    """What one key of the store has used at one service or shared address, at all gateways."""

    service: str
    """The service or shared address whose frontend let the requests in."""
    key: str
    """The key's name."""
    day: Count
    """Tokens of this day (UTC), in and out, at all gateways."""
    month: Count
    """Tokens of this month (UTC), in and out, at all gateways."""
    gateways: dict[str, UsedTokens]
    """The same by gateway; those that are gone, too."""


class FleetUsage(TypedDict):
    """What keys of the store have used at all gateways, as each told some seconds ago."""

    day: str
    """Which day: `20270115`."""
    month: str
    """Which month: `202701`."""
    cut: list[str]
    """Gateways that have more keys than they can tell of, and leave out those that have used least."""
    rows: list[FleetUsageRow]
    """Each service and key once; those with most tokens of the month first."""


class Error(TypedDict):
    """Why a request was not done."""

    error: str
    """What is wrong, and what to do."""
    problems: NotRequired[list[str]]
    """A line for each mistake."""
    changes: NotRequired[list[str]]
    """The changes of the configuration that are in force all the same."""
    source: NotRequired[str]
    """The source that owns the replica."""
    replica: NotRequired[Replica]
    """The replica as it is now."""
