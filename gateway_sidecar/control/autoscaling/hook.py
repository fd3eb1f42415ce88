"""Sends changed recommendations to a hook: one at a time, the newest first, and again after a failure. No other work
waits for it. `problem`, the log and a metric show a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import aiohttp

from gateway_sidecar.config import HookSettings
from gateway_sidecar.domain.backoff import Backoff
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_RETRIES = Backoff(first_s=1.0, most_s=60.0)
_MOST_SHOWN = 300  # A few lines of a terminal: what a program says last is why it failed.


def _always() -> bool:
    return True


class HookFailedError(Exception):
    """Why a hook did not accept a recommendation."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One changed recommendation, as the hook gets it."""

    service: str
    role: str
    desired: int
    current: int
    metric: str
    reason: str

    def content(self) -> dict[str, object]:
        """For JSON."""
        return {
            "service": self.service,
            "role": self.role,
            "desired": self.desired,
            "current": self.current,
            "metric": self.metric,
            "reason": self.reason,
        }

    def environment(self) -> Mapping[str, str]:
        """For a command that reads no JSON."""
        return {
            "GATEWAY_SIDECAR_SERVICE": self.service,
            "GATEWAY_SIDECAR_ROLE": self.role,
            "GATEWAY_SIDECAR_DESIRED": str(self.desired),
            "GATEWAY_SIDECAR_CURRENT": str(self.current),
        }


class ScalingHook:
    """One service's hook. `tell` returns at once; a newer notice for a role takes an older one's place."""

    def __init__(self, service: str, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics
        self._tasks = Tasks(service, metrics)
        self._logger = get_logger(service=service)
        self._pending: dict[str, Notice] = {}
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.settings: HookSettings | None = None
        self.problem: str | None = None
        self.may_tell: Callable[[], bool] = _always
        """Asked just before each call: of several gateways only one calls the hook."""
        self.on_accepted: Callable[[], None] | None = None
        self.accepted: dict[str, int] = {}
        """Role -> what the hook accepted last, unless something newer is to be told."""

    def reconfigure(self, settings: HookSettings | None) -> None:
        """Tells by these from now on; nobody, without any."""
        self.settings = settings

    def tell(self, notice: Notice) -> None:
        """Has the hook told, soon."""
        self._pending[notice.role] = notice
        self.accepted.pop(notice.role, None)
        self._news.set()
        if self._task is None:
            self._task = self._tasks.run_forever(self._run)

    async def close(self) -> None:
        """Sends nothing more; a running command is ended."""
        await self._tasks.close()
        self._task = None

    async def silence(self) -> None:
        """Somebody else tells the hook from now on: ends a call that is under way."""
        self._pending.clear()
        self.problem = None
        if self._task is not None:
            await self.close()

    async def _run(self) -> None:
        failures = 0
        while True:
            while not self._pending:
                failures, self.problem = 0, None
                self._news.clear()
                await self._news.wait()
            role, notice = next(iter(self._pending.items()))
            settings = self.settings
            if settings is None or not self.may_tell():
                self._pending.clear()
                continue
            self._news.clear()
            try:
                await call(settings, notice)
            except HookFailedError as error:
                failures += 1
                await self._failed(notice, str(error), failures)
                continue
            failures, self.problem = 0, None
            self._metrics.scaling_hook_runs.labels(self._service, "done").inc()
            self._logger.info("scaling.hook_told", role=role, desired=notice.desired)
            if self._pending.get(role) is notice:
                del self._pending[role]
                self.accepted[role] = notice.desired
                if self.on_accepted is not None:
                    self.on_accepted()

    async def _failed(self, notice: Notice, reason: str, failures: int) -> None:
        pause_s = _RETRIES.delay_s(failures)
        self.problem = f"the hook did not receive that {notice.role} wants {notice.desired}: {reason}"
        self._metrics.scaling_hook_runs.labels(self._service, "failed").inc()
        self._logger.error(
            "scaling.hook_failed", role=notice.role, desired=notice.desired, reason=reason, retry_in_s=pause_s
        )
        with contextlib.suppress(TimeoutError):  # News is told at once, and not after a pause that old news has earned.
            async with asyncio.timeout(pause_s):
                await self._news.wait()


async def call(settings: HookSettings, notice: Notice) -> None:
    """Tells the hook once. Raises HookFailedError."""
    body = json.dumps(notice.content()).encode()
    try:
        async with within(settings.timeout_s):
            if settings.command is not None:
                await _run_command(settings.command, notice, body)
            elif settings.webhook is not None:
                await _post(settings.webhook, settings.who, body)
    except TimeoutError:
        raise HookFailedError(f"no end within {settings.timeout_s:g} s") from None


async def _run_command(argv: tuple[str, ...], notice: Notice, body: bytes) -> None:
    with _Complaints() as complaints, _in_memory(body) as told:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=told,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=complaints.writing_end,
                env={**os.environ, **notice.environment()},
                start_new_session=True,
            )
        except OSError as error:
            raise HookFailedError(f"{argv[0]} cannot be run: {error.strerror}") from error
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        words = complaints.last_words()
    if code != 0:
        raise HookFailedError(f"{argv[0]} ended with {code}{f': {words}' if words else ''}")


@contextlib.contextmanager
def _in_memory(body: bytes) -> Iterator[int]:
    """A file that holds the notice, and that the command need not read."""
    file = os.memfd_create("notice")
    try:
        os.write(file, body)
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)


class _Complaints:
    """A command's standard error, the end of it. What it leaves running may keep it open: that is not awaited."""

    def __enter__(self) -> Self:
        self._said = bytearray()
        self._reading_end, self.writing_end = os.pipe()
        os.set_blocking(self._reading_end, False)
        asyncio.get_running_loop().add_reader(self._reading_end, self._read)
        return self

    def __exit__(self, *_exc: object) -> None:
        asyncio.get_running_loop().remove_reader(self._reading_end)
        os.close(self._reading_end)
        os.close(self.writing_end)

    def last_words(self) -> str:
        """What it said last, once it has ended."""
        self._read()
        return printable(self._said.decode("utf-8", "replace")[-_MOST_SHOWN:].strip())

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._said += os.read(self._reading_end, 65536)
            del self._said[:-4096]


async def _post(url: str, who: str, body: bytes) -> None:
    try:
        async with (
            aiohttp.ClientSession(trust_env=False) as session,
            session.post(
                url, data=body, headers={"Content-Type": "application/json"}, allow_redirects=False
            ) as response,
        ):
            status = response.status
    except aiohttp.ClientError as error:
        reason = type(error).__name__ if url in str(error) else str(error) or type(error).__name__
        raise HookFailedError(f"{who}: {reason}") from None
    if not 200 <= status < 300:
        raise HookFailedError(f"{who} answered {status}")
