"""Which keys come near their quota: the share that each has used of its tokens of the day and the month, as a metric.

nginx refuses by counts of its own, whatever is found here. Only what frontends count as usage is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from heapq import nlargest
from pathlib import Path

from gateway_sidecar.config import FrontendSettings
from gateway_sidecar.control.edge.used_up import Usage, periods, who_count
from gateway_sidecar.errors import FrontendError, StateError
from gateway_sidecar.frontend.certificate import today
from gateway_sidecar.frontend.file_stats import FileStats, file_stats
from gateway_sidecar.frontend.keys import KeyFile, read_keys
from gateway_sidecar.frontend.words import NONE, PAUSED, parse_number
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.own_thread import OwnThread
from gateway_sidecar.telemetry.metrics import Metrics

EVERY_S = 300.0
"""With 10,000 keys that ask in every hour of a month, the store takes 2.6 s for one look."""
NEAR = 0.8
"""From this share on a key is near its quota; `share/prometheus/alerts.yaml` has the same."""
MOST_SERIES = 200
"""Those that have used the largest shares."""
_PATIENCE_S = 10.0  # A file of keys has up to 64 MiB, and nothing waits for this look.
_FORGET_S = 5.0  # A removed service's keys leave the metric within seconds.

Series = tuple[str, str, str]
"""A service, a key's name and a bound, as the metric is labelled with them."""

Elsewhere = Callable[[str, str, str], Mapping[str, int]]
"""A service, a bound and its period -> what each key has used at other gateways."""


def nowhere(_service: str, _bound: str, _period: str) -> Mapping[str, int]:
    """As for a gateway that works alone."""
    return {}


class Quotas:
    """The shares that keys have used. `frontends`: of each service and shared address."""

    def __init__(
        self,
        usage: Usage,
        frontends: Callable[[], Mapping[str, FrontendSettings]],
        metrics: Metrics,
        now: Callable[[], float] = today,
        elsewhere: Elsewhere = nowhere,
    ) -> None:
        self._usage = usage
        self._elsewhere = elsewhere
        self._frontends = frontends
        self._metrics = metrics
        self._now = now
        self._thread = OwnThread("quotas")
        self._read: dict[Path, tuple[FileStats, KeyFile]] = {}
        self._shares_before: dict[Series, float] = {}

    @property
    def near(self) -> Mapping[Series, float]:
        """Keys that are near a quota, or have used it up, those that have used most first -> the share."""
        near = [it for it in self._shares_before.items() if it[1] >= NEAR]
        return dict(sorted(near, key=lambda it: -it[1]))

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await self.look()
            due = awake.now() + EVERY_S
            while awake.now() < due:
                await awake.rest(_FORGET_S)
                self.forget()

    def forget(self) -> None:
        """What was said of a service that counts no more goes at once."""
        services = who_count(self._frontends())
        self._say({series: share for series, share in self._shares_before.items() if series[0] in services})

    async def look(self) -> None:
        """Brings the metric up to date. Never raises: where a disk does not say it, everything stays as it was."""
        files = who_count(self._frontends())
        self._read = {path: read for path, read in self._read.items() if path in files.values()}
        shares: dict[Series, float] = {}
        for service, path in files.items():
            try:
                shares |= await self._shares(service, path)
            except (StateError, FrontendError, OSError):  # A TimeoutError is one, too. Others tell of the same file.
                shares |= {series: share for series, share in self._shares_before.items() if series[0] == service}
        self._say(dict(nlargest(MOST_SERIES, shares.items(), key=lambda it: it[1])))

    def _say(self, largest: dict[Series, float]) -> None:
        for series in self._shares_before.keys() - largest.keys():
            self._metrics.key_bound_used.remove(*series)
        for series, share in largest.items():
            self._metrics.key_bound_used.labels(*series).set(share)
        self._shares_before = largest

    async def _shares(self, service: str, path: Path) -> dict[Series, float]:
        keys = await self._thread.run(partial(self._keys_of, path), patience_s=_PATIENCE_S)
        shares: dict[Series, float] = {}
        for bound, period, began_at in periods(self._now()):
            quotas = _quotas(keys, bound)
            used = await self._usage.tokens_since(service, began_at) if quotas else {}
            more = self._elsewhere(service, bound, period) if quotas else {}
            shares |= {
                (service, key, bound): (used.get(key, 0) + more.get(key, 0)) / most for key, most in quotas.items()
            }
        return shares

    def _keys_of(self, path: Path) -> KeyFile:
        """The file's keys, read anew when it has changed; if it has a mistake, those before, as in nginx. Blocks."""
        now = file_stats(path)
        before = self._read.get(path)
        if before is not None and before[0] == now:
            return before[1]
        try:
            keys = read_keys(path)
        except FrontendError:
            if before is None:
                raise
            keys = before[1]
        self._read[path] = now, keys
        return keys


def _quotas(file: KeyFile, bound: str) -> dict[str, int]:
    """Key -> its bound; of those that have this one and are not paused."""
    words = {name: file.bounds_of(key) for name, key in file.keys.items()}
    return {
        name: parse_number(its[bound])
        for name, its in words.items()
        if its.get(bound, NONE) != NONE and PAUSED not in its
    }
