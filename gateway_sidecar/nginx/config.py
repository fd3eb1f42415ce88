"""What nginx's configuration depends on: bridges (`stream`, `http`) and service addresses (`http`). Pure.

The text itself is in `share/nginx`, and what each setting there is for.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gateway_sidecar.config import AddressSettings, Endpoint, FrontendSettings
from gateway_sidecar.config.frontend_values import ALL_PATHS, ANY, AUTO
from gateway_sidecar.domain.model import Access
from gateway_sidecar.domain.routing import BridgeRules, RouterHeaders, RouterPaths
from gateway_sidecar.domain.signals import DIVERTED
from gateway_sidecar.nginx import client_headers
from gateway_sidecar.nginx.access_events import BRIDGES, EventAddress
from gateway_sidecar.nginx.balance import ENDPOINTS, ROWS, in_flight_at
from gateway_sidecar.nginx.bodies import SMALL_BYTES, body_classes
from gateway_sidecar.nginx.bridge_server import ORDERS, OWNER_PATH, owner_url
from gateway_sidecar.nginx.dispatch import Behind, Dispatch, Way, models_of
from gateway_sidecar.nginx.frontend_places import FrontendPlaces
from gateway_sidecar.nginx.templates import END, SEGMENTS, render
from gateway_sidecar.nginx.usage_counts import MOST_ROWS, counts_at

_PLAIN = FrontendSettings()
_CONNECTIONS_EACH = 4  # client, service address -> router, router -> bridge, bridge -> replica
SUCCESSOR = ".next"
"""What is added to a service's name to name its second router slot, and the switch that leads to it."""

ALIVE = "alive.sock"
"""Where nginx says that it is alive, and what it serves, in its own directory, which is nobody else's to enter."""

LAST_ANSWERS = ".last"
"""The file among the gates that has each answer end its client's connection, for the moment before a reload."""

LEAVING = ".leaving"
"""The file among the gates that has nginx say at each `ready_path` that the gateway is leaving."""

UNREADY = ".unready"
"""What is added to the name of a service or shared address to name the file that has nginx say that it is not ready."""

READY_PATH = "/readyz"
"""Where load balancers ask, unless the configuration says otherwise."""

IN_FORCE = "/in-force"
"""The path there at which it says so: as `InForce` writes it."""

OWNER_SCRIPT, OWNER_LUA = "bridge_owner.js", "bridge_owner.lua"
"""What asks, and what tells, whose a connection to a gRPC bridge is, in the directory of the nginx that runs it."""

NAMES = "names"
"""The directory, in `run_dir`, that has a symbolic link for each worker's address, to its replica's name."""

ACCESS_LOG_LUA = "access_log.lua"
"""What tells the access log what nginx has no variables for."""

BALANCE_LUA = "balance.lua"
"""What chooses an engine for each request there, for services without a router."""

BOUNDS_LUA = "bounds.lua"
"""What holds keys to their bounds there."""

QUEUE_LUA = "full_queue.lua"
"""What waits there for an engine whose queue of connections is full."""

TOKENS_LUA = "tokens.lua"
"""What reads there how many tokens an answer took."""

USAGE_LUA = "usage.lua"
"""What counts there what clients use."""

MODELS_LUA = "models.lua"
"""What chooses a service there for each request to a shared address."""

ASLEEP = ".asleep"
"""What is added to a service's name to name the file that says that it has no replica."""

LOST = ".lost"
"""What is added to a service's name to name the directory of models that it has no replica for, though it has others: a
file for each, named by the name's MD5, with the name in it.
"""

BODIES = "client_body"
"""The directory, below the one for temporary files, that bodies go to."""

_NUMBER_DIGITS = 16  # 64 bits of a SHA-256: two configurations never have the same by chance.
_UNNUMBERED = "[number]"
"""Stands in the configuration in place of its number, which is made of the rest of the text."""

_RECORD = "#: "
_RECORD_LINE = 1000  # nginx takes no comment of more than 4096 bytes
_SAID = re.compile(rf"([0-9a-f]{{{_NUMBER_DIGITS}}}) (run|state)(?: ([0-9]{{1,5}}) ([0-9a-f]+))?")
_SPARE = 64  # files that nginx opens for itself
_HOLD_MARGIN_S = 5
"""The hold answers in time. Should nobody be there to, nginx does so a little later."""

