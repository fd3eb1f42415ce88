"""The text of nginx's configuration: bridges (`stream`) and service addresses (`http`). Pure."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from gateway_sidecar.config import FrontendSettings
from gateway_sidecar.config.frontend_values import ANY
from gateway_sidecar.nginx import bodies, bridge_server, client_headers
from gateway_sidecar.nginx import frontend_server as front_door
from gateway_sidecar.nginx.access_events import EventAddress
from gateway_sidecar.nginx.bodies import BodyClass, body_classes
from gateway_sidecar.nginx.bridge_server import KEY_HEADER, ORDERS, bracketed
from gateway_sidecar.nginx.frontend_server import DoorPlaces, FrontDoor

_PLAIN_DOOR = FrontendSettings()
_CONNECTIONS_EACH = 4  # client, service address -> router, router -> bridge, bridge -> replica
SUCCESSOR = ".next"
"""What is added to a service's name to name its second router slot, and the switch that leads to it."""

ALIVE = "alive.sock"
"""Where nginx says that it is alive, and what it serves, in its own directory, which is nobody else's to enter."""

IN_FORCE = "/in-force"
"""The path there at which it says so: as `InForce` writes it."""

OWNER_SCRIPT, OWNER_LUA = "bridge_owner.js", "bridge_owner.lua"
"""What asks, and what tells, whose a connection to a gRPC bridge is, in the directory of the nginx that runs it."""

BODIES = "client_body"
"""The directory, below the one for temporary files, that bodies go to."""

_NUMBER_DIGITS = 16
_RECORD = "#: "
_RECORD_LINE = 1000  # nginx takes no comment of more than 4096 bytes
_SAID = re.compile(rf"([0-9a-f]{{{_NUMBER_DIGITS}}}) (run|state)(?: ([0-9]{{1,5}}) ([0-9a-f]+))?")
_PEER_CONNECTIONS = 4096  # two for each request
_TEMPS = (BODIES, "proxy", "fastcgi", "uwsgi", "scgi")
_SPARE = 64  # files that nginx opens for itself
_CLOSED = 598  # our own status, inside nginx only: the service's gate is closed
_CONNECT_S = 2
"""More than the second after which the kernel asks again where a router's queue of connections is full: a thousand
that go on at once fill it. A hanging router's gate is closed for longer than that before it is killed: nobody meets its
successor."""

_HEAD_S = 30  # a request's head as a whole; nginx itself would wait for a minute
_BODY_PAUSE_S = 60
"""Between two reads of a body. One that goes on, however slowly, is waited for: nginx knows no bound for the whole."""

_HOLD = "gateway.hold"  # no service's name has a dot
_HOLD_TRIES = 16
"""How often a request that waits asks again when it is cut off: twice for each time that the daemon is restarted."""
_HOLD_MARGIN_S = 5
"""The waiting room answers in time. Should nobody be there to, nginx does so a little later."""

_UNAVAILABLE = (
    '{"error":{"message":"The router of service SERVICE is not available; try again shortly.",'
    '"type":"server_error","code":"router_unavailable","param":null}}'
)

_FAILED = (
    '{"error":{"message":"The gateway cannot take this request now, perhaps for want of disk space; try again.",'
    '"type":"server_error","code":"gateway_unavailable","param":null}}'
)
"""For what nginx itself cannot do, such as write a large body to a full disk. A router's own 500 is left as it is."""


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


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """One service's stable address, and where its router and that router's successor listen (`host:port`).

    hold_s: how long a request may be kept in the waiting room.
    """

    service: str
    listen: str
    router: str
    successor: str
    frontend: FrontendSettings = _PLAIN_DOOR
    hold_s: float = 0.0

    @property
    def listens(self) -> Sequence[str]:
        """All the addresses that nginx listens on for it; services with names may share public ones."""
        return [self.listen, *map(str, self.frontend.listen), *map(str, self.frontend.redirect)]

    @property
    def needs_lua(self) -> bool:
        """Whether nginx needs its Lua module for it."""
        return self.frontend.auth is not None and self.frontend.auth.keys_file is not None

    @property
    def uses_lua(self) -> bool:
        """Whether nginx uses its Lua module for it, where there is one."""
        return self.frontend.auth is not None or self.frontend.mcp_servers != (ANY,)


