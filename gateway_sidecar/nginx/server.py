"""The daemon's own nginx: bridges as symlinks behind one static port range, and the service addresses.

A scale event moves a symlink; nginx is never told. A router's replacement moves a switch file. nginx is reloaded
only when a service address is added or removed, or a router had to take another port.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import os
import pwd
import re
import resource
import secrets
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import urlsplit

from gateway_sidecar.config.access_log import AccessLogSettings
from gateway_sidecar.config.values import hosts_clash
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.domain.routing import BridgeRules
from gateway_sidecar.errors import NginxError, ProcessError
from gateway_sidecar.files.own import keep_directory, make_directory
from gateway_sidecar.files.replace import put_in_place, replace_file, replace_link, write_beside
from gateway_sidecar.nginx.access_events import EventAddress, placeholder
from gateway_sidecar.nginx.access_log import AccessLog
from gateway_sidecar.nginx.balance import ENDPOINTS, Endpoints, InFlight
from gateway_sidecar.nginx.body_files import BodyFiles, remove_all
from gateway_sidecar.nginx.config import (
    ACCESS_LOG_LUA,
    ALIVE,
    ASLEEP,
    BALANCE_LUA,
    BODIES,
    BOUNDS_LUA,
    IN_FORCE,
    LAST_ANSWERS,
    LOST,
    MODELS_LUA,
    NAMES,
    OWNER_LUA,
    OWNER_SCRIPT,
    QUEUE_LUA,
    SUCCESSOR,
    TOKENS_LUA,
    USAGE_LUA,
    Capacity,
    InForce,
    NginxConfig,
    Rendered,
    ServiceAddress,
    services_in,
)
from gateway_sidecar.nginx.connections import clients_at, listening_at
from gateway_sidecar.nginx.frontend_places import FrontendPlaces
from gateway_sidecar.nginx.link_marks import LONGEST_LINK, LinkMarks
from gateway_sidecar.nginx.ready_marks import ReadyMarks
from gateway_sidecar.nginx.templates import bracketed
from gateway_sidecar.nginx.usage_counts import UsageCounts, counts_at
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.supervision.logfile import ChildLog, try_writing
from gateway_sidecar.supervision.own_thread import BRIEF_DISK_S, OwnThread
from gateway_sidecar.supervision.process import Identity, Process, session_members

STREAM_MODULES = (
    Path("/usr/lib/nginx/modules/ngx_stream_module.so"),
    Path("/usr/lib64/nginx/modules/ngx_stream_module.so"),
    Path("/usr/share/nginx/modules/ngx_stream_module.so"),
)
KEYED, ENGINE_LINK = "keyed", "engine.sock"
"""Where the nginx that show API keys run, below `run_dir`, and the link in each one's directory."""

_LONGEST_SOCKET_PATH = 107  # `sun_path` holds 108 bytes with its closing zero: unix(7).
_ANSWER_S = 2.0  # nginx answers this by itself; one that takes longer hangs, or the machine does.
_RUN_S = 10.0
"""A choice: with 1,000 models nginx is reloaded in 0.8 s (docs/figures.md); a disk that hangs takes for ever."""
_ROOM_BYTES = 256 * 1024  # As much as nginx keeps of a body before it writes a file (`client_body_buffer_size`).
TEMP = "nginx-temp"
_IN_FORCE_S = 10.0
"""nginx tries for 2.5 s to listen where somebody else does, and tells its old processes a tenth of a second later."""
_PARTING_S = 1.0
"""Most answers take less; clients that ask seldom lose a kept connection, which they may not be using just then."""
_PARTING_POLL_S = 0.05  # A twentieth of `_PARTING_S`.

_LINES = 20  # What nginx writes at one reload is a few lines.
_VERSION = re.compile(r"^nginx version: [a-z]+/([0-9.]+)", re.MULTILINE | re.IGNORECASE)
"""Of nginx, and of what is built of it: OpenResty, freenginx."""
_CURE = "on Debian and Ubuntu, run apt-get install nginx-light libnginx-mod-stream"
_LUA_MODULES = ("ndk_http_module.so", "ngx_http_lua_module.so")
LUA_CURE = "on Debian and Ubuntu, run apt-get install libnginx-mod-http-lua"
OWNER_CURE = "on Debian and Ubuntu, run apt-get install libnginx-mod-stream-js libnginx-mod-http-lua"
_SHARE = resources.files("gateway_sidecar") / "share"