_WORDS: dict[str, object] = {
    "alive_socket": ALIVE,
    "last_answers": LAST_ANSWERS,
    "leaving": LEAVING,
    "unready": UNREADY,
    "in_force_path": IN_FORCE,
    "owner_script": OWNER_SCRIPT,
    "owner_path": OWNER_PATH,
    "orders": ORDERS,
    "events_of_bridges": BRIDGES,
    "auth_headers": client_headers.FOR_AUTH,
    "credentials": client_headers.CREDENTIALS,
    "small_bytes": SMALL_BYTES,
    "bridge_header": client_headers.BRIDGE,
    "waited_header": client_headers.WAITED,
    "successor": SUCCESSOR,
    "diverted": DIVERTED,
}
"""What all templates may name beside their own values."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What nginx is allowed to hold open, per worker process."""

    worker_connections: int
    requests: int

    @classmethod
    def within(cls, file_limit: int, listening: int, requests: int = 8192) -> Capacity:
        """Room for `requests` requests at once, or for as many as the file limit leaves.

        Each listening port takes one connection of every worker process.
        """
        wanted = listening + _CONNECTIONS_EACH * requests
        most = file_limit - _SPARE
        connections = min(wanted, most)
        return cls(connections, max(0, (connections - listening) // _CONNECTIONS_EACH))

    @property
    def open_files(self) -> int:
        """How many files a worker process may have open."""
        return self.worker_connections + _SPARE


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """One service's stable address, and where its router and that router's successor listen (`host:port`; empty where
    nginx balances by itself). Or a shared address, which has its own name in `service`, and no router.

    paths, headers: what the routers there take, and heed; of several kinds while one takes the place of another, and
        at a shared address.
    hold_s: how long a request may be kept waiting in the hold.
    dispatch: of a shared address, which service a request goes to.
    client_ca: the number of the authorities of client certificates that nginx is to read; empty where there are none.
    """

    service: str
    listen: str
    router: str
    successor: str
    paths: RouterPaths
    headers: tuple[RouterHeaders, ...]
    frontend: FrontendSettings = _PLAIN
    hold_s: float = 0.0
    dispatch: Dispatch | None = None
    client_ca: str = ""

    @property
    def listens(self) -> Sequence[str]:
        """All the addresses that nginx listens on for it; services with names may share public ones."""
        return [self.listen, *map(str, self.frontend.listen), *map(str, self.frontend.redirect)]

    @property
    def places(self) -> Sequence[tuple[str, int]]:
        """The same as host and port."""
        split = (listen.rpartition(":") for listen in self.listens)
        return [(host.strip("[]"), int(port)) for host, _, port in split]

    @property
    def needs_lua(self) -> str:
        """What nginx needs its Lua module for; empty if nothing."""
        if self.dispatch is not None:
            return "an address for several services (addresses)"
        if self.balances:
            return "a service without a router (router.type: none)"
        if self.frontend.usage is not None:
            return "usage by key and model (frontend.usage)"
        auth = self.frontend.auth
        if auth is not None and auth.keeps:
            return "frontend.auth.keep_s or stale_s"
        return "frontend.auth.keys_file" if auth is not None and auth.keys_file is not None else ""

    @property
    def balances(self) -> bool:
        """Whether nginx balances its requests by itself, in one slot, or for one service, at the least."""
        if self.dispatch is not None:
            return any(way.balances for way in self.dispatch.ways)
        return not (self.router and self.successor)

    @property
    def way(self) -> Way:
        """How requests that need no other way are sent on."""
        return self.dispatch.ways[0] if self.dispatch is not None else Way(self.balances, self.paths.loses)

    @property
    def router_slots(self) -> tuple[str, ...]:
        """The slots that a router is in, and not nginx."""
        if self.dispatch is not None:
            return tuple(slot for it in self.dispatch.services for slot in it.slots)
        slots = ((self.service, self.router), (self.successor_slot, self.successor))
        return tuple(slot for slot, address in slots if address)

    # What its template asks for.

    @property
    def counts(self) -> bool:
        """Whether what its clients use is counted."""
        return self.frontend.usage is not None and not self.paths.anything

    @property
    def judges_servers(self) -> bool:
        """Whether requests may name only some MCP servers."""
        return not self.paths.anything and self.frontend.mcp_servers != (ANY,)

    @property
    def ready_path(self) -> str | None:
        """Where load balancers ask whether it is ready; None for nowhere. An application's paths are all its own."""
        path = self.frontend.ready_path
        if path != AUTO:
            return path
        return None if self.paths.anything else READY_PATH

    @property
    def ready_names(self) -> Sequence[str]:
        """Whom they may ask about there: itself, and at a shared address the services behind it."""
        return [self.service, *(it.service for it in (self.dispatch.services if self.dispatch is not None else ()))]

    @property
    def successor_slot(self) -> str:
        """The name of its second router slot."""
        return self.service + SUCCESSOR

    @property
    def control_paths(self) -> tuple[str, ...]:
        """What never passes, whatever `paths` says; with `all`, nor does what tells of the fleet."""
        return (*self.paths.control, *(self.paths.fleet if ALL_PATHS in self.frontend.paths else ()))

    @property
    def every_path(self) -> str:
        """The pattern of what `all` passes beside inference."""
        return f"^{self.paths.versioned}{SEGMENTS}+/?{END}"

    @property
    def hidden_headers(self) -> Sequence[str]:
        """The headers of an answer that stay here."""
        kinds = (*self.worker_headers, *(name for it in self.headers for name in it.hidden))
        return (*kinds, client_headers.REQUEST_ID, *client_headers.HIDDEN)  # nginx says the request's own name.

    @property
    def worker_headers(self) -> Sequence[str]:
        """The headers of an answer of which one says which worker it is from."""
        return [it.worker for it in self.headers if it.worker]

    @property
    def worker_variables(self) -> Sequence[str]:
        """nginx's variables of which the first that is not empty says which engine a router sent a request to."""
        headers = (*self.worker_headers, client_headers.BRIDGE)
        return ["upstream_http_" + it.lower().replace("-", "_") for it in headers]

    @property
    def tenant_headers(self) -> Sequence[str]:
        """The request headers by which routers know whose a request is."""
        return [it.tenant for it in self.headers if it.tenant]

    @property
    def passed_headers(self) -> Sequence[str]:
        """The request headers that go on as they were sent; what is said with a value of ours is none of them."""
        auth = self.frontend.auth
        ours = {
            client_headers.REQUEST_ID,
            *self.tenant_headers,
            *(name for it in self.headers for name in (it.bridge_key, *it.steering)),
        }
        if auth is not None and not auth.pass_authorization:
            ours.update(client_headers.CREDENTIALS)
        if auth is not None and auth.name_header is not None:
            ours.add(auth.name_header)
        passed = (name for it in self.headers for name in it.passed)
        return client_headers.sent_on((*passed, *self.frontend.pass_headers), but=ours)

    @property
    def patience_s(self) -> int:
        """How long nginx itself lets a request wait for its router, should the daemon not be there to say."""
        return math.ceil(self.hold_s) + _HOLD_MARGIN_S

    @property
    def retry_after_s(self) -> int:
        """After how long whoever asked too often may ask again."""
        # Requests a minute are whole (`LimitSettings`), and 60 / 1 is just that; 1 / (1 / 60) is a little more.
        return max((math.ceil(60 / round(limit.rps * 60)) for limit in self.frontend.limits if limit.rps), default=1)

    @property
    def https_port(self) -> int:
        """Where its redirects lead to."""
        ports = [it.port for it in self.frontend.listen]
        return 443 if 443 in ports or not ports else ports[0]


def shared_address(address: AddressSettings, services: Mapping[str, ServiceAddress]) -> ServiceAddress:
    """A shared address in front of these services. What one of their routers takes passes, and what controls one
    does not. A service that is not there yet is led to all the same, and its requests are told so.
    """
    found = [services[name] for name in address.services if name in services]
    found = [replace(it, paths=replace(it.paths, inference=tuple(sorted(it.paths.inference)))) for it in found]
    paths = RouterPaths.of_all(it.paths for it in found)
    headers = dict.fromkeys(header for it in found for header in it.headers)
    known = {
        it.service: Behind(
            it.service, it.way, it.router_slots, it.paths.inference if it.paths.inference != paths.inference else ()
        )
        for it in found
    }
    return ServiceAddress(
        address.name,
        str(address.listen),
        "",
        "",
        replace(paths, anything=False),
        tuple(headers),
        address.frontend,
        hold_s=max((it.hold_s for it in found), default=0.0),
        dispatch=Dispatch(
            models_of(address),
            tuple(known.get(name) or Behind(name, Way()) for name in address.services),
            address.default or "",
        ),
    )


@dataclass(frozen=True, slots=True)
class InForce:
    """What a running nginx reports: the number of its configuration, and the choices made at its start.

    spare_temp: whether bodies go to the runtime directory, since the state disk did not take them.
    events: whom it tells of each request's end.
    """

    number: str
    spare_temp: bool
    events: EventAddress | None

    def __str__(self) -> str:
        words = [self.number, "run" if self.spare_temp else "state"]
        return " ".join([*words, str(self.events.port), self.events.tag] if self.events else words)

    @classmethod
    def of(cls, text: str) -> InForce | None:
        """Reads it back; None for anything else."""
        found = _SAID.fullmatch(text)
        if found is None:
            return None
        number, temp, port, tag = found.groups()
        return cls(number, temp == "run", EventAddress(int(port), tag) if port else None)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A configuration file, and the number by which an nginx that runs with it, and no other, calls it."""

    text: str
    number: str

    @classmethod
    def of(cls, unnumbered: str) -> Rendered:
        """The file that says its own number."""
        number = _number_of(unnumbered)
        return cls(unnumbered.replace(_UNNUMBERED, number, 1), number)


@dataclass(frozen=True, slots=True)
class NginxConfig:
    """All that the configuration depends on.

    first_port..last_port: the bridges; of HTTP engines on `host`, of gRPC engines on `grpc_host`.
    bridge_key: what a router shows the bridges of HTTP engines. bridge_rules: what they pass.
    lua_modules: what to load for Lua, which may be nothing; None without it.
    owner_module: nginx's module for JavaScript in streams, which tells whose a connection is; None without it.
    gates: a file named after a service in this directory sends its requests to the hold; one named after
        its second slot leads to the router there. Neither needs a reload, which would cost clients their
        kept connections.
    hold_socket: the Unix socket of the hold.
    temp: where bodies that do not fit into memory are kept.
    events: whom nginx tells of each request's end; None for nobody.
    held_mb: how much of bodies may be kept at once, in MiB.
    times_streams: whether nginx has its module sub, and so can say when a stream's first event passed.
    access_log: where lines of the access log go, as nginx says it: a file, or `syslog:...`; None for nowhere.
    reads_tokens: whether lines say how many tokens an answer took, as far as it says so itself.
    marks: whether a URL may say which replica it is for, so that it leads to that one or nowhere (`link_marks.py`).
    """

    host: str
    grpc_host: str
    first_port: int
    last_port: int
    bridge_key: str = field(repr=False)
    bridge_rules: BridgeRules
    links: Path
    directory: Path
    temp: Path
    gates: Path
    hold_socket: Path
    log: Path
    worker_processes: str
    capacity: Capacity
    services: Sequence[ServiceAddress]
    stream_module: Path | None
    user: tuple[str, str] | None
    frontends: FrontendPlaces
    lua_modules: Sequence[Path] | None = None
    events: EventAddress | None = None
    owner_module: Path | None = None
    held_mb: int = 8192
    times_streams: bool = True
    access_log: str | None = None
    reads_tokens: bool = False
    marks: bool = False

    def rendered(self) -> Rendered:
        """The whole configuration file. It begins with what it serves, for the next daemon: `services_in` reads it.

        Takes about 0.3 ms for each service.
        """
        tells_owners = self.owner_module is not None and self.lua_modules is not None
        modules = [self.stream_module, self.owner_module if tells_owners else None, *(self.lua_modules or ())]
        first, last = self.first_port, self.last_port
        values = {
            "ports": f"{first}" if first == last else f"{first}-{last}",
            "modules": [it for it in modules if it is not None],
            "owner_url": owner_url(self.host, first) if tells_owners else None,
            "lua": self.lua_modules is not None,
            "in_flight": in_flight_at(self.directory, first, last),
            "rows": ROWS,
            "endpoints": self.links.with_name(ENDPOINTS),
            "names": self.links.with_name(NAMES),
            "names_answers": not all(kind.passes_answers for it in self.services for kind in it.headers),
            "logged": self.access_log and any(it.frontend.access_log != "off" for it in self.services),
            "counted": any(it.counts for it in self.services),
            "usage_counts": counts_at(self.directory),
            "usage_rows": MOST_ROWS,
            "in_force": InForce(_UNNUMBERED, self.temp.parent == self.directory.parent, self.events),
            "body_classes": body_classes(
                self.held_mb, max((it.frontend.max_body_mb for it in self.services), default=1)
            ),
            "public_listens": _by_address(self.services, lambda it: it.frontend.listen),
            "proves_names": any(it.frontend.tls is not None and it.frontend.tls.acme for it in self.services),
            "redirect_listens": _by_address(self.services, lambda it: it.frontend.redirect),
        }
        rendered = Rendered.of(render("nginx.conf", _WORDS | _values(self) | values))
        return replace(rendered, text=_record(self.services) + rendered.text)


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """The nginx that serves one address of a replica (`host`, `port`), to this machine and nobody else.

    A connection from this machine to an address of its own comes from that very address; whoever else can send
    packets here does not have it. Beside that it serves as the replica's bridge does: `link`, and whether it is `grpc`.
    """

    host: str
    port: int
    link: Path
    directory: Path
    grpc: bool
    bridge_key: str = field(repr=False)
    bridge_rules: BridgeRules
    modules: Sequence[Path]
    owner_url: str | None
    lua: bool = False
    user: tuple[str, str] | None = None

    def text(self) -> str:
        """The whole configuration file."""
        return render("peers.conf", _WORDS | _values(self))


@dataclass(frozen=True, slots=True)
class KeyedConfig:
    """The nginx that sends one engine its API key with every request, speaks TLS to it, or says its prefix for `/v1`.

    It has a master: without one nginx cannot be told of another key (it loses count of its connections).

    It listens on `in.sock` in its directory and passes on to `engine`; as all do, it says there what it serves.
    """

    directory: Path
    engine: Path
    access: Access
    grpc: bool
    lua_modules: Sequence[Path] | None = None
    user: tuple[str, str] | None = None

    def rendered(self) -> Rendered:
        """The whole configuration file."""
        values = {"in_force": _UNNUMBERED, "lua": self.lua_modules is not None}
        return Rendered.of(render("keyed.conf", _WORDS | _values(self) | values))


def services_in(text: str, number: str) -> Sequence[ServiceAddress] | None:
    """What an nginx serves that says this number; None if it does not run with the configuration of this text."""
    rows = text.splitlines(keepends=True)
    without = "".join(row for row in rows if not row.startswith(_RECORD))
    if _number_of(without.replace(number, _UNNUMBERED, 1)) != number:
        return None
    try:
        said = json.loads("".join(row.removeprefix(_RECORD).rstrip("\n") for row in rows if row.startswith(_RECORD)))
        return [_address(it) for it in said]
    except (ValueError, TypeError, KeyError):
        return None  # Another version's.


def _address(said: dict[str, Any]) -> ServiceAddress:
    """One service of a record."""
    said["frontend"] = FrontendSettings.model_validate(said["frontend"])
    said["paths"] = RouterPaths(**_with_tuples(said["paths"]))
    said["headers"] = tuple(RouterHeaders(**_with_tuples(it)) for it in said["headers"])
    said["dispatch"] = Dispatch.of(said["dispatch"]) if said["dispatch"] is not None else None
    return ServiceAddress(**said)


def _with_tuples(said: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}


def _record(services: Sequence[ServiceAddress]) -> str:
    """The services as comments; it is no part of the configuration's number."""
    said = [
        {field.name: getattr(it, field.name) for field in fields(it)}
        | {"frontend": it.frontend.model_dump(mode="json")}
        | {"paths": asdict(it.paths), "headers": [asdict(kind) for kind in it.headers]}
        | {"dispatch": asdict(it.dispatch) if it.dispatch is not None else None}
        for it in services
    ]
    text = json.dumps(said)
    return "".join(f"{_RECORD}{text[at : at + _RECORD_LINE]}\n" for at in range(0, len(text), _RECORD_LINE))


def _number_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_NUMBER_DIGITS]


def _values(config: NginxConfig | PeerConfig | KeyedConfig) -> dict[str, object]:
    return {field.name: getattr(config, field.name) for field in fields(config)}


def _by_address(
    services: Sequence[ServiceAddress], listens: Callable[[ServiceAddress], Sequence[Endpoint]]
) -> Mapping[Endpoint, list[ServiceAddress]]:
    """Each address with the services behind it: more than one where all have names."""
    found: dict[Endpoint, list[ServiceAddress]] = {}
    for service in services:
        for endpoint in listens(service):
            found.setdefault(endpoint, []).append(service)
    return found