@dataclass(frozen=True, slots=True)
class InForce:
    """What a running nginx says of itself: the number of its configuration, and what was decided when it was started.

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
class NginxConfig:
    """All that the configuration depends on.

    first_port..last_port: the bridges; of HTTP engines on `host`, of gRPC engines on `grpc_host`.
    bridge_key: what a router shows the bridges of HTTP engines. bridge_paths: what they pass beside inference.
    lua_modules: what to load for Lua, which may be nothing; None without it.
    owner_module: nginx's module for JavaScript in streams, which tells whose a connection is; None without it.
    gates: a file named after a service in this directory sends its requests to the waiting room; one named after
        its second slot leads to the router there. Neither needs a reload, which would cost clients their
        kept connections.
    waiting_room: the Unix socket of the waiting room.
    temp: where bodies that do not fit into memory are kept.
    events: whom nginx tells of each request's end; None for nobody.
    held_mb: how much of bodies may be kept at once, in MiB.
    """

    host: str
    grpc_host: str
    first_port: int
    last_port: int
    bridge_key: str = field(repr=False)
    bridge_paths: Sequence[str]
    links: Path
    directory: Path
    temp: Path
    gates: Path
    waiting_room: Path
    log: Path
    worker_processes: str
    capacity: Capacity
    services: Sequence[ServiceAddress]
    stream_module: Path | None
    user: str | None
    doors: DoorPlaces
    lua_modules: Sequence[Path] | None = None
    events: EventAddress | None = None
    owner_module: Path | None = None
    held_mb: int = 8192

    @property
    def number(self) -> str:
        """What an nginx with this configuration, and no other, calls it."""
        return _number_of(self._text(""))

    def text(self) -> str:
        """The whole configuration file. It begins with what it serves, for the next daemon: `services_in` reads it."""
        return _record(self.services) + self._text(self.number)

    def _text(self, number: str) -> str:
        return "\n".join([self._main(), self._stream(), self._http(number)])

    def _main(self) -> str:
        lines = [
            "# Written by gateway-sidecar. Changes made here are lost.",
            "daemon off;",
            f"worker_processes {self.worker_processes};",
            f"worker_rlimit_nofile {self.capacity.worker_connections + _SPARE};",
            f"pid {_quoted(self.directory / 'nginx.pid')};",
            f"error_log {_quoted(self.log)} warn;",
        ]
        if self.user is not None:
            lines.insert(2, f"user {self.user};")
        if self.stream_module is not None:
            lines.append(f"load_module {_quoted(self.stream_module)};")
        if self.owner_module is not None and self._asks_owners:
            lines.append(f"load_module {_quoted(self.owner_module)};")
        if self._uses_lua:
            lines += [f"load_module {_quoted(module)};" for module in self.lua_modules or ()]
        lines.append(f"events {{ worker_connections {self.capacity.worker_connections}; multi_accept on; }}")
        return "\n".join(lines) + "\n"

    def _bridges(self, host: str) -> str:
        ports = str(self.first_port)
        if self.last_port != self.first_port:
            ports += f"-{self.last_port}"
        return f"{bracketed(host)}:{ports}"

    @property
    def _asks_owners(self) -> bool:
        return self.owner_module is not None and self.lua_modules is not None

    def _owner_check(self) -> str:
        url = bridge_server.owner_url(self.host, self.first_port)
        return owner_check(self.directory, url, self.bridge_key) if self._asks_owners else ""

    def _stream(self) -> str:
        return f"""\
