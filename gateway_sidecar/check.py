"""`gateway-sidecar check`: looks at this machine with the daemon's eyes, and changes nothing."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

from gateway_sidecar.api.client import Client
from gateway_sidecar.api.models import Status
from gateway_sidecar.api.tls import read_tls
from gateway_sidecar.config import (
    AddressSettings,
    FrontendSettings,
    PortRange,
    RouterSettings,
    ServiceSettings,
    Settings,
    advise,
    load_overrides,
)
from gateway_sidecar.config.alike import alike_of
from gateway_sidecar.config.frontend_values import ANY
from gateway_sidecar.config.places import acme_in, stored_keys_in
from gateway_sidecar.config.values import show
from gateway_sidecar.control.edge.destinations import hosts_of, look_up
from gateway_sidecar.control.process.left_running import LeftRunning, look_for_left
from gateway_sidecar.domain.findings import Finding, Level
from gateway_sidecar.domain.fleet import gateways_in
from gateway_sidecar.domain.fleet_alike import differences
from gateway_sidecar.domain.model import ConnectionMode, Overrides, PeerAddress, WorkerType
from gateway_sidecar.domain.printable import counted
from gateway_sidecar.domain.renewal import DAY_S
from gateway_sidecar.domain.store_memory import Memory, Snapshot, judge
from gateway_sidecar.domain.trust import ROOT
from gateway_sidecar.errors import (
    AcmeError,
    AdminError,
    ConfigError,
    DaemonAway,
    FrontendError,
    NginxError,
    ProcessError,
    StoreError,
)
from gateway_sidecar.files.follow import ours
from gateway_sidecar.files.own import way_in_for_others
from gateway_sidecar.files.shared import trouble_with_group
from gateway_sidecar.frontend.acme_state import AcmeState, Wanted
from gateway_sidecar.frontend.certificate import read_certificate, read_client_ca, shown_at, today
from gateway_sidecar.frontend.keys import read_keys
from gateway_sidecar.frontend.words import NONE
from gateway_sidecar.kinds import ROUTERS, STORES
from gateway_sidecar.nginx.addresses import ClaimRules, PeerAddresses
from gateway_sidecar.nginx.bridge_key import read_bridge_key
from gateway_sidecar.nginx.config import Capacity
from gateway_sidecar.nginx.connections import listening_at
from gateway_sidecar.nginx.server import LUA_CURE, OWNER_CURE, NginxProgram, busy_ports, find_nginx, in_its_own_way
from gateway_sidecar.nginx.templates import bracketed
from gateway_sidecar.routers.base import Surroundings
from gateway_sidecar.sources.base import Given, SourceKind
from gateway_sidecar.sources.build import given_to, source_of, used_by
from gateway_sidecar.sources.entry import ApiRecord
from gateway_sidecar.sources.listing import Listing, Sighting
from gateway_sidecar.sources.placed import OwnSockets
from gateway_sidecar.supervision.privileges import CAP_NET_ADMIN, User, has_capability, user_called
from gateway_sidecar.supervision.unit import unit_user
from gateway_sidecar.tunnels.inspect import backend_troubles, file_troubles

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_UNPRIVILEGED = 1024  # Linux's default (`ip_unprivileged_port_start`).
_FEW = 3  # As many as a line of `check` has room for.
_CONTAINER = ("/run/systemd/container", "/run/.containerenv", "/.dockerenv")


def user_to_be(wanted: str | None, settings: Settings, *, of_unit: bool) -> User | None:
    """The user whose rights `check` uses: root may open what the daemon's user may not. None for the caller's own
    rights.

    wanted: a name or number that was asked for. of_unit: whether the unit starts the daemon with these settings.
    Only the unit's directories decide the daemon's user; the owner of any other directory could choose one.
    Raises ProcessError for one that does not exist, or that only root can become.
    """
    unit = unit_user()
    if wanted is not None:
        try:
            user = user_called(wanted, "as asked for")
        except (KeyError, OverflowError) as error:
            raise ProcessError(f"--as: there is no user '{wanted}' on this machine; name another") from error
        if user.uid == os.geteuid():
            return None
        if os.geteuid() != 0:
            raise ProcessError(f"--as: only root can look as {user}; run this with sudo")
        return replace(unit, why=user.why) if unit is not None and unit.uid == user.uid else user
    return unit if os.geteuid() == ROOT and unit is not None and _starts_as(unit, settings, of_unit=of_unit) else None


def not_who_is_meant(settings: Settings, *, of_unit: bool) -> Finding | None:
    """That these are the rights of somebody else than the daemon's user; None for that user, and for root, who can
    become that user."""
    unit = unit_user()
    if os.geteuid() == ROOT or unit is None or unit.uid == os.geteuid():
        return None
    if not _starts_as(unit, settings, of_unit=of_unit):
        return None
    text = f"with the rights of uid {os.geteuid()}, not of {unit}, {unit.why}; run this with sudo to check with those"
    return Finding(Level.WARN, text)


def _starts_as(unit: User, settings: Settings, *, of_unit: bool) -> bool:
    """Whether the unit's user is the daemon's with these settings, and nobody who may do everything."""
    if unit.uid == ROOT:
        return False
    owners = {path.stat().st_uid for path in (settings.run_dir, settings.state_dir) if path.exists()}
    return (of_unit and (unit.told is not None or not owners)) or unit.uid in owners


async def check_machine(settings: Settings, *, assumed: bool = False) -> list[Finding]:
    """Everything that can be known without starting anything.

    assumed: root became the daemon's user for this, who may have capabilities that nobody told of.
    """
    running, hung = _running(settings)
    away = running is None and hung is None
    left = look_for_left(settings.run_dir, settings.state_dir) if away else LeftRunning()
    findings = [Finding(Level.WARN, text) for text in _advice(settings)]
    findings += await _nginx(settings)
    findings += await _routers(settings)
    findings += _ports(settings, running, left, assumed=assumed) if hung is None else []
    findings += _files(settings)
    findings += await asyncio.to_thread(_admin, settings)
    findings += await _store(settings)
    findings += list(address_findings(settings))
    findings += await asyncio.to_thread(_bridge_key, settings)
    findings += await asyncio.to_thread(lambda: list(acme_findings(settings)))
    findings += root_findings()
    findings += [_directory("state_dir", settings.state_dir), _directory("run_dir", settings.run_dir)]
    findings += room_for_bodies(settings.state_dir, settings.nginx.max_bodies_mb)
    findings += await asyncio.to_thread(_access_log, settings)
    stored = stored_keys_in(settings.state_dir)
    for address in settings.addresses:
        models = f"{counted(len(address.models), 'model')} of {', '.join(address.services)}"
        findings.append(Finding(Level.OK, f"{address.name}: {address.listen} leads to {models}"))
        findings += await asyncio.to_thread(lambda it: list(_frontend(it.name, it.frontend, stored)), address)
        findings += await asyncio.to_thread(lambda it: list(_models_of_keys(it)), address)
    for service in settings.services:
        findings += await _replicas(service, settings)
        findings += await _unfit(service, settings, running)
        findings += await asyncio.to_thread(lambda it: list(_frontend(it.name, it.frontend, stored)), service)
        findings += _scaling(service)
        findings += await asyncio.to_thread(_endpoints, service, settings.bridges.host)
    findings += await asyncio.to_thread(_peers, settings, await _all_sightings(settings))
    if running is not None:
        findings += [Finding(Level.FAIL, f"the running daemon: {problem}") for problem in running["problems"]]
        findings.append(Finding(Level.OK, f"a daemon runs with run_dir {settings.run_dir}; its own ports are not busy"))
    if left:
        findings.append(Finding(Level.WARN, f"no daemon runs; {left.prospect}"))
    if hung is not None:
        findings.append(Finding(Level.WARN, hung))
    return findings


def _running(settings: Settings) -> tuple[Status | None, str | None]:
    """What the running daemon says of itself, if it does; else why one that runs does not."""
    try:
        return Client(settings.run_dir / "admin.sock").status(), None
    except DaemonAway:
        return None, None
    except AdminError as error:
        return None, f"{error}; so ports are not checked, nor what the daemon knows of itself"


def _advice(settings: Settings) -> list[str]:
    try:
        low, high = (int(word) for word in _EPHEMERAL.read_text().split())
    except (OSError, ValueError):
        return []
    return advise(settings, PortRange(low, high))


async def _nginx(settings: Settings) -> list[Finding]:
    try:
        program = await find_nginx(settings.nginx.command)
    except NginxError as error:
        return [Finding(Level.FAIL, f"nginx.command: {error}")]
    module = f"stream module {program.stream_module}" if program.stream_module else "stream built in"
    found = [Finding(Level.OK, f"nginx {program.version} at {program.path}, {module}")]
    found += [Finding(Level.WARN, text) for text in unguarded(program, settings)]
    return (
        found
        + [
            Finding(Level.FAIL, f"{service.name}: {text}")
            for service in settings.services
            for text in lacking(program, service.frontend, balances=ROUTERS[service.router.type].is_nginx)
        ]
        + [
            Finding(Level.FAIL, f"{address.name}: {text}")
            for address in settings.addresses
            for text in lacking(program, address.frontend, dispatches=True)
        ]
    )


def unguarded(program: NginxProgram, settings: Settings) -> Iterator[str]:
    """What this nginx cannot protect."""
    if program.owner_module is None or program.lua_modules is None:
        yield (
            f"bridges: any user of this machine can connect to the bridges of gRPC engines, since this nginx "
            f"cannot tell which user opened a connection; {OWNER_CURE}"
        )
    if program.lua_modules is None:
        yield f"bridges: nginx has no Lua to wait with for an engine whose queue of connections is full; {LUA_CURE}"
    if program.lua_modules is None and any(s.frontend.mcp_servers != (ANY,) for s in settings.services):
        yield (
            "frontend.mcp_servers: nginx has no Lua to read what requests ask for, so all POSTs to /v1/responses and"
            f" /v1/interactions are refused; {LUA_CURE}, or set it to any"
        )


def lacking(
    program: NginxProgram, frontend: FrontendSettings, *, balances: bool = False, dispatches: bool = False
) -> Iterator[str]:
    """What this frontend needs and nginx does not have.

    balances: nginx is to be the router, too. dispatches: it is to choose a service for each request.
    """
    if dispatches and program.lua_modules is None:
        yield f"addresses need nginx's Lua module, to read the model that a request names; {LUA_CURE}"
    if balances and program.lua_modules is None:
        yield f"router.type: none needs nginx's Lua module, to balance with; {LUA_CURE}"
    if frontend.auth is not None and frontend.auth.keys_file is not None and program.lua_modules is None:
        yield f"frontend.auth.keys_file needs nginx's Lua module; {LUA_CURE}"
    if frontend.auth is not None and frontend.auth.keeps and program.lua_modules is None:
        yield f"frontend.auth.keep_s and stale_s need nginx's Lua module, to keep answers; {LUA_CURE}"
    for needed, setting, word in (
        (frontend.tls is not None, "tls", "--with-http_ssl_module"),
        (frontend.tls is not None and frontend.tls.http2, "tls.http2", "--with-http_v2_module"),
        (frontend.auth is not None and frontend.auth.url is not None, "auth.url", "--with-http_auth_request_module"),
        (bool(frontend.trusted_proxies), "trusted_proxies", "--with-http_realip_module"),
    ):
        if needed and word not in program.compiled:
            yield f"frontend.{setting} needs an nginx built {word}; use the distribution's"


def _frontend(name: str, frontend: FrontendSettings, stored: Path) -> Iterator[Finding]:
    """Its keys and its certificate, read as the daemon will. stored: the file of the store's keys."""
    try:
        if frontend.auth is not None and frontend.auth.keys_file == stored and not stored.exists():
            yield Finding(Level.OK, f"{name}: keys of the store, which this gateway has not read yet")
        elif frontend.auth is not None and frontend.auth.keys_file is not None:
            file = read_keys(frontend.auth.keys_file)
            keys = file.keys
            ends = [key.expires for key in keys.values()]
            expired = sum(1 for end in ends if end is not None and end <= today())
            yield Finding(
                Level.OK if len(keys) > expired else Level.WARN,
                f"{name}: {len(keys)} key{'s' * (len(keys) != 1)} in {frontend.auth.keys_file}"
                + (f", {expired} of them expired" if expired else ""),
            )
            words = {word for it in (*file.plans.values(), *(key.words for key in keys.values())) for word in it}
            if frontend.usage is None and (quotas := sorted(words & {"tokens_per_day", "tokens_per_month"})):
                text = (
                    f"{name}: {' and '.join(quotas)} begin anew with each start of nginx, as frontend.usage is not set"
                )
                yield Finding(Level.WARN, f"{text}; set it")
    except FrontendError as error:
        yield from (Finding(Level.FAIL, f"{name}: {problem}") for problem in error.problems)
    if frontend.tls is None:
        return
    if frontend.tls.client_ca is not None:
        try:
            _, authorities = read_client_ca(frontend.tls.client_ca, today())
            named = f"{counted(authorities, 'certificate')} of authorities in {frontend.tls.client_ca}"
            yield Finding(Level.OK, f"{name}: {named}")
        except FrontendError as error:
            yield from (Finding(Level.FAIL, f"{name}: {problem}") for problem in error.problems)
    if frontend.tls.acme:
        return
    if frontend.tls.store is not None and not frontend.tls.certificate_files[0].exists():
        yield Finding(Level.OK, f"{name}: {frontend.tls.named}, which this gateway has not read yet")
        return
    certificate, key = frontend.tls.certificate_files
    try:
        found = read_certificate(certificate, key, today())
    except FrontendError as error:
        yield from (Finding(Level.FAIL, f"{name}: {problem}") for problem in error.problems)
        return
    days = (found.expires_at - today()) / DAY_S
    soon = days <= frontend.tls.warn_days
    text = f"{name}: {frontend.tls.named} expires in {counted(days, 'day')}"
    yield Finding(Level.WARN if soon else Level.OK, f"{text}; renew it" if soon else text)
    for host in frontend.server_names:
        if not found.covers(host):
            yield Finding(
                Level.WARN, f"{name}: {frontend.tls.named} is not for {host}; get a certificate for that name"
            )


