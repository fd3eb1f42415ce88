"""vllm-router and sglang-router as installed, held against what their kinds say of them. None is started."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from gateway_sidecar.config import RouterSettings
from gateway_sidecar.domain.findings import Finding, Level
from gateway_sidecar.domain.model import ConnectionMode, WorkerType
from gateway_sidecar.kinds import ROUTERS
from gateway_sidecar.routers.base import RouterPorts, RouterSetup, Surroundings
from gateway_sidecar.routers.program import parse
from gateway_sidecar.routers.sglang_router import settings as sglang
from gateway_sidecar.routers.vllm_router import settings as vllm
from gateway_sidecar.routers.with_key import SECRET_VARIABLE
from tests.other_routers import KINDS, PACKAGES, program_of, router_of
from tests.smg import SERVICE

SETTINGS: dict[str, Any] = {"vllm-router": vllm, "sglang-router": sglang}
NOT_OFFERED = {"vllm-router": {"kv_aware"}, "sglang-router": set[str]()}
LAUNCH = {"vllm-router": (), "sglang-router": ("launch",)}

CONTROL = {
    "vllm-router": """
        /add_worker /remove_worker /list_workers /flush_cache /get_loads /scheduling/diagnostics /finish_session
        /workers/{url}
    """,
    "sglang-router": """
        /flush_cache /get_loads /parse/function_call /wasm /wasm/{module_uuid} /v1/tokenizers
        /v1/tokenizers/{tokenizer_id} /v1/tokenizers/{tokenizer_id}/status /workers/{worker_id} /ha/status /ha/health
        /ha/workers /ha/workers/{worker_id} /ha/policies /ha/policies/{model_id} /ha/config /ha/rate-limit
        /ha/rate-limit/stats /ha/shutdown /v1/conversations /v1/conversations/{conversation_id}
        /v1/conversations/{conversation_id}/items /v1/conversations/{conversation_id}/items/{item_id} /v1/tokenize
        /v1/detokenize
    """,
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def shown_help(kind: str) -> str:
    command = [str(router_of(kind)["command"]), *LAUNCH[kind], "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


async def checked(kind: str, **router: Any) -> list[Finding]:
    """What `check` says of a service with this router."""
    settings = ROUTERS[kind].settings.model_validate({"type": kind, **router})
    return await ROUTERS[kind].check({"chat": settings})


def test_only_options_of_the_daemon_are_refused(kind: str, shown_help: str) -> None:
    """Every other option that it has can be given, in full, and each that is refused exists."""
    reserved, check_argument = SETTINGS[kind].RESERVED, SETTINGS[kind].check_argument
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+(?=[ \]\n,])", shown_help.partition("\nUsage:")[0]))
    assert len(options) > 60
    refused = set()
    for option in options:
        try:
            check_argument(option)
        except ValueError:
            refused.add(option)
    assert refused == {name for name in reserved if name in options}
    assert all(option == "--" or option in shown_help for option in reserved)


def test_the_policies_are_its_own(kind: str, shown_help: str) -> None:
    """A policy that it would refuse is refused before it is started."""
    found = re.search(r"--policy \{([a-z_,]+)\}", shown_help)
    assert found is not None
    assert set(found[1].split(",")) - NOT_OFFERED[kind] == set(get_args(SETTINGS[kind].Policy))


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--no-such-option",), "unrecognized arguments: --no-such-option"),
        (("--cache-threshold", "much"), "invalid float value: 'much'"),
        (("--request-timeout-secs", "-5"), "negative int"),
        (("--max-tree-size",), "expected one argument"),
        ((), None),
        (("--max-tree-size", "1000"), None),
    ],
)
async def test_its_own_parser_is_asked(kind: str, args: tuple[str, ...], reason: str | None) -> None:
    """What would end a router at its start is told before one is started, in its own words."""
    command = router_of(kind)["command"]
    said = [it for it in await checked(kind, args=args, command=command) if it.level is not Level.WARN]
    [finding] = said
    assert finding.level is (Level.OK if reason is None else Level.FAIL)
    assert (reason or "which takes its arguments") in finding.text


async def test_one_that_is_not_installed_is_told_with_the_cure(kind: str, tmp_path: Path) -> None:
    """One line; the next says what to do."""
    for command, words in ((f"no-{kind}", "nor on PATH; pip install"), (f"{tmp_path}/x", "is not an executable file")):
        [finding] = [it for it in await checked(kind, command=command) if it.level is Level.FAIL]
        assert words in finding.text


@pytest.mark.parametrize(("version", "word"), [("0.0.9", "too old"), ("7.1", "too new"), ("", "too old")])
async def test_a_version_that_was_not_measured_is_told(kind: str, version: str, word: str, tmp_path: Path) -> None:
    """With the versions that were."""
    package = tmp_path / "lib" / PACKAGES[kind]
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "version.py").write_text(f"__version__ = {version!r}\n")
    (package / "launch_router.py").write_text(
        "class Args:\n    def _validate_router_args(self): pass\ndef parse_router_args(words): return Args()\n"
    )
    (package / "router.py").write_text("class Router:\n    from_args = staticmethod(lambda args: None)\n")
    program = tmp_path / kind
    program.write_text(f"#!{sys.executable}\n")
    program.chmod(0o755)
    env = {"PYTHONPATH": str(package.parent)}
    [finding] = [it for it in await checked(kind, command=str(program), env=env) if it.level is Level.FAIL]
    assert word in finding.text
    assert f"pip install '{kind}>=" in finding.text


async def test_another_program_is_told(kind: str, tmp_path: Path) -> None:
    """One that is no Python script, and one whose Python knows no such router."""
    for first in ("#!/bin/sh", f"#!{sys.executable} -I -S"):
        program = tmp_path / "program"
        program.write_text(f"{first}\n")
        program.chmod(0o755)
        [finding] = [it for it in await checked(kind, command=str(program)) if it.level is Level.FAIL]
        assert f"this is no {kind}" in finding.text


def test_every_route_is_for_clients_or_controls_the_router(kind: str) -> None:
    """Its routes lie end to end in its program, and each of them is on one of the lists."""
    router_of(kind)
    program = program_of(kind)
    assert program is not None
    [library] = program.parents[1].glob(f"lib/python3*/site-packages/**/{PACKAGES[kind]}_rs*.so")
    paths = ROUTERS[kind].paths
    known = {re.sub(r"\\\*+", r"\\{[a-z_]+\\}", re.escape(it)) for it in (*paths.inference, *paths.fleet)}
    known |= {re.escape(it) for it in CONTROL[kind].split()}
    runs = re.findall(rb"(?:/(?:[a-z0-9_-]+|\{[a-z_]+\}))+", library.read_bytes())
    [routes] = [run.decode() for run in runs if b"/workers/{" in run and b"/flush_cache" in run]
    longest_first = "|".join(sorted(known, key=len, reverse=True))
    rest = re.sub(rf"^(?:{longest_first})+", "", routes)
    assert not rest.startswith("/"), f"decide: inference, or control: {rest}"
    for path in CONTROL[kind].split():
        assert any(f"{path}/".startswith(f"{root}/") for root in paths.control), path


@pytest.mark.parametrize(
    ("router", "worker_type", "mode", "words"),
    [
        ({"type": "vllm-router"}, WorkerType.REGULAR, ConnectionMode.GRPC, "speaks HTTP only"),
        ({"type": "vllm-router"}, WorkerType.PREFILL, ConnectionMode.HTTP, "with router.models: many only"),
        ({"type": "vllm-router", "models": "many"}, WorkerType.PREFILL, ConnectionMode.HTTP, None),
        ({"type": "vllm-router", "models": "many"}, WorkerType.ENCODE, ConnectionMode.HTTP, "router.type: smg"),
        ({"type": "sglang-router"}, WorkerType.REGULAR, ConnectionMode.GRPC, "HTTP engines only"),
        ({"type": "sglang-router"}, WorkerType.DECODE, ConnectionMode.HTTP, "with router.mode: prefill_decode only"),
        ({"type": "sglang-router", "mode": "prefill_decode"}, WorkerType.DECODE, ConnectionMode.HTTP, None),
        ({"type": "sglang-router", "mode": "prefill_decode"}, WorkerType.REGULAR, ConnectionMode.HTTP, "mode: regular"),
        ({"type": "smg"}, WorkerType.ENCODE, ConnectionMode.GRPC, None),
    ],
)
def test_what_a_router_cannot_take_has_a_cure(
    router: dict[str, Any], worker_type: WorkerType, mode: ConnectionMode, words: str | None
) -> None:
    """The registration is refused with these words, and `check` says them beforehand."""
    kind = ROUTERS[router["type"]]
    settings: RouterSettings = kind.settings.model_validate(router)
    said = kind.build(settings, SERVICE, around("")).objection(worker_type, mode)
    assert said == words or (words is not None and words in (said or ""))


def test_nothing_secret_is_on_its_command_line(kind: str) -> None:
    """Its key and the bridges' are in its environment, and are taken out of it."""
    settings = ROUTERS[kind].settings.model_validate(router_of(kind))
    setup = ROUTERS[kind].build(settings, SERVICE, around("bridge-secret"))
    assert isinstance(setup, RouterSetup)
    command = setup.command(RouterPorts(1, 2), "own-secret")
    assert "secret" not in " ".join(command.argv)
    assert "-secret" in command.env[SECRET_VARIABLE]
    assert not command.shows_key


async def test_a_key_that_looks_like_an_option_is_a_key() -> None:
    """A key is random, and one in sixty-four begins with a hyphen."""
    settings = ROUTERS["vllm-router"].settings.model_validate(router_of("vllm-router"))
    setup = ROUTERS["vllm-router"].build(settings, SERVICE, around("-key"))
    assert isinstance(setup, RouterSetup)
    command = setup.command(RouterPorts(1, 2), "")
    options = [*command.argv[3:], *command.env[SECRET_VARIABLE].split("\n")]
    assert (await parse(Path(command.argv[2]), "vllm_router", options, {})).objection is None


def around(bridge_key: str) -> Surroundings:
    return Surroundings(bridge_key, Path("/nonexistent"))