stream {{
{self._owner_check()}    server {{
        listen {self._bridges(self.grpc_host)} backlog=1024 so_keepalive=60s:10s:6;
        tcp_nodelay on;
        proxy_connect_timeout 2s;
        proxy_timeout 24h;
        proxy_pass unix:{self.links}/$server_port.sock;
    }}
}}
"""

    def _http(self, number: str) -> str:
        temp = "\n".join(f"    {kind}_temp_path {_quoted(self.temp / kind)};" for kind in _TEMPS)
        said = InForce(number, self.temp.parent == self.directory.parent, self.events)
        has_lua = self.lua_modules is not None
        doors = {it.service: FrontDoor(it.service, it.frontend, self.doors, has_lua) for it in self.services}
        classes = self._body_classes()
        servers = "".join(self._server(service, doors[service.service], classes) for service in self.services)
        shared = client_headers.LOCATION_MAP + bodies.maps(classes) if self.services else ""
        # Warnings there are of each body that does not fit into memory, with the request's line and query.
        lua = ""
        if self._uses_lua:
            lua = f"""\
    lua_package_path "{self.directory}/?.lua;;";
    init_by_lua_block {{ require("front_door") }}
"""
        link = f"{self.links}/$server_port.sock"
        bridges = bridge_server.server(self._bridges(self.host), link, tells_owners=self._asks_owners)
        hold = f"        server unix:{self.waiting_room} max_fails=0;\n" * _HOLD_TRIES
        formats = "".join(f"    {self.events.log_format(s.service)}\n" for s in self.services if self.events)
        return f"""\
http {{
    access_log off;
    error_log {_quoted(self.log)} error;
    default_type application/json;
    server_tokens off;
    variables_hash_max_size 8192;
    variables_hash_bucket_size 256;
    map_hash_bucket_size 512;
    server_names_hash_max_size 8192;
    server_names_hash_bucket_size 512;
{temp}
{bridge_server.UPGRADES}{_alive(self.directory, str(said))}\
{bridge_server.maps(self.bridge_key, self.bridge_paths)}{bridges}\
    upstream {_HOLD} {{
{hold}    }}
{front_door.clients()}{front_door.own_errors()}{shared}{lua}{formats}{servers}{front_door.other_servers(list(doors.values()))}}}
"""

    @property
    def _uses_lua(self) -> bool:
        return self.lua_modules is not None and (self._asks_owners or any(it.uses_lua for it in self.services))

    def _body_classes(self) -> Sequence[BodyClass]:
        return body_classes(self.held_mb, max((it.frontend.max_body_mb for it in self.services), default=1))

    def _server(self, service: ServiceAddress, door: FrontDoor, classes: Sequence[BodyClass]) -> str:
        # A request that the router cannot take goes to the waiting room, without its body; from there nginx sends the
        # original on to @router. For that nginx must hold the body itself: a client's upload is buffered, an answer
        # never is.
        switch = f"""\
            set $gateway_router {service.service};
            if (-f {_quoted(self.gates / (service.service + SUCCESSOR))}) {{
                set $gateway_router {service.service}{SUCCESSOR};
            }}
            proxy_pass http://$gateway_router;
