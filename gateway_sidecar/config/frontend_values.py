"""The small values that a frontend is made of: names, path prefixes, networks, URLs, origins.

Each `parse_*` is like those of `values`: the value, or `ValueError` with what is wrong and the cure.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway_sidecar.config.values import NotTextError, parse_endpoint, show

ALL_PATHS = "all"

ANY, PUBLIC = "any", "public"

AUTO = "auto"

ORIGIN = (
    r"\*|https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?"
    r"|(?!https?:)[a-z][a-z0-9+.-]*://([A-Za-z0-9._-]+|\[[0-9a-f:.]+\])?(:[0-9]{1,5})?"
)
"""Browsers write web pages' hosts in lower case. Extensions and apps (`app://`, `tauri://`, `file://`) have schemes of
their own, and ids or nothing for hosts."""

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_HEADER = r"[A-Za-z][A-Za-z0-9-]{0,63}"
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_PREFIX = r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+"
_OWN_HEADERS = frozenset(
    {"authorization", "x-api-key", "api-key", "host", "connection", "upgrade", "content-length", "cookie"}
    | {"transfer-encoding", "te", "keep-alive", "expect", "forwarded", "x-real-ip"}
)


@dataclass(frozen=True, slots=True)
class AuthUrl:
    """Where nginx asks whether a request may pass. `address` is `IP:PORT`."""

    address: str
    path: str

    def __str__(self) -> str:
        return f"http://{self.address}{self.path}"


def parse_stored_name(value: object) -> str:
    """The name of something in the store."""
    cure = "use letters, digits and . _ -, 64 at most, such as api"
    if not isinstance(value, str):
        raise NotTextError(cure)
    if not re.fullmatch(NAME, value):
        raise ValueError(f"{show(value)} is not a name; {cure}")
    return value


def parse_server_name(value: object) -> str:
    """A host name in lower case, perhaps with `*.` before it."""
    cure = "use a host name such as api.example.com, or *.example.com"
    text = _text(value, cure).lower()
    if not re.fullmatch(rf"(\*\.)?{_LABEL}(\.{_LABEL})*", text) or len(text) > 253:
        raise ValueError(f"{show(value)} is not a host name; {cure}")
    return text


def parse_prefix(value: object) -> str:
    """A path such as `/v1/files`, which stands for itself and for all below it."""
    cure = "use an absolute path of letters, digits and - _ . ~, for example /v1/files"
    text = _text(value, cure)
    if not re.fullmatch(_PREFIX, text):
        raise ValueError(f"{show(text)} is not a path that can be matched; {cure}, without a slash at its end")
    return text


def parse_paths(value: object) -> tuple[str, ...]:
    """`all`, or a list of prefixes."""
    if value == ALL_PATHS:
        return (ALL_PATHS,)
    if not isinstance(value, list | tuple):
        raise ValueError(f"{show(value)} is neither a list of paths nor the word {ALL_PATHS}; use one of the two")  # noqa: TRY004
    return tuple(parse_prefix(item) for item in value)


def parse_ready_path(value: object) -> str:
    """`auto`, or one path, which no request for inference has."""
    if value == AUTO:
        return AUTO
    path = parse_prefix(value)
    if path == "/v1" or path.startswith("/v1/"):
        raise ValueError(f"{show(path)} is where requests for inference go; use a path outside /v1, such as /readyz")
    return path


def parse_network(value: object) -> str:
    """An IP address or network, as nginx's `set_real_ip_from` takes it."""
    cure = "use an IP address or a network, for example 10.0.0.0/8"
    text = _text(value, cure)
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{show(text)} is not a network; {cure}") from None
    if "%" in text:
        raise ValueError(f"{show(text)} is not a network: nginx knows no zones; {cure}")
    if network.prefixlen == 0:
        raise ValueError(
            f"{show(text)} would believe every client's own word about its address; name the proxies' own networks"
        )
    return str(network)


def parse_client_name(value: object) -> str:
    """The common name of a client's certificate, of characters that nothing escapes."""
    cure = "use the CN of its subject: up to 64 letters, digits, spaces and @ . _ -"
    text = _text(value, cure)
    if not re.fullmatch(r"[A-Za-z0-9@]([A-Za-z0-9 @._-]{0,62}[A-Za-z0-9@._-])?", text):
        raise ValueError(f"{show(text)} is not a name that certificates can be told apart by; {cure}")
    return text


