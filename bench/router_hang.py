"""Figures: the router hangs (SIGSTOP) under steady load, nothing of it streamed.

Eight replicas, half HTTP and half gRPC. A request is sent every 25 ms, whether or not others were
answered, on a connection that an earlier one has left or on one of its own. Three seconds later the router is stopped,
and 2.5 seconds after its successor answered for the first time the round ends.

noticed         From the SIGSTOP to the instant at which the daemon says that the router is not up.
again           From the SIGSTOP to the first answer of a request that was sent after it.
lost            Requests that were not answered 200, whole and with the last token. Those that were sent before the
                SIGSTOP are in flight; the others came while nobody suspected the router: for 4 s at the most, the gap
                between two looks, a second of silence, and one more.
longest         How long the slowest request took to its answer, whatever that was: nobody may wait until the
                client gives up.
retry_in_flight By default nothing is lost. The figures above are those without `hold.retry_in_flight`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import asdict, dataclass

from bench.chat import PATH, chat, flaw
from bench.engines import EngineHost
from bench.fleet import start_fleet
from bench.gateway import Ours, running_gateway
from bench.load import Failure
from bench.place import scratch_directory
from bench.report import Row, Scale, in_ms, median, percentile, rounded_ms
from bench.wire import Connection, ExchangeFailed
from tests.system.gateway import service_of

NAME = "router-hang"
_REPLICAS = 8
_GAP_S = 0.025
_BEFORE_S = 3.0
_AFTER_S = 2.5
_TOKENS = 8
_NOTICED_S = 8.0
_SUSPECTED_S = 4.0
_LONGEST_S = 10.0
_GIVE_UP_S = 60.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it was sent and when it ended (monotonic seconds), and what was wrong with its answer."""

    sent_at: float
    ended_at: float
    reason: str | None


class Lifecycle:
    """Sends a request every 25 ms until the end of the `async with`, whatever became of those before."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[Connection] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self.requests: list[Request] = []

    async def __aenter__(self) -> Lifecycle:
        self._sending = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Every request under way is still answered, and counts."""
        self._sending.cancel()
        await asyncio.gather(self._sending, *self._under_way, return_exceptions=True)
        for connection in self._free:
            connection.close()

    async def _send(self) -> None:
        due = time.monotonic()
        while True:
            task = asyncio.create_task(self._ask(self._free.pop() if self._free else self._fresh()))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            due += _GAP_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _fresh(self) -> Connection:
        return Connection("127.0.0.1", self._port, timeout_s=_GIVE_UP_S)

    async def _ask(self, connection: Connection) -> None:
        sent_at = time.monotonic()
        try:
            answer = await connection.ask("POST", PATH, chat(f"at {sent_at}", tokens=_TOKENS))
            reason = flaw(answer, tokens=_TOKENS, stream=False)
        except ExchangeFailed as error:
            reason = f"{error}; got {error.got[-200:]!r}"
        self._free.append(connection)
        self.requests.append(Request(sent_at, time.monotonic(), reason))


@dataclass(frozen=True, slots=True)
class Hang:
    """One round; seconds from the SIGSTOP, and the requests that belong to it."""

    noticed_s: float
    again_s: float
    sent: int
    in_flight: list[Request]
    later: list[Request]
    late: list[Request]
    longest_s: float


async def run(scale: Scale) -> list[Row]:
    """6 rounds in each case; 2 with `--quick`."""
    rounds = scale.pick(6, 2)
    return [*await _measured(rounds, retry=False), *await _measured(rounds, retry=True)]


async def _measured(rounds: int, *, retry: bool) -> list[Row]:
    with scratch_directory() as directory:
        async with (
            EngineHost(directory / "engines.log") as engines,
            running_gateway(hold={"retry_in_flight": retry}) as ours,
        ):
            names = await start_fleet(engines, ours, _REPLICAS, token_interval_s=0.005)
            hangs = []
            for _ in range(rounds):
                await ours.until_serving(*names)
                hangs.append(await _hang(ours))
    return _rows(hangs, retry=retry)


async def _hang(ours: Ours) -> Hang:
    pid = await ours.router_pid()
    assert pid is not None
    async with Lifecycle(ours.gateway.ports["chat"]) as arrivals:
        await asyncio.sleep(_BEFORE_S)
        stopped_at = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(60):
            while service_of(await ours.gateway.status())["router"]["state"] == "up":
                await asyncio.sleep(0.02)
            noticed_at = time.monotonic()
            while not any(r.sent_at > stopped_at and r.reason is None for r in arrivals.requests):
                await asyncio.sleep(0.01)
        await asyncio.sleep(_AFTER_S)
    lost = [request for request in arrivals.requests if request.reason is not None]
    return Hang(
        noticed_at - stopped_at,
        min(r.ended_at for r in arrivals.requests if r.sent_at > stopped_at and r.reason is None) - stopped_at,
        len(arrivals.requests),
        [request for request in lost if request.sent_at <= stopped_at],
        [request for request in lost if request.sent_at > stopped_at],
        [request for request in lost if request.sent_at > stopped_at + _SUSPECTED_S],
        max(request.ended_at - request.sent_at for request in arrivals.requests),
    )


def _rows(hangs: list[Hang], *, retry: bool) -> list[Row]:
    case = "default" if retry else "retry_in_flight: false"
    noticed, again = [hang.noticed_s for hang in hangs], [hang.again_s for hang in hangs]
    longest_s = max(hang.longest_s for hang in hangs)
    lost = [request for hang in hangs for request in (*hang.in_flight, *hang.later)]
    in_flight, later = sum(len(hang.in_flight) for hang in hangs), sum(len(hang.later) for hang in hangs)
    sent = sum(hang.sent for hang in hangs)
    late = [request for hang in hangs for request in hang.late]
    bar = "0" if retry else f"502 router_lost, none sent after {_SUSPECTED_S:g} s"
    bad = lost if retry else [r for r in lost if r in late or "router_lost" not in str(r.reason)]
    numbers = {
        "rounds": len(hangs),
        "requests": sent,
        "lost_in_flight": in_flight,
        "lost_sent_later": later,
        "noticed_ms": rounded_ms(noticed),
        "again_ms": rounded_ms(again),
        "longest_ms": round(longest_s * 1000),
        "failures": [asdict(Failure("whole", r.sent_at, r.ended_at, str(r.reason))) for r in bad[:50]],
    }
    return [
        Row(NAME, f"{case}: noticed; serving again", f"noticed < {_NOTICED_S:g} s", "-",
            f"p50 {in_ms(median(noticed))}, most {in_ms(max(noticed))}; p50 {in_ms(median(again))}",
            f"most {in_ms(max(noticed))}", max(noticed) < _NOTICED_S, numbers),
        Row(NAME, f"{case}: lost, in flight and later", bar, "-",
            f"{in_flight} and {later} of {sent}", f"{len(bad)} {'lost' if retry else 'others'}", not bad),
        Row(NAME, f"{case}: longest until an answer", f"< {_LONGEST_S:g} s", "-",
            f"p50 {in_ms(percentile([hang.longest_s for hang in hangs], 50))}, most {in_ms(longest_s)}",
            f"most {in_ms(longest_s)}", longest_s < _LONGEST_S),
    ]  # fmt: skip
