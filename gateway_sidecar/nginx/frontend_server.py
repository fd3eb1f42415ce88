"""The front door's part of nginx's configuration: which paths pass, who may come in, how often, and TLS. Pure.

All of it works without the daemon. Keys are links in a directory and the certificate is a file that nginx opens for
each handshake, so neither needs a reload, which would cost clients their kept connections.

A request meets, in this order: the path, CORS, its key (server rewrite phase); limits (preaccess); another server's
word (access); the gate. A request that goes to the waiting room and back is not judged twice, but for that word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway_sidecar.config import AuthSettings, Endpoint, FrontendSettings, LimitSettings
from gateway_sidecar.config.frontend_values import ALL_PATHS, ANY, CONTROL, FLEET, INFERENCE, VERSION
from gateway_sidecar.nginx import bodies, client_headers
from gateway_sidecar.nginx.bodies import BodyClass
from gateway_sidecar.nginx.bridge_server import END, KEY_HEADER, SEGMENTS, patterns

LISTEN_OPTIONS = "backlog=4096 so_keepalive=60s:10s:6"

# Statuses of our own, inside nginx only.
_SERVER_REFUSED, _PREFLIGHT, _NO_KEY, _TOO_MANY_AT_ONCE, _TOO_MANY, _NO_PATH = 591, 592, 593, 594, 595, 596
_TENANT_HEADER = "X-Smg-Tenant-Id"
"""SMG keeps stored responses and conversations of different tenants apart, and believes this header."""
_METHODS = "GET, POST, DELETE, OPTIONS"
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_BAD_REQUEST = "invalid_request_error"
_OWN_ERRORS = {
    400: ("The request is not valid HTTP.", "bad_request"),
    405: ("This method is not allowed here.", "method_not_allowed"),
    414: ("The request's URL is too long.", "url_too_long"),
    494: ("The request's headers are too large.", "headers_too_large"),
    497: ("This address speaks HTTPS only.", "https_required"),
    501: ("This transfer encoding is not supported.", "unsupported_encoding"),
    505: ("This version of HTTP is not supported here.", "unsupported_version"),
}
"""What nginx refuses by itself, before it knows whom a request is for, or even its path."""
_NETWORKS = (("long", "{4}"), ("short", "{1,3}(?=:)"))
_REFUSED = "/.gateway-refused/"
# The status is that of the error: 400 is for whoever asks for such a path.
_REFUSE = "if ($gateway_refusal) { return 400 $gateway_refusal; }"
_LONGEST_COUNTED = 200
"""nginx's limit_conn counts no value of more than 255 bytes: of a longer one only its beginning is looked at."""


@dataclass(frozen=True, slots=True)
class DoorPlaces:
    """Where the daemon puts what nginx reads at run time."""

    directory: Path

    def services(self) -> set[str]:
        """Whose keys or certificate are there."""
        found = self.directory.iterdir() if self.directory.is_dir() else ()
        return {path.stem for path in found if path.suffix in (".pem", ".keys")}

    def pem(self, service: str) -> Path:
        """Certificate and key in one file, so that no handshake sees one without the other."""
        return self.directory / f"{service}.pem"

    def keys(self, service: str) -> Path:
        """The directory of keys: SHA-256 -> name, as symbolic links."""
        return self.directory / f"{service}.keys"


