from __future__ import annotations

import pytest

from gateway_sidecar.config import parse_config
from gateway_sidecar.errors import ConfigError


def service(name: str, listen: str, sockets: str | None = None) -> str:
    sockets = sockets or f"/run/replicas/{name}/{{replica}}.sock"
    return f"  - {{name: {name}, listen: '{listen}', replicas: {{sockets: '{sockets}'}}}}\n"


def problems(top: str, *services: str) -> list[str]:
    try:
        parse_config(top + "services:\n" + "".join(services), "c")
    except ConfigError as error:
        return error.problems
    return []


A = service("a", "127.0.0.1:30000")


@pytest.mark.parametrize(
    ("top", "services", "expected"),
    [
        (
            "",
            (A, service("a", "127.0.0.1:30001", "/run/b/{replica}")),
            "c:3: services[1].name: 'a' is taken by services[0].name (line 2); give each service its own name",
        ),
        (
            "",
            (A, service("b", "0.0.0.0:30000")),
            "c:3: services[1].listen: 0.0.0.0:30000 is taken by services[0].listen (line 2); give each its"
            " own"
            " address or port",
        ),
        (
            "",
            (service("a", "127.0.0.1:9464"),),
            "c:2: services[0].listen: 127.0.0.1:9464 is taken by metrics.listen (default 127.0.0.1:9464);"
            " give"
            " each its own address or port",
        ),
        (
            "",
            (service("a", "127.0.0.1:24500"),),
            "c:2: services[0].listen: 127.0.0.1:24500 lies in bridges.ports (default 24001-24999);"
            ""
            " use a port outside that range",
        ),
        (
            "",
            (service("a", "0.0.0.0:23500"),),
            "c:2: services[0].listen: 0.0.0.0:23500 lies in router_ports (default 23001-23999);"
            " use a port outside that range",
        ),
        (
            "bridges: {ports: 9000-9999}\n",
            (A,),
            "c:1: bridges.ports: 9000-9999 holds the port of metrics.listen (default 127.0.0.1:9464); move one of them",
        ),
        (
            "bridges: {ports: 23900-24100}\n",
            (A,),
            "c:1: bridges.ports: 23900-24100 overlaps router_ports (default 23001-23999); use ranges with no"
            " port in common",
        ),
        (
            "router_ports: 23001-23003\n",
            (A, service("b", "127.0.0.1:30001")),
            "c:1: router_ports: 23001-23003 is too small for 2 services; use at least 8 ports, 4 for each",
        ),
        (
            "",
            (
                service("a", "127.0.0.1:1", "/run/{replica}/e.sock"),
                service("b", "127.0.0.1:2", "/run/b/{replica}.sock"),
            ),
            "c:3: services[1].replicas.sockets: /run/b/{replica}.sock and services[0].replicas.sockets"
            " (line 2)"
            " both match /run/b/e.sock; give each service its own directory",
        ),
        (
            "",
            (service("a", "127.0.0.1:1", "/run/gateway-sidecar/{replica}.sock"),),
            "c:2: services[0].replicas.sockets: /run/gateway-sidecar/{replica}.sock matches the daemon's own"
            " /run/gateway-sidecar/admin.sock; keep replicas out of run_dir",
        ),
        (
            "state_dir: /run/gateway-sidecar\n",
            (A,),
            "c:1: state_dir: /run/gateway-sidecar is run_dir (default /run/gateway-sidecar) too; use two"
            " directories, as run_dir is emptied at boot",
        ),
    ],
)
def test_settings_that_stand_in_each_others_way_are_refused(top: str, services: tuple[str, ...], expected: str) -> None:
    """The later one is reported, with the line of the earlier; a default is never the one at fault."""
    assert problems(top, *services) == [expected]