def _models_of_keys(address: AddressSettings) -> Iterator[Finding]:
    """Models that keys may use and that this address does not have: an old name, perhaps, or one to come."""
    auth = address.frontend.auth
    if auth is None or auth.keys_file is None:
        return
    try:
        file = read_keys(auth.keys_file)
    except FrontendError:
        return  # It is told of already.
    lists = {
        it["models"] for it in (*file.plans.values(), *(key.words for key in file.keys.values())) if "models" in it
    }
    wanted = {name for words in lists if words != NONE for name in words.split(",")}
    for name in sorted(wanted - address.models.keys())[:_FEW]:
        models = ", ".join(sorted(address.models))
        text = f"{auth.keys_file}: models: {show(name)} is no model of {address.name}, whose models are {models}"
        yield Finding(Level.WARN, f"{text}; correct the name, or remove it")


def acme_findings(settings: Settings) -> Iterator[Finding]:
    """The ACME server, as this machine reaches it now, and the names that it is to prove. Orders nothing."""
    frontends = {it.name: it.frontend for it in settings.all_addresses}
    names = {owner: it.server_names for owner, it in frontends.items() if it.tls is not None and it.tls.acme}
    if settings.acme is None or not names:
        return
    from gateway_sidecar.frontend.acme_client import read_directory, read_hmac_key  # Late: its libraries take 0.2 s.

    url = settings.acme.directory
    try:
        if settings.acme.eab is not None:
            read_hmac_key(settings.acme.eab.hmac_key_file)
        directory = read_directory(settings.acme)
        if directory.needs_eab and settings.acme.eab is None:
            yield Finding(Level.FAIL, f"acme.eab: {url} needs external account binding; give it")
        terms = f"; its terms of service, which acme.accept_terms accepts: {directory.terms}" if directory.terms else ""
        yield Finding(Level.OK, f"acme: {url} answers{terms}")
    except AcmeError as error:
        yield Finding(Level.FAIL, str(error) if str(error).startswith("acme.") else f"acme: {error}")
    for name in sorted({name for those in names.values() for name in those}):
        if not look_up(name):
            yield Finding(
                Level.WARN, f"acme: {name} has no address that this machine knows of; make the name lead here"
            )
    state = AcmeState(acme_in(settings.state_dir))
    for owner, those in names.items():
        held = state.read(Wanted.of(those, url), today())
        if held.validity is None:
            yield Finding(Level.WARN, f"{owner}: no certificate yet; start the daemon, which orders it")
        else:
            days = (held.validity.ends_at - today()) / DAY_S
            renewal = shown_at(held.renewal_at)
            late = held.validity.ends_at - today() < held.validity.last_s
            text = f"{owner}: the certificate by ACME expires in {counted(days, 'day')}; it is renewed {renewal}"
            yield Finding(Level.WARN if late else Level.OK, text)


