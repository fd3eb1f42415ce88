"""Mistakes between settings: two that must differ, or that contradict each other. They are found in the file's values,
not in finished settings, so that one run reports them together with mistakes in single settings. Values that are wrong
by themselves are skipped, because they have a problem line of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

from gateway_sidecar.config.addresses import parse_model
from gateway_sidecar.config.frontend import UsageSettings
from gateway_sidecar.config.frontend_values import parse_clients, parse_header, parse_prefix, parse_server_name
from gateway_sidecar.config.models import BridgeSettings, MetricsSettings, Settings
from gateway_sidecar.config.scaling import scaling_problems
from gateway_sidecar.config.values import (
    Endpoint,
    PortRange,
    hosts_clash,
    parse_bridge_host,
    parse_directory,
    parse_endpoint,
    parse_file,
    parse_name,
    parse_ports,
    show,
)
from gateway_sidecar.config.yamltree import Location, Problem, Tree, path_text
from gateway_sidecar.domain.claims import is_address
from gateway_sidecar.domain.similar import did_you_mean
from gateway_sidecar.kinds import ROUTERS, SOURCES

T = TypeVar("T")

ROUTER_HOST = "127.0.0.1"
PORTS_PER_ROUTER = 4
"""One for the API, one for metrics; twice, since two run side by side while one is replaced."""
PORTS_IN_MESH = 2
"""One for the routers of other gateways; twice."""

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class _Said(Generic[T]):
    """One valid value and where it stands; `line` is None for a default, which stands nowhere."""

    name: str
    line: int | None
    value: T

    def __str__(self) -> str:
        return f"{self.name} (line {self.line})" if self.line else f"{self.name} (default {self.value})"


def cross_problems(tree: Tree) -> Iterator[Problem]:
    """Every pair of settings that cannot both be."""
    said = _Reading(tree)
    listens = said.of_services(("listen",), parse_endpoint) + said.of_addresses(("listen",), parse_endpoint)
    listens += said.of_top(("metrics", "listen"), parse_endpoint, MetricsSettings().listen)
    listens += said.of_top(("admin", "listen"), parse_endpoint, None)
    frontends = list(_frontends(said))
    yield from _shared_addresses(frontends)
    for frontend in frontends:
        yield from _frontend_problems(tree, frontend)
        yield from _certificate_problems(tree, frontend, frontends)
    # Frontends that rightly share an address count once.
    listens += [
        address for number, frontend in enumerate(frontends) for address in frontend.own_addresses(frontends[:number])
    ]
    yield from _same_names(said.of_services(("name",), parse_name) + said.of_addresses(("name",), parse_name))
    yield from _models(tree, said)
    yield from _same_addresses(listens)
    yield from _ports(said, listens)
    yield from _replicas(said)
    yield from _not_for_clients(said)
    yield from _directories(said)
    yield from _same_files(said)
    yield from scaling_problems(tree)
    yield from _mesh_problems(tree, said)


class _Reading:
    """The valid values of a file that may be wrong elsewhere."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        services, addresses = (_at(tree.data, (name,)) for name in ("services", "addresses"))
        self.services = services if isinstance(services, list) else []
        self.addresses = addresses if isinstance(addresses, list) else []

    def of_top(self, location: Location, parse: Callable[[object], T], default: T | None) -> list[_Said[T]]:
        """One value, or none where the file has an unusable one or turns it off."""
        value = _at(self._tree.data, location)
        if value is not _ABSENT:
            return self._valid(location, parse, value)
        around = _at(self._tree.data, location[:-1])
        if default is None or not (around is _ABSENT or isinstance(around, dict)):
            return []
        return [_Said(path_text(location), None, default)]

    def of_services(self, location: Location, parse: Callable[[object], T]) -> list[_Said[T]]:
        """One setting's values over the services that have a valid one."""
        return self._of_each("services", self.services, location, parse)

    def of_addresses(self, location: Location, parse: Callable[[object], T]) -> list[_Said[T]]:
        """The same over the shared addresses."""
        return self._of_each("addresses", self.addresses, location, parse)

    def _of_each(self, name: str, items: list[Any], location: Location, parse: Callable[[object], T]) -> list[_Said[T]]:
        found: list[_Said[T]] = []
        for index, item in enumerate(items):
            found += self._valid((name, index, *location), parse, _at(item, location))
        return found

    def of(self, location: Location, parse: Callable[[object], T]) -> list[_Said[T]]:
        """One value below a list, if it is valid."""
        return self._valid(location, parse, _at_any(self._tree.data, location))

    def of_list(self, location: Location, parse: Callable[[object], T]) -> list[_Said[T]]:
        """The valid ones of a list's items; `location` leads to the list."""
        items = _at_any(self._tree.data, location)
        found: list[_Said[T]] = []
        for index, item in enumerate(items if isinstance(items, list) else []):
            found += self._valid((*location, index), parse, item)
        return found

    def _valid(self, location: Location, parse: Callable[[object], T], value: object) -> list[_Said[T]]:
        if value is _ABSENT or value is None:
            return []
        try:
            return [_Said(path_text(location), self._tree.line(location), parse(value))]
        except ValueError:
            return []