"""
        patience_s = math.ceil(service.hold_s) + _HOLD_MARGIN_S
        # What a location says of its own, it does not inherit.
        refusals = "".join(f"            {line}\n" for line in door.errors())
        headers = "".join(f"            {line}\n" for line in door.headers())
        asked = "            auth_request off;\n" if service.frontend.auth and service.frontend.auth.url else ""
        checks = "".join(f"            {line}\n" for line in bodies.checks(door.variable))
        arrives = f"""\
{refusals}            error_page 502 504 {_CLOSED} = @hold;
            error_page 500 = @failed;
            if (-f {_quoted(self.gates / service.service)}) {{ return {_CLOSED}; }}
{door.check_servers()}{switch}"""
        upstreams = _upstream(service.service, service.router) + _upstream(
            service.service + SUCCESSOR, service.successor
        )
        return f"""
{door.http()}{upstreams}    server {{
        listen {service.listen} {front_door.LISTEN_OPTIONS};
{front_door.listen_lines(door)}        {self.events.access_log(service.service) if self.events else "access_log off;"}
        keepalive_timeout 75s;
        keepalive_requests 1000000;
        client_body_buffer_size 256k;
        client_header_timeout {_HEAD_S}s;
        client_body_timeout {_BODY_PAUSE_S}s;
        send_timeout 1h;
        recursive_error_pages on;
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header Upgrade $gateway_upgrade;
        proxy_set_header Connection $gateway_connection;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header {KEY_HEADER} {self.bridge_key};
        proxy_buffering off;
        proxy_next_upstream off;
        proxy_connect_timeout {_CONNECT_S}s;
        proxy_read_timeout 24h;
        proxy_send_timeout 24h;
        proxy_socket_keepalive on;
        proxy_ignore_headers {ORDERS};
{door.server(classes)}        location / {{
{checks}{arrives}        }}
        location @small {{
            client_max_body_size {bodies.SMALL_BYTES};
{arrives}        }}
        location @router {{
{asked}{refusals}            error_page 502 504 = @hold;
            error_page 500 = @failed;
{door.check_servers()}{switch}        }}
        location @hold {{
            internal;
            proxy_ignore_headers X-Accel-Expires;
{refusals}            error_page 502 504 = @unavailable;
            error_page 500 = @failed;
            proxy_next_upstream error non_idempotent;
            proxy_next_upstream_timeout {patience_s}s;
            proxy_read_timeout {patience_s}s;
            proxy_pass http://{_HOLD};
            proxy_pass_request_body off;
            proxy_pass_request_headers off;
            proxy_set_header Content-Length "";
            proxy_set_header X-Service {service.service};
            proxy_set_header X-Router-Connected $upstream_connect_time;
            proxy_set_header X-Router-Took $upstream_response_time;
            proxy_set_header X-Request-Upgrade $gateway_upgrade;
        }}
        location @failed {{
            internal;
{headers}            add_header Retry-After 5 always;
{door.failed()}            return 503 '{_FAILED}';
        }}
        location @unavailable {{
            internal;
{headers}            add_header Retry-After 1 always;
            return 503 '{_UNAVAILABLE.replace("SERVICE", service.service)}';
        }}
{door.locations()}    }}
"""


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
    bridge_paths: Sequence[str]
    modules: Sequence[Path]
    owner_url: str | None
    user: str | None = None

    def text(self) -> str:
        """The whole configuration file."""
        listen = f"{bracketed(self.host)}:{self.port}"
        only_us = f"        allow {self.host};\n        deny all;\n"
        load = "".join(f"load_module {_quoted(module)};\n" for module in (self.modules if self.grpc else ()))
        served = self._stream(listen, only_us) if self.grpc else self._http(listen, only_us)
        return f"""\
# Written by gateway-sidecar. Changes made here are lost.
daemon off;
master_process off;
{f"user {self.user};" if self.user else ""}
pid {_quoted(self.directory / "nginx.pid")};
error_log stderr warn;
{load}events {{ worker_connections {_PEER_CONNECTIONS}; multi_accept on; }}
{served}"""

    def _stream(self, listen: str, only_us: str) -> str:
        return f"""\
stream {{
{owner_check(self.directory, self.owner_url, self.bridge_key) if self.owner_url else ""}    server {{
        listen {listen} backlog=1024 so_keepalive=60s:10s:6;
{only_us}        tcp_nodelay on;
        proxy_connect_timeout 2s;
        proxy_timeout 24h;
        proxy_pass unix:{self.link};
    }}
}}
"""

    def _http(self, listen: str, only_us: str) -> str:
        temp = "\n".join(f"    {kind}_temp_path {_quoted(self.directory / 'temp')};" for kind in _TEMPS)
        return f"""\
http {{
    server_tokens off;
    variables_hash_bucket_size 256;
    map_hash_bucket_size 512;
{temp}
{bridge_server.UPGRADES}{bridge_server.maps(self.bridge_key, self.bridge_paths)}\
{bridge_server.server(listen, str(self.link), more=only_us)}}}
"""


def owner_check(directory: Path, url: str, key: str) -> str:
    """What lets only connections of our own user into a stream's servers: gRPC has no place for a secret with SMG."""
    return f"""\
    js_path {_quoted(directory)};
    js_import owner from {OWNER_SCRIPT};
    map $server_port $gateway_owner_url {{ default "{url}"; }}
    map $server_port $gateway_key_header {{ default "{KEY_HEADER}"; }}
    map $server_port $gateway_key {{ default "{key}"; }}
    js_access owner.check;
"""