async def _routers(settings: Settings) -> list[Finding]:
    """What each kind of router that is used says of its services'."""
    by_kind: dict[str, dict[str, RouterSettings]] = {}
    for service in settings.services:
        by_kind.setdefault(service.router.type, {})[service.name] = service.router
    return [finding for name, services in by_kind.items() for finding in await ROUTERS[name].check(services)]


def _ports(settings: Settings, running: Status | None, left: LeftRunning, *, assumed: bool) -> list[Finding]:
    """Whether all could be listened on. Of a running daemon's, those that its nginx does not have: no others change."""
    public = {it for s in settings.all_addresses for it in (s.listen, *s.frontend.listen, *s.frontend.redirect)}
    wanted = [(it.host, it.port) for it in sorted(public, key=str)]
    ours: frozenset[tuple[IPv4Address | IPv6Address, int]] = frozenset()
    if running is not None:
        ours = listening_at(running["nginx"]["pid"] or 0)
        if not ours:
            return []  # There is none, or we may not look into it.
        wanted = [(host, port) for host, port in wanted if (ip_address(host), port) not in ours]
    else:
        bridges = settings.bridges
        ports = range(bridges.ports.first, bridges.ports.last + 1)
        wanted += [(host, port) for host in (bridges.host, bridges.grpc_host) for port in ports]
        if settings.admin:
            wanted.append((settings.admin.listen.host, settings.admin.listen.port))
        if settings.metrics.listen:
            wanted.append((settings.metrics.listen.host, settings.metrics.listen.port))
    to_be_taken_up = frozenset().union(*(listening_at(pid) for pid in left.pids))
    busy = [each for each in busy_ports(wanted) if (ip_address(each[0]), each[1]) not in to_be_taken_up]
    privileged = [(host, port) for host, port, why in busy if assumed and why == "EACCES" and port < _UNPRIVILEGED]
    busy = [each for each in busy if each[:2] not in privileged]
    findings = [
        Finding(Level.FAIL, f"cannot listen on {bracketed(host)}:{port}: {in_its_own_way(host, port, ours) or why}")
        for host, port, why in busy[:10]
    ]
    cure = "needs CAP_NET_BIND_SERVICE; give it to the unit (AmbientCapabilities=, CapabilityBoundingSet=)"
    findings += [Finding(Level.WARN, f"listening on {bracketed(host)}:{port} {cure}") for host, port in privileged]
    if len(busy) > 10:
        findings.append(Finding(Level.FAIL, f"nor on {len(busy) - 10} further addresses"))
    if findings or not wanted:
        return findings
    how = "can be used: free, or of what an earlier daemon left" if left else "can be listened on"
    return [Finding(Level.OK, f"{counted(len(wanted), 'port')} {how}")]


