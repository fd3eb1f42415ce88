"""The hook, with real commands and a real server: the newest is told, again after a failure, and never in the way."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from gateway_sidecar.config import HookSettings
from gateway_sidecar.control.autoscaling.hook import HookFailedError, Notice, ScalingHook, call
from gateway_sidecar.telemetry.metrics import Metrics


def notice(desired: int, role: str = "regular") -> Notice:
    return Notice("chat", role, desired, 1, "rps", "rps 12, target 5 for each")


def runs(metrics: Metrics, outcome: str) -> float:
    return metrics.registry.get_sample_value(
        "gateway_sidecar_scaling_hook_runs_total", {"service": "chat", "outcome": outcome}
    ) or 0.0  # fmt: skip


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


def script(tmp_path: Path, text: str, *, timeout_s: float = 60.0) -> HookSettings:
    path = tmp_path / "hook"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return HookSettings(command=(str(path),), timeout_s=timeout_s)


def has_line(path: Path) -> bool:
    return path.exists() and path.read_text().endswith("\n")


async def test_a_command_gets_json_and_environment(tmp_path: Path) -> None:
    """Whichever is easier to read."""
    settings = script(
        tmp_path, f'cat > {tmp_path}/in; echo "$GATEWAY_SIDECAR_ROLE $GATEWAY_SIDECAR_DESIRED" > {tmp_path}/env'
    )
    await call(settings, notice(3))
    assert json.loads((tmp_path / "in").read_text()) == {
        "service": "chat", "role": "regular", "desired": 3, "current": 1, "metric": "rps",
        "reason": "rps 12, target 5 for each",
    }  # fmt: skip
    assert (tmp_path / "env").read_text() == "regular 3\n"


async def test_why_a_command_failed_is_told(tmp_path: Path) -> None:
    """Its exit code and what it complained of; however much that is."""
    with pytest.raises(HookFailedError, match=r"ended with 3: no such cluster"):
        await call(script(tmp_path, "echo no such cluster >&2; exit 3"), notice(1))
    with pytest.raises(HookFailedError, match=r"ended with 1: y\\ny"):
        await call(script(tmp_path, "yes | head -c 10000000 >&2; exit 1"), notice(1))
    with pytest.raises(HookFailedError, match="cannot be run: No such file"):
        await call(HookSettings(command=("/no/such/hook",)), notice(1))


async def test_what_a_command_leaves_in_the_background_is_its_own_affair(tmp_path: Path) -> None:
    """It may have started an engine: the hook is done when the command is, and nobody is ended."""
    await call(script(tmp_path, f"sleep 60 & echo $! > {tmp_path}/child"), notice(1))
    child = int((tmp_path / "child").read_text())
    os.kill(child, signal.SIGKILL)  # Raises if it is not there.


async def test_a_command_that_does_not_end_is_ended_with_all_it_started(tmp_path: Path) -> None:
    """Nothing is left running."""
    settings = script(tmp_path, f"sleep 600 & echo $! > {tmp_path}/child; wait", timeout_s=1.0)
    while not has_line(tmp_path / "child"):  # A busy machine may not even have begun it.
        with pytest.raises(HookFailedError, match="no end within 1 s"):
            await call(settings, notice(1))
    child = int((tmp_path / "child").read_text())
    await until(lambda: not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text())


async def test_a_failure_is_tried_again_and_shown(tmp_path: Path) -> None:
    """Until it works; then the problem is gone."""
    hook, metrics = make_hook(script(tmp_path, f"test -e {tmp_path}/ok"))
    hook.tell(notice(2))
    await until(lambda: hook.problem is not None)
    assert "regular wants 2" in str(hook.problem)
    (tmp_path / "ok").touch()
    await until(lambda: hook.problem is None)
    assert runs(metrics, "failed") >= 1
    assert runs(metrics, "done") == 1
    await hook.close()


async def test_the_newest_counts(tmp_path: Path) -> None:
    """What came while one ran is told once, in its latest form, and never two at a time."""
    settings = script(
        tmp_path,
        f"cd {tmp_path}; mkdir lock || echo two >> told\nuntil [ -e go ]; do sleep 0.02; done\n"
        'echo "$GATEWAY_SIDECAR_DESIRED" >> told; rmdir lock',
    )
    hook, metrics = make_hook(settings)
    hook.tell(notice(1))
    await until(lambda: (tmp_path / "lock").exists())
    for desired in (2, 3, 4, 5):
        hook.tell(notice(desired))
    assert runs(metrics, "done") + runs(metrics, "failed") == 0, "nobody waits for the hook"
    (tmp_path / "go").touch()
    await until(lambda: runs(metrics, "done") == 2)
    assert (tmp_path / "told").read_text().split() == ["1", "5"]
    await hook.close()


async def test_news_does_not_wait_for_an_old_failure(tmp_path: Path) -> None:
    """The pause after a failure ends when there is something new to tell."""
    hook, metrics = make_hook(script(tmp_path, f'test "$GATEWAY_SIDECAR_DESIRED" = 9 && touch {tmp_path}/told'))
    hook.tell(notice(2))
    await until(lambda: runs(metrics, "failed") >= 3)  # the next pause is four seconds
    hook.tell(notice(9))
    await until((tmp_path / "told").exists, within_s=60)
    await hook.close()


async def test_a_webhook() -> None:
    """2xx is taken as received, anything else is not, nor is silence."""
    got: list[object] = []
    status = 503

    async def take(request: web.Request) -> web.Response:
        got.append(await request.json())
        if status == 0:
            await asyncio.sleep(30)
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    async def elsewhere(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_post("/scale", take)
    app.router.add_get("/elsewhere", elsewhere)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    settings = HookSettings(webhook=f"http://127.0.0.1:{port}/scale?token=s3cret", timeout_s=60)
    for status in (503, 302, 404):
        with pytest.raises(HookFailedError, match=rf"http://127.0.0.1:{port} answered {status}") as caught:
            await call(settings, notice(4))
        assert "s3cret" not in str(caught.value), "an address is often a secret"
    status = 204
    await call(settings, notice(4))
    assert got == [notice(4).content()] * 4
    status = 0
    with pytest.raises(HookFailedError, match="no end within"):
        await call(settings.model_copy(update={"timeout_s": 0.5}), notice(4))
    await runner.cleanup()
    with pytest.raises(HookFailedError, match=r"Cannot connect|refused") as caught:
        await call(settings, notice(4))
    assert "s3cret" not in str(caught.value)


async def test_closing_ends_a_command_that_runs(tmp_path: Path) -> None:
    """The daemon's end is not held up."""
    hook, _ = make_hook(script(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 600"))
    hook.tell(notice(1))
    await until(lambda: has_line(tmp_path / "pid"))
    pid = int((tmp_path / "pid").read_text())
    await hook.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def make_hook(settings: HookSettings) -> tuple[ScalingHook, Metrics]:
    metrics = Metrics()
    hook = ScalingHook("chat", metrics)
    hook.reconfigure(settings)
    return hook, metrics