@dataclass(frozen=True, slots=True)
class _Frontend:
    """One service's `frontend` as far as it is valid."""

    where: Location
    said: dict[str, object]
    listen: list[_Said[Endpoint]]
    redirect: list[_Said[Endpoint]]
    names: list[_Said[str]]
    allow: list[_Said[str]]
    deny: list[_Said[str]]

    @property
    def has_tls(self) -> bool:
        return isinstance(self.said.get("tls"), dict)

    def addresses(self) -> list[tuple[str, _Said[Endpoint]]]:
        """Every public address, with what is spoken there."""
        spoken = "https" if self.has_tls else "http"
        if _at(self.said, ("tls", "http2")) is True:
            spoken = "https with http2"
        return [(spoken, it) for it in self.listen] + [("redirect", it) for it in self.redirect]

    def own_addresses(self, earlier: list[_Frontend]) -> list[_Said[Endpoint]]:
        """Those that no earlier service's frontend has."""
        taken = {it.value for frontend in earlier for _, it in frontend.addresses()}
        return [it for _, it in self.addresses() if it.value not in taken]


def _frontends(said: _Reading) -> Iterator[_Frontend]:
    places = [(("services", index), it) for index, it in enumerate(said.services)]
    places += [(("addresses", index), it) for index, it in enumerate(said.addresses)]
    for place, item in places:
        where: Location = (*place, "frontend")
        frontend = _at(item, ("frontend",))
        if isinstance(frontend, dict):
            yield _Frontend(
                where,
                frontend,
                said.of_list((*where, "listen"), parse_endpoint),
                said.of_list((*where, "redirect"), parse_endpoint),
                said.of_list((*where, "server_names"), parse_server_name),
                *(said.of_list((*where, name), parse_clients) for name in ("allow", "deny")),
            )


def _shared_addresses(frontends: list[_Frontend]) -> Iterator[Problem]:
    """Services may share a public address by their names alone, and only if they speak the same there."""
    for number, frontend in enumerate(frontends):
        for earlier in frontends[:number]:
            for spoken, here in frontend.addresses():
                for other, there in earlier.addresses():
                    if here.value != there.value:
                        continue
                    if spoken != other:
                        yield _at_line(here, f"{here.value} speaks {other} at {there}; use another address or port")
                    elif not (frontend.names and earlier.names):
                        cure = "give both services server_names, or each its own address or port"
                        yield _at_line(here, f"{here.value} is taken by {there}; {cure}")
                    else:
                        yield from _shared_names(here, frontend, earlier)


