"""A kind of router is one folder: another package brings a toy, and nothing of the product is touched for it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gateway_sidecar.check import _routers
from gateway_sidecar.config import PortRange, Settings, advise, config_schema, load_usable, parse_config
from gateway_sidecar.domain.findings import Level
from gateway_sidecar.domain.routing import BridgeRules, RouterHeaders, RouterPaths
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.kinds import ROUTERS
from gateway_sidecar.nginx.access_events import EventAddress
from gateway_sidecar.routers.base import RouterKind
from tests.smg import smg_address
from tests.toy_router import install_toy
from tests.unit.test_layers import PACKAGE, nodes
from tests.unit.test_nginx_config import config as nginx_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def _toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The toy is installed."""
    install_toy(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    _look_again()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_router"]:
        del sys.modules[name]
    _look_again()


def _look_again() -> None:
    ROUTERS.__dict__.pop("by_name", None)


def text(router: dict[str, Any], **more: Any) -> str:
    service = {"name": "a", "listen": "127.0.0.1:1", "replicas": {}, "router": router, **more}
    return yaml.safe_dump({"services": [service]}, sort_keys=False)


def problems(router: dict[str, Any], **more: Any) -> list[str]:
    try:
        parse_config(text(router, **more), "c.yaml")
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.usefixtures("_toy")
def test_another_packages_kind_is_configured_like_ours() -> None:
    """With its own settings and defaults beside those that all routers have."""
    router = parse_config(text({"type": "toy", "order": "random", "start_timeout_s": 5})).services[0].router
    expected = {"type": "toy", "command": "python3", "order": "random", "start_timeout_s": 5, "api_timeout_s": 5.0}
    assert expected.items() <= router.model_dump().items()
    assert parse_config(text({})).services[0].router.type == "smg"


@pytest.mark.usefixtures("_toy")
@pytest.mark.parametrize(
    ("router", "problem"),
    [
        ({"type": "toy", "order": "best"}, "c.yaml:7: services[0].router.order: 'best' is not one of the choices"),
        ({"type": "toy", "policy": "random"}, "c.yaml:7: services[0].router.policy: unknown setting; use one of type"),
        ({"type": "toy", "ordr": "random"}, "c.yaml:7: services[0].router.ordr: unknown setting; did you mean 'order'"),
        ({"type": "toy", "order": None}, "c.yaml:7: services[0].router.order: is empty; give it a value"),
        ({"type": "toy", "start_timeout_s": 0}, "services[0].router.start_timeout_s: 0 is too small; use 1 to 600"),
        ({"type": "toi"}, "c.yaml:6: services[0].router.type: 'toi' is not one of the choices (did you mean 'toy'?);"),
        (
            {"type": "vllm", "x": 1},
            "c.yaml:6: services[0].router.type: 'vllm' is not one of the choices; use smg or n",
        ),
        ({"type": 5}, "c.yaml:6: services[0].router.type: 5 is not one of the choices; use smg"),
        ({"order": "random"}, "c.yaml:6: services[0].router.order: unknown setting; use one of type"),
    ],
)
def test_mistakes_in_its_settings_have_their_line_and_cure(router: dict[str, Any], problem: str) -> None:
    """As those in any other setting."""
    [found] = problems(router)
    assert problem in found


@pytest.mark.usefixtures("_toy")
def test_editors_know_it() -> None:
    """The schema takes what the daemon takes."""
    judge = jsonschema.Draft202012Validator(config_schema())
    for router in ({}, {"type": "smg", "policy": "random"}, {"type": "toy", "order": "random"}):
        judge.validate(yaml.safe_load(text(router)))
    for router in ({"type": "toy", "policy": "random"}, {"order": "random"}, {"type": "vllm"}):
        with pytest.raises(jsonschema.ValidationError):
            judge.validate(yaml.safe_load(text(router)))


@pytest.mark.usefixtures("_toy")
def test_what_clients_may_ask_is_for_the_kind_to_say() -> None:
    """Each frontend is judged by its own router's paths and headers."""
    toy, smg = {"type": "toy"}, {"type": "smg"}
    assert problems(toy, frontend={"paths": ["/flush_cache"], "pass_headers": ["X-Smg-Tenant-Id"]}) == []
    assert len(problems(smg, frontend={"paths": ["/flush_cache"], "pass_headers": ["X-Smg-Tenant-Id"]})) == 2
    [control] = problems(toy, frontend={"paths": ["/workers/1"]})
    assert "'/workers/1' controls the router" in control
    [key] = problems(smg, frontend={"pass_headers": ["x-toy-bridge-key"]})
    assert "the gateway's own key" in key
    limits = {"limits": [{"per": "ip", "path": "/v1/rerank", "concurrent": 1}]}
    assert ["limits[0].path" in it for it in advice(parse_config(text(toy, frontend=limits)))] == [True]
    assert advice(parse_config(text(smg, frontend=limits))) == []


def advice(settings: Settings) -> list[str]:
    return advise(settings, PortRange(60000, 60001))


@pytest.mark.usefixtures("_toy")
async def test_check_asks_the_kind() -> None:
    """Each kind once, of all its services."""
    [found] = await _routers(parse_config(text({"type": "toy"})))
    assert found.level is Level.OK
    [failed] = await _routers(parse_config(text({"type": "toy", "command": "/no/python"})))
    assert failed.line() == "FAIL  a: router.command: /no/python is not an executable file"


@pytest.mark.usefixtures("_toy")
def test_bridges_know_routers_of_all_kinds() -> None:
    """Each shows the key in its kind's header, and may ask for its kind's paths; a kind may have nothing to hide."""
    rules = BridgeRules.of(((kind.paths, kind.headers) for kind in ROUTERS), ())
    bare = replace(smg_address("a", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"), paths=RouterPaths(("/v1/models",)))
    text = nginx_config(bridge_rules=rules, services=[bare])
    shown = "$http_authorization:$http_x_dynamo_bridge_key:$http_x_request_id_gateway_key:$http_x_toy_bridge_key"
    assert f'map "{shown}" $gateway_is_router' in text
    for header in ("X-Request-Id-Gateway-Key", "X-Toy-Bridge-Key"):
        assert f"proxy_set_header {header} {'k' * 32};" in text
        assert f'proxy_set_header {header} "";' in text
    [passes] = re.findall(r"\$gateway_passes_a \{(.*?)\}", text, re.DOTALL)
    assert passes.split() == ["default", "0;", '"~^(?:/v1/models)(?:\\?|\\z)"', "1;"]


@pytest.mark.usefixtures("_toy")
def test_an_address_before_two_kinds_lets_through_what_harms_neither() -> None:
    """What one of them serves passes; what controls, or steers, one of them does not; each knows whose a request is."""
    kinds = [ROUTERS["smg"], ROUTERS["toy"]]
    paths = RouterPaths.of_all(kind.paths for kind in kinds)
    assert set(paths.inference) == {path for kind in kinds for path in kind.paths.inference}
    assert set(paths.control) == {path for kind in kinds for path in kind.paths.control}
    other = RouterHeaders(
        "X-B", tenant="X-Who", passed=("X-Smg-Target-Worker",), steering={"x-smg-routing-key": "x"}, worker="X-W"
    )
    address = smg_address("a", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
    both = replace(address, paths=paths, headers=(*address.headers, other))
    assert both.tenant_headers == ["X-Smg-Tenant-Id", "X-Who"]
    assert not {"X-Smg-Target-Worker", "X-Smg-Routing-Key"} & set(both.passed_headers)
    assert "$upstream_http_x_smg_routed_worker_id$upstream_http_x_w" in nginx_config(
        services=[both], events=EventAddress(1, "ab")
    )


@pytest.mark.parametrize("kind", list(ROUTERS), ids=lambda kind: kind.name)
def test_an_address_before_one_kind_says_all_that_the_kind_says(kind: RouterKind[Any]) -> None:
    """None of it is lost on the way: that Dynamo has to be asked once more was."""
    said = kind.paths
    found = RouterPaths.of_all([said])
    lists: dict[str, Any] = {
        it.name: tuple(sorted({*getattr(said, it.name)})) for it in fields(said) if it.default == ()
    }
    lists["inference"] = tuple(sorted({*said.inference}))
    assert replace(found, versioned=said.versioned) == replace(said, **lists)
    assert found.versioned == f"(?:{said.versioned})"
    address = smg_address("a", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
    text = nginx_config(services=[replace(address, paths=found)])
    assert ("proxy_next_upstream http_503 non_idempotent;" in text) is said.loses


def test_a_package_that_is_broken_does_not_keep_a_daemon_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can still be asked, and ended: for that nobody needs the kinds."""
    install_toy(tmp_path)
    (tmp_path / "toy_router" / "__init__.py").write_text("import no_such_module\n")
    (tmp_path / "c.yaml").write_text(f"run_dir: {tmp_path}/run\n" + text({"type": "toy"}))
    monkeypatch.syspath_prepend(tmp_path)
    _look_again()
    assert load_usable(tmp_path / "c.yaml").run_dir == tmp_path / "run"
    _look_again()


FOLDERS = {it.parent.name for it in (PACKAGE / "routers").glob("*/__init__.py")}


@pytest.mark.parametrize("folder", sorted(FOLDERS - {"none"}))  # which is a word for other things, too
def test_one_product_file_names_a_kind(folder: str) -> None:
    """Who adds a kind of router to the product adds a folder, and a word to one file that is there.

    An engine of the same project may have the same name.
    """
    naming = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if not path.is_relative_to(PACKAGE / "routers" / folder) and folder.encode() in path.read_bytes()
        for node in nodes(path)
        if (isinstance(node, ast.Constant) and node.value == folder)
        or (isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"gateway_sidecar.routers.{folder}"))
    }
    assert naming - {f"engines/{folder}.py"} == {"kinds.py"}


def test_the_guide_shows_the_toy_that_is_tested() -> None:
    """Word for word: who copies it has something that works."""
    guide = (ROOT / "docs" / "guides" / "write-your-own-router.md").read_text()
    for name in ("pyproject.toml", "toy_router/__init__.py", "toy_router/balancer.py"):
        assert f"\n{(ROOT / 'examples' / 'toy_router' / name).read_text()}```\n" in guide
