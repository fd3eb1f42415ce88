"""nginx's configuration as text, and how much it may hold open."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from gateway_sidecar.check import lacking, room_for_bodies
from gateway_sidecar.config import (
    AddressSettings,
    AuthSettings,
    CorsSettings,
    FrontendSettings,
    ModelSettings,
    TlsSettings,
)
from gateway_sidecar.config.frontend_values import parse_auth_url
from gateway_sidecar.domain.model import Access
from gateway_sidecar.domain.routing import RouterHeaders, RouterPaths
from gateway_sidecar.errors import NginxError
from gateway_sidecar.nginx.access_events import EventAddress
from gateway_sidecar.nginx.bodies import body_classes
from gateway_sidecar.nginx.config import (
    Capacity,
    KeyedConfig,
    NginxConfig,
    PeerConfig,
    ServiceAddress,
    services_in,
    shared_address,
)
from gateway_sidecar.nginx.frontend_places import FrontendPlaces
from gateway_sidecar.nginx.server import NginxProgram, needed_lua
from gateway_sidecar.routers.smg.paths import PATHS
from tests.nginx_directives import Directive, read_directives
from tests.smg import RULES, smg_address

APPLICATIONS = RouterPaths((), anything=True)


def config(**changes: object) -> str:
    """The text for one service, changed as said."""
    settings: dict[str, object] = {
        "host": "127.0.0.1",
        "grpc_host": "127.0.0.2",
        "bridge_key": "k" * 32,
        "bridge_rules": RULES,
        "first_port": 24001,
        "last_port": 24999,
        "links": Path("/run/g/bridges"),
        "directory": Path("/run/g/nginx"),
        "temp": Path("/var/lib/g/nginx-temp"),
        "gates": Path("/run/g/gates"),
        "hold_socket": Path("/run/g/hold.sock"),
        "log": Path("/var/lib/g/nginx.log"),
        "worker_processes": "2",
        "capacity": Capacity.within(65536, 1000),
        "services": [smg_address("chat", "127.0.0.1:30000", "127.0.0.1:23001", "127.0.0.1:23003")],
        "stream_module": Path("/usr/lib/nginx/modules/ngx_stream_module.so"),
        "user": None,
        "frontends": FrontendPlaces(Path("/run/g/frontends")),
    }
    return NginxConfig(**(settings | changes)).rendered().text  # type: ignore[arg-type]


def every(text: str, name: str) -> list[Directive]:
    """The directives of this name, wherever they stand."""
    return [it for top in read_directives(text) for it in top.everywhere() if it.words[0] == name]


def test_one_static_range_and_links_by_port() -> None:
    """A scale event needs no word of this text changed."""
    text = config()
    streams, _, http = text.partition("\nhttp {")
    assert "listen 127.0.0.2:24001-24999 backlog" in streams
    assert "proxy_pass unix:/run/g/bridges/$server_port.sock;" in streams
    assert "listen 127.0.0.1:24001-24999 backlog" in http
    assert "proxy_pass http://unix:/run/g/bridges/$server_port.sock:$gateway_bridge_uri;" in http
    assert config(services=[]) != text


def test_in_a_fleet_a_url_may_say_which_replica_it_is_for() -> None:
    """It leads to that replica's link or nowhere. A gateway that works alone knows nothing of it."""
    assert "gateway_bridge_mark" not in config()
    text = config(marks=True)
    assert "proxy_pass http://unix:/run/g/bridges/$server_port$gateway_bridge_mark.sock:$gateway_bridge_uri;" in text
    assert "proxy_pass unix:/run/g/bridges/$server_port.sock;" in text, "a stream has no URL"


def test_addresses_of_the_sixth_version_are_bracketed() -> None:
    """`::1:24001` would be another address."""
    assert "listen [::1]:24001 " in config(host="::1", last_port=24001)


def test_streams_are_left_alone() -> None:
    """No buffering, no time-out within an hour, no request sent twice."""
    text = config()
    for line in (
        "proxy_buffering off;",
        "proxy_http_version 1.1;",
        "proxy_read_timeout 24h;",
        "proxy_next_upstream off;",
    ):
        assert line in text