def _shared_names(address: _Said[Endpoint], frontend: _Frontend, earlier: _Frontend) -> Iterator[Problem]:
    for here in frontend.names:
        for there in earlier.names:
            if here.value == there.value:
                yield _at_line(here, f"{here.value} is {there} at {address.value} too; give each service its own names")


def _frontend_problems(tree: Tree, frontend: _Frontend) -> Iterator[Problem]:
    def problem(text: str, *below: str | int) -> Problem:
        location = (*frontend.where, *below)
        return Problem(tree.line(location), path_text(location), text)

    if frontend.redirect and not frontend.has_tls:
        yield problem("redirects to HTTPS, and this frontend has no TLS; give tls as well", "redirect")
    if frontend.redirect and not frontend.listen:
        yield problem("redirects to HTTPS, and no address speaks HTTPS; give listen as well", "redirect")
    if frontend.has_tls and not frontend.listen:
        yield problem("is for public addresses, and this frontend has none; give listen as well", "tls")
    if frontend.names and not frontend.listen:
        yield problem("are for public addresses, and this frontend has none; give listen as well", "server_names")
    for here, there in _first_pairs(frontend.allow + frontend.deny, str.__eq__):
        yield _at_line(here, f"{here.value} is {there} too; name it once")
    auth = frontend.said.get("auth")
    if _at(frontend.said, ("tls", "client_certificates")) == "optional" and auth is None:
        text = "'optional' certificates take the place of a key, and there is no auth; give auth, or use required"
        yield problem(text, "tls", "client_certificates")
    has_keys = isinstance(auth, dict) and (auth.get("keys_file") is not None or auth.get("store") is True)
    if isinstance(auth, dict) and auth.get("store") is True and _at(tree.data, ("store",)) in (_ABSENT, None):
        yield problem("is for the keys of a store, and this gateway has none; give store at the top", "auth", "store")
    limits = frontend.said.get("limits")
    for index, limit in enumerate(limits if isinstance(limits, list) else []):
        if isinstance(limit, dict) and limit.get("per") == "key" and not has_keys:
            text = (
                "clients have keys only with auth.keys_file or auth.store; give one of them, or use ip or header:NAME"
            )
            yield problem(text, "limits", index, "per")


def _mesh_problems(tree: Tree, said: _Reading) -> Iterator[Problem]:
    """A mesh is between gateways, by workers' URLs: each must mean the same replica at all of them."""
    for index, service in enumerate(said.services):
        if _at(service, ("router", "mesh")) is not True:
            continue
        where: Location = ("services", index, "router", "mesh")

        def problem(text: str, where: Location = where) -> Problem:
            return Problem(tree.line(where), path_text(where), text)

        if _at(tree.data, ("store",)) in (_ABSENT, None):
            yield problem(
                "is between gateways that share a store, and this one has none; give store, or leave mesh out"
            )
        replicas = _at(service, ("replicas",))
        local = [it for it in replicas if it != "ssh_defaults" and replicas[it]] if isinstance(replicas, dict) else []
        if local:
            yield problem(
                f"is for replicas that all gateways have, and {', '.join(map(str, local))} in `replicas` names this"
                " machine's own; put them over the API (`replicas: {}`), or leave mesh out"
            )