@dataclass(frozen=True, slots=True)
class FrontDoor:
    """One service's front door. `variable` is its name in nginx's variables and zones. `lua`: whether nginx has Lua."""

    service: str
    settings: FrontendSettings
    places: DoorPlaces
    lua: bool = True

    @property
    def variable(self) -> str:
        return self.service.replace("-", "_")

    # -- http {}

    def http(self) -> str:
        """Maps, zones and the upstream of another server's word."""
        it, name = self.settings, self.variable
        parts = [_map("$request_uri", f"$gateway_passes_{name}", [("default", "0"), *_passing(it.paths)])]
        if self._judges_servers and not self.lua:
            asks = '"~^POST:/v1/(?:responses|interactions)/?\\z"'
            parts.append(
                _map('"$request_method:$uri"', f"$gateway_asks_servers_{name}", [("default", "0"), (asks, "1")])
            )
        if it.auth is not None:
            rows = [("default", '""'), *((_below(path), "public") for path in it.auth.public_paths)]
            parts.append(_map("$request_uri", f"$gateway_public_{name}", rows))
            if it.auth.url is not None:
                parts.append(f"    upstream {self.service}.auth {{ server {it.auth.url.address}; keepalive 16; }}\n")
        auth = it.auth
        keys = auth is not None and auth.keys_file is not None
        parts.append(bodies.small(name, keys=keys, public=auth is not None))
        if it.cors is not None:
            parts.append(self._cors_maps())
        if it.tls is not None:
            rows = [("default", _quoted(str(self.places.pem(self.service))))]
            parts.append(_map("$server_port", f"$gateway_pem_{name}", rows))
        for number, limit in enumerate(it.limits):
            parts.append(self._zones(number, limit))
        return "".join(parts)

    def _cors_maps(self) -> str:
        assert self.settings.cors is not None
        origins = self.settings.cors.origins
        rows = [("default", '""')]
        rows += [('"~."', '"*"')] if "*" in origins else [(_quoted(origin), "$http_origin") for origin in origins]
        name = self.variable
        asked = "$request_method:$http_access_control_request_method"
        return _map("$http_origin", f"$gateway_origin_{name}", rows) + _map(
            _quoted(asked), f"$gateway_preflight_{name}", [("default", "0"), ('"~^OPTIONS:."', "1")]
        )

    def _zones(self, number: int, limit: LimitSettings) -> str:
        name = f"{self.variable}_{number}"
        text = ""
        counted = {"key": f"$gateway_key_{self.variable}", "ip": "$gateway_client"}.get(limit.per)
        if counted is None:
            header = "$http_" + limit.per.partition(":")[2].lower().replace("-", "_")
            counted = f"$gateway_sent_{name}"
            cut = f"gateway_cut_{name}"
            rows = [("default", f'"sent:{header}"'), ('""', '"ip:$gateway_client"')]
            rows += [(f'"~^(?<{cut}>.{{{_LONGEST_COUNTED}}})"', f'"long:${cut}"')]
            text += _map(header, counted, rows)
        rows = [("default", counted)] if limit.path is None else [("default", '""'), (_below(limit.path), counted)]
        text += _map("$request_uri", f"$gateway_counted_{name}", rows)
        if limit.rps is not None:
            text += f"    limit_req_zone $gateway_counted_{name} zone={name}_rate:10m rate={_rate(limit.rps)};\n"
        if limit.concurrent is not None:
            text += f"    limit_conn_zone $gateway_counted_{name} zone={name}_at_once:10m;\n"
        return text

    # -- server {}

    def server(self, classes: Sequence[BodyClass]) -> str:
        """What holds for the whole server, in the order in which requests meet it."""
        it, name = self.settings, self.variable
        lines = [f"client_max_body_size {it.max_body_mb}m;", *self._passed(), *client_headers.hidden()]
        if it.trusted_proxies:
            lines += [f"set_real_ip_from {network};" for network in it.trusted_proxies]
            lines += ["real_ip_header X-Forwarded-For;", "real_ip_recursive on;"]
        lines += [_REFUSE, f"if ($gateway_passes_{name} = 0) {{ return {_NO_PATH}; }}"]
        if it.cors is not None:
            lines += [f"if ($gateway_preflight_{name}) {{ return {_PREFLIGHT}; }}"]
        tenant = '""'
        if it.auth is not None:
            lines += self._auth(it.auth)
            tenant = f"$gateway_key_{name}" if it.auth.keys_file is not None else f"$gateway_tenant_{name}"
        lines += [f"proxy_set_header {_TENANT_HEADER} {tenant};"]
        if self._judges_servers and not self.lua:  # Nobody can read what they ask for.
            lines += [f"if ($gateway_asks_servers_{name}) {{ return {_SERVER_REFUSED}; }}"]
        lines += self._limits(classes)
        lines += self.errors()
        lines += [*self.headers(), client_headers.LOCATION]
        if it.tls is not None:
            lines += tls_lines(name)
        return _indented(lines, 8)

    def _passed(self) -> list[str]:
        """The request headers that go on as they were sent; what is said with a value of ours is none of them."""
        auth = self.settings.auth
        ours = [KEY_HEADER, _TENANT_HEADER]
        if auth is not None and not auth.pass_authorization:
            ours += client_headers.CREDENTIALS
        if auth is not None and auth.name_header is not None:
            ours.append(auth.name_header)
        passed = (*client_headers.CREDENTIALS, *client_headers.PASSED, *self.settings.pass_headers)
        return client_headers.sent_on(passed, but=ours)

    def _auth(self, auth: AuthSettings) -> list[str]:
        name = self.variable
        lines = []
        if auth.keys_file is not None:
            directory = json.dumps(str(self.places.keys(self.service)))
            lines += [
                f"set_by_lua_block $gateway_key_{name} {{ return require('front_door').name_of_key({directory}) }}",
                f'set $gateway_may_{name} "$gateway_key_{name}$gateway_public_{name}";',
                f'if ($gateway_may_{name} = "") {{ return {_NO_KEY}; }}',
            ]
        else:
            lines += ["auth_request /.gateway-auth;", f"auth_request_set $gateway_asked_{name} $upstream_status;"]
            who = "set_by_lua_block" if self.lua else "set"
            told = "{ return require('front_door').tenant_of_credentials() }" if self.lua else '"";'
            lines += [f"{who} $gateway_tenant_{name} {told}"]
        if not auth.pass_authorization:
            lines += ['proxy_set_header Authorization "";', 'proxy_set_header X-Api-Key "";']
        if auth.name_header not in (None, _TENANT_HEADER):
            lines += [f"proxy_set_header {auth.name_header} $gateway_key_{name};"]
        return lines

    def _limits(self, classes: Sequence[BodyClass]) -> list[str]:
        lines = bodies.limits(classes)
        for number, limit in enumerate(self.settings.limits):
            zone = f"{self.variable}_{number}"
            if limit.rps is not None:
                burst = f" burst={limit.burst} nodelay" if limit.burst else ""
                lines.append(f"limit_req zone={zone}_rate{burst};")
            if limit.concurrent is not None:
                lines.append(f"limit_conn {zone}_at_once {limit.concurrent};")
        lines += [f"limit_req_status {_TOO_MANY};", f"limit_conn_status {_TOO_MANY_AT_ONCE};"]
        lines += ["limit_req_log_level notice;", "limit_conn_log_level notice;"]
        return lines

    def errors(self) -> list[str]:
        """Where refusals go; a location that has an `error_page` of its own must say them again."""
        it = self.settings
        lines = [f"error_page {_NO_PATH} = @no_path;", "error_page 413 = @too_large;", *_own_error_pages()]
        lines += [f"error_page {bodies.UNSURE} = @small;", f"error_page {_TOO_MANY_AT_ONCE} = @too_many_at_once;"]
        if it.cors is not None:
            lines.append(f"error_page {_PREFLIGHT} = @preflight;")
        if it.auth is not None and it.auth.keys_file is not None:
            lines.append(f"error_page {_NO_KEY} = @no_key;")
        if it.auth is not None and it.auth.url is not None:
            lines += ["error_page 401 = @no_key;", "error_page 403 = @forbidden;"]
        if self._judges_servers:
            lines.append(f"error_page {_SERVER_REFUSED} = @server_refused;")
        if it.limits:
            lines.append(f"error_page {_TOO_MANY} = @too_many;")
        return lines

    def headers(self) -> list[str]:
        """Headers of every answer; a location that has an `add_header` of its own must say them again."""
        it = self.settings
        lines = []
        if it.cors is not None:
            lines += [
                f"add_header Access-Control-Allow-Origin $gateway_origin_{self.variable} always;",
                "add_header Access-Control-Expose-Headers Retry-After always;",
                "add_header Vary Origin always;",
            ]
        if it.tls is not None and it.tls.hsts_days:
            lines.append(f'add_header Strict-Transport-Security "max-age={it.tls.hsts_days * 86400}" always;')
        return lines

    def locations(self) -> str:
        """The refusals, in the form that OpenAI's clients know."""
        it = self.settings
        text = self._refusal("no_path", 404, "There is nothing at this path.", "invalid_request_error", "unknown_url")
        text += self._refusal(
            "too_large", 413, "The request is too large.", "invalid_request_error", "request_too_large"
        )
        if self._judges_servers:
            words = "This gateway does not connect to the MCP server that the request names."
            text += self._refusal("server_refused", 403, words, "invalid_request_error", "mcp_server_refused")
        if it.auth is not None:
            text += self._refusal(
                "no_key",
                401,
                "Missing or incorrect API key: send it as 'Authorization: Bearer KEY'.",
                "invalid_request_error",
                "invalid_api_key",
                "add_header WWW-Authenticate Bearer always;",
            )
        if it.auth is not None and it.auth.url is not None:
            text += self._refusal("forbidden", 403, "You may not do this.", "invalid_request_error", "forbidden")
            text += self._auth_location(it.auth)
        wait_s = max((-(-1 // limit.rps) for limit in it.limits if limit.rps), default=1)
        for place, retry_s, words in (
            ("too_many", int(wait_s), "Rate limit reached: too many requests; try again later."),
            ("too_many_at_once", 1, "Rate limit reached: too many requests at the same time; try again later."),
        ):
            retry = f"add_header Retry-After {retry_s} always;"
            text += self._refusal(place, 429, words, "requests", "rate_limit_exceeded", retry)
        if it.cors is not None:
            text += self._preflight(it.cors.max_age_s)
        return text

    @property
    def _judges_servers(self) -> bool:
        return self.settings.mcp_servers != (ANY,)

    def check_servers(self) -> str:
        """What a location that leads to a router asks of the MCP servers in a request's body."""
        if not self._judges_servers or not self.lua:
            return ""
        allowed = ", ".join(json.dumps(host) for host in self.settings.mcp_servers)
        check = f"require('front_door').check_servers({{{allowed}}}, {_SERVER_REFUSED})"
        return f"            access_by_lua_block {{ {check} }}\n"

    def failed(self) -> str:
        """What nginx itself cannot do is 500 to it, and so is another server that says neither yes nor no."""
        if self.settings.auth is None or self.settings.auth.url is None:
            return ""
        words = "Who may come in cannot be asked now; try again shortly."
        answer = _answer(503, words, "server_error", "auth_unavailable")
        return _indented([f'if ($gateway_asked_{self.variable} ~ "^[13-9]") {{ {answer} }}'], 12)

    def _refusal(self, place: str, status: int, message: str, kind: str, code: str, *headers: str) -> str:
        lines = [*(self.headers() if headers else ()), *headers, _answer(status, message, kind, code)]
        return f"        location @{place} {{\n{_indented(lines, 12)}        }}\n"

    def _preflight(self, max_age_s: int) -> str:
        lines = [
            *self.headers(),
            f'add_header Access-Control-Allow-Methods "{_METHODS}" always;',
            "add_header Access-Control-Allow-Headers $http_access_control_request_headers always;",
            f"add_header Access-Control-Max-Age {max_age_s} always;",
            "return 204;",
        ]
        return f"        location @preflight {{\n{_indented(lines, 12)}        }}\n"

    def _auth_location(self, auth: AuthSettings) -> str:
        assert auth.url is not None
        lines = [
            "internal;",
            "auth_request off;",
            f"if ($gateway_public_{self.variable}) {{ return 204; }}",
            f"proxy_pass http://{self.service}.auth{auth.url.path};",
            "proxy_pass_request_body off;",
            *client_headers.sent_on(client_headers.FOR_AUTH),
            'proxy_set_header Content-Length "";',
            'proxy_set_header Connection "";',
            "proxy_set_header Host $http_host;",
            "proxy_set_header X-Original-URI $request_uri;",
            "proxy_set_header X-Original-Method $request_method;",
            "proxy_set_header X-Real-IP $remote_addr;",
            "proxy_set_header X-Forwarded-For $remote_addr;",
            "proxy_set_header X-Forwarded-Proto $scheme;",
            "proxy_set_header X-Forwarded-Host $http_host;",
            "proxy_set_header X-Forwarded-Method $request_method;",
            "proxy_set_header X-Forwarded-Uri $request_uri;",
            _in_ms("connect", auth.timeout_s),
            _in_ms("read", auth.timeout_s),
            _in_ms("send", auth.timeout_s),
        ]
        return f"        location = /.gateway-auth {{\n{_indented(lines, 12)}        }}\n"


def clients() -> str:
    """The map, in http {}, of who counts as one client by IP: of the sixth version a /64, which is one customer's own.

    Where nothing but zeros follows the first groups, all of these are one.
    """
    rows = [("default", "$remote_addr")]
    rows += [(f'"~^(?<gateway_{name}>(?:[0-9a-f]+:){many})"', f"$gateway_{name}::") for name, many in _NETWORKS]
    return _map("$remote_addr", "$gateway_client", rows)


def own_errors() -> str:
    """The map, in http {}, of what nginx says to what it refuses by itself.

    By a path and not in a named location: nginx finds no named one for a request without a path that it could read.
    """
    rows = [(f"{_REFUSED}{status}", _error(*words)) for status, words in _OWN_ERRORS.items()]
    return _map("$uri", "$gateway_refusal", [("default", '""'), *rows])


def _own_error_pages() -> list[str]:
    return [f"error_page {status} {'=431 ' if status == 494 else ''}{_REFUSED}{status};" for status in _OWN_ERRORS]


def _nobody(lines: Iterable[str]) -> str:
    """A server for names that nobody has."""
    refused = _answer(421, "This server does not answer to that name.", _BAD_REQUEST, "unknown_host")
    return f"    server {{\n{_indented([*lines, *_own_error_pages(), _REFUSE, refused], 8)}    }}\n"


def tls_lines(variable: str) -> list[str]:
    """TLS as today's clients have it; the certificate is opened anew for each handshake that needs it."""
    return [
        f"ssl_certificate $gateway_pem_{variable};",
        f"ssl_certificate_key $gateway_pem_{variable};",
        "ssl_protocols TLSv1.2 TLSv1.3;",
        f"ssl_ciphers {_CIPHERS};",
        "ssl_prefer_server_ciphers off;",
        "ssl_session_cache shared:gateway_tls:2m;",
        "ssl_session_timeout 1h;",
        "ssl_session_tickets off;",
    ]


def public_listens(doors: Sequence[FrontDoor]) -> Mapping[Endpoint, list[FrontDoor]]:
    """Each public address with the doors behind it: more than one where all have names."""
    return _by_address(doors, lambda door: door.settings.listen)


def redirect_listens(doors: Sequence[FrontDoor]) -> Mapping[Endpoint, list[FrontDoor]]:
    """Each address that only leads to HTTPS, with the doors that it leads to."""
    return _by_address(doors, lambda door: door.settings.redirect)


def _by_address(
    doors: Sequence[FrontDoor], listens: Callable[[FrontDoor], Sequence[Endpoint]]
) -> dict[Endpoint, list[FrontDoor]]:
    found: dict[Endpoint, list[FrontDoor]] = {}
    for door in doors:
        for endpoint in listens(door):
            found.setdefault(endpoint, []).append(door)
    return found


def listen_lines(door: FrontDoor) -> str:
    """The `listen` lines of a service's public addresses, and its names."""
    # Where there are names, the server for unknown ones has the options: nginx takes them once for each address.
    options = "" if door.settings.server_names else f" {LISTEN_OPTIONS}"
    lines = [f"listen {endpoint}{_tls_words(door)}{options};" for endpoint in door.settings.listen]
    return _indented([*lines, f"server_name {' '.join(door.settings.server_names) or '_'};"], 8)


def _tls_words(door: FrontDoor) -> str:
    if door.settings.tls is None:
        return ""
    return " ssl http2" if door.settings.tls.http2 else " ssl"


def other_servers(doors: Sequence[FrontDoor]) -> str:
    """Servers for names that nobody has, and for addresses that only lead to HTTPS."""
    text = ""
    for endpoint, behind in public_listens(doors).items():
        first = behind[0]
        if first.settings.server_names:
            tls = first.settings.tls is not None
            lines = [f"listen {endpoint}{_tls_words(first)} default_server {LISTEN_OPTIONS};"]
            text += _nobody([*lines, *(tls_lines(first.variable) if tls else ())])
    for endpoint, behind in redirect_listens(doors).items():
        text += _redirect(endpoint, behind)
    return text


def _redirect(endpoint: Endpoint, behind: Sequence[FrontDoor]) -> str:
    """Only what a browser asks by itself is sent on.

    Whoever sends a key or a body in the clear must notice: a redirect would go on working, and giving the key away.
    """
    names = [name for door in behind for name in door.settings.server_names]
    refused = _answer(403, "Use HTTPS: this address does not take requests.", "invalid_request_error", "https_required")
    text = ""
    if names:
        text += _nobody([f"listen {endpoint} default_server {LISTEN_OPTIONS};"])
    for door in behind:
        ports = [it.port for it in door.settings.listen]
        port = "" if 443 in ports or not ports else f":{ports[0]}"
        lines = [f"listen {endpoint}{'' if names else ' ' + LISTEN_OPTIONS};"]
        lines += [f"server_name {' '.join(door.settings.server_names) or '_'};", *_own_error_pages(), _REFUSE]
        lines += ['set $gateway_asks "$request_method:$http_authorization$http_x_api_key";']
        lines += [f'if ($gateway_asks !~ "^(GET|HEAD):\\z") {{ {refused} }}']
        lines += [f"return 308 https://$host{port}$request_uri;"]
        text += f"    server {{\n{_indented(lines, 8)}    }}\n"
    return text


def _passing(paths: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Which request targets pass, as they were sent: nginx passes them on like that.

    Strict in form (no escapes, no empty or dot segments), so that no router can read another path out of one.
    """
    everything = ALL_PATHS in paths
    control = "|".join(re.escape(path.lstrip("/")) for path in (*CONTROL, *(FLEET if everything else ())))
    yield f'"~*^/(?:{control})(?:[/?]|\\z)"', "0"
    yield f'"~^(?:{patterns(INFERENCE)}){END}"', "1"
    for path in paths:
        yield (f'"~^{VERSION}{SEGMENTS}+/?{END}"', "1") if path == ALL_PATHS else (_below(path), "1")


def _below(path: str) -> str:
    """The pattern of a path and all below it."""
    return f'"~^{re.escape(path)}{SEGMENTS}*/?{END}"'


def _answer(status: int, message: str, kind: str, code: str) -> str:
    return f"return {status} {_error(message, code, kind)};"


def _error(message: str, code: str, kind: str = _BAD_REQUEST) -> str:
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return _single_quoted(json.dumps(body))


def _map(source: str, target: str, rows: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"        {key} {value};\n" for key, value in rows)
    return f"    map {source} {target} {{\n{lines}    }}\n"


def _rate(rps: float) -> str:
    return f"{int(rps)}r/s" if rps == int(rps) else f"{round(rps * 60)}r/m"


def _in_ms(what: str, seconds: float) -> str:
    return f"proxy_{what}_timeout {round(seconds * 1000)}ms;"


def _indented(lines: Iterable[str], by: int) -> str:
    return "".join(f"{' ' * by}{line}\n" for line in lines)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _single_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