async def _store(settings: Settings) -> list[Finding]:
    """Whether the store can be read as the daemon would read it."""
    if settings.store is None:
        return []
    from gateway_sidecar.control.fleet.build import name_of  # A gateway that works alone imports none of it.
    from gateway_sidecar.control.fleet.reflector import GATEWAYS

    own = name_of(settings.store)
    name, of_kind = settings.store.of_kind
    kind = STORES[name]
    store = kind.build(of_kind)
    try:
        snapshot = await store.read("")
    except StoreError as error:
        return [Finding(Level.FAIL, f"store: {kind.show(of_kind)}: {error}"), *_kept_in_store(settings, None)]
    finally:
        await store.close()
    verdict, count = judge(Memory(), snapshot), counted(len(snapshot.entries), "key")
    if verdict.refusal:
        return [Finding(Level.FAIL, f"store: {kind.show(of_kind)}: {verdict.refusal}; upgrade this gateway")]
    others = [it for it in gateways_in(snapshot, GATEWAYS) if it.name != own]
    differ = differences(alike_of(settings), others)
    text = f"store: {kind.show(of_kind)} can be read, and has {count} at revision {snapshot.revision}"
    return [
        Finding(Level.OK, text),
        *([Finding(Level.WARN, f"store: {differ}; give all gateways of the fleet the same")] if differ else []),
        *_kept_in_store(settings, snapshot),
    ]


