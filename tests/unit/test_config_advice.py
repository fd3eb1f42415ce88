from __future__ import annotations

from gateway_sidecar.config import PortRange, advise, parse_config

MINIMAL = """\
services:
  - name: chat
    listen: 127.0.0.1:30000
    replicas:
      sockets: /run/replicas/chat/{replica}.sock
"""
LINUX = PortRange(32768, 60999)


def advice(text: str, ephemeral: PortRange | None = LINUX) -> list[str]:
    return [line.split(":")[0] for line in advise(parse_config(text), ephemeral)]


def test_the_defaults_are_wise() -> None:
    """An untouched Linux machine with the least configuration hears nothing."""
    assert advice(MINIMAL) == []


def test_ports_that_outgoing_connections_may_take_are_named() -> None:
    """The daemon would start on most days only."""
    text = f"bridges: {{ports: 40000-40100}}\nrouter_ports: 32000-33000\n{MINIMAL}".replace("30000", "35000")
    assert advice(text) == ["bridges.ports", "router_ports", "services[0].listen"]
    assert advice(text, None) == []
    assert advice(MINIMAL, PortRange(1024, 65535)) == ["bridges.ports", "router_ports", "services[0].listen"]


def test_bridges_that_others_can_reach_are_named() -> None:
    """A bridge has no key: whoever reaches it reaches the engine."""
    assert advice("bridges: {host: 10.0.0.5}\n" + MINIMAL) == ["bridges.host"]


def test_health_questions_that_overtake_each_other_are_named() -> None:
    """A question should be over before the next is due."""
    assert advice(MINIMAL + "    health: {interval_s: 1, timeout_s: 2}\n") == ["services[0].health"]


def test_paths_at_which_nothing_passes_are_named() -> None:
    """A limit with a slip in its path limits nobody, and nobody would notice."""

    def told(path: str, more: str = "") -> bool:
        limits = f"    frontend:\n      {more}\n      limits: [{{per: ip, rps: 1, path: {path}}}]\n"
        frontend = f"    frontend:\n      {more}\n      auth: {{keys_file: /k, public_paths: [{path}]}}\n"
        found = [
            [it for it in advice(MINIMAL + each) if not it.endswith("frontend.paths")] for each in (limits, frontend)
        ]
        assert found in (
            [[], []],
            [["services[0].frontend.limits[0].path"], ["services[0].frontend.auth.public_paths"]],
        )
        return bool(found[0])

    for path in (
        "/v1",
        "/v1/models/tiny",
        "/v1/models/org/tiny",
        "/v1/responses/r1",
        "/v1/conversations/c1/items",
        "/health",
    ):
        assert not told(path), path
    for path in ("/v1/embedings", "/v1/conversations/c1/x", "/v2"):
        assert told(path), path
        assert not told(path, "paths: all")
    for path in ("/metrics", "/loads", "/v1x"):
        assert told(path), path
        assert told(path, "paths: all"), "it has no version"
    assert not told("/v1/files/f1", "paths: [/v1/files]")
    assert not told("/v1/files", "paths: [/v1/files/public]")
    assert told("/v1/filesx", "paths: [/v1/files]")


def test_a_path_that_the_router_does_not_have_is_named() -> None:
    """It passes, and its client gets the router's 404: most likely it is a slip, or another product's."""

    def told(path: str) -> bool:
        found = advice(f"{MINIMAL}    frontend: {{paths: [{path}]}}\n")
        assert found in ([], ["services[0].frontend.paths"])
        return bool(found)

    assert not any(map(told, ("/get_model_info", "/engine_metrics", "/v1", "/v1/models/org/tiny")))
    assert all(map(told, ("/v1/files", "/metrics", "/get_model_inf", "/v1/chat/completions/x")))


def test_what_services_refuse_and_their_shared_address_does_not_is_named() -> None:
    """A service's own frontend holds at its own address alone: its keys guard nothing at the other one."""
    own = "    frontend: {auth: {keys_file: /k}, limits: [{per: ip, rps: 1}]}\n"
    shared = "addresses:\n  - {name: api, listen: 127.0.0.1:8000, models: {tiny: chat}, frontend: {FRONTEND}}\n"

    def told(frontend: str) -> list[str]:
        return advise(parse_config(MINIMAL + own + shared.replace("FRONTEND", frontend)), LINUX)

    assert told("") == [
        "addresses[0].frontend: auth, limits of chat's own frontend do not hold here; set what is to hold in"
        " addresses[0].frontend, too"
    ]
    assert "frontend: limits of chat's" in told("auth: {keys_file: /j}")[0]
    assert told("auth: {keys_file: /j}, limits: [{per: key, rps: 5}]") == []


def test_a_mesh_at_an_address_that_only_this_machine_reaches_is_named() -> None:
    """The routers would never find each other, and nothing else would say so."""
    text = """\
store: {{{address}etcd: {{endpoints: [{etcd}]}}}}
services: [{{name: chat, listen: 127.0.0.1:30000, replicas: {{}}, router: {{mesh: true}}}}]
"""
    for etcd, address, expected in (
        ("http://127.0.0.1:2379", "", ["services[0].router.mesh"]),
        ("http://localhost:2379", "", ["services[0].router.mesh"]),
        ("http://127.0.0.1:2379", "address: 10.0.0.1, ", []),
        ("http://10.0.0.9:2379", "", []),
        ("http://etcd-1:2379", "", []),
        ("http://10.0.0.9:2379", "address: 127.0.0.1, ", ["services[0].router.mesh"]),
    ):
        assert advice(text.format(etcd=etcd, address=address)) == expected
    alone = text.format(etcd="http://127.0.0.1:2379", address="").replace("mesh: true", "mesh: false")
    assert advice(alone) == []