def test_bodies_fit_into_their_bound() -> None:
    """Each class has its share, the largest of unknown length too; nothing is larger than the largest class."""
    for held, largest in ((8192, 64), (64, 4), (100, 100), (8192, 1), (1 << 20, 1 << 20)):
        classes = body_classes(held, largest)
        bound = largest * 1024 * 1024
        assert len(str(bound)) <= classes[-1].digits
        assert [one.last for one in classes] == [False] * (len(classes) - 1) + [True]
        together = sum(one.most * min(10**one.digits - 1, bound) for one in classes)
        assert together <= held * 1024 * 1024 or classes[-1].most == 1
    assert [one.most for one in body_classes(8192, 64)] == [2863, 286, 42]


def test_the_largest_frontend_is_what_bodies_are_counted_for() -> None:
    """A body of unknown length may be as large as the largest that any service takes."""
    frontends = [FrontendSettings(max_body_mb=size) for size in (1, 1024)]
    addresses = [
        smg_address(f"s{number}", f"127.0.0.1:3000{number}", "127.0.0.1:23001", "127.0.0.1:23003", frontend)
        for number, frontend in enumerate(frontends)
    ]
    text = config(services=addresses)
    assert "limit_conn gateway_bodies_10 1;" in text
    assert text.count("limit_conn_zone $gateway_body_10 ") == 1
    assert [text.count(f"client_max_body_size {size}m;") for size in (1, 1024)] == [1, 1]


def test_bodies_that_could_fill_the_disk_are_told_of(tmp_path: Path) -> None:
    """`check` says what to set."""
    assert room_for_bodies(tmp_path / "not" / "made", 1) == []
    (finding,) = room_for_bodies(tmp_path / "not" / "made", 1 << 40)
    assert "nginx.max_bodies_mb lower" in finding.text


def test_a_router_with_a_full_queue_is_tried_again_by_the_kernel() -> None:
    """Linux does that after a second, and nginx has to wait for it: of a thousand that go on at once some need it."""
    (timeout_s,) = re.findall(r"proxy_connect_timeout (\d+)s;", config().partition("upstream chat")[2])
    assert 1 < int(timeout_s) < 3


def test_capacity_follows_the_file_limit() -> None:
    """Each listening port takes a connection; a request takes four."""
    assert Capacity.within(1 << 20, 1000).requests == 8192
    assert Capacity.within(20_000, 1001).worker_connections == 20_000 - 64
    assert Capacity.within(1024, 1001).requests == 0


def test_same_settings_give_the_same_text() -> None:
    """What is compared with the file on disk must not change by itself."""
    assert config() == config()


def test_the_next_daemon_reads_what_is_served_and_believes_no_other_text() -> None:
    """All of it, however long; and nothing once a word of the text is another than what nginx runs with."""
    tls = TlsSettings(certificate=Path("/etc/a.pem"), key=Path("/etc/a.key"), http2=True)
    frontend = FrontendSettings.model_validate(
        {
            "listen": ["[::]:443"],
            "server_names": [f"a{number}.example.com" for number in range(500)],
            "tls": tls.model_dump(mode="json"),
            "auth": {"url": "http://127.0.0.1:4180/auth"},
            "limits": [{"per": "ip", "rps": 0.5}],
        }
    )
    served = [
        smg_address("chat", "127.0.0.1:30000", "127.0.0.1:23001", "127.0.0.1:23003", frontend, 30.0),
        smg_address("code", "127.0.0.1:30001", "127.0.0.1:23005", "127.0.0.1:23007"),
    ]
    text = config(services=served)
    assert max(map(len, text.partition("# Written")[0].splitlines())) < 4096, "nginx takes no longer comment"
    found = re.search(r"return 200 \"([0-9a-f]{16}) ", text)
    assert found is not None
    assert services_in(text, found[1]) == served
    assert services_in(text, "0" * 16) is None
    assert services_in(text.replace("keepalive_timeout 75s", "keepalive_timeout 76s"), found[1]) is None
    assert services_in("", found[1]) is None