def address_findings(settings: Settings) -> Iterator[Finding]:
    """Whether routers in a mesh can listen where the other gateways are to find them."""
    store = settings.store
    if store is None or store.address is None or not settings.in_mesh:
        return
    from gateway_sidecar.control.fleet.address import proved_ours  # A gateway that works alone imports none of it.

    try:
        proved_ours(store.address)
    except OSError as error:
        yield Finding(Level.FAIL, str(error))


def _kept_in_store(settings: Settings, snapshot: Snapshot | None) -> Iterator[Finding]:
    """Whether the certificates that services have of the store are there, and whether others may read their keys."""
    from gateway_sidecar.control.fleet.reflector import CERTIFICATES  # A gateway that works alone imports none of it.

    assert settings.store is not None
    name, of_kind = settings.store.of_kind
    tls = {it.name: it.frontend.tls for it in settings.all_addresses if it.frontend.tls is not None}
    for owner, each in tls.items():
        if each.store is not None and snapshot is not None and CERTIFICATES + each.store not in snapshot.entries:
            cure = f"put it there with `gateway-sidecar certificate put {each.store} --cert FILE --key FILE`"
            yield Finding(Level.WARN, f"{owner}: the store has no certificate '{each.store}'; {cure}")
    exposed = STORES[name].exposed(of_kind)
    if exposed and any(each.store is not None or each.acme for each in tls.values()):
        yield Finding(Level.WARN, f"store: private keys of certificates lie there, and {exposed}")


