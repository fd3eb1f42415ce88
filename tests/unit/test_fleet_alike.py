"""Gateways of one fleet with different settings: each serves by its own, and says where they differ."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import yaml

from gateway_sidecar.config import load_config
from gateway_sidecar.config.alike import alike_of
from gateway_sidecar.domain.fleet import Gateway
from gateway_sidecar.domain.fleet_alike import differences
from tests.unit.fake_time import in_fake_time
from tests.unit.test_fleet import fleets

OWN = {"bridges.ports": "1-9", "chat: scaling": "on", "chat: scaling.target": "2", "chat: frontend.auth": "store"}


def gateway(name: str, alike: object) -> Gateway:
    return Gateway(name, name, said={"alike": alike})


def test_each_setting_that_another_gateway_has_differently_is_named_with_both_values() -> None:
    others = [
        gateway("b", OWN),
        gateway("c", {**OWN, "chat: scaling.target": "3", "chat: frontend.auth": "keys_file"}),
        gateway("d", {"bridges.ports": "1-8"}),
    ]
    assert differences(OWN, others) == (
        "chat: frontend.auth is store here and keys_file at c; chat: scaling.target is 2 here and 3 at c;"
        " bridges.ports is 1-9 here and 1-8 at d"
    )
    assert differences(OWN, others[:1]) == ""
    nobodys = differences(OWN, [gateway("e\n", {"bridges.ports": "\x1b" + "9" * 10_000})])
    assert nobodys.isprintable()
    assert len(nobodys) < 200


def test_what_another_gateway_does_not_have_or_another_version_or_nobody_wrote_is_no_difference() -> None:
    others = [
        Gateway("b", "b"),
        gateway("c", {"bridges.ports": 5, "of a later version": "x", "embed: scaling": "on"}),
        gateway("d", ["garbage"]),
        gateway("e", None),
    ]
    assert differences(OWN, others) == ""


def test_of_many_differences_a_few_are_named() -> None:
    many = {f"s{number}": "here" for number in range(10)}
    text = differences(many, [gateway("b", dict.fromkeys(many, "there"))])
    assert text.count("is here here and there at b") == 4
    assert text.endswith("; and 6 more")


@in_fake_time
async def test_each_of_two_gateways_says_so_until_they_are_alike(tmp_path: Path) -> None:
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        a.alike, b.alike = {"bridges.ports": "1-9"}, {"bridges.ports": "1-8"}
        await asyncio.sleep(20)
        cure = "; give all gateways of the fleet the same"
        assert a.problems.told() == {"store: settings": f"bridges.ports is 1-9 here and 1-8 at b{cure}"}
        assert b.problems.told() == {"store: settings": f"bridges.ports is 1-8 here and 1-9 at a{cure}"}
        b.alike = a.alike
        await asyncio.sleep(20)
        assert a.problems.told() == b.problems.told() == {}


def told(directory: Path, **service: Any) -> dict[str, str]:
    path = directory / "gateway-sidecar.yaml"
    chat = {"name": "chat", "listen": "127.0.0.1:30000", "replicas": {}, **service}
    addresses = [{"name": "all", "listen": "127.0.0.1:30001", "models": {"m": "chat"}}]
    store = {"etcd": {"endpoints": ["http://127.0.0.1:2379"]}}
    whole = {"bridges": {"ports": "24001-24010"}, "services": [chat], "addresses": addresses, "store": store}
    path.write_text(yaml.safe_dump(whole))
    return alike_of(load_config(path))


def test_what_is_told_is_the_settings_in_words_and_nothing_secret(tmp_path: Path) -> None:
    """Each gateway has a hook of its own."""
    auth: dict[str, Any] = {"url": "http://127.0.0.1:1/secret"}
    hook = {"webhook": "http://127.0.0.1:1/secret"}
    scaling = {"metric": "rps", "target": 2.5, "prefill": {"min": 2}, "hook": hook}
    found = told(tmp_path, scaling=scaling, frontend={"auth": auth})
    assert found.items() >= {
        ("bridges.ports", "24001-24010"),
        ("chat: scaling", "on"),
        ("chat: scaling.target", "2.5"),
        ("chat: scaling.prefill", "{'min': 2}"),
        ("chat: frontend.auth", "url"),
        ("all: frontend.auth", "off"),
    }
    assert "secret" not in str(found)
    assert told(tmp_path)["chat: scaling"] == "off"
    for auth in ({"store": True}, {"keys_file": "/etc/chat.keys"}):
        assert told(tmp_path, frontend={"auth": auth})["chat: frontend.auth"] == next(iter(auth))
