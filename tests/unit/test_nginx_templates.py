"""Values in nginx's configuration stay values, whatever they hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment, nodes

from gateway_sidecar.config import FrontendSettings
from gateway_sidecar.config.section import Section
from gateway_sidecar.domain.model import Access
from gateway_sidecar.domain.routing import BridgeRules, RouterPaths
from gateway_sidecar.errors import NginxError
from gateway_sidecar.nginx.access_events import EventAddress
from gateway_sidecar.nginx.config import Capacity, KeyedConfig, NginxConfig, PeerConfig
from gateway_sidecar.nginx.frontend_places import FrontendPlaces
from gateway_sidecar.nginx.templates import any_of, below, quoted, render, verbatim, word
from gateway_sidecar.routers.smg.paths import HEADERS
from tests.nginx_directives import Directive, read_directives
from tests.smg import smg_address

LINES = st.text(st.characters(exclude_categories=("Cc", "Cs")))
BAD = ('"', "'", "$", ";", "{", "}", "\\", " ", "\n", "#")

KEYS = {"keys_file": "/etc/keys", "name_header": "X-Key-Name", "public_paths": ["/health"]}
PATHS = RouterPaths(("/v1/chat/completions", "/v1/models/*"), ("/workers",), ("/get_server_info",), ("/version",))
"""One of each use: a text that is used as another one is costs as much and shows nothing."""
MORE = BridgeRules.of([(PATHS, HEADERS)], ("/v1/more",))
CHAT = replace(smg_address("chat", "127.0.0.1:30000", "127.0.0.1:1", "127.0.0.1:2"), paths=PATHS)
URL = {"url": "http://127.0.0.1:4180/auth", "public_paths": ["/health"]}


def frontend(auth: dict[str, Any]) -> FrontendSettings:
    """One with all that a template looks at."""
    return FrontendSettings.model_validate(
        {
            "listen": ["0.0.0.0:443"],
            "redirect": ["0.0.0.0:80"],
            "server_names": ["api.example.com"],
            "tls": {
                "certificate": "/etc/a.pem",
                "key": "/etc/a.key",
                "hsts_days": 1,
                "client_ca": "/etc/ca.pem",
                "client_certificates": "optional",
                "client_names": ["billing"],
            },
            "paths": ["/v1/more"],
            "pass_headers": ["X-Team"],
            "mcp_servers": ["mcp.example.com"],
            "cors": {"origins": ["https://app.example.com"]},
            "auth": auth,
            "limits": [{"per": "header:X-Team", "path": "/v1/chat", "rps": 1}, {"per": "ip", "concurrent": 2}],
            "trusted_proxies": ["10.0.0.0/8"],
            "allow": ["192.0.2.0/24"],
            "deny": ["2001:db8::/32"],
        }
    )


def served(auth: dict[str, Any], *, lua: bool) -> NginxConfig:
    """The nginx of all services, with everything in it."""
    return NginxConfig(
        host="127.0.0.1", grpc_host="127.0.0.2", first_port=24001, last_port=24099, bridge_key="k" * 32,
        bridge_rules=MORE, links=Path("/run/g/bridges"), directory=Path("/run/g/nginx"),
        temp=Path("/var/lib/g/temp"), gates=Path("/run/g/gates"), hold_socket=Path("/run/g/hold.sock"),
        log=Path("/var/lib/g/nginx.log"), worker_processes="auto", capacity=Capacity.within(65536, 200),
        services=(replace(CHAT, frontend=frontend(auth), client_ca="ab" * 8),),
        stream_module=Path("/m/stream.so"), user=("www", "www"), frontends=FrontendPlaces(Path("/run/g/frontends")),
        lua_modules=(Path("/m/lua.so"),) if lua else None, events=EventAddress(4444, "ab" * 12),
        owner_module=Path("/m/js.so"),
    )  # fmt: skip


def peer(*, grpc: bool) -> PeerConfig:
    """The nginx of one advertised address."""
    return PeerConfig(
        "10.0.0.5", 8000, Path("/run/g/bridges/24001.sock"), Path("/run/g/peers/x"), grpc, "k" * 32, MORE,
        (Path("/m/stream.so"),), "http://127.0.0.1:24001/.gateway-owner", True, ("www", "www"),
    )  # fmt: skip


CONFIGS: dict[str, Any] = {
    "keys": served(KEYS, lua=True),
    "asks": served(URL, lua=True),
    "without lua": served(URL, lua=False),
    "peer": peer(grpc=False),
    "grpc peer": peer(grpc=True),
    "keyed": KeyedConfig(
        Path("/run/g/keyed/1"),
        Path("/run/e.sock"),
        Access(api_key="secret"),
        False,
        (Path("/m/lua.so"),),
        ("www", "www"),
    ),
    "grpc keyed": KeyedConfig(
        Path("/run/g/keyed/1"),
        Path("/run/e.sock"),
        Access(api_key="secret"),
        True,
        (Path("/m/lua.so"),),
        ("www", "www"),
    ),
    "prefixed over TLS": KeyedConfig(
        Path("/run/g/keyed/1"),
        Path("/run/e.sock"),
        Access(prefix="/v3", tls=True, api_key="secret"),
        False,
        (Path("/m/lua.so"),),
        ("www", "www"),
    ),
    "grpc over TLS": KeyedConfig(
        Path("/run/g/keyed/1"),
        Path("/run/e.sock"),
        Access(tls=True, api_key="secret"),
        True,
        (Path("/m/lua.so"),),
        ("www", "www"),
    ),
}


def text_of(config: Any) -> str:
    return config.text() if isinstance(config, PeerConfig) else str(config.rendered().text)


def with_each_text(value: Any, bad: str) -> Iterator[tuple[str, Any]]:
    """It, with the bad text in place of one text in it, for each text there is, and where that is."""
    if isinstance(value, str):
        yield "", bad
    elif isinstance(value, Path):
        yield "", Path("/" + bad)
    elif isinstance(value, tuple):
        for number, inner in enumerate(value):
            for where, changed in with_each_text(inner, bad):
                yield f"[{number}]{where}", (*value[:number], changed, *value[number + 1 :])
    elif isinstance(value, Section):
        for name in type(value).model_fields:
            for where, changed in with_each_text(getattr(value, name), bad):
                yield f".{name}{where}", value.model_copy(update={name: changed})
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            for where, changed in with_each_text(getattr(value, each.name), bad):
                yield f".{each.name}{where}", replace(value, **{each.name: changed})


@pytest.mark.parametrize("name", CONFIGS)
def test_no_value_gets_out_of_its_directive(name: str) -> None:
    """It stays within one word, or the configuration is not made at all; and nginx looks for no variable in it.

    How keys are checked changes how services are served, and nothing around them. `make unit` has a quarter of the
    marks in each place, and other ones in the next.
    """
    one_of = 100 // settings().max_examples
    varied = ".services" if name in ("asks", "without lua") else ""
    refused = carried = 0
    for number, mark in enumerate(BAD):
        bad = f"a{mark}evil on;"
        for place, (where, changed) in enumerate(with_each_text(CONFIGS[name], bad)):
            if (number + place) % one_of or not where.startswith(varied):
                continue
            try:
                directives = read_directives(text_of(changed))
            except NginxError:
                refused += 1
                continue
            for found in (it for directive in directives for it in directive.everywhere()):
                for each in (it for it in found.words if "evil" in it):
                    carried += 1
                    assert bad in each or re.escape(bad) in each, where
                    assert "$" not in mark or each.startswith("~") or found.words[0] == "default", where
    assert refused > 10 // one_of
    assert carried > 10 // one_of


@pytest.mark.parametrize("name", CONFIGS)
def test_every_template_is_what_nginx_reads(name: str) -> None:
    """Braces and quotes are in pairs, with everything set; and what is read twice is the same."""
    text = text_of(CONFIGS[name])
    names = {it.words[0] for directive in read_directives(text) for it in directive.everywhere()}
    assert {"daemon", "events", "listen"} <= names
    assert text == text_of(CONFIGS[name])
    assert "\n\n\n" not in text


def test_the_bounds_of_a_request_are_given_up_before_anything_else_is_done_at_its_end() -> None:
    """They go by its place in memory, which the next request may have: what may fail comes after."""
    logged = tuple(
        replace(it, frontend=it.frontend.model_copy(update={"access_log": "all"})) for it in CONFIGS["keys"].services
    )
    text = text_of(replace(CONFIGS["keys"], access_log="/var/log/g/access.log", services=logged))
    directives = [it for each in read_directives(text) for it in each.everywhere()]
    ends = [" ".join(it.words) + str(it.block) for it in directives if it.words[0] == "log_by_lua_block"]
    bounded = [it for it in ends if "bounds" in it]
    assert bounded
    for end in bounded:
        assert "access_log.over" in end
        assert end.index("bounds.over") == end.index("package.loaded.") + len("package.loaded.")


@given(LINES)
def test_quoted_text_is_one_word(text: str) -> None:
    assert read_directives(f"set {verbatim(text)};") == (Directive(("set", text)),)
    if "$" in text:
        with pytest.raises(NginxError):
            quoted(text)
    else:
        assert quoted(text) == verbatim(text)


@given(LINES)
def test_a_word_is_one_within_quotes_too(text: str) -> None:
    try:
        made = word(text)
    except NginxError:
        return
    for written in (f"{made}", f'"{made}"', f"'{made}'"):
        assert read_directives(f"set {written};") == (Directive(("set", text)),)


@given(LINES)
def test_the_pattern_of_a_path_matches_that_path_alone(text: str) -> None:
    (read,) = read_directives(f'"~^{below(text)}" 1;')
    pattern = read.words[0].removeprefix("~").removesuffix(r"\z)") + r"\Z)"  # Python's word for the end
    assert re.search(pattern, text)
    assert re.search(pattern, f"{text}?more")
    assert not re.search(pattern, f"{text}more")


def test_no_template_calls_a_value_safe() -> None:
    """All values go through `word`; nothing in a template turns that off, or makes text that it lets through."""
    share = resources.files("gateway_sidecar") / "share" / "nginx"
    for template in share.iterdir():
        tree = Environment().parse(template.read_text("utf-8"))
        used = {it.name for it in tree.find_all(nodes.Filter)}
        assert used.isdisjoint({"safe", "forceescape", "xmlattr", "tojson", "replace", "format", "urlize"})
        assert not list(tree.find_all(nodes.EvalContextModifier))


def test_no_line_of_a_template_is_longer_than_a_screen_is_wide() -> None:
    """An operator can read what nginx is told."""
    share = resources.files("gateway_sidecar") / "share" / "nginx"
    lines = [(it.name, line) for it in share.iterdir() for line in it.read_text("utf-8").splitlines()]
    assert [it for it in lines if len(it[1]) > 160] == []


def test_a_value_that_a_template_lacks_is_an_error() -> None:
    """It does not end up as nothing."""
    with pytest.raises(Exception, match="'frontends' is undefined"):
        render("tls.conf", {})


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        *(
            (name, True)
            for name in ("qwen3:8b", "qwen3%3A8b", "a@main", "a%40main", "a+lora", "a%2Blora", "a=b", "o/m")
        ),
        *((name, True) for name in ("o%2Fm", "o%2fm%3a7b")),
        *((name, False) for name in ("", ".", "..", "%2e%2e", "..%2Fworkers", "a/../b", "a%2F..%2Fb", "a//b", "a%00")),
        *((name, False) for name in ("a b", "a%20b", "a;b", "a%3Bb", "a%25", "a?", "a#", "@a", "%3Aa")),
    ],
)
def test_a_models_name_is_a_path_however_clients_write_it(name: str, passes: bool) -> None:
    """With what clients escape in it; and never a path to something else."""
    pattern = str(any_of(("/v1/models/**",)))
    assert (re.fullmatch(pattern, f"/v1/models/{name}") is not None) is passes