@pytest.mark.parametrize(
    ("top", "services"),
    [
        ("", (A, service("b", "127.0.0.2:30000"))),
        ("", (A, service("b", "[::]:30000"))),
        ("metrics: null\n", (service("a", "127.0.0.1:9464"),)),
        ("bridges: {host: 10.0.0.5}\n", (service("a", "127.0.0.1:24500"),)),
        (
            "",
            (
                service("a", "127.0.0.1:1", "/run/{replica}/a.sock"),
                service("b", "127.0.0.1:2", "/run/{replica}/b.sock"),
            ),
        ),
        ("", (service("a", "127.0.0.1:1", "/run/gateway-sidecar/replicas/{replica}.sock"),)),
    ],
)
def test_settings_that_only_look_alike_are_allowed(top: str, services: tuple[str, ...]) -> None:
    """What the kernel can tell apart is no clash."""
    assert problems(top, *services) == []


def test_broken_settings_do_not_hide_clashes_between_the_others() -> None:
    """Clashes are reported in the same go, where the settings that they need are valid."""
    found = problems(
        "bridges: {ports: many}\nrun_dir: here\n",
        A,
        service("NO", "127.0.0.1:30000", "relative/{replica}"),
        "  - 7\n",
        "  - {name: a}\n",
    )
    where = [line.split(": ")[1] for line in found]
    assert where == [
        "bridges.ports",
        "run_dir",
        *("services[1].listen", "services[1].name", "services[1].replicas.sockets"),
        "services[2]",
        *("services[3].name", "services[3].listen", "services[3].replicas"),
    ]


def test_each_clash_is_reported_once() -> None:
    """Three services on one address are two mistakes, not three."""
    many = [service(name, "127.0.0.1:30000") for name in ("a", "b", "c")]
    assert len(problems("", *many)) == 2


BEHIND = "".join(
    (
        "services:\n",
        "  - {name: chat, listen: '127.0.0.1:30000', replicas: {}}\n",
        "  - {name: code, listen: '127.0.0.1:30001', replicas: {}}\n",
        "  - {name: web, listen: '127.0.0.1:30002', replicas: {}, engine: http, router: {type: none}}\n",
        "addresses:\n",
    )
)
SHARED = "  - {{name: api, listen: '127.0.0.1:8000', {}}}\n"
NAMES = "use 256 characters at most, of letters, digits and . _ : / @ + = , ~ -, for example Qwen/Qwen3-32B"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("models: {a: chatt}", "models.a: there is no service 'chatt'; did you mean 'chat'?"),
        (
            "models: {a: chat}, default: other",
            "default: there is no service 'other'; use one of chat, code, web",
        ),
        (
            "models: {a: {service: chat, fallback: nobody}}",
            "models.a.fallback: there is no service 'nobody'; use one of chat, code, web",
        ),
        (
            "models: {a: {services: [{service: chat}, {service: nope}]}}",
            "models.a.services[1].service: there is no service 'nope'; use one of chat, code, web",
        ),
        ("models: {a: chat, a: code}", "models.a: is given twice, first in line 6; keep one of them"),
        (
            "models: {a: {services: [{service: chat, weight: 0}]}}",
            "models.a: the weights of services add up to 0; give one of them a weight above 0",
        ),
        (
            "models: {a: {services: [{service: chat}, {service: chat}]}}",
            "models.a: names service 'chat' twice; give it one weight",
        ),
        (
            "models: {a: {service: chat, fallback: chat}}",
            "models.a: falls back to 'chat', which it already leads to; name another service",
        ),
        ("models: {a: {}}", "models.a: needs service or services, and not both; give one of them"),
        (
            "models: {a: {services: [{service: chat}], model: b}}",
            "models.a: model has no meaning beside services; move it into each entry of services",
        ),
        ("models: {}", "models: is empty; name at least one model and its service"),
        (
            "models: {'b c': chat}",
            f"models['b c']: 'b c' is not a model's name that can be passed on; {NAMES}",
        ),
        (
            f"models: {{{'m' * 257}: chat}}",
            f"models.{'m' * 257}: '{'m' * 59}...mmmmm' is not a model's name that can be passed on; {NAMES}",
        ),
        (
            "models: {a: {service: chat, wieght: 3}}",
            "models.a.wieght: unknown setting; use one of service, model, services, fallback",
        ),
        (
            "models: {a: {services: [{service: chat, wieght: 3}]}}",
            "models.a.services[0].wieght: unknown setting; did you mean 'weight'?",
        ),
        (
            "models: {a: web}",
            "models.a: service web is an HTTP application (engine: http) and has no models; leave it out",
        ),
        (
            "models: {a: chat}, frontend: {paths: [/workers/x]}",
            "frontend.paths[0]: '/workers/x' controls the router, so no frontend lets it pass; leave it out",
        ),
        (
            "models: {a: chat}, frontend: {listen: ['127.0.0.1:30001']}",
            "frontend.listen[0]: 127.0.0.1:30001 is taken by services[1].listen (line 3); give each its own"
            " address or port",
        ),
    ],
)
def test_models_of_shared_addresses_have_services(said: str, expected: str) -> None:
    """Each mistake has one line, and says what to do."""
    with pytest.raises(ConfigError) as refused:
        parse_config(BEHIND + SHARED.format(said), "c")
    assert refused.value.problems == [f"c:6: addresses[0].{expected}"]


