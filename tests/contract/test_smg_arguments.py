"""The installed SMG's own parser, asked without starting a router."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from gateway_sidecar.domain.findings import Finding, Level
from gateway_sidecar.errors import ProcessError
from gateway_sidecar.routers.smg.check import check, check_arguments
from gateway_sidecar.routers.smg.settings import SmgSettings
from gateway_sidecar.routers.smg.setup import find_smg
from gateway_sidecar.supervision.process import Identity
from tests.smg import NEWEST, WITHOUT_NEWEST


def settings(*args: str, command: str) -> SmgSettings:
    return SmgSettings(command=command, args=args)


@pytest.fixture(params=["smg", pytest.param(str(NEWEST), marks=WITHOUT_NEWEST, id="newest")])
def smg(request: pytest.FixtureRequest) -> str:
    """The installed SMG, and the newest build on PyPI."""
    try:
        find_smg(request.param)
    except ProcessError:
        pytest.skip("smg is not installed")
    return str(request.param)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--no-such-option",), "unrecognized arguments: --no-such-option"),
        (("--cache-threshold", "much"), "invalid float value: 'much'"),
        (("--request-timeout-secs", "-5"), "negative int"),
        (("--max-tree-size",), "expected one argument"),
    ],
)
async def test_arguments_that_smg_would_refuse_fail(smg: str, args: tuple[str, ...], reason: str) -> None:
    """What would end a router at its start is told before one is started, in SMG's words."""
    [finding] = await check_arguments("chat", settings(*args, command=smg))
    assert finding.level is Level.FAIL
    assert finding.text.startswith("chat: router.args: smg: error: ")
    assert reason in finding.text


async def test_arguments_that_smg_takes_are_fine(smg: str) -> None:
    """The daemon's own ones among them."""
    assert [it.level for it in await check_arguments("chat", settings("--max-tree-size", "1000", command=smg))] == [
        Level.OK
    ]


async def test_an_smg_without_that_parser_is_warned_of(tmp_path: Path) -> None:
    """A program of another kind proves nothing against the arguments."""
    for name, first in (("shell", "#!/bin/sh"), ("bare", f"#!{sys.executable} -I -S")):
        program = tmp_path / name
        program.write_text(f"{first}\n")
        program.chmod(0o755)
        [finding] = await check_arguments("chat", settings(command=str(program)))
        assert finding.level is Level.WARN
        assert "SMG's parser cannot check it" in finding.text


async def test_a_program_that_does_not_tell_its_version_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check` goes on after its patience, and leaves no process behind."""
    program, pid = tmp_path / "smg", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\necho $$ > {pid}\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(import_module("gateway_sidecar.routers.smg.check"), "_VERSION_S", 1)
    [finding] = [it for it in await check({"chat": settings(command=str(program))}) if "version" in it.text]
    assert finding == Finding(Level.FAIL, f"{program} --version: no answer within 1 s")
    assert not pid.exists() or Identity.of(int(pid.read_text())) is None