@dataclass(frozen=True, slots=True)
class NginxProgram:
    """The nginx to run; `stream_module` is None where `stream` is compiled in.

    lua_modules: what to load for Lua, in this order; None where it is not installed.
    owner_module: JavaScript for streams, which tells whose a connection is; None where it is not installed.
    compiled: the `--with-...` words that it was built with.
    """

    path: str
    version: str
    stream_module: Path | None
    lua_modules: Sequence[Path] | None = None
    compiled: frozenset[str] = frozenset()
    owner_module: Path | None = None


async def find_nginx(command: str) -> NginxProgram:
    """Looks nginx and its stream module up. Raises NginxError with the cure."""
    path = shutil.which(command, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if path is None:
        raise NginxError(f"nginx was not found as '{command}'; {_CURE}")
    try:
        code, output = await _run(path, "-V")
    except OSError as error:
        raise NginxError(f"{path} cannot be run: {error.strerror}; {_CURE}") from error
    found = _VERSION.search(output)
    if code != 0 or found is None:
        raise NginxError(f"{path} is not nginx: `-V` says {output.strip()[-200:]!r}; {_CURE}")
    version = found[1]
    words = output.split()
    places = [Path(w.partition("=")[2]) for w in words if w.startswith("--modules-path=")]
    places += [module.parent for module in STREAM_MODULES]
    lua = () if any(mark in output for mark in ("ngx_lua", "lua-nginx")) else _modules(places, *_LUA_MODULES)
    compiled = frozenset(word for word in words if word.startswith("--with-"))
    owner = next(iter(_modules(places, "ngx_stream_js_module.so") or ()), None)
    if "--with-stream" in words:
        return NginxProgram(path, version, None, lua, compiled, owner)
    stream = _modules(places, "ngx_stream_module.so")
    if stream is None:
        raise NginxError(f"{path} has no stream module; {_CURE}")
    return NginxProgram(path, version, stream[0], lua, compiled, owner)


def needed_lua(program: NginxProgram, services: Sequence[ServiceAddress]) -> Sequence[Path] | None:
    """The modules to load for Lua; None without it. Raises NginxError if a service needs Lua and there is none."""
    if needs_more_lua(program, services):
        lacking = next(service for service in services if service.needs_lua)
        raise NginxError(f"{lacking.service}: {lacking.needs_lua} needs nginx's Lua module; {LUA_CURE}")
    return program.lua_modules


def needs_more_lua(program: NginxProgram, services: Sequence[ServiceAddress]) -> bool:
    """Whether a service needs Lua, and there is none."""
    return program.lua_modules is None and any(service.needs_lua for service in services)


def _modules(places: Sequence[Path], *names: str) -> Sequence[Path] | None:
    """The files of these modules, if all of them are in one of the places."""
    for place in places:
        files = [place / name for name in names]
        if all(file.exists() for file in files):
            return files
    return None


@dataclass(frozen=True, slots=True)
class NginxSettings:
    """Where nginx listens for bridges, and where its files are. Ports are inclusive, and there on both hosts.

    state_dir: for the log, and for bodies that do not fit into memory; if it cannot be written, run_dir takes them.
    held_mb: how much of bodies may be kept at once.
    used_elsewhere: the file of what keys have used at other gateways; None for a gateway that works alone.
    marks: whether URLs may say which replica they are for, as those of a fleet do.
    """

    host: str
    grpc_host: str
    first_port: int
    last_port: int
    rules: BridgeRules
    command: str
    worker_processes: str
    held_mb: int
    run_dir: Path
    state_dir: Path
    access_log: AccessLogSettings
    used_elsewhere: Path | None = None
    marks: bool = False


class Nginx:
    """One nginx for all services. `link` and `unlink` are all that a scale event needs."""

    def __init__(self, settings: NginxSettings) -> None:
        self._settings = settings
        self.links = settings.run_dir / "bridges"
        self._marks = LinkMarks(self.links)
        self.gates = settings.run_dir / "gates"
        self.names = settings.run_dir / NAMES
        places = FrontendPlaces.of(settings.run_dir, settings.state_dir)
        self.frontends = replace(places, used_elsewhere=settings.used_elsewhere)
        self.ready_marks = ReadyMarks(self.gates)
        self._directory = settings.run_dir / "nginx"
        self.in_flight = InFlight(self._directory, settings.first_port, settings.last_port)
        self.endpoints = Endpoints(settings.run_dir / ENDPOINTS, self.in_flight.note_change)
        self.usage = UsageCounts(counts_at(self._directory))
        self._config_path = self._directory / "nginx.conf"
        self._before_path = self._directory / "before.conf"
        self.log = ChildLog(settings.state_dir / "log" / "nginx.log", spare=settings.run_dir / "log" / "nginx.log")
        self.access_log = AccessLog(settings.access_log, settings.state_dir, self._reopen_logs)
        self._logs_to: str | None = None
        self._temp = settings.state_dir / TEMP
        self._state_thread = OwnThread("nginx-temp")
        self._program: NginxProgram | None = None
        self.process: Process | None = None
        self.reloads = 0
        self.events: EventAddress | None = None
        self.bridge_key = secrets.token_urlsafe(24)
        """What routers show the bridges; an earlier daemon's, if routers of its time are taken up."""
        self._alive = self._directory / ALIVE
        self._served_by: dict[Identity, str] = {}
        """The processes that served before nginx was told of a change, and the number of what they served."""
        self._body_files = BodyFiles()
        if len(str(self.links / LONGEST_LINK)) > _LONGEST_SOCKET_PATH:
            raise NginxError(f"run_dir: {settings.run_dir} is too long a path for Unix sockets; use a shorter one")

    def prepare(self) -> None:
        """Makes the directories in run_dir that nginx and the links need."""
        keep_directory(self._settings.run_dir)
        for path in (
            self.links,
            self.gates,
            self.names,
            self._directory,
            self.frontends.directory,
            self.endpoints.directory,
            self.usage.directory,
        ):
            make_directory(path, 0o700)

    def _prepare_anew(self) -> None:
        self.prepare()
        self._keep_clients()  # An earlier daemon may have ended just then.

    def link(self, port: int, target: Path, mark: str = "") -> None:
        """Leads the bridge `port` to a replica's socket, at once and for new connections only.

        mark: what the replica's URLs in a mesh are marked with. Requests with another mark lead nowhere.
        """
        if self._marks.of(port) != mark:
            self._marks.remove(port)  # Before the port leads elsewhere: what means the last replica must not follow.
        replace_link(self.links / f"{port}.sock", target)
        if mark:
            self._marks.make(port, mark)

    def unlink(self, port: int) -> None:
        """New connections to the bridge lead nowhere; open ones go on."""
        self._marks.remove(port)
        (self.links / f"{port}.sock").unlink(missing_ok=True)

    def name(self, url: str, replica: str) -> None:
        """The access log knows the worker at this URL by its replica's name. Raises OSError."""
        replace_link(self.names / urlsplit(url).netloc, printable(replica))

    def unname(self, url: str) -> None:
        """The worker is no more."""
        (self.names / urlsplit(url).netloc).unlink(missing_ok=True)

    def nameless(self, urls: Collection[str]) -> list[str]:
        """Those of the workers that the access log does not know. One look at the directory: it is had every two
        seconds, of a thousand replicas perhaps.
        """
        known = set(os.listdir(self.names))
        return [url for url in urls if url.partition("://")[2] not in known]

    def close_gate(self, service: str) -> None:
        """From now on the service's new requests go to the hold."""
        (self.gates / service).touch()

    def open_gate(self, service: str) -> None:
        """From now on they go to the router again."""
        (self.gates / service).unlink(missing_ok=True)

    def is_closed(self, service: str) -> bool:
        """Whether the service's new requests go to the hold."""
        return (self.gates / service).exists()

    def mark_asleep(self, service: str, *, asleep: bool) -> None:
        """Says to shared addresses whether the service has no replica that could answer."""
        if asleep:
            (self.gates / (service + ASLEEP)).touch()
        else:
            (self.gates / (service + ASLEEP)).unlink(missing_ok=True)

    def is_asleep(self, service: str) -> bool:
        """Whether shared addresses take the service to have no replica."""
        return (self.gates / (service + ASLEEP)).exists()

    @property
    def bridge_hosts(self) -> tuple[str, str]:
        """The addresses that bridges listen on."""
        return self._settings.host, self._settings.grpc_host

    @property
    def reads_models(self) -> bool:
        """Whether it can tell which model a request is for."""
        return self._program is not None and self._program.lua_modules is not None

    def mark_lost(self, service: str, models: Mapping[str, str]) -> None:
        """The models (digest -> name) that requests wait for while the service's gate is closed: for all, if none is
        said. They are there all at once, and gone all at once.
        """
        place, beside = self.gates / (service + LOST), self.gates / f"{service}{LOST}.{secrets.token_hex(4)}"
        if models and not place.exists():
            make_directory(beside, 0o700)
            _write_names(beside, models)
            put_in_place(beside, place)
        elif models:
            _write_names(place, models)
        elif place.exists():
            put_in_place(place, beside)
            shutil.rmtree(beside, ignore_errors=True)

    def lost(self, service: str) -> Mapping[str, str]:
        """The models (digest -> name) that are marked so."""
        with contextlib.suppress(FileNotFoundError):
            return {it.name: it.read_text("utf-8", "replace") for it in (self.gates / (service + LOST)).iterdir()}
        return {}

    def point(self, service: str, slot: str) -> None:
        """From now on the service's new requests go to the router in this slot."""
        switch = self.gates / (service + SUCCESSOR)
        if slot == service:
            switch.unlink(missing_ok=True)
        else:
            switch.touch()

    def pointed(self, service: str) -> str:
        """The slot of the router that the service's requests go to."""
        return service + SUCCESSOR if (self.gates / (service + SUCCESSOR)).exists() else service

    def linked(self) -> dict[int, Path]:
        """Port -> target of every link there is."""
        found = {}
        for link in self.links.glob("*.sock"):
            if link.stem.isdigit() and link.is_symlink():
                found[int(link.stem)] = engine_behind(link.readlink())
        return found

    def linked_ports(self) -> set[int]:
        """The ports that have a link, and the mark that was made for it."""
        names = {name.removesuffix(".sock") for name in os.listdir(self.links)}
        return {int(name) for name in names if name.isdigit()} - self._marks.missing_in(names)

    def linked_at(self, port: int) -> int:
        """When the port's link was made, in nanoseconds of the file system's clock."""
        return (self.links / f"{port}.sock").lstat().st_mtime_ns

    async def start(self, services: Sequence[ServiceAddress]) -> None:
        """Starts nginx and returns when it serves. Raises NginxError."""
        self._prepare_anew()
        if self._program is None:
            self._program = await find_nginx(self._settings.command)
        busy = await asyncio.to_thread(busy_ports, self._addresses(services))
        if busy:
            raise NginxError(_busy_message(busy))
        try:
            held, self.events = placeholder()
        except OSError as error:
            raise NginxError(f"cannot hold a UDP port on 127.0.0.1 for nginx: {error.strerror}") from error
        with held:
            log_fd = await self.log.open_for_child()
            try:
                self._temp = await self._temp_directory()
                # Not tried out before: `nginx -t` listens for a moment, and would take clients' connections with it.
                config = await self._configuration(services)
                replace_file(self._config_path, config.text)  # It holds secrets.
                self._write_scripts()
                self.in_flight.begin()
                self._alive.unlink(missing_ok=True)  # nginx does not listen where a killed one did.
            except (NginxError, OSError):
                os.close(log_fd)
                raise
            try:
                process = await Process.spawn(
                    [self._program.path, "-p", str(self._directory), "-c", str(self._config_path)],
                    log_fd=log_fd,
                    cwd=self._directory,
                    keep_fds=(held.fileno(),),
                )
            except ProcessError as error:
                raise NginxError(str(error)) from error
        self.process = process
        self._served_by = {}
        try:
            await self._until_in_force(config.number, process)
        except NginxError:
            await process.stop(grace_s=1)
            self.process = None
            raise

    @property
    def logs_elsewhere(self) -> bool:
        """Whether its access log has to go elsewhere than its configuration says."""
        return self._logs_to != self.access_log.target

    def take_over_key(self, key: str) -> None:
        """Routers that an earlier daemon left show the bridges this key."""
        self.bridge_key = key

    async def adopt(self, identity: Identity) -> bool:
        """Takes over the nginx of an earlier daemon, as it is; False if it is gone, its orphans stopped then.

        What it serves is not known before it has been asked: `in_force` does.
        """
        self._prepare_anew()
        self._program = await find_nginx(self._settings.command)
        process = Process.adopt(identity)
        if process is None:
            await stop_orphans(identity)
            return False
        self.process = process
        self.log.follow(process.pid)
        self.in_flight.keep()
        return True

    async def objections(self, services: Sequence[ServiceAddress]) -> dict[str, str]:
        """Why each of these services could not be served as it is to be; nothing of those that could.

        Raises NginxError if there is no nginx to run.
        """
        if self._program is None or needs_more_lua(self._program, services):
            self._program = await find_nginx(self._settings.command)  # It may have been installed meanwhile.
        return await asyncio.to_thread(self._objections, services, self._program)

    def _objections(self, services: Sequence[ServiceAddress], program: NginxProgram) -> dict[str, str]:
        ours = listening_at(self.process.pid) if self.process is not None and self.process.running else ()
        found = {}
        for service in services:
            fresh = [(host, port) for host, port in service.places if (ip_address(host), port) not in ours]
            if needs_more_lua(program, [service]):
                found[service.service] = f"{service.needs_lua} needs nginx's Lua module; {LUA_CURE}"
            elif busy := busy_ports(fresh):
                found[service.service] = _busy_message(busy, ours)
        return found

    async def in_force(self) -> Sequence[ServiceAddress] | None:
        """What the nginx that was adopted serves; None where it runs with no file that is there."""
        said = await self._ask()
        if said is None:
            return None
        self._take(said)
        return services_in(self._text_of(said.number) or "", said.number)

    async def serves(self, services: Sequence[ServiceAddress]) -> bool:
        """Whether it serves just these already."""
        said = await self._ask()
        if said is None:
            return False
        self._take(said)
        return said.number == (await self._configuration(services)).number

    def _take(self, said: InForce) -> None:
        self.events = said.events
        self._temp = (self._settings.run_dir if said.spare_temp else self._settings.state_dir) / TEMP

    async def apply(self, services: Sequence[ServiceAddress]) -> bool:
        """Makes nginx serve just these addresses, and returns when it does; whether it had to be reloaded for that.

        Raises NginxError if it does not: then it goes on as it was, and so its file is made what it was.
        """
        process = self.process
        if process is None or not process.running:
            raise NginxError("its process has ended")
        said = await self._ask() or await self._ask()  # A busy machine's may be late once.
        if said is None:
            raise NginxError("nginx does not say what it serves; it hangs or is ending")
        self._take(said)
        config, before = await self._configuration(services), self._text_of(said.number)
        self.prepare()
        self._write_scripts()
        self.in_flight.keep()
        if said.number == config.number:
            if self._written() != config.text:
                replace_file(self._config_path, config.text)
            await self._until_in_force(config.number, process)
            return False
        fresh = await self._tried_out(config.text)
        said_before = Counter(await self.log.read_tail(_LINES))
        self._served_by = dict.fromkeys(session_members(process.identity), said.number) | self._served_by
        if before is not None:  # For the next daemon, if this one ends before nginx has taken or refused it.
            replace_file(self._before_path, before)
        try:
            await self._let_clients_go(services)
            put_in_place(fresh, self._config_path)
            process.send(signal.SIGHUP)
            self.reloads += 1
            await self._until_in_force(config.number, process, said_before)
        except NginxError:
            if before is not None:
                replace_file(self._config_path, before)
            raise
        finally:
            self._keep_clients()
        return True

    def _keep_clients(self) -> None:
        """Answers end nobody's connection any more, unless the gateway is leaving."""
        if not self.ready_marks.is_leaving:
            (self.gates / LAST_ANSWERS).unlink(missing_ok=True)

    async def _let_clients_go(self, services: Sequence[ServiceAddress]) -> None:
        """Has answers end their clients' connections, until none is left or for a second: a reload closes idle ones."""
        (self.gates / LAST_ANSWERS).touch()
        deadline = awake.now() + _PARTING_S
        while awake.now() < deadline and len(await asyncio.to_thread(clients_at, _addresses(services))):
            await asyncio.sleep(_PARTING_POLL_S)

    def _written(self, path: Path | None = None) -> str | None:
        try:
            return (path or self._config_path).read_text()
        except FileNotFoundError:
            return None

    def _text_of(self, number: str) -> str | None:
        """The configuration that nginx runs with, who answers this number: that of its file, or the one before."""
        texts = (self._written(path) for path in (self._config_path, self._before_path))
        return next((text for text in texts if text and services_in(text, number) is not None), None)

    async def _ask(self) -> InForce | None:
        """What nginx says of itself; None if it does not answer in time, or in other words."""
        return InForce.of(await ask_in_force(self._alive))

    async def _until_in_force(self, number: str, process: Process, said_before: Counter[str] | None = None) -> None:
        """Returns when whoever takes requests has the configuration of this number. Raises NginxError if nobody does.

        A signal says nothing: nginx may refuse what it is told, and its old processes take requests on for a while.
        said_before: the log's lines before it was told, where it can refuse and go on.
        """
        deadline, pause_s = awake.now() + _IN_FORCE_S, 0.005
        while True:
            said = await self._ask()
            if said is not None and said.number == number:
                self._served_by = await asyncio.to_thread(_listening, self._served_by)
                if set(self._served_by.values()) <= {number}:
                    return
            elif not process.running:
                last = " | ".join(await self.log.read_tail(3)) or "it said nothing"
                raise NginxError(f"nginx does not serve: {last}")
            elif said_before is not None and (words := refusal(await self.log.read_tail(_LINES), said_before)):
                raise NginxError(f"nginx refuses its new configuration and goes on with the old one: {words}")
            if awake.now() > deadline:
                if said is not None and said.number == number:
                    pids = ", ".join(str(each.pid) for each, served in self._served_by.items() if served != number)
                    raise NginxError(f"nginx has taken its new configuration, but its old processes serve on: {pids}")
                last = " | ".join(await self.log.read_tail(3)) or "it said nothing"
                raise NginxError(f"nginx has not taken its new configuration within {_IN_FORCE_S:g} s: {last}")
            await asyncio.sleep(pause_s)
            pause_s = min(0.1, pause_s * 1.5)

    async def repair_files(self, services: Sequence[ServiceAddress]) -> bool:
        """Writes the configuration again that nginx runs with, should it be gone; whether it was.

        nginx is not told: nothing is new to it. Raises NginxError, OSError.
        """
        if self._config_path.exists():
            return False
        self._write_scripts()
        replace_file(self._config_path, (await self._configuration(services)).text)
        return True

    async def is_mute(self, patience_s: float) -> bool:
        """Whether it takes `patience_s` seconds and more to answer, with every process that it has."""
        with contextlib.suppress(OSError):  # Nobody listens there: that is another matter.
            try:
                async with within(patience_s):
                    reader, writer = await asyncio.open_unix_connection(str(self._alive))
                    try:
                        writer.write(b"GET / HTTP/1.0\r\n\r\n")
                        await reader.read(1)
                    finally:
                        writer.transport.abort()
            except TimeoutError:
                return True
        return False

    def _reopen_logs(self) -> None:
        """Has it, and whatever processes of earlier configurations are left, open the files of its logs by name."""
        if self.process is not None and self.process.running:
            self.process.send(signal.SIGUSR1)

    def kill(self) -> None:
        """Ends it at once, every process that it has."""
        if self.process is not None:
            workers = session_members(self.process.identity)
            self.process.send(signal.SIGKILL)
            for worker in workers:
                if (process := Process.adopt(worker)) is not None:
                    process.send(signal.SIGKILL)

    async def stop(self, grace_s: float) -> None:
        """Lets open connections finish for `grace_s` seconds, then ends nginx."""
        if self.process is not None:
            await self.process.stop(grace_s=grace_s, sig=signal.SIGQUIT)
            await stop_orphans(self.process.identity)
            self.process = None

    async def _configuration(self, services: Sequence[ServiceAddress]) -> Rendered:
        """In a thread: with hundreds of services it takes a tenth of a second."""
        await self.access_log.switch(on=any(it.frontend.access_log != "off" for it in services))
        self._logs_to = self.access_log.target
        return await asyncio.to_thread(self._config(services).rendered)

    def _config(self, services: Sequence[ServiceAddress]) -> NginxConfig:
        assert self._program is not None
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lua_modules = needed_lua(self._program, services)
        listening = 2 * (self._settings.last_port - self._settings.first_port + 1) + len(_addresses(services))
        capacity = Capacity.within(hard if hard != resource.RLIM_INFINITY else 1 << 20, listening)
        if capacity.requests < 16:
            raise NginxError(
                f"the limit of {hard} open files leaves no room beside {listening} listening ports; "
                "raise it (systemd: LimitNOFILE=) or use a smaller bridges.ports"
            )
        need = capacity.worker_connections + 64
        if soft < need:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(need, hard) if hard > 0 else need, hard))
        return NginxConfig(
            host=self._settings.host,
            grpc_host=self._settings.grpc_host,
            marks=self._settings.marks,
            first_port=self._settings.first_port,
            last_port=self._settings.last_port,
            bridge_key=self.bridge_key,
            bridge_rules=self._settings.rules,
            links=self.links,
            directory=self._directory,
            temp=self._temp,
            gates=self.gates,
            hold_socket=self._settings.run_dir / "hold.sock",
            log=self.log.file or Path(os.devnull),
            worker_processes=self._settings.worker_processes,
            capacity=capacity,
            services=sorted(services, key=lambda s: s.service),
            stream_module=self._program.stream_module,
            user=own_user(),
            frontends=self.frontends,
            lua_modules=lua_modules,
            events=self.events,
            owner_module=self._program.owner_module,
            held_mb=self._settings.held_mb,
            times_streams="--with-http_sub_module" in self._program.compiled,
            access_log=self._logs_to,
            reads_tokens=self._settings.access_log.tokens,
        )

    def _write_scripts(self) -> None:
        lua = ACCESS_LOG_LUA, BALANCE_LUA, BOUNDS_LUA, MODELS_LUA, OWNER_LUA, QUEUE_LUA, TOKENS_LUA, USAGE_LUA
        for name in ("frontends.lua", *lua, OWNER_SCRIPT):
            write_script(self._directory, name)

    async def _tried_out(self, text: str) -> Path:
        """The new configuration beside its place. Raises NginxError if the nginx on disk objects to it."""
        fresh = write_beside(self._config_path, text)
        await self._make_log_directory()
        await self.keep_up_temp()
        assert self._program is not None
        code, output = await _run(self._program.path, "-t", "-q", "-p", str(self._directory), "-c", str(fresh))
        # nginx -t binds nothing that a running nginx holds, so it tells syntax and files only.
        if code != 0 and "[emerg] bind()" not in output:
            raise NginxError(f"nginx refuses its configuration {fresh}: {output.strip()[-500:]}")
        return fresh

    async def _temp_directory(self) -> Path:
        """Where bodies go that do not fit into memory: on the state disk if that takes them."""
        try:
            await self._state_thread.run(partial(_make_ready, self._settings.state_dir / TEMP), patience_s=BRIEF_DISK_S)
        except OSError:  # A TimeoutError is one, too.
            make_directory(self._settings.run_dir / TEMP, 0o700)
            return self._settings.run_dir / TEMP
        return self._settings.state_dir / TEMP

    async def keep_up_temp(self) -> None:
        """Sees that nginx has its directory for bodies, and that nothing stays in it which a killed worker left."""
        master = self.process.identity if self.process is not None else None
        with contextlib.suppress(OSError):
            keep_up = partial(self._body_files.keep_up, self._temp / BODIES, master)
            await self._state_thread.run(keep_up, patience_s=BRIEF_DISK_S)

    async def _make_log_directory(self) -> None:
        """nginx refuses a configuration whose log it cannot open, and somebody may have removed its directory."""
        directory = (self.log.file or self.log.path).parent
        with contextlib.suppress(OSError):
            await self._state_thread.run(partial(make_directory, directory), patience_s=BRIEF_DISK_S)

    def _addresses(self, services: Sequence[ServiceAddress]) -> list[tuple[str, int]]:
        bridges = range(self._settings.first_port, self._settings.last_port + 1)
        return [(host, port) for host in self.bridge_hosts for port in bridges] + _addresses(services)


