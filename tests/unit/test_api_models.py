"""The daemon's answers are what `models` says: what is sent, what is described and what the table reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jsonschema
import pytest

from gateway_sidecar.api import view
from gateway_sidecar.api.answers import json_text
from gateway_sidecar.api.fleet import fleet_view
from gateway_sidecar.api.openapi import describe_api
from gateway_sidecar.api.reload_view import reload_plan
from gateway_sidecar.api.replicas import drained_view
from gateway_sidecar.api.signals_view import signals_view
from gateway_sidecar.api.table import render_fleet, render_replicas, render_status
from gateway_sidecar.config import AddressSettings
from gateway_sidecar.config.differences import Change
from gateway_sidecar.control.fleet.reflector import StoreStatus
from gateway_sidecar.control.fleet.seen import FleetSeen
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.control.process.file_on_disk import OnDisk
from gateway_sidecar.control.replicas.drain import DrainReport
from gateway_sidecar.domain.fleet import AskedDrain, DrainAt, DrainSeen, Gateway
from gateway_sidecar.domain.leaving import Leave
from gateway_sidecar.domain.model import Loading, ReplicaId
from gateway_sidecar.domain.signals import RequestEnd
from gateway_sidecar.supervision import awake
from tests.unit.fake_time import in_fake_time
from tests.unit.test_service_signals import Replica, desired, routed
from tests.unit.test_service_signals import service as service_signals
from tests.unit.world import World, running_world

Json = dict[str, Any]
DESCRIPTION = describe_api()
SCHEMAS: Json = DESCRIPTION["components"]["schemas"]
ENTRY = {"Entry", "SshReplica", "SshServerSettings"}
"""What is put, which the configuration's models describe."""


def closed(node: Any) -> Any:
    """A schema that lets no field through that it does not name."""
    if isinstance(node, list):
        return [closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    further = {"additionalProperties": False} if "properties" in node else {}
    return {name: closed(value) for name, value in node.items()} | further


def check(answer: object, model: str) -> None:
    """Raises ValidationError unless the answer, as JSON, has just the fields that are described."""
    components = {"components": {"schemas": closed(SCHEMAS)}}
    schema = {"$ref": f"#/components/schemas/{model}", **components}
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(answer)))


ADDRESS: Json = {
    "name": "api",
    "listen": "127.0.0.1:8000",
    "models": {
        "gpt-4o": {
            "services": [{"service": "chat", "weight": 9}, {"service": "gone", "model": "tiny"}],
            "fallback": "more",
        }
    },
    "default": "chat",
}


def _fleet() -> Any:
    other = Gateway("b", "1", "0.1.0", ready=False)
    return SimpleNamespace(
        where="etcd http://10.0.0.1:2379 /gateway-sidecar/",
        reflector=SimpleNamespace(status=StoreStatus("away", 0.0, None, "no answer")),
        membership=SimpleNamespace(name="a", others=[other]),
    )


def daemon_of(world: World, told: Json) -> Daemon:
    """As much of a daemon as `status` looks at."""
    nginx = SimpleNamespace(
        up=True, reason=None, problems={"nginx": "slow"}, not_in_force={"chat": "taken"}, applied=None,
        nginx=SimpleNamespace(process=None, reloads=0),
    )  # fmt: skip
    shared = SimpleNamespace(
        leases=world.leases, problems=SimpleNamespace(told=dict), peers=SimpleNamespace(problem=None),
        api=SimpleNamespace(of=lambda _name: SimpleNamespace(entries=told)), fleet=_fleet(),
    )  # fmt: skip
    leaving = SimpleNamespace(
        is_on=True, leave=Leave.begin(awake.now(), 600), addresses=[SimpleNamespace(listens=["127.0.0.1:30000"])],
        left_s=600.0, connections={30000: 2, 30001: 1}, describe=lambda: "it waits",
    )  # fmt: skip
    parts = SimpleNamespace(
        leaving=leaving,
        services={"chat": world.service}, nginx_supervisor=nginx, ready=True, frontends=SimpleNamespace(problems={}),
        certificates=SimpleNamespace(problems={}),
        quotas=SimpleNamespace(near={("chat", "alice", "tokens_per_day"): 0.85}),
        signals=SimpleNamespace(of={}), shared=shared, in_fleet=SimpleNamespace(mesh_of=lambda _service: "with gw-2"),
        addresses=[AddressSettings.model_validate(ADDRESS)],
        file=SimpleNamespace(
            path=Path("/g.yaml"), began_at=0.0, loaded_at=0.0,
            found=OnDisk("differs", (), (Change("chat", "router", "a while"),)),
        ),
    )  # fmt: skip
    return cast("Daemon", cast("Any", parts))


@pytest.mark.parametrize("name", sorted(SCHEMAS.keys() - ENTRY))
def test_every_field_is_described(name: str) -> None:
    """A reader of `/v1/openapi.json` needs no other page."""
    schema = SCHEMAS[name]
    assert schema["description"]
    bare = [field for field, of in schema.get("properties", {}).items() if "description" not in of]
    assert bare == []


