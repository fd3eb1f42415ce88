"""A real gateway on which a schedule is played under load, and the history that is written down meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

from examples.simulated import EngineKind, Role
from gateway_sidecar.nginx.connections import open_connections
from tests.chaos.check import GRACE_S, expected_is_there
from tests.chaos.engines import EngineHost, read_journal
from tests.chaos.events import (
    CALM,
    DAEMON,
    EVERYTHING,
    NGINX,
    WILD,
    Appear,
    AwayDaemon,
    Die,
    DrainAndResume,
    DrainAndStop,
    Engine,
    Event,
    Freeze,
    FreezeRouter,
    Hold,
    KillHost,
    KillNginx,
    KillRouter,
    Misbehave,
    MoveSockets,
    Reload,
    RemoveDead,
    RemoveState,
    Restart,
    RestartRouter,
    Retire,
    Schedule,
    Starve,
    Stop,
    Stopped,
    engines_in,
    router_of,
)
from tests.chaos.history import (
    Expected,
    Fault,
    Frozen,
    Held,
    History,
    Listing,
    LogLine,
    Muster,
    Out,
    Remains,
    Rest,
    Row,
    Snapshot,
    Worker,
)
from tests.chaos.load import Load, Target
from tests.chaos.rounds import play
from tests.chaos.schedule import CHAT, PAIRS, SERVICES, WILD_HOSTS
from tests.system.gateway import Gateway, PortBlock, Status, with_children

NEVER = float("inf")
API_TIMEOUT_S = 3.0
HEALTH_TIMEOUT_S, HEALTH_FAILURES = 1.5, 3
REST_S = 15.0
_STAY_S = 1.5
_ASKED_AGAIN_S = 1.5
"""An engine that is out for its silence is asked again after a second (`domain/lifecycle.py`)."""
_SLOW_S = 12.0
_MUSTER_S = 15.0
_EMPTY_S = 40.0
_LATEST_S = 60.0
_RUNTIMES = {"sglang": "sglang", "vllm": "vllm", "openai": "generic"}

_EATER = """
import sys, time
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    pass
"""

Tell = Callable[[str], None]


@dataclass
class _Behind:
    """Who is behind a path, as the stage arranged it."""

    engine: Engine
    alive: bool = True
    drained: bool = False


class Stage:
    """Plays one schedule. What happened is in `history`."""

    def __init__(
        self, schedule: Schedule, *, clients: int = 10, muster_every: int = 4, tell: Tell = lambda _text: None
    ) -> None:
        self.schedule = schedule
        self.history = History(schedule.seed)
        self._tell = tell
        self._clients = clients
        self._muster_every = muster_every
        self.gateway = Gateway(services=SERVICES)
        # Sixty for each service: of thirty all rest where ten engines end in ten seconds and the machine is busy.
        self._bridge_ports = PortBlock(120)
        self.gateway.settings["bridges"]["ports"] = str(self._bridge_ports)
        for service in self.gateway.settings["services"]:
            service["health"] = {"interval_s": 1.0, "timeout_s": HEALTH_TIMEOUT_S, "failures": HEALTH_FAILURES}
            service["router"] = {"api_timeout_s": API_TIMEOUT_S}
            service["drain"] = {"timeout_s": 30.0}
        self._hosts = {n: EngineHost(self.gateway.directory, n) for n in (0, *WILD_HOSTS)}
        self._behind: dict[tuple[str, str], _Behind] = {}
        self._here = {service: asyncio.Event() for service in SERVICES}
        self._daemon_up = asyncio.Event()
        self._errands: set[asyncio.Task[None]] = set()
        self._calls: aiohttp.ClientSession | None = None

    @property
    def directory(self) -> Path:
        """Where all that belongs to this run is."""
        return self.gateway.directory

    # -- the play

    async def play(self) -> History:
        """Plays the schedule from the first anchor to the last rest, and looks at what remains."""
        try:
            await self._set_up()
            watching = [asyncio.create_task(self._watch()), asyncio.create_task(self._watch_workers())]
            targets = {
                Target(CHAT, self.gateway.url(CHAT), CALM): self._clients // 2,
                Target(CHAT, self.gateway.url(CHAT), WILD): self._clients - self._clients // 2 - 2,
                Target(PAIRS, self.gateway.url(PAIRS), WILD): 2,
            }
            load = Load(targets, self.history.requests.append, seed=self.schedule.seed)
            for number, one in enumerate(self.schedule.rounds, 1):
                await play(one.events, self._try)
                await self._rest(number)
                if self._muster_every and (number % self._muster_every == 0 or number == len(self.schedule.rounds)):
                    await self._muster(load)
            await load.stop()
            await self._empty_out()
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            await self._look_at_remains()
        finally:
            await self._tear_down()
        return self.history

    async def _set_up(self) -> None:
        await asyncio.gather(*(host.start() for host in self._hosts.values()))
        for here in self._here.values():
            here.set()
        await asyncio.gather(self._start_daemon(), *(self._appear(anchor) for anchor in self.schedule.anchors))
        wanted = self._expected()
        await self.gateway.until(lambda status: expected_is_there(wanted, _rows(status)), within_s=30)

    async def _tear_down(self) -> None:
        await self.gateway.close(keep_files=True)
        self._collect()
        for host in self._hosts.values():
            await host.kill()
        if self._calls is not None:
            await self._calls.close()
        self._bridge_ports.release()

    async def _try(self, event: Event) -> None:
        start = time.monotonic()
        try:
            async with asyncio.timeout(_LATEST_S):
                await self._do(event)
        except TimeoutError:
            self.history.failures.append(f"{time.monotonic():.2f}: did not come to an end: {event}")
        if (took := time.monotonic() - start) > _SLOW_S:
            self._tell(f"         took {took:.1f} s: {event}")

    async def _do(self, event: Event) -> None:
        match event:
            case Appear():
                await self._appear(event)
            case Retire():
                await self._retire(event)
            case DrainAndStop():
                await self._drain_and_stop(event)
            case DrainAndResume():
                await self._drain_and_resume(event)
            case Stop():
                await self._end_engine(event.service, event.replica, kill=False)
            case Die():
                await self._end_engine(event.service, event.replica, kill=True)
            case RemoveDead():
                await self._remove_dead(event)
            case Restart():
                await self._end_engine(event.service, event.replica, kill=event.kill, unlink=False)
                await self._appear(Appear(at=0, service=event.service, replica=event.replica, engine=event.engine))
            case Misbehave():
                await self._misbehave(event)
            case Hold():
                self._errand(self._hold(event))
            case KillHost():
                await self._kill_host(event.host)
            case AwayDaemon():
                await self._away_daemon(event)
            case KillRouter():
                await self._kill_router(event.service)
            case FreezeRouter():
                await self._freeze_router(event)
            case RestartRouter():
                await self._restart_router(event.service)
            case KillNginx():
                await self._kill_nginx()
            case Reload():
                await self._reload(event)
            case RemoveState():
                shutil.rmtree(self.gateway.directory / "state", ignore_errors=True)
                now = time.monotonic()
                self.history.faults.append(Fault("state removed", now, now + 5))
            case Freeze():
                await self._freeze(event)
            case Starve():
                await self._starve(event)
            case MoveSockets():
                await self._move_sockets(event)
            case _:
                raise TypeError(f"nobody knows how to do {event}")

    def _errand(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    # -- rest

    def _expected(self) -> tuple[Expected, ...]:
        return tuple(
            Expected(
                service, replica, b.engine.name, b.engine.role.value,
                "grpc" if b.engine.kind.is_grpc else "http", _RUNTIMES[b.engine.kind.value.split("-")[0]],
            )
            for (service, replica), b in sorted(self._behind.items())
            if b.alive and not b.drained
        )  # fmt: skip

    async def _rest(self, number: int) -> None:
        # Who was asked while its engine misbehaved is silent still, may be out for that, and then is asked once more.
        misbehaved = [fault.ended for fault in self.history.faults if fault.kind == "engine misbehaved"]
        await asyncio.sleep(max(misbehaved, default=0.0) + HEALTH_TIMEOUT_S + _ASKED_AGAIN_S - time.monotonic())
        began = time.monotonic()
        wanted = self._expected()
        while time.monotonic() < began + REST_S + 1:
            latest = self.history.snapshots[-1] if self.history.snapshots else None
            if latest is not None and latest.at > began and expected_is_there(wanted, latest.rows):
                break
            await asyncio.sleep(0.05)
        took = time.monotonic() - began
        # Settled is settled: it has to stay so, and SMG has been asked in the meantime.
        await asyncio.sleep(_STAY_S)
        self.history.rests.append(Rest(began, time.monotonic(), wanted))
        outcomes = [request.outcome for request in self.history.requests]
        counts = ", ".join(f"{outcomes.count(one)} {one}" for one in sorted(set(outcomes)))
        self._tell(f"round {number}: at rest after {took:.1f} s with {len(wanted)} serving; chats: {counts}")

    async def _muster(self, load: Load) -> None:
        """Asks until everybody who serves has answered; a router gets the time it needs to trust an engine again."""
        expected = self._expected()
        models = {(service, replica): b.engine.model for (service, replica), b in self._behind.items()}
        missing = {one.engine for one in expected if one.worker_type != Role.PREFILL.value}
        rest = self.history.rests.pop()
        await asyncio.sleep(max(0.0, rest.began + GRACE_S + 0.5 - time.monotonic()))
        began, asked = time.monotonic(), 0
        while missing and time.monotonic() < began + _MUSTER_S:
            groups = Counter((one.service, models[one.service, one.replica]) for one in expected)
            targets = [Target(s, self.gateway.url(s), m) for (s, m), count in groups.items() for _ in range(3 * count)]
            asked += len(targets)
            answers = await asyncio.gather(*(load.ask_once(target) for target in targets))
            missing -= {answer.engine for answer in answers if answer.engine is not None}
        ended = time.monotonic()
        self.history.musters.append(Muster(began, ended, asked, expected))
        self.history.rests.append(Rest(rest.began, ended, rest.expected))
        who = f"silent: {', '.join(sorted(missing))}" if missing else "everybody has answered"
        self._tell(f"         {who} after {ended - began:.1f} s and {asked} chats")

    async def _empty_out(self) -> None:
        """The load is over: whoever left has nobody on it any more, and ports have to come back."""
        await asyncio.gather(*self._errands)
        end = time.monotonic() + _EMPTY_S
        living = len(self._behind)
        while time.monotonic() < end:
            latest = self.history.snapshots[-1]
            bridged = sum(row.port is not None for row in latest.rows)
            if latest.quarantined == 0 and latest.leased == bridged and len(latest.rows) <= living:
                return
            await asyncio.sleep(0.1)

    async def _look_at_remains(self) -> None:
        gateway = self.gateway
        run = gateway.directory / "run"
        status = await gateway.status()
        rows = _rows(status)
        assert gateway.process is not None
        zombies = tuple(
            f"{pid} {_stat(pid)}" for pid in _children(gateway.process.pid) if _stat(pid).split(") ")[-1][:1] == "Z"
        )
        here = {row.port for row in rows if row.port is not None}
        links = tuple(p.name for p in (run / "bridges").iterdir() if p.name.partition(".")[0] not in map(str, here))
        await asyncio.sleep(1.0)  # Records are written a moment after what they tell of.
        leases = json.loads((gateway.directory / "state" / "leases.json").read_text())["services"]
        ports = {row["port"] for rows_ in leases.values() for row in rows_ if row["port"] is not None}
        held = await asyncio.to_thread(open_connections, _Everything())
        low, high = map(int, gateway.settings["bridges"]["ports"].split("-"))
        quarantined = int(status["bridge_ports"]["quarantined"])
        code, out, err = await gateway.cli("stop", "--all")
        if code != 0:
            self.history.failures.append(f"stop --all: {code} {out} {err}")
        await gateway.process.wait()
        end = time.monotonic() + 10
        while (left := _processes_of(gateway.directory)) and time.monotonic() < end:
            await asyncio.sleep(0.1)
        left = [one for one in left if "tests.chaos.host" not in one]
        self.history.remains = Remains(
            zombies, links, tuple(sorted(ports - here)),
            tuple(sorted(p for p in held if low <= p <= high and p not in here)), quarantined, tuple(left),
        )  # fmt: skip

    # -- watching

    async def _watch(self) -> None:
        while True:
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with asyncio.timeout(3):
                    at = time.monotonic()
                    self.history.snapshots.append(_snapshot(at, await self.gateway.status()))
            await asyncio.sleep(0.25)

    async def _watch_workers(self) -> None:
        # A connection that is kept would keep an old router from ending.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2), connector=connector) as session:
            while True:
                for service in SERVICES:
                    with suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError):
                        await self._list_workers(session, service)
                await asyncio.sleep(0.5)

    async def _list_workers(self, session: aiohttp.ClientSession, service: str) -> None:
        latest = self.history.snapshots[-1] if self.history.snapshots else None
        in_service = dict(latest.routers).get(service) if latest else None
        for row in self._record()["routers"].get(service, []):
            if row["identity"] is None or row["identity"]["pid"] != in_service:
                continue
            at = time.monotonic()
            url = f"http://127.0.0.1:{row['ports']['api']}/workers"
            async with session.get(url, headers={"Authorization": f"Bearer {row['key']}"}) as response:
                found = (await response.json())["workers"]
            workers = tuple(
                Worker(w["url"], w["worker_type"], w["connection_mode"], w["runtime_type"], w["status"]) for w in found
            )
            self.history.listings.append(Listing(at, service, workers))

    def _record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.gateway.directory / "run" / "processes.json").read_text())
        return record

    def _collect(self) -> None:
        """What the engines and the daemons wrote."""
        for host in self._hosts.values():
            self.history.served += read_journal(host.journal)
        offset = time.time() - time.monotonic()
        for path in sorted(self.gateway.directory.glob("daemon-*.log")):
            for line in path.read_text(errors="replace").splitlines():
                with suppress(ValueError, KeyError):
                    row = json.loads(line)
                    at = datetime.fromisoformat(row["timestamp"]).timestamp() - offset
                    self.history.log.append(LogLine(at, row["level"], row["event"], f"{path.name} {line}"))

    # -- replicas

    def _path(self, service: str, replica: str) -> Path:
        return self.gateway.socket(replica, service)

    async def _appear(self, event: Appear) -> None:
        engine = event.engine
        while True:
            await self._here[event.service].wait()
            try:
                await self._hosts[engine.host].begin(engine, self._path(event.service, event.replica))
            except OSError:
                await asyncio.sleep(0.1)  # Its process was killed, or the directory is away.
                continue
            self._behind[event.service, event.replica] = _Behind(engine)
            return

    def _engine_fault(self, kind: str, service: str, engine: Engine, began: float, note: str = "") -> None:
        self.history.faults.append(
            Fault(kind, began, time.monotonic(), service, engine.name, engine.model, note)
        )  # fmt: skip

    async def _end_engine(self, service: str, replica: str, *, kill: bool, unlink: bool = True) -> None:
        behind = self._behind.get((service, replica))
        if behind is None or not behind.alive:
            return
        await self._here[service].wait()
        began = time.monotonic()
        behind.alive = False
        query = {"kill": "true"} if kill else {"unlink": str(unlink).lower(), "grace_s": "5"}
        with suppress(OSError):  # Its process is gone, and so is it.
            await self._hosts[behind.engine.host].ask("DELETE", f"/{behind.engine.name}", **query)
        self._engine_fault("engine ended", service, behind.engine, began, "killed" if kill else "stopped")
        if not kill and unlink:
            self._path(service, replica).unlink(missing_ok=True)
            self._behind.pop((service, replica), None)

    async def _remove_dead(self, event: RemoveDead) -> None:
        await self._here[event.service].wait()
        behind = self._behind.get((event.service, event.replica))
        if behind is not None and not behind.alive:
            self._path(event.service, event.replica).unlink(missing_ok=True)
            self._behind.pop((event.service, event.replica))

    async def _retire(self, event: Retire) -> None:
        key = event.service, event.replica
        behind = self._behind.get(key)
        if behind is None or not behind.alive:
            return
        await self._here[event.service].wait()
        self._path(*key).unlink()
        began, seen = time.monotonic(), self._daemon_up.is_set()
        self._behind.pop(key)
        while not (
            (latest := self.history.snapshots[-1]).at > began + 0.1
            and latest.ready  # A daemon that has just been started does not know them yet.
            and not any((row.service, row.replica) == key for row in latest.rows)
        ):
            await asyncio.sleep(0.05)
        if not seen:
            self._engine_fault("unlinked unseen", event.service, behind.engine, began)
        self.history.out.append(Out(behind.engine.name, time.monotonic(), NEVER, "released"))
        with suppress(OSError):
            await self._hosts[behind.engine.host].ask("DELETE", f"/{behind.engine.name}", grace_s="0", unlink="false")

    async def _drain_and_stop(self, event: DrainAndStop) -> None:
        key = event.service, event.replica
        behind = self._behind.get(key)
        if behind is None or not behind.alive or not await self._drain(key):
            return
        self.history.out.append(Out(behind.engine.name, time.monotonic(), NEVER, "drained"))
        behind.alive = False
        await self._here[event.service].wait()
        with suppress(OSError):
            await self._hosts[behind.engine.host].ask("DELETE", f"/{behind.engine.name}", grace_s="0", unlink="true")
        self._path(*key).unlink(missing_ok=True)
        self._behind.pop(key)

    async def _drain_and_resume(self, event: DrainAndResume) -> None:
        key = event.service, event.replica
        behind = self._behind.get(key)
        if behind is None or not behind.alive or not await self._drain(key):
            return
        drained = time.monotonic()
        await asyncio.sleep(event.for_s)
        resumed, moved = time.monotonic(), len(self._moves(key[0]))
        while True:
            code, _ = await self._call("POST", f"services/{key[0]}/replicas/{key[1]}/resume")
            # 404 is also what a daemon says that has only just begun and knows nobody yet.
            if code == 200 or (code == 404 and not behind.drained):
                break
            if code == 404 and len(self._moves(key[0])) > moved:
                break  # Its socket was moved away meanwhile; it comes back undrained.
            await asyncio.sleep(0.1)
        behind.drained = False
        self.history.out.append(Out(behind.engine.name, drained, resumed, "drained"))

    async def _drain(self, key: tuple[str, str]) -> bool:
        """Drains as an operator does, who asks again when the daemon was away. False if the replica is not there."""
        behind = self._behind[key]
        end = time.monotonic() + 45
        while time.monotonic() < end:
            await self._here[key[0]].wait()
            moved = len(self._moves(key[0]))
            code, text = await self._call("POST", f"services/{key[0]}/replicas/{key[1]}/drain?timeout_s=30")
            if code == 200 and len(self._moves(key[0])) == moved and self._here[key[0]].is_set():
                behind.drained = True
                return True
            if code == 504:
                self.history.failures.append(f"{time.monotonic():.2f}: drain of {key}, {behind.engine.name}: {text}")
                return False
            await asyncio.sleep(0.2)
        self.history.failures.append(f"{time.monotonic():.2f}: drain of {key} was not possible for 45 s")
        return False

    def _moves(self, service: str) -> list[Fault]:
        return [f for f in self.history.faults if f.kind == "sockets away" and f.service == service]

    async def _misbehave(self, event: Misbehave) -> None:
        behind = self._behind.get((event.service, event.replica))
        if behind is None or not behind.alive:
            return
        bad, good = {
            "hang": ({"hang": True}, {"hang": False}),
            "lie": ({"lie": event.lie}, {"lie": None}),
            "loading": ({"load_s": event.for_s}, {"load_s": 0}),
            "dead_core": ({"dead_core": True}, {"dead_core": False}),
            "far_end_dead": ({"accept_close": True}, {"accept_close": False}),
        }[event.how]
        host, path = self._hosts[behind.engine.host], f"/{behind.engine.name}"
        began = time.monotonic()
        with suppress(OSError):
            await host.ask("PATCH", path, bad)
        await asyncio.sleep(event.for_s)
        with suppress(OSError):
            await host.ask("PATCH", path, good)
        note = f"{event.how} {event.lie or ''}".strip()
        self._engine_fault("engine misbehaved", event.service, behind.engine, began, note)

    async def _hold(self, event: Hold) -> None:
        key = event.service, event.replica
        behind = self._behind.get(key)
        latest = self.history.snapshots[-1]
        ports = [r.port for r in latest.rows if (r.service, r.replica) == key and r.state == "serving"]
        if behind is None or len(ports) != 1 or ports[0] is None:
            return
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", ports[0])
        except OSError:
            return
        began = time.monotonic()
        answers: list[str] = []
        speaks_http = behind.engine.kind is not EngineKind.OPENAI_HTTP and not behind.engine.kind.is_grpc
        ended = time.monotonic() + event.for_s
        try:
            while time.monotonic() < ended:
                if speaks_http:
                    answers.append(await _who(reader, writer))
                    await asyncio.sleep(0.3)
                else:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(max(0.0, ended - time.monotonic())):
                            if not await reader.read(1):
                                break
        except (OSError, EOFError, TimeoutError):
            pass  # The engine ended, or nginx did.
        self.history.held.append(
            Held(ports[0], *key, behind.engine.name, began, time.monotonic(), tuple(answers))
        )  # fmt: skip
        writer.close()

    async def _kill_host(self, number: int) -> None:
        began = time.monotonic()
        victims = [(key, b) for key, b in self._behind.items() if b.alive and b.engine.host == number]
        for _, behind in victims:
            behind.alive = False
        await self._hosts[number].kill()
        for (service, _), behind in victims:
            self._engine_fault("engine ended", service, behind.engine, began, "killed with its process")
        await self._hosts[number].start()

    async def _move_sockets(self, event: MoveSockets) -> None:
        place = self.gateway.sockets(event.service)
        self._here[event.service].clear()
        began = time.monotonic()
        place.rename(place.with_name(place.name + "-away"))
        await asyncio.sleep(event.for_s)
        place.with_name(place.name + "-away").rename(place)
        for (service, _), behind in self._behind.items():
            if service == event.service:
                behind.drained = False  # Who comes back is somebody new.
        self.history.faults.append(Fault("sockets away", began, time.monotonic(), event.service))
        self._here[event.service].set()

    # -- daemon, routers, nginx

    async def _start_daemon(self) -> None:
        await self.gateway.start()
        self._daemon_up.set()

    async def _away_daemon(self, event: AwayDaemon) -> None:
        began = time.monotonic()
        self._daemon_up.clear()
        if event.kill:
            await self.gateway.kill()
        else:
            code = await self.gateway.terminate()
            if code != 0:
                self.history.failures.append(f"{began:.2f}: the daemon ended with {code} on SIGTERM")
        await asyncio.sleep(event.for_s)
        try:
            await self._start_daemon()
        except AssertionError as error:
            self.history.failures.append(f"{time.monotonic():.2f}: the daemon did not start: {error}")
            raise
        self.history.faults.append(
            Fault("daemon away", began, time.monotonic(), note="killed" if event.kill else "stopped")
        )  # fmt: skip

    def _router_pid(self, service: str) -> int | None:
        latest = self.history.snapshots[-1]
        return dict(latest.routers).get(service)

    async def _kill_router(self, service: str) -> None:
        pid = self._router_pid(service)
        if pid is None or not _is_ours(pid, "smg"):
            return
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        await self._until_new_router(service, pid)
        self.history.faults.append(Fault("router killed", began, time.monotonic(), service, note=f"pid {pid}"))

    async def _until_new_router(self, service: str, old: int) -> None:
        """Returns when another router is up and the daemon says that it is ready."""
        while not (
            (latest := self.history.snapshots[-1]).ready and dict(latest.routers).get(service) not in (None, old)
        ):
            await asyncio.sleep(0.05)

    async def _freeze_router(self, event: FreezeRouter) -> None:
        pid = self._router_pid(event.service)
        if pid is None or not _is_ours(pid, "smg"):
            return
        began = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        end = began + event.for_s
        while time.monotonic() < end and _is_ours(pid, "smg"):
            await asyncio.sleep(0.02)
        lives = _is_ours(pid, "smg")
        if lives:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        ended = time.monotonic()
        # Whether it was killed for it may be decided a moment later, by a daemon that had given it up already.
        await asyncio.sleep(1.5 if lives else 0.0)
        lost = not _is_ours(pid, "smg")
        kind = "router lost" if lost else "router frozen"
        if lost:
            await self._until_new_router(event.service, pid)
        self.history.faults.append(
            Fault(kind, began, time.monotonic() if lost else ended, event.service, note=f"pid {pid}")
        )  # fmt: skip

    def _processes(self) -> dict[str, list[int]]:
        """The parts of the gateway -> their processes."""
        assert self.gateway.process is not None
        nginx = self.history.snapshots[-1].nginx
        found = {DAEMON: [self.gateway.process.pid], NGINX: list(with_children(nginx)) if nginx is not None else []}
        for service in SERVICES:
            pid = self._router_pid(service)
            found[router_of(service)] = [pid] if pid is not None else []
        return found | {engines_in(number): [host.pid] for number, host in self._hosts.items()}

    async def _freeze(self, event: Freeze) -> None:
        processes = self._processes()
        if any(part.who == EVERYTHING for part in event.parts):
            (part,) = event.parts
            pids = [pid for those in processes.values() for pid in those]
            began = time.monotonic()
            await _stop_for(pids, part.for_s)
            self.history.frozen += [Frozen(who, began, time.monotonic()) for who in processes]
            self.history.faults.append(Fault("stalled", began, time.monotonic()))
            return
        began = time.monotonic()
        await asyncio.gather(*(self._freeze_part(part, processes[part.who]) for part in event.parts))
        self.history.faults.append(Fault("stalled", began, time.monotonic()))

    async def _freeze_part(self, part: Stopped, pids: list[int]) -> None:
        await asyncio.sleep(part.after_s)
        began = time.monotonic()
        lives = await _stop_for(pids, part.for_s)
        ended = time.monotonic()
        services = {router_of(service): service for service in SERVICES}
        # Whether it was killed for it may be decided a moment later, by a daemon that had given it up already.
        await asyncio.sleep(1.5 if lives else 0.0)
        lost = bool(pids) and not _is_ours(pids[0], "")
        self.history.frozen.append(Frozen(part.who, began, ended, lost))
        note = f"pid {pids[0]}" if pids else ""
        if part.who in services:
            service = services[part.who]
            if lost:
                await self._until_new_router(service, pids[0])
                ended = time.monotonic()
            kind = "router lost" if lost else "router frozen"
            self.history.faults.append(Fault(kind, began, ended, service, note=note))
        elif part.who == NGINX and lost:
            while self.history.snapshots[-1].nginx in (None, pids[0]):
                await asyncio.sleep(0.05)
            self.history.faults.append(Fault("nginx killed", began, time.monotonic(), note=note))
        for (service, _), behind in self._behind.items():
            if engines_in(behind.engine.host) == part.who:
                engine = behind.engine
                self.history.faults.append(Fault("engine frozen", began, ended, service, engine.name, engine.model))

    async def _starve(self, event: Starve) -> None:
        eaters = [
            await asyncio.create_subprocess_exec(sys.executable, "-c", _EATER, str(event.for_s))
            for _ in range(event.load)
        ]
        began = time.monotonic()
        await asyncio.gather(*(eater.wait() for eater in eaters))
        self.history.faults.append(Fault("stalled", began, time.monotonic(), note=f"{event.load} eaters"))

    async def _restart_router(self, service: str) -> None:
        began = time.monotonic()
        code, text = await self._call("POST", f"services/{service}/router/restart")
        self.history.faults.append(Fault("router restart", began, time.monotonic(), service, note=f"{code} {text}"))

    async def _kill_nginx(self) -> None:
        pid = self.history.snapshots[-1].nginx
        if pid is None or not _is_ours(pid, "nginx"):
            return
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        while not ((latest := self.history.snapshots[-1]).ready and latest.nginx not in (None, pid)):
            await asyncio.sleep(0.05)
        self.history.faults.append(Fault("nginx killed", began, time.monotonic(), note=f"pid {pid}"))

    async def _reload(self, event: Reload) -> None:
        began = time.monotonic()
        for service in self.gateway.settings["services"]:
            service["drain"] = {"timeout_s": event.drain_s}
        if event.router:
            router = self.gateway.settings["services"][0]["router"]
            policy = "round_robin" if router.get("policy", "cache_aware") == "cache_aware" else "cache_aware"
            self.gateway.settings["services"][0]["router"] = {**router, "policy": policy}
        self.gateway.configure()
        code, text = await self._call("POST", "reload")
        self.history.faults.append(Fault("reload", began, time.monotonic(), note=f"{code} {text}"))

    async def _call(self, method: str, path: str) -> tuple[int | None, str]:
        """One request of the admin API; no code if the daemon is not there."""
        if self._calls is None:
            connector = aiohttp.UnixConnector(str(self.gateway.directory / "run" / "admin.sock"), force_close=True)
            self._calls = aiohttp.ClientSession(connector=connector)
        try:
            async with self._calls.request(method, f"http://daemon/v1/{path}") as response:
                return response.status, await response.text()
        except (aiohttp.ClientError, OSError) as error:
            return None, repr(error)


async def _stop_for(pids: list[int], seconds: float) -> bool:
    """SIGSTOP, and SIGCONT after so long; whether all of them live then."""
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        end = time.monotonic() + seconds
        while time.monotonic() < end and all(_is_ours(pid, "") for pid in pids):
            await asyncio.sleep(0.02)
    finally:
        lives = all(_is_ours(pid, "") for pid in pids)
        for pid in pids:
            if _is_ours(pid, ""):
                os.kill(pid, signal.SIGCONT)
    return lives


class _Everything:
    def __contains__(self, _port: object) -> bool:
        return True


async def _who(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """The engine that answers on a connection. Raises EOFError or OSError when it is no more."""
    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(15):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        await reader.readexactly(int(fields.get("content-length", "0")))
    return fields.get("x-simulated-engine", "")


def _rows(status: Status) -> tuple[Row, ...]:
    return tuple(
        Row(
            service["name"], row["id"], row["state"],
            int(row["bridge"].rpartition(":")[2]) if row["bridge"] else None, row["worker_id"], row["reason"],
        )
        for service in status["services"]
        for row in service["replicas"]
    )  # fmt: skip


def _snapshot(at: float, status: Status) -> Snapshot:
    return Snapshot(
        at, _rows(status), status["bridge_ports"]["leased"], status["bridge_ports"]["quarantined"],
        status["nginx"]["pid"] if status["nginx"]["state"] == "up" else None,
        tuple((s["name"], s["router"]["pid"] if s["router"]["state"] == "up" else None) for s in status["services"]),
        tuple(status["problems"]), bool(status["ready"]),
    )  # fmt: skip


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _stat(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "0 (gone) ?"


def _is_ours(pid: int, word: str) -> bool:
    """Whether this process lives and is what we take it for: pids are used again."""
    stat = _stat(pid)
    name, _, state = stat.partition("(")[2].rpartition(") ")
    return word in name and not state.startswith(("Z", "X", "?"))


def _processes_of(directory: Path) -> list[str]:
    """Living processes whose command line or output names this directory, ours aside."""
    return list(_find(str(directory)))


def _find(text: str) -> Iterator[str]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            output = str((entry / "fd" / "1").readlink()) if (entry / "fd" / "1").exists() else ""
            if text in command or text in output:
                yield f"{entry.name} {command}"
