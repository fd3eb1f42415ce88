"""Warnings: settings that are allowed but likely to cause trouble."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from gateway_sidecar.config.frontend import FrontendSettings
from gateway_sidecar.config.frontend_values import ALL_PATHS
from gateway_sidecar.config.models import Settings
from gateway_sidecar.config.values import Endpoint, PortRange
from gateway_sidecar.domain.routing import RouterPaths
from gateway_sidecar.kinds import ROUTERS, STORES

_HTTP_PORT = 80  # RFC 8555, 8.3: an ACME server asks there, and nowhere else.
_GUARDS = ("auth", "limits", "allow", "deny", "mcp_servers", "paths")
_PLAIN = FrontendSettings()
_NOTHING = "matches no path that passes here, so this has no effect; check its spelling and frontend.paths"


def advise(settings: Settings, ephemeral: PortRange | None) -> list[str]:
    """One line, `setting: what is unwise; cure`, for each thing that a person should know.

    `ephemeral` is the kernel's range for outgoing connections (`net.ipv4.ip_local_port_range`), or None where
    it is not known.
    """
    warnings: list[str] = []
    if ephemeral is not None:
        cure = f"move it out, or shrink net.ipv4.ip_local_port_range ({ephemeral})"
        for name, ports in [
            ("bridges.ports", settings.bridges.ports),
            ("router_ports", settings.router_ports),
        ]:
            if ports.overlaps(ephemeral):
                warnings.append(f"{name}: any outgoing connection may take a port of {ports} first; {cure}")
    for name, host, cure in (
        ("host", settings.bridges.host, "127.0.0.1"), ("grpc_host", settings.bridges.grpc_host, "127.0.0.2"),
    ):  # fmt: skip
        if not ipaddress.ip_address(host).is_loopback and (settings.bridges.key_file is None or name == "grpc_host"):
            warnings.append(
                f"bridges.{name}: the bridges are for the router on this machine alone, and {host} is open to others;"
                f" use {cure}"
            )
    for index, service in enumerate(settings.services):
        if service.health.timeout_s > service.health.interval_s:
            warnings.append(
                f"services[{index}].health: timeout_s {service.health.timeout_s:g} is longer than interval_s "
                f"{service.health.interval_s:g}, so health questions come late; make timeout_s shorter"
            )
        if service.endpoints and settings.bridges.key_file is None:
            warnings.append(
                f"services[{index}].endpoints: the bridges answer 403 to routers that the daemon does not run; set"
                " bridges.key_file"
            )
        where, known = f"services[{index}].frontend", ROUTERS[service.router.type].paths_of(service)
        warnings += _frontend_advice(where, service.frontend, known)
        warnings += _listen_advice(f"services[{index}]", service.listen, service.frontend, ephemeral)
    warnings += _mesh_advice(settings)
    kinds = {service.name: ROUTERS[service.router.type].paths_of(service) for service in settings.services}
    frontends = {f"services[{index}].frontend": it.frontend for index, it in enumerate(settings.services)}
    frontends |= {f"addresses[{index}].frontend": it.frontend for index, it in enumerate(settings.addresses)}
    for where, frontend in frontends.items():
        if frontend.tls is not None and frontend.tls.acme:
            warnings += _acme_advice(where, frontend, list(frontends.values()))
    for index, address in enumerate(settings.addresses):
        where = f"addresses[{index}]"
        known = RouterPaths.of_all(kinds[name] for name in address.services)
        warnings += _frontend_advice(f"{where}.frontend", address.frontend, known)
        warnings += _listen_advice(where, address.listen, address.frontend, ephemeral)
        behind = {it.name: it.frontend for it in settings.services if it.name in address.services}
        warnings += _unheeded(where, address.frontend, behind)
    return warnings


def _mesh_advice(settings: Settings) -> list[str]:
    """Whether other gateways would find this one's routers."""
    store = settings.store
    if store is None or not settings.in_mesh:
        return []
    kind, of_kind = store.of_kind
    hosts = [store.address] if store.address else [host for host, _ in STORES[kind].places(of_kind)][:1]
    if not any(_is_loopback(host) for host in hosts):
        return []
    cure = "set store.address to one that they reach"
    why = f"other gateways cannot reach this one's routers at {hosts[0]}, which is each machine's own"
    return [f"services[{settings.in_mesh[0]}].router.mesh: {why}; {cure}"]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _unheeded(where: str, frontend: FrontendSettings, behind: Mapping[str, FrontendSettings]) -> list[str]:
    """What services refuse, or let pass, at their own addresses, of which the shared one says nothing."""
    warnings = []
    for service, own in behind.items():
        unsaid = [part for part in _GUARDS if getattr(frontend, part) == getattr(_PLAIN, part)]
        parts = [part for part in unsaid if getattr(own, part) != getattr(_PLAIN, part)]
        if parts:
            warnings.append(
                f"{where}.frontend: {', '.join(parts)} of {service}'s own frontend do not hold here; set what is to"
                f" hold in {where}.frontend, too"
            )
    return warnings


