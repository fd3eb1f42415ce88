"""The frontend's settings: one clear line for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway_sidecar.config import CorsSettings, PortRange, advise, parse_config
from gateway_sidecar.config.frontend_values import parse_auth_url
from gateway_sidecar.errors import ConfigError

TLS = {"certificate": "/a", "key": "/b"}
KEYS = {"keys_file": "/k"}


def config(*frontends: dict[str, Any]) -> str:
    services = [
        {
            "name": name,
            "listen": f"127.0.0.1:{30000 + number}",
            "replicas": {"sockets": f"/run/replicas/{name}/{{replica}}.sock"},
            "frontend": frontend,
        }
        for number, (name, frontend) in enumerate(zip("ab", frontends, strict=False))
    ]
    return yaml.safe_dump({"services": services}, sort_keys=False)


def problems(*frontends: dict[str, Any]) -> list[str]:
    """The problem lines, without the file's name and the line."""
    try:
        parse_config(config(*frontends))
    except ConfigError as error:
        return [line.split(": ", 1)[1] for line in error.problems]
    return []


@pytest.mark.parametrize(
    ("frontend", "expected"),
    [
        ({"listen": ["443"]}, "listen[0]: 443 has no host"),
        ({"listen": "0.0.0.0:443"}, "listen: '0.0.0.0:443' is not a list"),
        ({"server_names": ["a_b"], "listen": ["0.0.0.0:1"]}, "server_names[0]: 'a_b' is not a host name"),
        ({"server_names": ["a b;"], "listen": ["0.0.0.0:1"]}, "server_names[0]: 'a b;' is not a host name"),
        ({"paths": ["v1/x"]}, "paths: 'v1/x' is not a path that can be matched"),
        ({"paths": ["/v1/../x"]}, "paths: '/v1/../x' is not a path that can be matched"),
        ({"paths": ["/v1/%41"]}, "paths: '/v1/%41' is not a path that can be matched"),
        ({"paths": ["/workers"]}, "paths[0]: '/workers' controls the router, so no frontend lets it pass"),
        ({"paths": ["/Wasm/x"]}, "paths[0]: '/Wasm/x' controls the router"),
        ({"paths": ["/v1/tokenizers"]}, "paths[0]: '/v1/tokenizers' controls the router"),
        ({"paths": "everything"}, "paths: 'everything' is neither a list of paths nor the word all"),
        ({"max_body_mb": 0}, "max_body_mb: 0 is too small"),
        ({"max_body_mb": None}, "max_body_mb: "),
        ({"pass_headers": ["X-Smg-Target-Worker"]}, "pass_headers[0]: 'X-Smg-Target-Worker' chooses an engine"),
        ({"pass_headers": ["X-Smg-Tenant-Id"]}, "pass_headers[0]: 'X-Smg-Tenant-Id' says whose"),
        ({"pass_headers": ["X-Forwarded-Host"]}, "pass_headers[0]: 'X-Forwarded-Host' has a meaning"),
        ({"pass_headers": ["Forwarded"]}, "pass_headers[0]: 'Forwarded' has a meaning of its own"),
        ({"paths": ["/loads"]}, "paths[0]: '/loads' controls the router"),
        ({"paths": ["/heap_profile/x"]}, "paths[0]: '/heap_profile/x' controls the router"),
        ({"tls": {"certificate": "/a"}, "listen": ["0.0.0.0:1"]}, "tls.key: is missing"),
        ({"tls": {**TLS, "key": "b"}, "listen": ["0.0.0.0:1"]}, "tls.key: 'b' is relative"),
        ({"tls": {**TLS, "client_ca": "ca.pem"}, "listen": ["0.0.0.0:1"]}, "tls.client_ca: 'ca.pem' is relative"),
        (
            {"tls": {**TLS, "client_names": ["a"]}, "listen": ["0.0.0.0:1"]},
            "tls: client_names and client_certificates mean nothing without client_ca",
        ),
        (
            {"tls": {**TLS, "client_ca": "/c", "client_certificates": "maybe"}, "listen": ["0.0.0.0:1"]},
            "tls.client_certificates: 'maybe' is not",
        ),
        (
            {"tls": {**TLS, "client_ca": "/c", "client_certificates": "optional"}, "listen": ["0.0.0.0:1"]},
            "tls.client_certificates: 'optional' certificates take the place of a key, and there is no auth",
        ),
        (
            {"tls": {**TLS, "client_ca": "/c", "client_names": ["a,CN=b"]}, "listen": ["0.0.0.0:1"]},
            "tls.client_names[0]: 'a,CN=b' is not a name that certificates can be told apart by",
        ),
        ({"tls": TLS}, "tls: is for public addresses, and this frontend has none"),
        ({"server_names": ["a"]}, "server_names: are for public addresses, and this frontend has none"),
        (
            {"redirect": ["0.0.0.0:80"], "listen": ["0.0.0.0:1"]},
            "redirect: redirects to HTTPS, and this frontend has no TLS",
        ),
        ({"auth": {}}, "auth: needs one of keys_file, store and url"),
        ({"auth": {**KEYS, "url": "http://127.0.0.1:1"}}, "auth: needs one of keys_file, store and url, and no other"),
        ({"auth": {"store": True}}, "auth.store: is for the keys of a store, and this gateway has none; give store"),
        (
            {"listen": ["0.0.0.0:1"], "tls": {"store": "api"}},
            "tls.store: is for a certificate of a store, and",
        ),
        ({"auth": {"url": "https://127.0.0.1/"}}, "auth.url: 'https://127.0.0.1/' is not an http URL"),
        ({"auth": {"url": "http://auth.example.com/"}}, "auth.url: 'auth.example.com:80': host"),
        ({"auth": {"url": "http://127.0.0.1/a?b"}}, "auth.url: 'http://127.0.0.1/a?b' holds more than"),
        ({"auth": {**KEYS, "name_header": "Authorization"}}, "auth.name_header: 'Authorization' has a meaning"),
        ({"auth": {**KEYS, "name_header": "X Y"}}, "auth.name_header: 'X Y' is not a header's name"),
        ({"auth": {"url": "http://127.0.0.1:1", "name_header": "X-Y"}}, "auth: name_header needs keys_file"),
        ({"auth": {**KEYS, "keep_s": 5}}, "auth: keep_s and stale_s need url, whose answers they keep"),
        ({"auth": {"url": "http://127.0.0.1:1", "keep_s": 9, "stale_s": 9}}, "auth: stale_s has no effect unless"),
        ({"auth": {"url": "http://127.0.0.1:1", "keep_s": -1}}, "auth.keep_s: -1 is too small"),
        ({"limits": [{"per": "ip"}]}, "limits[0]: limits nothing"),
        ({"limits": [{"per": "ip", "concurrent": 1, "burst": 1}]}, "limits[0]: burst means nothing without rps"),
        ({"limits": [{"per": "user", "rps": 1}]}, "limits[0].per: 'user' cannot tell requests apart"),
        ({"limits": [{"per": "header:a b", "rps": 1}]}, "limits[0].per: 'a b' is not a header's name"),
        ({"limits": [{"per": "ip", "rps": 0}]}, "limits[0].rps: 0 is too small"),
        ({"limits": [{"per": "ip", "rps": 0.001}]}, "limits[0].rps: 0.001 is not a whole number of requests a minute"),
        ({"limits": [{"per": "ip", "rps": 1, "path": "chat"}]}, "limits[0].path: 'chat' is not a path"),
        ({"limits": [{"per": "ip", "concurrent": 0}]}, "limits[0].concurrent: 0 is too small"),
        ({"limits": [{"per": "key", "rps": 1}]}, "limits[0].per: clients have keys only with auth.keys_file"),
        ({"cors": {"origins": ["chat.example.com"]}}, "cors.origins[0]: 'chat.example.com' is not an origin"),
        ({"cors": {"origins": ["HTTPS://A"]}}, "cors.origins[0]: 'HTTPS://A' is not an origin"),
        ({"cors": {"origins": ["http://"]}}, "cors.origins[0]: 'http://' is not an origin"),
        ({"cors": {"origins": ["app://a b"]}}, "cors.origins[0]: 'app://a b' is not an origin"),
        (
            {"cors": {"origins": ["https://a:443"]}},
            "cors.origins[0]: 'https://a:443' has a port that browsers leave",
        ),
        ({"cors": {"origins": []}}, "cors.origins: is empty"),
        ({"cors": {"origins": ["https://a/"]}}, "cors.origins[0]: 'https://a/' is not an origin"),
        ({"trusted_proxies": ["10.0.0.0/33"]}, "trusted_proxies[0]: '10.0.0.0/33' is not a network"),
        ({"trusted_proxies": ["0.0.0.0/0"]}, "trusted_proxies[0]: '0.0.0.0/0' would believe every client"),
        ({"trusted_proxies": ["fe80::1%eth0"]}, "trusted_proxies[0]: 'fe80::1%eth0' is not a network"),
        (
            {"allow": ["10.0.0.1/8"]},
            "allow[0]: '10.0.0.1/8' sets bits of a host behind its mask; use 10.0.0.0/8, or 10.0.0.1",
        ),
        (
            {"deny": ["2001:db8::1/32"]},
            "deny[0]: '2001:db8::1/32' sets bits of a host behind its mask; use 2001:db8::/32",
        ),
        ({"allow": ["10.0.0.0/255.0.0.0"]}, "allow[0]: '10.0.0.0/255.0.0.0' is not an address or network; use"),
        ({"allow": ["10.0.0.1-10.0.0.9"]}, "allow[0]: '10.0.0.1-10.0.0.9' is not an address or network; use"),
        ({"allow": ["10.0.0.0/33"]}, "allow[0]: '10.0.0.0/33' is not an address or network; use"),
        ({"deny": ["fe80::1%eth0"]}, "deny[0]: 'fe80::1%eth0' is not an address or network; use"),
        ({"deny": ["office"]}, "deny[0]: 'office' is not an address or network; use"),
        ({"deny": ["010.0.0.1"]}, "deny[0]: '010.0.0.1' is not an address or network; use"),
        ({"deny": [10]}, "deny[0]: 10 is a number to YAML"),
        ({"allow": "10.0.0.0/8"}, "allow: '10.0.0.0/8' is not a list"),
        ({"allow": ["::ffff:10.0.0.0/104"]}, "allow[0]: '::ffff:10.0.0.0/104' is an IPv4 address in IPv6's form"),
        (
            {"allow": ["10.0.0.1"], "deny": ["10.0.0.1/32"]},
            "deny[0]: 10.0.0.1/32 is services[0].frontend.allow[0] (line",
        ),
        (
            {"deny": ["2001:DB8::/32", "2001:db8:0::/32"]},
            "deny[1]: 2001:db8::/32 is services[0].frontend.deny[0] (line",
        ),
        ({"listen": ["127.0.0.1:30000"]}, "listen[0]: 127.0.0.1:30000 is taken by services[0].listen"),
        ({"listen": ["0.0.0.0:24500"]}, "listen[0]: 0.0.0.0:24500 lies in bridges.ports"),
        ({"listen": ["0.0.0.0:9464"]}, "listen[0]: 0.0.0.0:9464 is taken by metrics.listen"),
    ],
    ids=str,
)
def test_each_mistake_has_one_line(frontend: dict[str, Any], expected: str) -> None:
    """What is wrong, and the cure after a semicolon."""
    found = problems(frontend)
    assert len(found) == 1, found
    assert found[0].startswith(f"services[0].frontend.{expected}"), found
    assert "; " in found[0]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"server_names": ["a.x"]}, {"server_names": ["b.x"]}, []),
        ({}, {"server_names": ["b.x"]}, ["services[1].frontend.listen[0]: 0.0.0.0:443 is taken by"]),
        (
            {"server_names": ["a.x"]},
            {"server_names": ["A.X"]},
            ["services[1].frontend.server_names[0]: a.x is services[0].frontend.server_names[0] (line"],
        ),
        (
            {"server_names": ["a.x"], "tls": None},
            {"server_names": ["b.x"]},
            ["services[1].frontend.listen[0]: 0.0.0.0:443 speaks http at"],
        ),
        (
            {"server_names": ["a.x"], "tls": {"certificate": "/c", "key": "/k", "http2": True}},
            {"server_names": ["b.x"]},
            ["services[1].frontend.listen[0]: 0.0.0.0:443 speaks https with http2 at"],
        ),
    ],
)
def test_services_share_an_address_by_name_only(
    one: dict[str, Any], other: dict[str, Any], expected: list[str]
) -> None:
    """And only if both speak the same there."""
    both = [{"listen": ["0.0.0.0:443"], "tls": TLS, **each} for each in (one, other)]
    both = [{key: value for key, value in each.items() if value is not None} for each in both]
    found = problems(*both)
    assert [any(line.startswith(start) for line in found) for start in expected] == [True] * len(expected), found
    assert len(found) == len(expected), found


