"""Asks the daemon for its status many times a second, prints what changes, and lets others wait for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from examples.demo.gateway import DemoFailed, Gateway, pretty, replicas_of
from gateway_sidecar.api.models import Status

_GAP_S = 0.02


class Watch:
    """What the daemon says of its replicas, as it happens."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._began = time.monotonic()
        self._shown: dict[tuple[str, str], str] = {}
        self._status: Status | None = None
        self._changed = asyncio.Condition()
        self._failed: DemoFailed | None = None

    def restart_clock(self) -> None:
        """Count the seconds anew."""
        self._began = time.monotonic()

    async def run(self) -> None:
        """Watches until cancelled, or until the daemon ends."""
        while self._failed is None:
            try:
                status = await self._gateway.status()
                if status is not None:
                    self._show(status)
            except DemoFailed as failed:
                self._failed, status = failed, None
            except OSError as error:
                self._failed, status = DemoFailed(f"nobody reads what is printed: {error.strerror}"), None
            async with self._changed:
                self._status = status
                self._changed.notify_all()
            await asyncio.sleep(_GAP_S)

    async def until(self, condition: Callable[[Status], bool], what: str, *, within_s: float = 20.0) -> Status:
        """The first status for which the condition holds. Raises DemoFailed, in the words of `what`."""
        try:
            async with asyncio.timeout(within_s), self._changed:
                while self._status is None or not condition(self._status):
                    if self._failed is not None:
                        raise self._failed
                    await self._changed.wait()
                return self._status
        except TimeoutError:
            raise DemoFailed(f"{what}: not within {within_s:g} s") from None

    async def states(self, service: str, *, within_s: float = 20.0, **states: str) -> Status:
        """Waits until the service has just these replicas in these states."""

        def there(status: Status) -> bool:
            rows = replicas_of(status)
            return {name: row["state"] for (of, name), row in rows.items() if of == service} == states

        return await self.until(there, f"{service}: {states or 'no replicas'}", within_s=within_s)

    async def until_failed(self) -> None:
        """Returns when the daemon has ended. Raises DemoFailed then."""
        await self.until(lambda _: False, "the daemon", within_s=float("inf"))

    def _show(self, status: Status) -> None:
        rows = replicas_of(status)
        for key, row in rows.items():
            if self._shown.get(key) != row["state"]:
                self._shown[key] = row["state"]
                self._print(key, pretty(row))
        for key in self._shown.keys() - rows.keys():
            del self._shown[key]
            self._print(key, "gone")

    def _print(self, key: tuple[str, str], text: str) -> None:
        elapsed = time.monotonic() - self._began
        print(f"  {elapsed:6.2f} s  {'/'.join(key):<9}  {text}", flush=True)
