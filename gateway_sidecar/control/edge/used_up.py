"""Tells an nginx that is about to start, or to get another frontend, what each key has used up of its day and month.
nginx's own counts of that end with nginx, and with a configuration in which no service has keys; a count that is there
stays. Where usage is not counted nobody knows it, and the counts begin anew.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from gateway_sidecar.config import FrontendSettings
from gateway_sidecar.config.frontend_values import NAME
from gateway_sidecar.errors import StateError
from gateway_sidecar.files.replace import replace_file
from gateway_sidecar.frontend.certificate import today
from gateway_sidecar.nginx.frontend_places import FrontendPlaces
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.telemetry.logs import get_logger

_PATIENCE_S = 3.0
"""nginx, and every client, waits for it."""


class Usage(Protocol):
    """What has been counted. Both raise StateError where the disk does not say it."""

    async def collect(self) -> None:
        """Takes in what an nginx that ended has counted."""

    async def tokens_since(self, service: str, unix_s: float) -> Mapping[str, int]:
        """Key -> tokens at a service's frontend since the hour of a time."""


class UsedUp:
    """What keys have used, in a file that each worker of nginx reads when it starts (`bounds.begin`)."""

    def __init__(
        self,
        places: FrontendPlaces,
        usage: Usage,
        frontends: Callable[[], Mapping[str, FrontendSettings]],
        now: Callable[[], float] = today,
    ) -> None:
        self._places = places
        self._usage = usage
        self._frontends = frontends
        self._now = now
        self._logger = get_logger()

    async def tell(self) -> None:
        """Writes the file. Never raises: an nginx that knows less is better than none."""
        services = who_count(self._frontends())
        if not services:
            return
        try:
            async with within(_PATIENCE_S):
                await self._usage.collect()
                lines = [line for service in services for line in await self._lines(service)]
            replace_file(self._places.used, "".join(lines))
        except (StateError, OSError) as error:  # A TimeoutError is one, too.
            reason = str(error) or f"the disk did not answer within {_PATIENCE_S:g} s"
            self._logger.error("bounds.begin_anew", reason=reason)

    async def _lines(self, service: str) -> list[str]:
        lines = []
        for bound, period, began_at in periods(self._now()):
            used = await self._usage.tokens_since(service, began_at)
            lines += [
                f"{service} {key} {bound} {period} {tokens}\n"
                for key, tokens in used.items()
                if tokens > 0 and re.fullmatch(NAME, key)
            ]
        return lines


def who_count(frontends: Mapping[str, FrontendSettings]) -> Mapping[str, Path]:
    """The services and shared addresses that count what their keys use, each with its file of keys."""
    return {
        service: it.auth.keys_file
        for service, it in frontends.items()
        if it.usage is not None and it.auth is not None and it.auth.keys_file is not None
    }


def periods(now: float) -> Iterator[tuple[str, str, float]]:
    """A bound's name, as `share/bounds.lua` has it; what the period is called there, and when it began."""
    at = datetime.datetime.fromtimestamp(now, datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    yield "tokens_per_day", f"{at:%Y%m%d}", at.timestamp()
    yield "tokens_per_month", f"{at:%Y%m}", at.replace(day=1).timestamp()