def test_an_url_says_where_to_ask() -> None:
    """Port and path have defaults."""
    assert str(parse_auth_url("http://127.0.0.1")) == "http://127.0.0.1:80/"
    assert str(parse_auth_url("http://[::1]:81/a")) == "http://[::1]:81/a"


def test_open_frontends_are_warned_of() -> None:
    """Keys in the clear, engines for everybody, counting by what clients choose."""
    quiet = {"listen": ["0.0.0.0:443"], "tls": TLS, "auth": KEYS}
    limit = {"per": "header:X-T", "rps": 1}
    for frontend, wanted in (
        (quiet, []),
        ({**quiet, "tls": None}, ["tls"]),
        ({**quiet, "auth": None}, ["auth"]),
        ({**quiet, "auth": None, "tls": {**TLS, "client_ca": "/c"}}, []),
        ({**quiet, "auth": None, "allow": ["192.0.2.0/24"]}, []),
        ({**quiet, "limits": [limit]}, ["limits[0].per"]),
        ({**quiet, "limits": [limit], "trusted_proxies": ["10.0.0.0/8"]}, []),
    ):
        said = {key: value for key, value in frontend.items() if value is not None}
        lines = advise(parse_config(config(said)), PortRange(32768, 60999))
        assert [line.split(":")[0] for line in lines] == [f"services[0].frontend.{each}" for each in wanted]


def test_the_documents_example_is_the_example() -> None:
    """`docs/frontend.md` shows a configuration that works."""
    root = Path(__file__).parents[2]
    shown = (root / "docs" / "frontend.md").read_text().split("```yaml\n")[1].split("```")[0]
    assert shown in (root / "examples" / "frontend.yaml").read_text()


@pytest.mark.parametrize(
    "origin",
    [
        *("*", "https://chat.example.com", "http://localhost:3000", "http://[::1]:3000", "tauri://localhost"),
        *("chrome-extension://dofdpnoclkigpakdndmhigfojjecnfln", "app://obsidian.md", "capacitor://localhost"),
        *("moz-extension://6f1c5e0a-7a0b-4a53-bb1d-0b1b9b7c1f52", "vscode-webview://1a2b3c", "file://"),
        "safari-web-extension://E2B0A1C3-0000-4000-8000-0123456789AB",
    ],
)
def test_origins_are_taken_as_browsers_send_them(origin: str) -> None:
    """Pages, extensions and apps."""
    assert CorsSettings(origins=[origin]).origins == (origin,)  # type: ignore[arg-type]