def write_script(directory: Path, name: str) -> None:
    """Puts a script where an nginx reads it: a copy of its own, as the package may be replaced while it runs."""
    text, path = (_SHARE / name).read_text(), directory / name
    if not path.exists() or path.read_text() != text:
        replace_file(path, text)


def _make_ready(temp: Path) -> None:
    """Raises OSError if it takes no more. Blocks."""
    remove_all(temp / BODIES)
    try_writing(temp, _ROOM_BYTES)


def _write_names(directory: Path, names: Mapping[str, str]) -> None:
    """A file for each, and no other."""
    for file, name in names.items():
        replace_file(directory / file, name.encode("utf-8", "backslashreplace"))
    for file in set(os.listdir(directory)) - names.keys():
        (directory / file).unlink(missing_ok=True)


def engine_behind(target: Path) -> Path:
    """The engine's own socket, where a link leads to it by way of the nginx that shows its key."""
    if target.parent.parent.name != KEYED:
        return target
    try:
        return target.with_name(ENGINE_LINK).readlink()
    except OSError:
        return target


def _listening(served_by: Mapping[Identity, str]) -> dict[Identity, str]:
    """Those that still take connections."""
    return {each: it for each, it in served_by.items() if each.is_alive() and listening_at(each.pid)}


async def ask_in_force(alive: Path) -> str:
    """What the nginx that listens there says that it serves; empty if it does not answer in time."""
    with contextlib.suppress(OSError):  # A TimeoutError is one, too.
        async with within(_ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(str(alive))
            try:
                writer.write(f"GET {IN_FORCE} HTTP/1.0\r\n\r\n".encode())
                answer = await reader.read()
            finally:
                writer.transport.abort()
            return answer.partition(b"\r\n\r\n")[2].decode("ascii", "replace")
    return ""


def refusal(lines: Sequence[str], said_before: Counter[str]) -> str:
    """Why nginx refuses its new configuration, in its own words; empty if it does not.

    An address in use is tried for a while before it is given up. The same words may be said twice in one second.
    """
    fresh = [line for line in (Counter(lines) - said_before).elements() if "[emerg]" in line]
    final = [line for line in fresh if f"({errno.EADDRINUSE}: " not in line]
    return " | ".join(fresh[-3:]) if final else ""


async def stop_orphans(master: Identity) -> int:
    """Ends the workers that a dead master left behind (they hold the ports); how many there were."""
    if master.is_alive():
        return 0
    orphans = [p for member in session_members(master) if (p := Process.adopt(member)) is not None]
    # TERM closes the listeners at once and the connections with them; a dead master's workers cannot be reloaded.
    await asyncio.gather(*(orphan.stop(grace_s=2) for orphan in orphans))
    return len(orphans)


def busy_ports(addresses: Sequence[tuple[str, int]]) -> list[tuple[str, int, str]]:
    """Which of the addresses cannot be listened on, and why. Blocks for about 5 us per address."""
    busy = []
    for host, port in addresses:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # As nginx does: `::` does not cover IPv4.
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((host, port))  # Refused while anybody listens. We do not: a client would find us.
            except OSError as error:
                busy.append((host, port, errno.errorcode.get(error.errno or 0, str(error))))
    return busy


def in_its_own_way(host: str, port: int, ours: Collection[tuple[IPv4Address | IPv6Address, int]]) -> str:
    """Why nginx cannot listen there while it listens where it does, and what to do; empty if that is not the reason.

    It opens new addresses before it closes old ones, and the kernel gives `0.0.0.0` and one address to one alone.
    """
    for its, at in sorted(ours, key=str):
        if at == port and hosts_clash(host, str(its)):
            text = f"nginx itself listens on {bracketed(str(its))}:{at} and cannot exchange one for the other"
            return f"{text}; reload with another port first, then with this one, or choose another port"
    return ""


def _busy_message(
    busy: Sequence[tuple[str, int, str]], ours: Collection[tuple[IPv4Address | IPv6Address, int]] = ()
) -> str:
    for host, port, why in busy:
        if own := in_its_own_way(host, port, ours):
            return f"cannot listen on {bracketed(host)}:{port} ({why}): {own}"
    shown = ", ".join(f"{bracketed(host)}:{port} ({why})" for host, port, why in busy[:5])
    more = f" and {len(busy) - 5} more" if len(busy) > 5 else ""
    return f"cannot listen on {shown}{more}; stop what uses them, or choose others (bridges.ports, services[].listen)"


def _addresses(services: Sequence[ServiceAddress]) -> list[tuple[str, int]]:
    return sorted({place for service in services for place in service.places})


async def _run(*argv: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with within(_RUN_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()  # And not waited for: what hangs on a disk does not end.
        raise NginxError(f"`{' '.join(argv)}` did not end within {_RUN_S:g} s; check the disk of its files") from None
    return process.returncode or 0, output.decode("utf-8", "replace")


def own_user() -> tuple[str, str] | None:
    """The user and group that nginx is to have; None where it has ours anyway, and could take no other."""
    if os.geteuid() != 0:
        return None
    return pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