def test_without_lua_a_service_with_keys_does_not_start(tmp_path: Path) -> None:
    """And the message names the package; services without keys never need it."""
    keys = FrontendSettings(auth=AuthSettings(keys_file=tmp_path / "keys"))
    without = NginxProgram("nginx", "1.22.1", None)
    (finding,) = lacking(without, keys)
    assert "libnginx-mod-http-lua" in finding
    assert list(lacking(without, FrontendSettings())) == []
    assert list(lacking(replace(without, lua_modules=()), keys)) == []
    guarded = smg_address("chat", "127.0.0.1:30000", "127.0.0.1:23001", "127.0.0.1:23003", keys)
    with pytest.raises(NginxError, match="libnginx-mod-http-lua"):
        needed_lua(without, [guarded])
    assert needed_lua(without, [replace(guarded, frontend=FrontendSettings())]) is None


def test_only_answers_that_are_kept_need_lua() -> None:
    """Another server can be asked without it, and nothing of it is in the configuration then."""
    program = NginxProgram("nginx", "1.22.1", None, compiled=frozenset({"--with-http_auth_request_module"}))
    url = parse_auth_url("http://127.0.0.1:1/auth")
    for more, needs in (({}, False), ({"keep_s": 1}, True), ({"stale_s": 1}, True)):
        frontend = FrontendSettings(auth=AuthSettings.model_validate({"url": url, **more}))
        address = smg_address("chat", "127.0.0.1:30000", "127.0.0.1:1", "127.0.0.1:2", frontend)
        assert [("keep_s" in it) for it in lacking(program, frontend)] == [True] * needs
        assert bool(address.needs_lua) is needs
        assert ("gateway_let_in" in config(services=[address], lua_modules=())) is needs


def test_an_engine_with_a_full_queue_is_tried_again_where_there_is_lua() -> None:
    """Bridge, advertised address and the nginx that shows a key; without Lua the router is told at once."""
    bridge = config(lua_modules=(Path("/m/lua.so"),))
    without = config()
    keyed = KeyedConfig(
        Path("/run/g/keyed/1"), Path("/run/e.sock"), Access(api_key="secret"), False, (Path("/m/lua.so"),)
    )
    for text in (bridge, keyed.rendered().text):
        (again,) = [it for it in every(text, "location") if it.words[1] == "@again"]
        assert {it.words for it in again.block or ()} >= {("error_page", "502", "504", "=", "@again")}
    assert [it.words for it in every(without, "location") if it.words[1] in ("@again", "@gone")] == [
        ("location", "@gone")
    ]


def test_a_connection_that_could_not_be_made_is_no_failure_of_the_engine() -> None:
    """Its queue was full, which is no evidence; what failed after that is."""
    (judged,) = [
        it for it in every(config(events=EventAddress(1, "ab")), "map") if it.words[2] == "$gateway_bridge_failed"
    ]
    assert judged.words[1] == "$status:$upstream_connect_time"
    patterns = [(it.words[0], it.words[1]) for it in judged.block or () if it.words[0] != "default"]

    def told(text: str) -> str:
        return next((says for said, says in patterns if re.search(said[1:].replace(r"\z", r"\Z"), text)), "")

    assert [told(it) for it in ("503:-", "503:-, -", "503:0.000 : -")] == ["", "", ""]
    assert [told(it) for it in ("444:0.000", "500:0.001", "520:- : 0.000", "503:0.000")] == ["1"] * 4
    assert [told(it) for it in ("200:0.000", "404:", "200:- : 0.000")] == ["", "", ""]


def test_a_large_body_is_passed_on_as_it_comes() -> None:
    """It is not written to the disk a second time, and so is never sent twice by nginx."""
    (large,) = [it for it in every(config(), "location") if it.words[1] == "@large"]
    assert ("proxy_request_buffering", "off") in {it.words for it in large.block or ()}


def test_every_hop_takes_the_same_heads_of_answers() -> None:
    """An answer that one of them does not take is lost after the engine has worked for it."""
    keyed = KeyedConfig(Path("/run/g/keyed/1"), Path("/run/e.sock"), Access(api_key="secret"), False).rendered().text
    for text in (config(), keyed):
        (http,) = [it for it in read_directives(text) if it.words == ("http",)]
        servers = [it for it in http.block or () if it.words == ("server",)]
        passes = [it for it in servers if any(below.words[0] == "proxy_pass" for below in it.everywhere())]
        assert passes
        assert all(("proxy_buffer_size", "64k") in {it.words for it in server.block or ()} for server in passes)