def test_two_shared_addresses_may_share_a_public_one_by_their_names() -> None:
    """And each may have the same models, for other clients."""
    text = BEHIND
    for number in (1, 2):
        frontend = f"{{listen: ['0.0.0.0:8443'], server_names: [api{number}.example.com]}}"
        text += (
            f"  - {{name: api{number}, listen: '127.0.0.1:800{number}', models: {{a: chat}}, frontend: {frontend}}}\n"
        )
    assert [it.services for it in parse_config(text).addresses] == [("chat",), ("chat",)]
    with pytest.raises(ConfigError) as refused:
        parse_config(text.replace("api2.example", "api1.example"))
    assert "api1.example.com is addresses[0].frontend.server_names[0] (line 6) at 0.0.0.0:8443 too" in str(
        refused.value
    )


def test_a_mesh_needs_a_store_and_replicas_that_all_gateways_have() -> None:
    """A URL must mean the same replica at all of them."""
    store, of = "store: {etcd: {endpoints: ['http://10.0.0.9:2379']}}\n", "  - {name: a, listen: '127.0.0.1:30000', "
    in_mesh = "router: {mesh: true}, replicas: "
    assert problems(store, f"{of}{in_mesh}{{}}}}\n") == []
    assert problems("", f"{of}router: {{mesh: false}}, replicas: {{}}}}\n") == []
    assert problems("", f"{of}{in_mesh}{{}}}}\n") == [
        "c:2: services[0].router.mesh: is between gateways that share a store, and this one has none; give store, or"
        " leave mesh out"
    ]
    [few] = problems(f"router_ports: 23001-23005\n{store}", f"{of}{in_mesh}{{}}}}\n")
    assert few.endswith("; use at least 6 ports, 4 for each, and 2 more for each with router.mesh")
    sockets = "{sockets: '/run/a/{replica}.sock'}"
    assert problems(store, f"{of}{in_mesh}{sockets}}}\n") == [
        "c:3: services[0].router.mesh: is for replicas that all gateways have, and sockets in `replicas` names this"
        " machine's own; put them over the API (`replicas: {}`), or leave mesh out"
    ]


def test_a_gateways_address_is_one_machines() -> None:
    """Others connect to it."""
    text = "store: {{address: {address}, etcd: {{endpoints: ['http://10.0.0.9:2379']}}}}\n"
    for address in ("10.0.0.1", "'2001:db8::1'"):
        assert problems(text.format(address=address), A) == []
    for address in ("0.0.0.0", "'::'", "gw-1", "10.0.0.1:1", "224.0.0.1", "1"):
        [line] = problems(text.format(address=address), A)
        assert line.endswith(" is not an address of one machine; use one such as 10.0.0.1")