def parse_clients(value: object) -> str:
    """The network of some clients, or the address of one: canonical, as nginx's `geo` and `ipaddress` both read it."""
    cure = "use an IP address or a network, for example 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32"
    text = _text(value, cure)
    # Masks (10.0.0.0/255.0.0.0), zones (fe80::1%eth0) and ranges are what one reader takes and another does not.
    if not re.fullmatch(r"[0-9A-Fa-f.:]+(/[0-9]{1,3})?", text):
        raise ValueError(f"{show(text)} is not an address or network; {cure}")
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{show(text)} is not an address or network; {cure}") from None
    if network.network_address != ipaddress.ip_address(text.partition("/")[0]):
        alone = text.partition("/")[0]
        raise ValueError(f"{show(text)} sets bits of a host behind its mask; use {network}, or {alone} for one address")
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ValueError(
            f"{show(text)} is an IPv4 address in IPv6's form, and such clients count as IPv4; use IPv4's own form"
        )
    return str(network)


def parse_origin(value: object) -> str:
    """`*`, or an origin as browsers send it."""
    cure = "use scheme, host and port only, for example https://chat.example.com or chrome-extension://ID, or *"
    text = _text(value, cure)
    if not re.fullmatch(ORIGIN, text):
        raise ValueError(f"{show(text)} is not an origin as browsers send it; {cure}")
    if text.endswith({"http": ":80", "https": ":443"}.get(text.partition("://")[0], " ")):
        raise ValueError(f"{show(text)} has a port that browsers leave out; use {show(text.rpartition(':')[0])}")
    return text


def parse_auth_url(value: object) -> AuthUrl:
    """`http://IP:PORT/path`. nginx looks names up once, when it starts, and would not start without an answer."""
    if isinstance(value, AuthUrl):
        return value
    cure = "use http://IP:PORT/path, for example http://127.0.0.1:4180/auth"
    text = _text(value, cure)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{show(text)} is not a URL ({error}); {cure}") from None
    if parts.scheme != "http":
        raise ValueError(f"{show(text)} is not an http URL; {cure}, on this machine or in its network")
    if (
        parts.username is not None
        or parts.query
        or parts.fragment
        or not re.fullmatch(r"[A-Za-z0-9._~/-]*", parts.path)
    ):
        raise ValueError(f"{show(text)} holds more than an address and a plain path; {cure}")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return AuthUrl(str(parse_endpoint(f"{host}:{port or 80}")), parts.path or "/")


def parse_header(value: object) -> str:
    """The name of an HTTP header that has no other meaning."""
    cure = "use letters, digits and -, for example X-Api-Key-Name"
    text = _text(value, cure)
    if not re.fullmatch(_HEADER, text):
        raise ValueError(f"{show(text)} is not a header's name; {cure}")
    if text.lower() in _OWN_HEADERS or text.lower().startswith("x-forwarded-"):
        raise ValueError(f"{show(text)} has a meaning of its own; {cure}")
    return text


def parse_per(value: object) -> str:
    """What requests are counted by: `key`, `ip`, or `header:NAME`."""
    cure = "use key, ip or header:NAME, for example header:X-Tenant"
    text = _text(value, cure)
    kind, colon, name = text.partition(":")
    if kind == "header" and colon:
        return f"header:{parse_header(name)}"
    if text not in ("key", "ip"):
        raise ValueError(f"{show(text)} cannot tell requests apart; {cure}")
    return text


def _text(value: object, cure: str) -> str:
    if not isinstance(value, str):
        raise NotTextError(cure)
    return value


def parse_mcp_servers(value: object) -> tuple[str, ...]:
    """`any`, or hosts that a request may name as MCP servers: names, `*.NAME`, addresses, and `public` for the rest."""
    cure = f"use {ANY}, or a list of hosts such as [{PUBLIC}, mcp.example.com, '*.tools.example.com', 10.0.0.5]"
    if value in (ANY, (ANY,)):
        return (ANY,)
    if not isinstance(value, list | tuple):
        raise NotTextError(f"{show(value)} is not a list; {cure}")
    for each in value:
        host = each.removeprefix("*.") if isinstance(each, str) else ""
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host):
            raise ValueError(f"{show(each)} is not a host name or an IPv4 address; {cure}")
    return tuple(str(each).lower() for each in value)
