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