@dataclass(frozen=True, slots=True)
class KeyedConfig:
    """The nginx that shows one engine its API key, with every request.

    It has a master: without one nginx cannot be told of another key (it loses count of its connections).

    It listens on `in.sock` in its directory and passes on to `engine`; as all do, it says there what it serves.
    """

    directory: Path
    engine: Path
    key: str = field(repr=False)
    grpc: bool
    user: str | None = None

    @property
    def number(self) -> str:
        """What an nginx with this configuration, and no other, calls it."""
        return _number_of(self._text(""))

    def text(self) -> str:
        """The whole configuration file."""
        return self._text(self.number)

    def _text(self, number: str) -> str:
        directory = self.directory
        literal = self.key.replace("\\", "\\\\").replace('"', '\\"')
        temp = "\n".join(f"    {kind}_temp_path {_quoted(directory / 'temp')};" for kind in _TEMPS)
        if self.grpc:
            passes = f"""\
            grpc_pass grpc://unix:{self.engine};
            grpc_set_header Authorization $gateway_key;
            grpc_read_timeout 24h;
            grpc_send_timeout 24h;"""
        else:
            passes = f"""\
            proxy_pass http://unix:{self.engine}:;
            proxy_http_version 1.1;
            proxy_set_header Authorization $gateway_key;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $gateway_connection;
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 24h;
            proxy_send_timeout 24h;"""
        return f"""\
# Written by gateway-sidecar. Changes made here are lost.
daemon off;
worker_processes 1;
{f"user {self.user};" if self.user else ""}
pid {_quoted(directory / "nginx.pid")};
error_log stderr warn;
events {{ worker_connections {_PEER_CONNECTIONS}; multi_accept on; }}
http {{
    access_log off;
    server_tokens off;
{temp}
    map $http_upgrade $gateway_connection {{ default upgrade; '' ''; }}
    geo $gateway_key {{ default "Bearer {literal}"; }}  # not a map, which would read a $ in it
{_alive(directory, number)}    server {{
        listen unix:{directory}/in.sock{" http2" if self.grpc else ""};
        client_max_body_size 0;
        client_body_timeout 24h;
        send_timeout 24h;
        keepalive_timeout 75s;
        keepalive_requests 1000000;
        location / {{
{passes}
        }}
    }}
}}
"""


def services_in(text: str, number: str) -> Sequence[ServiceAddress] | None:
    """What an nginx serves that says this number; None if it does not run with the configuration of this text."""
    rows = text.splitlines(keepends=True)
    without = "".join(row for row in rows if not row.startswith(_RECORD))
    if _number_of(without.replace(f"'{number} ", "' ", 1)) != number:
        return None
    try:
        said = json.loads("".join(row.removeprefix(_RECORD).rstrip("\n") for row in rows if row.startswith(_RECORD)))
        return [ServiceAddress(**it | {"frontend": FrontendSettings.model_validate(it["frontend"])}) for it in said]
    except (ValueError, TypeError, KeyError):
        return None  # Another version's.


def _record(services: Sequence[ServiceAddress]) -> str:
    """The services as comments; it is no part of the configuration's number."""
    said = [
        {field.name: getattr(it, field.name) for field in fields(it)}
        | {"frontend": it.frontend.model_dump(mode="json")}
        for it in services
    ]
    text = json.dumps(said)
    return "".join(f"{_RECORD}{text[at : at + _RECORD_LINE]}\n" for at in range(0, len(text), _RECORD_LINE))


def _number_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_NUMBER_DIGITS]


def _alive(directory: Path, said: str) -> str:
    """Where an nginx says that it is alive, and what it serves."""
    return f"""\
    server {{
        listen unix:{directory}/{ALIVE};
        location = {IN_FORCE} {{ return 200 '{said}'; }}
        location / {{ return 204; }}
    }}
"""


def _upstream(name: str, address: str) -> str:
    return f"""\
    upstream {name} {{
        server {address} max_fails=0;
        keepalive 128;
        keepalive_requests 1000000;
        keepalive_timeout 5s;
    }}
"""


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