def _certificate_problems(tree: Tree, frontend: _Frontend, frontends: list[_Frontend]) -> Iterator[Problem]:
    """What a certificate from files needs, one from the store, and one by ACME: a name is proved over HTTP, at a
    redirect address.
    """
    tls = frontend.said.get("tls")
    if not isinstance(tls, dict):
        return

    def problem(text: str, *below: str) -> Problem:
        location = (*frontend.where, "tls", *below)
        return Problem(tree.line(location), path_text(location), text)

    if not isinstance(tls.get("acme", False), bool):
        return
    if tls.get("store") is not None:
        for other in ("certificate", "key", "acme"):
            if tls.get(other):
                yield problem("has no meaning with `store`, which has the certificate; leave one of the two out", other)
        if _at(tree.data, ("store",)) in (_ABSENT, None):
            yield problem("is for a certificate of a store, and this gateway has none; give store at the top", "store")
        return
    if tls.get("acme") is not True:
        for file, example in (("certificate", "fullchain.pem"), ("key", "privkey.pem")):
            if file not in tls:
                cure = f"add it, for example `{file}: /etc/ssl/{example}`, or have `acme: true`"
                yield problem(f"is missing; {cure}", file)
        return
    for file in ("certificate", "key"):
        if tls.get(file) is not None:
            yield problem(
                "has no meaning with `acme: true`, which brings its own certificate; leave one of the two out", file
            )
    if _at(tree.data, ("acme",)) in (_ABSENT, None):
        yield problem("needs an ACME server; add `acme` with its `directory` at the top of the file", "acme")
    if not frontend.said.get("server_names"):
        yield problem("needs the names for which the certificate is ordered; give server_names", "acme")
    proved = {it.value for other in frontends if other.redirect for it in other.names}
    for name in frontend.names:
        if name.value.startswith("*."):
            cure = "name each host, or give certificate and key in place of acme"
            yield _at_line(name, f"{name.value}: a wildcard cannot be proved over HTTP (HTTP-01); {cure}")
        elif is_address(name.value):
            cure = "use a host name, or give certificate and key in place of acme"
            yield _at_line(
                name, f"{name.value} is an IP address, and certificates are ordered only for host names; {cure}"
            )
        elif name.value not in proved:
            cure = "give redirect, such as 0.0.0.0:80 and [::]:80"
            yield problem(f"needs an address where the ACME server finds {name.value} over HTTP; {cure}", "acme")


def _same_names(names: list[_Said[str]]) -> Iterator[Problem]:
    for here, there in _first_pairs(names, str.__eq__):
        yield _at_line(here, f"{here.value!r} is taken by {there}; give each service its own name")


def _same_addresses(listens: list[_Said[Endpoint]]) -> Iterator[Problem]:
    for here, there in _first_pairs(listens, Endpoint.clashes):
        yield _at_line(here, f"{here.value} is taken by {there}; give each its own address or port")


def _ports(said: _Reading, listens: list[_Said[Endpoint]]) -> Iterator[Problem]:
    bridges = said.of_top(("bridges", "ports"), parse_ports, BridgeSettings().ports)
    routers = said.of_top(("router_ports",), parse_ports, _default("router_ports"))
    http, grpc = (
        said.of_top(("bridges", name), parse_bridge_host, default)
        for name, default in (("host", BridgeSettings().host), ("grpc_host", BridgeSettings().grpc_host))
    )
    for mine, its in zip(http, grpc, strict=False):
        if mine.value == its.value:
            at, taken_by = _blame(mine, its)
            yield _at_line(at, f"{at.value} is taken by {taken_by}; give each its own address, such as 127.0.0.2")
    bridge_hosts = [host.value for host in (*http, *grpc)]
    for ports, host in [
        *((ports, host) for ports in bridges for host in bridge_hosts),
        *((ports, ROUTER_HOST) for ports in routers),
    ]:
        yield from _listens_in_range(listens, ports, host)
    for bridge in bridges:
        for router in routers:
            if bridge.value.overlaps(router.value):
                here, there = _blame(bridge, router)
                yield _at_line(here, f"{here.value} overlaps {there}; use ranges with no port in common")
    in_mesh = sum(_at(service, ("router", "mesh")) is True for service in said.services)
    needed = PORTS_PER_ROUTER * len(said.services) + PORTS_IN_MESH * in_mesh
    each = f"{PORTS_PER_ROUTER} for each" + (f", and {PORTS_IN_MESH} more for each with router.mesh" if in_mesh else "")
    for router in routers:
        if len(router.value) < needed:
            few = f"{router.value} is too small for {len(said.services)} services"
            yield _at_line(router, f"{few}; use at least {needed} ports, {each}")


