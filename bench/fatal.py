"""Ends processes the hard way, and knows when they are gone."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.load import Failure


@dataclass(frozen=True, slots=True)
class Kill:
    """One process killed: when the signal was sent, and when the kernel said that it is gone (monotonic seconds)."""

    at: float
    gone_at: float

    def hit(self, failure: Failure) -> bool:
        """Whether the failed request was under way when the process died.

        Until it is gone the kernel accepts connections in its name, so what is sent meanwhile is under way as well.
        """
        return failure.sent_at <= self.gone_at and failure.failed_at >= self.at


async def kill(*pids: int) -> Kill:
    """SIGKILL to each, in this order; returns when the first is gone. Raises TimeoutError."""
    descriptors = [os.pidfd_open(pid) for pid in pids]
    try:
        at = time.monotonic()
        for descriptor in descriptors:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        async with asyncio.timeout(10):
            while not select.select([descriptors[0]], [], [], 0)[0]:
                await asyncio.sleep(0.001)
        return Kill(at, time.monotonic())
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def unexcused(failures: Sequence[Failure], kills: Sequence[Kill]) -> list[Failure]:
    """Failed requests that no kill explains."""
    return [failure for failure in failures if not any(each.hit(failure) for each in kills)]