def test_a_client_may_have_hundreds_of_streams_over_one_connection() -> None:
    """Where nginx speaks HTTP/2; an nginx that was built without it knows no such setting."""
    for http2 in (False, True):
        frontend = FrontendSettings(tls=TlsSettings(certificate=Path("/c"), key=Path("/k"), http2=http2))
        text = config(services=[smg_address("chat", "127.0.0.1:30000", "127.0.0.1:1", "127.0.0.1:2", frontend)])
        assert [it.words[1] for it in every(text, "http2_max_concurrent_streams")] == ["1000"] * http2


def test_a_router_may_have_thousands_of_requests_to_an_engine_with_a_key() -> None:
    """Over gRPC all of them are streams of one connection, of which nginx allows 128 by itself."""
    text = KeyedConfig(Path("/run/g/keyed/1"), Path("/run/e.sock"), Access(api_key="secret"), True).rendered().text
    (most,) = [int(it.words[1]) for it in every(text, "http2_max_concurrent_streams")]
    (connections,) = [int(it.words[1]) for it in every(text, "worker_connections")]
    assert 1000 < most < connections - 1


def test_without_lua_nobody_names_an_mcp_server() -> None:
    """What cannot be read is refused, whatever it asks for; everything else is served."""
    text = config(lua_modules=None)
    assert "lua" not in text
    assert '"~^POST:/v1/(?:responses|interactions)/?\\z" 1;' in text
    assert "if ($gateway_asks_servers_chat) { return 591; }" in text


def test_lua_modules_are_loaded_in_their_order() -> None:
    """The second needs what the first brings."""
    modules = [Path("/m/ndk_http_module.so"), Path("/m/ngx_http_lua_module.so")]
    keys = FrontendSettings(auth=AuthSettings(keys_file=Path("/k")))
    guarded = smg_address("chat", "127.0.0.1:30000", "127.0.0.1:23001", "127.0.0.1:23003", keys)
    text = config(lua_modules=modules, services=[guarded])
    assert text.index("ndk_http_module.so") < text.index("ngx_http_lua_module.so")


def test_an_advertised_address_serves_this_machine_alone() -> None:
    """Connections of this machine to an address of its own come from that address."""
    link = Path("/run/g/bridges/24001.sock")
    for grpc, leads in (
        (True, "proxy_pass unix:/run/g/bridges/24001.sock;"),
        (False, f"proxy_pass http://unix:{link}:$gateway_bridge_uri;"),
    ):
        text = PeerConfig("fd00::5", 8000, link, Path("/run/g/peers/x"), grpc, "k" * 32, RULES, (), None).text()
        assert "listen [fd00::5]:8000 " in text
        assert text.index("allow fd00::5;") < text.index("deny all;")
        assert leads in text
        assert ("Bearer " in text) is not grpc
        assert "load_module" not in text


def test_browsers_are_told_of_https_with_every_answer() -> None:
    """Where `add_header` is said again, this is too; and nowhere unless it is wanted."""
    for days in (0, 365):
        frontend = FrontendSettings(
            tls=TlsSettings(certificate=Path("/c"), key=Path("/k"), hsts_days=days), cors=CorsSettings(origins=("*",))
        )
        address = smg_address("chat", "127.0.0.1:30000", "127.0.0.1:23001", "127.0.0.1:23003", frontend)
        text = config(services=[address])
        said = text.count('add_header Strict-Transport-Security "max-age=31536000" always;')
        assert said == (text.count("add_header Vary Origin always;") if days else 0)
        assert said > 1 or not days