def _listens_in_range(listens: list[_Said[Endpoint]], ports: _Said[PortRange], host: str) -> Iterator[Problem]:
    for listen in listens:
        if listen.value.port in ports.value and hosts_clash(listen.value.host, host):
            if listen.line is None:
                yield _at_line(ports, f"{ports.value} holds the port of {listen}; move one of them")
            else:
                where = ports if ports.line is None else f"{ports}, {ports.value}"
                yield _at_line(listen, f"{listen.value} lies in {where}; use a port outside that range")


def _not_for_clients(said: _Reading) -> Iterator[Problem]:
    """What a frontend would pass, and this kind of router does not have for clients."""
    for index, service in enumerate(said.services):
        kind = ROUTERS.named_in(_at(service, ("router",)))
        if kind is None:
            continue
        if _at(service, ("engine",)) == "http" and kind.applications is None:
            text = f"a router of kind {kind.name} serves inference engines alone; use `router: {{type: none}}`"
            for engine in said.of(("services", index, "engine"), str):
                yield _at_line(engine, f"'http' is any HTTP application, and {text}")
        if _at(service, ("engine",)) == "http":
            for usage in said.of(("services", index, "frontend", "usage"), UsageSettings.model_validate):
                text = "an HTTP application (engine: http) reports no tokens, so nothing could be counted"
                yield _at_line(usage, f"{text}; leave usage out")
        yield from _not_for_clients_of(said, ("services", index, "frontend"), [kind])
    for index, address in enumerate(said.addresses):
        named = {name for _, name in _services_of(address)}
        kinds = [ROUTERS.named_in(_at(it, ("router",))) for it in said.services if _at(it, ("name",)) in named]
        yield from _not_for_clients_of(said, ("addresses", index, "frontend"), [it for it in kinds if it is not None])


def _not_for_clients_of(said: _Reading, where: Location, kinds: list[Any]) -> Iterator[Problem]:
    """The same for one frontend, and the kinds of routers behind it."""
    steering = {
        it.headers.bridge_key.lower(): "shows the bridges the gateway's own key"
        for it in ROUTERS
        if it.headers.bridge_key
    }
    for kind in kinds:
        steering |= kind.headers.steering
    controls = {control for kind in kinds for control in kind.paths.control}
    for path in said.of_list((*where, "paths"), parse_prefix):
        if any(f"{path.value.lower()}/".startswith(f"{control}/") for control in controls):
            text = "controls the router, so no frontend lets it pass; leave it out"
            yield _at_line(path, f"{show(path.value)} {text}")
    for header in said.of_list((*where, "pass_headers"), parse_header):
        does = steering.get(header.value.lower())
        if does is not None:
            yield _at_line(header, f"{show(header.value)} {does}, which is not for clients; leave it out")


def _models(tree: Tree, said: _Reading) -> Iterator[Problem]:
    """Names that no request could say, and services that do not exist or that no model is asked of."""
    known = {name: it for it in said.services if isinstance(name := _at(it, ("name",)), str)}
    for index, address in enumerate(said.addresses):
        models = _at(address, ("models",))
        for name in models if isinstance(models, dict) else ():
            try:
                parse_model(name)
            except ValueError as error:
                where: Location = ("addresses", index, "models", name)
                yield Problem(tree.line(where), path_text(where), str(error))
        for below, name in _services_of(address):
            where = ("addresses", index, *below)
            if name not in known:
                cure = did_you_mean(name, known) or f"use one of {', '.join(known)}"
                yield Problem(tree.line(where), path_text(where), f"there is no service {show(name)}; {cure}")
            elif _at(known[name], ("engine",)) == "http":
                text = f"service {name} is an HTTP application (engine: http) and has no models; leave it out"
                yield Problem(tree.line(where), path_text(where), text)