@in_fake_time
async def test_status_and_plan_are_as_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With replicas that serve, that load, and that are told of and absent; one of them can be asked for alone."""
    async with running_world(tmp_path, monkeypatch) as world:
        world.appear("r1")
        world.appear("r2", Loading("503: loading"))
        await world.until(lambda: world.states() == {"r1": "serving", "r2": "loading"})
        daemon = daemon_of(world, {ReplicaId("r3"): {"socket": "/run/r3.sock"}})
        status = view.status(daemon)
        check(status, "Status")
        assert status["leave"] is not None
        assert status["leave"]["connections"] == {"127.0.0.1:30000": 2, "30001": 1}
        check({"actions": view.plan(daemon), "reload": await reload_plan(daemon)}, "Plan")
        text = render_status(json.loads(json.dumps(status)))
        assert text.startswith("LEAVING (waiting): it waits")
        assert [line.split()[:2] for line in text.splitlines()[-3:]] == [
            ["r1", "serving"],
            ["r2", "loading"],
            ["r3", "absent"],
        ]
        assert "NOT IN FORCE: taken" in text
        assert "gateway a, shared with b (not ready)" in text
        assert "  gpt-4o  chat 90 %, gone as tiny 10 %, else more  asleep" not in text
        assert "  gpt-4o  chat 90 %, gone as tiny 10 %, else more" in text
        for replica in ("r2", "r3"):
            (alone,) = view.replicas(daemon, world.service, only=ReplicaId(replica))
            assert alone["id"] == replica
        assert "absent" in render_replicas({"chat": [alone]})


def test_signals_are_as_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known and what is not."""
    signals, _ = service_signals(Replica(1))
    check(signals_view(signals, "nginx cannot be heard"), "Signals")
    routed(110, signals, {"http://a:1": 0})
    routed(130, signals, {"http://a:1": 60})
    signals.record(120, RequestEnd("chat", 200, 0.5))
    desired(signals, 130)
    monkeypatch.setattr(awake, "monotonic", lambda: 130.0)
    monkeypatch.setattr("time.monotonic", lambda: 130.0)
    shown = signals_view(signals, None)
    check(shown, "Signals")
    window = shown["windows"]["30"]
    assert window["e2e_s"] is not None
    assert (window["e2e_s"]["source"], window["ttft_s"]) == ("nginx", None)
    assert shown["scaling"] is not None


@pytest.mark.parametrize("path", ["/run/r1.sock", "/run/größe.sock", os.fsdecode(b"/run/\xff.sock")])
def test_an_answer_may_name_any_path(path: str) -> None:
    """Also one that is not UTF-8, which JSON can only have escaped."""
    assert json.loads(json_text({"socket": path})) == {"socket": path}


def test_what_the_gateways_of_a_fleet_say_is_answered_as_it_is_described() -> None:
    """And shown: who is there, and what each of them sees of each replica."""
    asked = AskedDrain("d1", "gw-1")
    drains = {"chat/r2": asked, "chat/r3": asked, "chat/r4": asked}

    def gateway(name: str, ready: bool, **said: DrainSeen) -> Gateway:
        return Gateway(
            name, name, "0.1.0", ("chat", "images") if ready else ("chat",), ready, since="2026-11-30T09:00:00Z",
            drains={f"chat/{replica}": seen for replica, seen in said.items()},
        )  # fmt: skip

    busy, safe, replaced = DrainSeen("d1", False, True, 2), DrainSeen("d1", True, True, 0), DrainSeen("d1", True)
    seen = FleetSeen(
        [gateway("gw-1", True, r2=safe, r3=busy, r4=replaced), gateway("gw-2", False, r2=DrainSeen("d0", True, True))],
        drains,
        {
            "gw-1": {
                "chat": {
                    "r1": ("serving", 24001), "r2": ("draining", 24002), "r3": ("draining", 1), "r4": ("serving", 2),
                },
                "images": {},
            },
            "gw-2": {"chat": {"r1": ("loading", None), "r2": ("serving", 24011)}},
            "gw-9": {"old": {"r1": ("serving", 1)}},
        },
        {"chat": "gw-2", "images": None},
        {"gw-1": 2.0, "gw-2": 4.0},
    )  # fmt: skip
    answer = fleet_view(seen, "gw-1", {"gw-3": 12.0, "gw-2": 30.0})
    check(answer, "FleetStatus")
    assert render_fleet(answer).splitlines() == [
        "gateway          state         heard   version  since",
        "gw-1 (this one)  ready         2s ago  0.1.0    2026-11-30T09:00:00Z",
        "gw-2             not ready     4s ago  0.1.0    2026-11-30T09:00:00Z",
        "gw-3             gone for 12s  -       -        -",
        "",
        "chat  scaling voice: gw-2",
        "  replica  gw-1                   gw-2",
        "  r1       serving                loading",
        "  r2       draining, safe         serving  drain asked at gw-1; bridge ports differ: 24002, 24011",
        "  r3       draining, 2 in flight  -        drain asked at gw-1",
        "  r4       serving                -        drain asked at gw-1",
        "",
        "images  scaling voice: none",
        "  no replicas",
    ]


def test_what_came_of_a_drain_is_answered_as_it_is_described() -> None:
    """With each gateway that was asked."""
    elsewhere = [DrainAt("gw-2", False, 2, "2 connections in flight"), DrainAt("gw-3", False, None, "silent", 7.0)]
    report = DrainReport(False, 0, 1.0, {"tiny": "it is the only one"}, elsewhere, "gw-2: 2 connections in flight")
    check(drained_view(report), "Drained")
    check(drained_view(DrainReport(True, 0, 1.0)), "Drained")
