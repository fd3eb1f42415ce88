"""Daemons and commands that begin as copies of a process which has imported what they need.

An import of the daemon takes 0.7 s of CPU, or 1.4 s beside four others: two thirds of all that the system tests took.
Figures and chaos start theirs as systemd does.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.namespaces import Namespace

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "gateway_sidecar.cli",
        "gateway_sidecar.commands.check",
        "gateway_sidecar.commands.daemon",
        "gateway_sidecar.commands.plan",
        *(f"gateway_sidecar.routers.{kind}.check" for kind in ("smg", "dynamo", "vllm_router", "sglang_router")),
        "jinja2",
        __name__,
    ]
)
_began_with = dict(os.environ)
_LOOK_S = 0.005
_READ_BEFORE_IT_BEGINS = ("PYTHON", "LD_", "COVERAGE")


def can_be_a_copy(env: Mapping[str, str]) -> bool:
    """Whether all in this environment is read by the program itself."""
    changed = {name for name in {*env, *_began_with} if env.get(name) != _began_with.get(name)}
    return not any(name.startswith(_READ_BEFORE_IT_BEGINS) for name in changed)


class Copy:
    """`python -m MODULE ARGUMENT...`, used as an `asyncio.subprocess.Process` is. where: in which network."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        out: Path,
        err: Path,
        env: Mapping[str, str],
        where: Namespace | None = None,
    ) -> None:
        given = (module, list(arguments), str(out), str(err), dict(env), str(Path.cwd()), where)
        self._process = _context.Process(target=_run, args=given, daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    async def wait(self) -> int:
        while (code := self.returncode) is None:
            await asyncio.sleep(_LOOK_S)
        return code


def _run(
    module: str,
    arguments: list[str],
    out: str,
    err: str,
    env: dict[str, str],
    directory: str,
    where: Namespace | None,
) -> None:
    """In the copy."""
    assert "gateway_sidecar.app" in sys.modules, "the process that is copied could not import the daemon"
    if where is not None:
        where.join()
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, number)
        os.close(file)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
