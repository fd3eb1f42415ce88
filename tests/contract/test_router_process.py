"""A router process, whoever ends its task and when."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway_sidecar.control.routers.process import RouterHost, RouterProcess, SavedRouter
from gateway_sidecar.control.routers.router import RouterState
from gateway_sidecar.errors import RouterUnavailable
from gateway_sidecar.routers.base import LaunchCommand, LogLine, RouterPorts
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.logfile import ChildLog
from gateway_sidecar.supervision.process import Identity
from gateway_sidecar.telemetry.metrics import Metrics
from tests.smg import SERVICE

PORTS = RouterPorts(23001, 23002)


class LateThreads(ThreadPoolExecutor):
    """Threads that do what they are given at once, and, once `are_late`, say so only when they may."""

    def __init__(self) -> None:
        super().__init__(1)
        self.are_late = False
        self.done = threading.Event()
        self.may_say = threading.Event()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def do() -> Any:
            if not self.are_late:
                return fn(*args, **kwargs)
            result = fn(*args, **kwargs)
            self.done.set()
            assert self.may_say.wait(60)
            return result

        return super().submit(do)


async def test_router_whose_keeper_is_cancelled_while_it_starts_is_known(tmp_path: Path) -> None:
    """Whoever cancelled has to write it down, or to end it: a service that is removed, a daemon that ends."""
    command = LaunchCommand([sys.executable, "-c", "import time; time.sleep(60)"])
    threads = LateThreads()

    def digest() -> str:
        threads.are_late = True  # The start comes next.
        return "as it is"

    setup: Any = SimpleNamespace(command=lambda _ports, _key: command, digest=digest)
    ports: Any = SimpleNamespace(choose=lambda _slot: PORTS)
    log = ChildLog(tmp_path / "log")

    async def write_down() -> None:
        return None

    router = RouterProcess(SERVICE, "chat", setup, log, host(ports, write_down))
    asyncio.get_running_loop().set_default_executor(threads)
    keeping = asyncio.create_task(router.run())
    while not threads.done.is_set():
        await asyncio.sleep(0.001)
    keeping.cancel()
    await asyncio.sleep(0)
    threads.may_say.set()
    await asyncio.gather(keeping, return_exceptions=True)
    saved = router.saved()
    assert saved is not None
    assert saved.identity is not None
    assert saved.identity.is_alive()
    await router.stop(grace_s=5)
    assert not saved.identity.is_alive()


async def test_router_that_refuses_its_arguments_is_not_started_with_them_again(tmp_path: Path) -> None:
    """Exit code 2: the same program says the same of the same arguments. The reason is its own last line."""
    program = "import sys; print('usage: ...'); print('smg: error: no such option'); sys.exit(2)"
    command = LaunchCommand([sys.executable, "-c", program])
    digests = ["as it is"]
    setup: Any = SimpleNamespace(
        command=lambda _ports, _key: command,
        digest=lambda: digests[-1],
        client=lambda _ports, _key: SimpleNamespace(list_workers=_nobody, close=_nothing),
        read_log_line=lambda line: LogLine("warning", line),
    )
    ports: Any = SimpleNamespace(choose=lambda _slot: PORTS)
    router = RouterProcess(SERVICE, "chat", setup, ChildLog(tmp_path / "log"), host(ports))
    keeping = asyncio.create_task(router.run())
    async with asyncio.timeout(60):
        while router.state is not RouterState.REFUSED:
            await asyncio.sleep(0.001)
    assert router.reason == ("ended while starting, exit code 2: smg: error: no such option; fix router.args")
    for _ in range(100):  # Where it was tried again, it would be at once.
        await asyncio.sleep(0.005)
    assert router.starts == 1
    digests.append("repaired")
    async with asyncio.timeout(60):
        while router.starts < 2:
            await asyncio.sleep(0.001)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await router.stop(grace_s=0)


async def test_a_stall_while_a_router_is_adopted_ends_no_router(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it did not answer while nothing of ours ran is asked again; what it does not answer then counts."""
    stalls = 0
    silent = [True, True]  # For as many questions it is, each across a stall of ours or none.
    monkeypatch.setattr(awake, "stalls", lambda: stalls)

    async def list_workers() -> list[str]:
        nonlocal stalls
        if not silent:
            return []
        stalls += silent.pop(0)
        raise RouterUnavailable("no answer")

    setup: Any = SimpleNamespace(client=lambda _ports, _key: SimpleNamespace(list_workers=list_workers, close=_nothing))
    ports: Any = SimpleNamespace(restore=lambda _slot, _ports: None)
    program = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")
    try:
        identity = Identity.of(program.pid)
        assert identity is not None
        saved = SavedRouter("chat", identity, PORTS, "key", "smg")
        for is_kept in (True, False):
            router = RouterProcess(SERVICE, "chat", setup, ChildLog(tmp_path / "log"), host(ports))
            assert await router.adopt(saved, identity, setup) == is_kept
            assert identity.is_alive() == is_kept
            silent.append(False)
    finally:
        if program.returncode is None:
            program.kill()
        await program.wait()


def host(ports: Any, write_down: Callable[[], Awaitable[None]] | None = None) -> RouterHost:
    """Where a router is kept whose state is nobody's news."""
    return RouterHost(ports, Metrics(), write_down or _nothing, lambda: None)


async def _nobody() -> Any:
    raise RouterUnavailable("nobody listens")


async def _nothing() -> None:
    return None