def _listen_advice(where: str, listen: Endpoint, frontend: FrontendSettings, ephemeral: PortRange | None) -> list[str]:
    """What the stable address of a service, or a shared one, should be."""
    warnings = []
    if ephemeral is not None and listen.port in ephemeral:
        cure = f"move it out, or shrink net.ipv4.ip_local_port_range ({ephemeral})"
        warnings.append(f"{where}.listen: any outgoing connection may take port {listen.port} first; {cure}")
    if frontend.auth is not None and not ipaddress.ip_address(listen.host).is_loopback:
        warnings.append(
            f"{where}.listen: {listen} speaks HTTP, so keys are readable on the way;"
            " use 127.0.0.1 here, and frontend.listen with tls for others"
        )
    return warnings


def _acme_advice(where: str, frontend: FrontendSettings, frontends: Sequence[FrontendSettings]) -> list[str]:
    """Whether an ACME server can prove the names: it connects to port 80 of each (RFC 8555, 8.3)."""
    names = set(frontend.server_names)
    redirects = [address for it in frontends if names & set(it.server_names) for address in it.redirect]
    if redirects and all(ipaddress.ip_address(it.host).is_loopback for it in redirects):
        return [f"{where}.redirect: no ACME server elsewhere reaches {redirects[0]}; use 0.0.0.0:80 and [::]:80"]
    if all(it.port != _HTTP_PORT for it in redirects):
        cure = f"use port {_HTTP_PORT}, or have it forwarded"
        return [f"{where}.redirect: ACME servers connect to port {_HTTP_PORT}, not {redirects[0].port}; {cure}"]
    return []


def _frontend_advice(where: str, frontend: FrontendSettings, known: RouterPaths) -> list[str]:
    """What an address that others can reach should have."""
    warnings = []
    public = [it for it in frontend.listen if not ipaddress.ip_address(it.host).is_loopback]
    if public and frontend.tls is None:
        warnings.append(f"{where}.tls: {public[0]} speaks HTTP, so keys and prompts are readable on the way; give tls")
    if public and frontend.auth is None and not frontend.allow and not (frontend.tls and frontend.tls.client_ca):
        warnings.append(f"{where}.auth: anyone who reaches {public[0]} may use the engines; give auth")
    for number, limit in enumerate(frontend.limits):
        if limit.per.startswith("header:") and not frontend.trusted_proxies:
            name = f"{where}.limits[{number}].per"
            warnings.append(f"{name}: clients choose what they send in a header; have a trusted proxy set it")
        if limit.path is not None and not _something_passes(limit.path, frontend.paths, known):
            warnings.append(f"{where}.limits[{number}].path: {limit.path} {_NOTHING}")
    routes = replace(known, inference=(*known.inference, *known.fleet))
    warnings += [
        f"{where}.paths: {path} is no route of this kind of router, which will answer 404; check its spelling"
        for path in frontend.paths
        if path != ALL_PATHS and not _something_passes(path, (), routes)
    ]
    public_paths = frontend.auth.public_paths if frontend.auth is not None else ()
    warnings += [
        f"{where}.auth.public_paths: {path} {_NOTHING}"
        for path in public_paths
        if not _something_passes(path, frontend.paths, known)
    ]
    return warnings


def _something_passes(path: str, more: Sequence[str], known: RouterPaths) -> bool:
    """Whether a request to this path, or to one below it, can pass; `more` is what passes beside inference."""
    if known.anything:
        return True
    if more == (ALL_PATHS,) and re.match(known.versioned + r"(/|\Z)", path):
        return True
    wanted = path.split("/")
    passing = [(it.removesuffix("/**").split("/"), it.endswith("/**")) for it in known.inference]
    passing += [(it.split("/"), True) for it in more]
    return any(
        all(theirs in (ours, "*") for theirs, ours in zip(parts, wanted, strict=False))
        and (has_below or len(wanted) <= len(parts))
        for parts, has_below in passing
    )
