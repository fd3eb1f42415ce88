"""Fixtures for tests on the real parts. What they start they end, by pid."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml

from examples.simulated import Behaviour, EngineKind, EngineSpec, SimulatedEngine, start_engine
from tests.etcd import Etcd, running
from tests.system.engine_process import EngineProcess
from tests.system.gateway import Gateway, PortBlock
from tests.users import DAEMON, GROUP, User, give, why_not

StartEngine = Callable[..., Awaitable[SimulatedEngine]]
StartAs = Callable[..., Awaitable[EngineProcess]]
MakeGateway = Callable[..., Gateway]
Start = Callable[..., Awaitable[Gateway]]


FAILED = pytest.StashKey[bool]()
_prefixes = itertools.count()
SOON_AWAY_S = 1.0
LAST_LINES = 300
"""Of a daemon's log, which is shown with a test that failed."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)
            if shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None:
                item.add_marker(pytest.mark.skip(reason="nginx is not installed; `make test` installs it"))


@pytest_asyncio.fixture
async def make_gateway(request: pytest.FixtureRequest) -> AsyncIterator[MakeGateway]:
    """Gateways that end with the test. Of one that failed the report shows what the daemons said last."""
    made: list[Gateway] = []

    def make(**settings: Any) -> Gateway:
        made.append(Gateway(**settings))
        made[-1].may_be_copied = True
        if request.node.get_closest_marker("own_users") is not None and why_not() is None:
            given_to_the_daemon(made[-1])
        return made[-1]

    yield make
    for gateway in made:
        if request.node.stash.get(FAILED, False):
            for log in sorted(gateway.directory.glob("daemon-*.log")):
                print(f"--- {log}", *log.read_text().splitlines()[-LAST_LINES:], sep="\n")
        await gateway.close()


@pytest.fixture(scope="module")
def shared_etcd() -> Iterator[Etcd]:
    with running() as one:
        yield one


@pytest.fixture
def etcd() -> Iterator[Etcd]:
    """One of the test's own, to do things to."""
    with running() as one:
        yield one


@pytest_asyncio.fixture
async def start_in_fleet(make_gateway: MakeGateway) -> AsyncIterator[Start]:
    """Starts a gateway of a fleet: `await start("a", etcd)`.

    beside: one whose bridge ports it has, too. frontend: that of its service, or what makes it for a gateway.
    of_etcd: `timeout_s=SOON_AWAY_S` where the store is to stop answering; a busy machine's may take a second, too.
    """
    prefix = f"/test-{next(_prefixes)}/"

    async def begin(
        name: str,
        etcd: Etcd,
        env: dict[str, str] | None = None,
        lease_s: int = 5,
        beside: Gateway | None = None,
        frontend: dict[str, Any] | Callable[[Gateway], dict[str, Any]] | None = None,
        acme: dict[str, Any] | None = None,
        scaling: dict[str, Any] | None = None,
        **of_etcd: Any,
    ) -> Gateway:
        there = {"endpoints": [etcd.endpoint], "prefix": prefix, "timeout_s": 10.0, **of_etcd}
        settings = {"gateway": name, "read_every_s": 0.5, "lease_s": lease_s, "etcd": there}
        gateway = make_gateway(store=settings)
        if beside is not None:  # The same bridge ports, as on machines of their own.
            gateway.configure(bridges={**beside.settings["bridges"], "host": "127.0.9.1", "grpc_host": "127.0.9.2"})
        if acme is not None:
            gateway.configure(acme=acme)
        made = frontend(gateway) if callable(frontend) else frontend or {}
        service = {**gateway.service("chat"), "replicas": {}, "router": {"type": "none"}, "frontend": made}
        gateway.configure(services=[service if scaling is None else {**service, "scaling": scaling}])
        await gateway.start(env=env)
        return gateway

    yield begin


def given_to_the_daemon(gateway: Gateway) -> None:
    """Its user, and directories as the unit and its tmpfiles make them."""
    gateway.before = DAEMON.enter
    gateway.directory.chmod(0o755)
    for name in ("run", "state"):
        (gateway.directory / name).mkdir()
        give(gateway.directory / name, DAEMON, 0o750)
    for service in gateway.ports:
        os.chown(gateway.sockets(service), 0, GROUP)
        gateway.sockets(service).chmod(0o3775)


@pytest_asyncio.fixture
async def gateway(make_gateway: MakeGateway) -> Gateway:
    """A gateway with one service, `chat`, that runs."""
    made = make_gateway()
    await made.start()
    return made


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[StartEngine]:
    """Starts simulated engines in this process: `await engine(socket, kind=..., model=..., load_s=...)`."""
    started: list[SimulatedEngine] = []

    async def start(
        socket: Path, kind: EngineKind = EngineKind.SGLANG_HTTP, model: str = "tiny", **options: Any
    ) -> SimulatedEngine:
        of_spec = {k: v for k, v in options.items() if k in EngineSpec.__dataclass_fields__}
        of_behaviour = {k: v for k, v in options.items() if k not in of_spec}
        spec = EngineSpec(kind=kind, socket=socket, model=model, **of_spec)
        started.append(await start_engine(spec, Behaviour(**of_behaviour)))
        return started[-1]

    yield start
    for one in started:
        await one.stop(grace_s=0)


@pytest_asyncio.fixture
async def start() -> AsyncIterator[StartAs]:
    """Starts somebody's engine in a process of his: `await start(ONE, socket, load_s=...)`."""
    started: list[EngineProcess] = []

    async def begin(user: User, at: Path, kind: EngineKind = EngineKind.SGLANG_HTTP, **options: Any) -> EngineProcess:
        started.append(EngineProcess(user, at, kind, **options))
        await started[-1].start()
        return started[-1]

    yield begin
    for one in started:
        await one.stop()


class Prometheus:
    """A real Prometheus that runs."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/query"

    async def until(
        self, query: str, condition: Callable[[list[dict[str, Any]]], bool], *, within_s: float = 60.0
    ) -> list[dict[str, Any]]:
        """The query's first result for which the condition holds."""
        rows: list[dict[str, Any]] = []
        end = time.monotonic() + within_s
        async with aiohttp.ClientSession() as session:
            while True:
                with suppress(aiohttp.ClientError):
                    async with session.get(self._url, params={"query": query}) as response:
                        if response.status == 200:
                            rows = (await response.json())["data"]["result"]
                            if condition(rows):
                                return rows
                assert time.monotonic() < end, f"{query}: {rows}"
                await asyncio.sleep(0.1)


@pytest_asyncio.fixture
async def prometheus(tmp_path: Path) -> AsyncIterator[Callable[[dict[str, Any]], Awaitable[Prometheus]]]:
    """Starts Prometheus with a configuration."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed; `make test` installs it")
    started: list[asyncio.subprocess.Process] = []
    ports = PortBlock()

    async def start(config: dict[str, Any]) -> Prometheus:
        path = tmp_path / "prometheus.yaml"
        path.write_text(yaml.safe_dump(config))
        log = (tmp_path / "prometheus.log").open("wb")
        with log:
            started.append(await asyncio.create_subprocess_exec(
                "prometheus", f"--config.file={path}", f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{ports.first}", stdout=log, stderr=log,
            ))  # fmt: skip
        return Prometheus(ports.first)

    yield start
    for process in started:
        if process.returncode is None:
            process.terminate()
        await process.wait()
    ports.release()