def _services_of(address: object) -> Iterator[tuple[Location, str]]:
    """Where a shared address names a service, and which."""
    models = _at(address, ("models",))
    places: list[Location] = [("default",)]
    for name in models if isinstance(models, dict) else ():
        here: Location = ("models", name)
        services = _at_any(models, (name, "services"))
        count = len(services) if isinstance(services, list) else 0
        places += [here, (*here, "service"), (*here, "fallback"), (*here, "fallback", "service")]
        places += [(*here, "services", number, "service") for number in range(count)]
    for place in places:
        if isinstance(name := _at_any(address, place), str):
            yield place, name


def _replicas(said: _Reading) -> Iterator[Problem]:
    """What sources of two services both name, or name of the daemon's own."""
    run_dirs = said.of_top(("run_dir",), parse_directory, _default("run_dir"))
    for kind in SOURCES:
        if kind.setting is None:
            continue
        values = said.of_services(("replicas", kind.name), _adapter(kind.setting[0]).validate_python)
        for number, here in enumerate(values):
            pairs = [(there, kind.clash(here.value, there.value)) for there in values[:number]]
            for there, text in [(there, text) for there, text in pairs if text is not None][:1]:
                yield _at_line(here, f"{here.value} and {there} {text}")
            for run_dir in run_dirs:
                yield from (_at_line(here, f"{here.value} {it}") for it in kind.objections(here.value, run_dir.value))


_adapter = functools.cache(TypeAdapter)
"""Made once for each type: that takes longer than all else that is done with a file."""


def _directories(said: _Reading) -> Iterator[Problem]:
    for state in said.of_top(("state_dir",), parse_directory, _default("state_dir")):
        for run in said.of_top(("run_dir",), parse_directory, _default("run_dir")):
            if state.value == run.value:
                here, there = _blame(state, run)
                text = f"{here.value} is {there} too; use two directories, as run_dir is emptied at boot"
                yield _at_line(here, text)


def _same_files(said: _Reading) -> Iterator[Problem]:
    """Two services, or two formats, in one file."""
    files: list[_Said[str]] = []
    for index, service in enumerate(said.services):
        listed = _at(service, ("endpoints",))
        for number in range(len(listed) if isinstance(listed, list) else 0):
            files += said.of_top(("services", index, "endpoints", number, "path"), parse_file, None)
    for here, there in _first_pairs(files, lambda one, other: one == other):
        yield _at_line(here, f"{here.value} is {there} too; give each its own file")


def _first_pairs(all_said: list[_Said[T]], same: Callable[[T, T], bool]) -> Iterator[tuple[_Said[T], _Said[T]]]:
    """Each one that is the same as an earlier one, with the first such; a default comes before all."""
    in_order = sorted(all_said, key=lambda said: said.line or 0)
    for index, here in enumerate(in_order):
        there = next((earlier for earlier in in_order[:index] if same(earlier.value, here.value)), None)
        if there is not None:
            yield here, there


def _blame(one: _Said[T], other: _Said[T]) -> tuple[_Said[T], _Said[T]]:
    """The one to report, and the one to point at: a default is never at fault, and a first comer neither."""
    return (other, one) if (one.line or 0) <= (other.line or 0) else (one, other)


def _at_line(said: _Said[Any], text: str) -> Problem:
    return Problem(said.line, said.name, text)


def _at_any(data: object, location: Location) -> object:
    """As `_at`, through lists as well."""
    for part in location:
        if isinstance(part, int):
            if not isinstance(data, list) or part >= len(data):
                return _ABSENT
            data = data[part]
        else:
            data = _at(data, (part,))
    return data


def _at(data: object, location: Location) -> object:
    for part in location:
        if not isinstance(data, dict) or part not in data:
            return _ABSENT
        data = data[part]
    return data


def _default(name: str) -> Any:
    return Settings.model_fields[name].default