def _admin(settings: Settings) -> list[Finding]:
    """Whether the admin API could listen over TCP; nothing where it is not to."""
    if settings.admin is None:
        return []
    tls = settings.admin.tls
    try:
        read_tls(tls)
    except ConfigError as error:
        return [Finding(Level.FAIL, problem) for problem in error.problems]
    findings = [Finding(Level.OK, f"admin: {settings.admin.listen}, for clients with a certificate of {tls.client_ca}")]
    mode = stat.S_IMODE(Path(tls.key).stat().st_mode)
    if mode & 0o044:
        text = f"admin.tls.key: {tls.key} may be read by others (mode {mode:04o}); use chmod 0600"
        findings.append(Finding(Level.WARN, text))
    return findings


def root_findings() -> list[Finding]:
    """Root in a container is root of little."""
    if os.geteuid() != 0 or any(os.path.exists(mark) for mark in _CONTAINER):  # noqa: PTH110
        return []
    text = "a daemon that runs as root runs nginx and the routers as root, and these read what clients and engines send"
    return [
        Finding(
            Level.WARN,
            f"{text}; run the daemon, and this check, as a user of its own, such as the one that `install` makes",
        )
    ]


def _files(settings: Settings) -> list[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = hard if hard != resource.RLIM_INFINITY else 1 << 20
    public = {it for s in settings.all_addresses for it in (*s.frontend.listen, *s.frontend.redirect)}
    listening = len(settings.bridges.ports) + len(settings.all_addresses) + len(public)
    capacity = Capacity.within(limit, listening)
    text = f"{limit} open files allowed: room for {capacity.requests} requests at once in each nginx worker process"
    if capacity.requests < 16:
        return [Finding(Level.FAIL, f"{text}; raise it (systemd: LimitNOFILE=) or use a smaller bridges.ports")]
    if capacity.requests < 1024:
        return [Finding(Level.WARN, f"{text}; raise it (systemd: LimitNOFILE=)")]
    return [Finding(Level.OK, text)]


def _bridge_key(settings: Settings) -> list[Finding]:
    if settings.bridges.key_file is None:
        return []
    try:
        read_bridge_key(Path(settings.bridges.key_file))
    except NginxError as error:
        return [Finding(Level.FAIL, str(error))]
    return [Finding(Level.OK, f"bridges.key_file: {settings.bridges.key_file} holds a key")]


def _endpoints(service: ServiceSettings, bridge_host: str) -> Iterator[Finding]:
    """Whether each file of a service's replicas could be written, and nobody else can."""
    for file in service.endpoints:
        name, path = f"{service.name}: endpoints", Path(file.path)
        if path.is_dir() or not path.parent.is_dir():
            why = f"{path} is a directory" if path.is_dir() else f"there is no directory {path.parent}; make it"
            yield Finding(Level.FAIL, f"{name}: {why}")
            continue
        yield _directory(name, path.parent)
        if file.group is not None and (trouble := trouble_with_group(file.group)):
            yield Finding(Level.FAIL, f"{name}: {trouble}")
        if file.format == "llm-d" and ip_address(file.host or bridge_host).version != 4:
            yield Finding(Level.FAIL, f"{name}: llm-d knows IPv4 addresses only; set host to one")


def _directory(name: str, path: Path) -> Finding:
    # os.path.exists, as it does not raise for what lies behind a closed directory.
    nearest = next(p for p in (path, *path.parents) if os.path.exists(p))  # noqa: PTH110
    if not nearest.is_dir():
        return Finding(Level.FAIL, f"{name}: {nearest} is not a directory")
    try:
        owner = path.stat().st_uid if nearest == path else 0
        others = way_in_for_others(path)
    except OSError as error:
        return Finding(Level.FAIL, f"{name}: cannot look at {path}: {error.strerror}")
    if others is not None:
        cure = f"name another, or give it to user {os.geteuid()} alone"
        if owner not in ours():
            cure += f"; if the daemon is user {owner}'s: check --as {owner}"
        return Finding(Level.FAIL, f"{name}: {path}: {others}; {cure}")
    if nearest != path and os.access(nearest, os.W_OK | os.X_OK):
        return Finding(Level.OK, f"{name}: {path} will be made")
    if not os.access(nearest, os.W_OK | os.X_OK):
        return Finding(
            Level.FAIL, f"{name}: {nearest} is not writable for uid {os.geteuid()}; chown it, or choose another"
        )
    return Finding(Level.OK, f"{name}: {path} is writable")


def room_for_bodies(state_dir: Path, most_mb: int) -> list[Finding]:
    """Whether request bodies could fill the file system that they are kept on."""
    nearest = next(p for p in (state_dir, *state_dir.parents) if os.path.exists(p))  # noqa: PTH110
    free_mb = shutil.disk_usage(nearest).free // (1024 * 1024)
    if free_mb >= most_mb:
        return []
    text = (
        f"state_dir: {free_mb} MiB are free at {nearest}, and request bodies may take {most_mb}; set"
        " nginx.max_bodies_mb lower, or give it more room"
    )
    return [Finding(Level.WARN, text)]


def _access_log(settings: Settings) -> list[Finding]:
    """Whether its file could be written, or its syslog server is there; nothing where no service logs."""
    log, file = settings.access_log, settings.access_log.file(settings.state_dir)
    if all(it.frontend.access_log == "off" for it in settings.all_addresses):
        return []
    if log.syslog is not None:
        place = log.syslog.removeprefix("unix:")
        if place != log.syslog and not Path(place).is_socket():
            text = f"access_log.syslog: there is no socket {place}; start the syslog server, or name another socket"
            return [Finding(Level.FAIL, text)]
        return [Finding(Level.OK, f"access_log.syslog: lines go to {log.syslog}")]
    findings = [_directory("access_log.directory", file.parent)] if log.directory is not None else []
    nearest = next(p for p in (file.parent, *file.parents) if os.path.exists(p))  # noqa: PTH110
    free_mb = shutil.disk_usage(nearest).free // (1024 * 1024)
    if free_mb < log.most_mb:
        text = f"access_log: {free_mb} MiB are free at {nearest}, and its files may take {log.most_mb}"
        findings.append(Finding(Level.WARN, f"{text}; set max_mb or keep lower, or give it more room"))
    return findings or [Finding(Level.OK, f"access_log: lines go to {file}, at most {log.most_mb} MiB")]


async def _all_sightings(settings: Settings) -> list[Sighting]:
    """The replicas present now, of all sources; findings already name what is wrong with the rest."""
    found: list[Sighting] = []
    for service in settings.services:
        found += (await source_of(service, _given(service, settings)).look()).present.values()
    return found


def _peers(settings: Settings, sightings: list[Sighting]) -> list[Finding]:
    """Whether the addresses that replicas advertise could be claimed; nothing where none does."""
    advertised = sorted(set(_advertised(sightings)), key=str)
    if not advertised:
        return []
    networks = [ip_network(text) for text in settings.peers.networks]
    hosts = hosts_of([it.tunnel for it in sightings if it.tunnel is not None], settings.services, settings.addresses)
    needed = {address: what for host, what in hosts.items() for address in look_up(host)}
    addresses = PeerAddresses(ClaimRules(settings.peers.interface, networks, settings.run_dir), lambda: needed)
    findings = []
    for peer in advertised:
        try:
            reason = addresses.look(ip_address(peer.host)) or addresses.objections().get(ip_address(peer.host))
        except NginxError as error:
            return [Finding(Level.FAIL, f"peers: {error}")]
        level = Level.OK if reason is None else Level.FAIL
        findings.append(Finding(level, f"peers: {reason or f'{peer} may be claimed on {settings.peers.interface}'}"))
    if not has_capability(CAP_NET_ADMIN):
        text = (
            "peers: claiming addresses needs CAP_NET_ADMIN, which this user lacks; run gateway-sidecar install --peers"
        )
        findings.append(Finding(Level.WARN, text))
    return findings


def _advertised(sightings: list[Sighting]) -> Iterator[PeerAddress]:
    for sighting in sightings:
        peer = sighting.overrides.peer if sighting.overrides is not None else None
        if sighting.notes is not None:
            with suppress(ConfigError, OSError):  # It has been told of, or went while we looked.
                peer = _notes_of(sighting).peer
        if peer is not None and not peer.direct:
            yield peer


def _scaling(service: ServiceSettings) -> list[Finding]:
    scaling = service.scaling
    if scaling is None:
        return []
    words = f"{service.name}: {scaling.min} to {scaling.max} replicas are recommended, by {scaling.metric}"
    hook = scaling.hook
    if hook is None:
        return [Finding(Level.OK, f"{words}, target {scaling.target:g}; there is no hook")]
    if hook.command is not None and not os.access(hook.command[0], os.X_OK):
        text = f"scaling.hook.command: {hook.command[0]} is not an executable file for uid {os.geteuid()}"
        return [Finding(Level.FAIL, f"{service.name}: {text}; install it, or chmod +x")]
    return [Finding(Level.OK, f"{words}, target {scaling.target:g}; the hook is {hook.who}")]


def _notes_of(sighting: Sighting) -> Overrides:
    """What is noted beside a socket. Raises ConfigError, and OSError where the socket is gone."""
    assert sighting.notes is not None
    return load_overrides(sighting.notes.path, sighting.place.lstat().st_uid)


def _given(service: ServiceSettings, settings: Settings) -> Given:
    own = OwnSockets((settings.run_dir, settings.state_dir))
    return given_to(service, lambda tunnel: settings.run_dir / "tunnels" / tunnel.owner, own, ApiRecord())


async def _unfit(service: ServiceSettings, settings: Settings, running: Status | None) -> list[Finding]:
    """Replicas that the service's kind of router cannot take: as they are described, or as the running daemon knows
    them."""
    router = ROUTERS[service.router.type].build(service.router, service, Surroundings("", settings.run_dir))
    listing = await source_of(service, _given(service, settings)).look()
    said = {replica: _said_type(sighting) for replica, sighting in listing.present.items()}
    known = {str(replica): (worker_type, ConnectionMode.HTTP) for replica, worker_type in said.items() if worker_type}
    for served in running["services"] if running is not None else ():
        if served["name"] == service.name:
            for row in served["replicas"]:
                if row["worker_type"] and row["connection_mode"]:
                    known[row["id"]] = (WorkerType(row["worker_type"]), ConnectionMode(row["connection_mode"]))
    told: dict[str, list[str]] = {}
    for replica, (worker_type, mode) in sorted(known.items()):
        objection = router.objection(worker_type, mode)
        if objection is not None:
            told.setdefault(objection, []).append(replica)
    shown = {why: ", ".join([*names[:_FEW], *(["..."] if names[_FEW:] else [])]) for why, names in told.items()}
    return [Finding(Level.FAIL, f"{service.name}: replica {names}: {why}") for why, names in shown.items()]


def _said_type(sighting: Sighting) -> WorkerType | None:
    """The role that an inventory, or a file beside its socket, gives a replica."""
    if sighting.overrides is not None:
        return sighting.overrides.worker_type
    if sighting.notes is None:
        return None
    try:
        return _notes_of(sighting).worker_type
    except (ConfigError, OSError):
        return None  # It has been told of, or went while we looked.


def _access(sighting: Sighting) -> Iterator[Finding]:
    try:
        mode = stat.S_IMODE(sighting.socket.stat().st_mode)
    except OSError:
        return  # It went while we looked.
    if not os.access(sighting.socket, os.W_OK):
        yield Finding(
            Level.FAIL,
            f"no permission to connect to {sighting.socket} (mode {mode:04o}); "
            f"give uid {os.geteuid()} w on it and x on its directories",
        )


async def _replicas(service: ServiceSettings, settings: Settings) -> list[Finding]:
    """What the settings' sources list, and what their replicas need."""
    findings: list[Finding] = []
    for kind, value in used_by(service):
        if kind.setting is not None:
            listing = await kind.build(value, _given(service, settings)).look()
            findings += await asyncio.to_thread(_about_replicas, service, kind, value, listing)
    return findings


def _about_replicas(service: ServiceSettings, kind: SourceKind[Any], value: object, listing: Listing) -> list[Finding]:
    sightings = listing.present.values()
    tunnels = [it.tunnel for it in sightings if it.tunnel is not None]
    troubles = [trouble for trouble in (listing.blind, *listing.unseen.values()) if trouble]
    troubles += [*backend_troubles(tunnels), *file_troubles(tunnels)]
    found = [Finding(Level.FAIL, trouble) for trouble in troubles]
    refused = Level.WARN if kind.by_others else Level.FAIL
    found += [Finding(refused, f"'{name}' is refused: {reason}") for name, reason in listing.refused.items()]
    found += [finding for it in sightings if it.tunnel is None for finding in _access(it)]
    found += [Finding(Level.WARN, text) for text in kind.advise(value)]
    behind = f", {len(tunnels)} behind SSH servers" if tunnels else ""
    listed = f"{service.name}: {kind.name} lists {counted(len(sightings), 'replica')}{behind}"
    named = [Finding(it.level, f"{service.name}: {kind.name}: {it.text}") for it in found]
    notes = [finding for it in sightings if it.notes is not None for finding in _notes(it)]
    return [*named, *notes, *([Finding(Level.OK, listed)] if listing.blind is None else [])]


def _notes(sighting: Sighting) -> Iterator[Finding]:
    try:
        _notes_of(sighting)
    except ConfigError as error:
        yield from (Finding(Level.FAIL, problem) for problem in error.problems)
    except OSError:
        return  # It went while we looked.