def test_which_worker_answered_is_the_routers_word_and_no_engines() -> None:
    """An engine that said it could pass for another, which would be asked for its health less often."""
    text = config(services=[smg_address("chat", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")])
    bridge = text.partition("location @gone")[0].rpartition("server {")[2]
    assert "proxy_hide_header X-Smg-Routed-Worker-Id;" in bridge


def test_every_answer_of_nginx_itself_names_its_request() -> None:
    """A location with an `add_header` of its own inherits none: it has to say this one, too."""
    limits = [{"per": "ip", "rps": 1}, {"per": "ip", "concurrent": 1}]
    more = {"listen": ["0.0.0.0:80"], "server_names": ["a.example.com"], "cors": {"origins": ["*"]}, "limits": limits}
    for auth in ({"keys_file": "/k"}, {"url": "http://127.0.0.1:1/"}):
        frontend = FrontendSettings.model_validate(more | {"auth": auth})
        address = smg_address("chat", "127.0.0.1:30000", "127.0.0.1:23001", "127.0.0.1:23003", frontend)
        text = config(services=[address], lua_modules=())
        asked = [
            (it, " ".join(on.words)) for it in every(text, "server") for on in it.block or () if on.words[0] == "listen"
        ]
        for server in (it for it, where in asked if "unix:" not in where and "backlog=1024" not in where):
            said = {it.words for it in server.block or ()}
            assert said & {("add_header", "X-Request-Id", it, "always") for it in ("$gateway_id", "$gateway_own_id")}
            for location in (it for it in server.block or () if it.words[0] == "location"):
                added = {it.words[1] for it in location.block or () if it.words[0] == "add_header"}
                assert not added or "X-Request-Id" in added, location.words


def test_a_service_without_a_router_is_balanced_and_shows_nobody_the_bridges_key() -> None:
    """Its engines are asked directly: what nginx shows a router there would be a secret in their hands."""
    without = replace(smg_address("chat", "127.0.0.1:30000", "", ""), paths=APPLICATIONS, headers=(RouterHeaders(""),))
    text = config(services=[without], lua_modules=())
    assert text.count('choose("/run/g/endpoints/chat")') == text.count('choose("/run/g/endpoints/chat.next")') == 1
    (shown,) = [it for it in text.splitlines() if "$gateway_shown_chat {" in it]
    assert "k" * 32 not in shown
    assert needed_lua(NginxProgram("nginx", "1.22.1", None, ()), [without]) == ()
    with pytest.raises(NginxError, match=r"chat: a service without a router \(router.type: none\) needs nginx's Lua"):
        needed_lua(NginxProgram("nginx", "1.22.1", None), [without])


def test_only_the_slot_of_a_router_is_shown_the_bridges_key() -> None:
    """While a router takes nginx's place, or the other way round, requests go to either."""
    both = smg_address("chat", "127.0.0.1:30000", "", "127.0.0.1:23003")
    (shown,) = [it for it in config(services=[both], lua_modules=()).splitlines() if "$gateway_shown_chat {" in it]
    assert shown.split("{")[1].split("}")[0].split() == ["default", '"";', "chat.next", f'"{"k" * 32}";']


def test_names_are_proved_at_the_redirect_address_where_a_certificate_is_by_acme() -> None:
    """At every one, since services with one name share a certificate; and nowhere without such a certificate."""
    plain = FrontendSettings.model_validate({"redirect": ["0.0.0.0:80"], "server_names": ["a.example.com"]})
    by_acme = FrontendSettings.model_validate({"server_names": ["a.example.com"], "tls": {"acme": True}})
    frontends = [("chat", plain), ("code", by_acme)]
    services = [
        smg_address(name, f"127.0.0.1:3000{number}", "127.0.0.1:23001", "127.0.0.1:23003", frontend)
        for number, (name, frontend) in enumerate(frontends)
    ]
    path = r"^/\.well-known/acme-challenge/(?<gateway_token>[A-Za-z0-9_-]+)\z"
    assert [it.words[1:] for it in every(config(services=services), "location") if "acme" in it.words[-1]] == [
        ("~", path)
    ]
    assert "acme" not in config(services=services[:1])


def behind(name: str, **changes: object) -> ServiceAddress:
    """A service behind a shared address."""
    own = smg_address(name, "127.0.0.1:30000", "127.0.0.1:23001", "127.0.0.1:23003")
    return replace(own, **changes)  # type: ignore[arg-type]


def test_a_shared_address_knows_how_each_service_is_led_to() -> None:
    """By the way that its router needs, with all headers, and the paths that it has; the next daemon reads it."""
    settings = AddressSettings.model_validate(
        {
            "name": "api",
            "listen": "127.0.0.1:8000",
            "models": {
                "tiny": "chat",
                "gpt-4o": {"services": [{"service": "chat", "weight": 9, "model": "tiny"}, {"service": "web"}]},
                "org/large:7b": {"service": "code", "fallback": "chat"},
            },
            "default": "soon",
        }
    )
    services = [
        behind("chat"),
        behind("code", paths=replace(PATHS, loses=True), headers=(RouterHeaders("X-Key", passed=("X-More",)),)),
        behind(
            "web", router="", successor="", paths=RouterPaths(("/v1/only",)), headers=(RouterHeaders(""),), hold_s=60
        ),
    ]
    shared = shared_address(settings, {it.service: it for it in services})
    assert shared.dispatch is not None
    assert {it.service: it.way.location for it in shared.dispatch.services} == {
        "chat": "@router", "code": "@router_losing", "web": "@router_balanced", "soon": "@router",
    }  # fmt: skip
    assert shared.hold_s == 60
    text = config(services=[*services, shared], lua_modules=(Path("/m/lua.so"),), events=EventAddress(1, "ab"))
    found = re.search(r"return 200 \"([0-9a-f]{16}) ", text)
    assert found is not None
    read = services_in(text, found[1])
    assert read == [*services, shared]
    (server,) = [
        it
        for it in every(text, "server")
        if any(each.words[:2] == ("listen", "127.0.0.1:8000") for each in it.block or ())
    ]
    locations = {
        it.words[1]: {each.words for each in it.block or ()} for it in server.block or () if it.words[0] == "location"
    }
    assert ("proxy_next_upstream", "error") in locations["@router_balanced"]
    assert ("proxy_next_upstream", "http_503", "non_idempotent") in locations["@router_losing"]
    assert ("proxy_next_upstream", "off") in locations["@router"]
    for line in (
        'models.address("api", "/run/g/gates", "soon", "@router")',
        'models.service("api", "web", "@router_balanced", "gateway_known_api_1")',
        'models.service("api", "chat", "@router", "gateway_known_api_0")',
        'models.model("api", "org/large:7b", "chat", "")',
        'models.target("chat", 9, "tiny")',
        'map $gateway_router $gateway_shown_api { default ""; chat "',
        "proxy_set_header X-More $http_x_more;",
    ):
        assert line in text


def test_a_shared_address_needs_lua() -> None:
    """Nothing else of nginx could read a body."""
    settings = AddressSettings.model_validate({"name": "api", "listen": "127.0.0.1:8000", "models": {"tiny": "chat"}})
    shared = shared_address(settings, {"chat": behind("chat")})
    with pytest.raises(NginxError, match="api: an address for several services"):
        needed_lua(NginxProgram("nginx", "1.22.1", None), [shared])
    (finding,) = lacking(NginxProgram("nginx", "1.22.1", None), FrontendSettings(), dispatches=True)
    assert "libnginx-mod-http-lua" in finding


def test_a_model_that_nginx_could_not_carry_is_refused() -> None:
    """Whoever let it in: no name ends the call that it stands in."""
    settings = AddressSettings.model_construct(
        name="api", listen="127.0.0.1:8000", models={'x", os.exit()) --': ModelSettings(service="chat")}, default=None
    )
    with pytest.raises(NginxError, match="cannot carry"):
        config(services=[behind("chat"), shared_address(settings, {"chat": behind("chat")})], lua_modules=())


def test_addresses_of_clients_do_not_concern_who_asks_for_a_proof() -> None:
    """An ACME server asks from anywhere, at the redirect address: only where requests are served they are judged."""
    frontend = FrontendSettings.model_validate(
        {
            "listen": ["0.0.0.0:443"],
            "redirect": ["0.0.0.0:80"],
            "server_names": ["a.example.com"],
            "tls": {"acme": True},
            "allow": ["192.0.2.0/24"],
            "deny": ["0.0.0.0/0"],
        }
    )
    text = config(services=[smg_address("chat", "127.0.0.1:30000", "127.0.0.1:1", "127.0.0.1:2", frontend)])
    judging = [
        {each.words[1] for each in server.block or () if each.words[0] == "listen"}
        for server in every(text, "server")
        if any("$gateway_stranger_chat" in word for it in server.everywhere() for word in it.words)
    ]
    assert judging == [{"127.0.0.1:30000", "0.0.0.0:443"}]
