"""The signals of several gateways, added up: what each of them measured, as its key in the store says, and what that
comes to. Rates and requests are summed, and quantiles are those of the merged histograms.

What one gateway does not know is not known of all, unless it had nothing to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway_sidecar.domain.model import WorkerType
from gateway_sidecar.domain.scaling import Metric
from gateway_sidecar.domain.signals import Latency, Outcome, Tally, latency_in, latency_of
from gateway_sidecar.domain.store_memory import Snapshot

MOST_BYTES = 512 * 1024
"""Of one gateway's record, a third of what etcd takes. Services that make it longer are told without histograms."""
ENOUGH_S = 10.0
"""What was watched for less than this says nothing of a rate: one request in the first second is not one a second."""
_ALL = "all"

ByWindow = Mapping[int, float]
Histograms = Mapping[int, Mapping[float, float]]
"""Window -> upper bound -> observations in the bucket."""


@dataclass(frozen=True, slots=True)
class RoleMeasured:
    """Of one role, at one gateway, by window. What is not there is not known. waiting: requests that wait for it."""

    waiting: int = 0
    active: ByWindow = field(default_factory=dict)
    rps: ByWindow = field(default_factory=dict)
    ttft: Histograms = field(default_factory=dict)
    itl: Histograms = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one service, at one gateway.

    tallies: what clients saw, by window; empty while nginx tells nothing. idle: as `scaling.Seen` has it.
    router_itl: pauses between tokens that routers measured. is_cut: whether the histograms were left out.
    """

    waiting: int = 0
    in_flight: float | None = None
    idle: bool | None = None
    tallies: Mapping[int, Tally] = field(default_factory=dict)
    roles: Mapping[WorkerType, RoleMeasured] = field(default_factory=dict)
    router_itl: Histograms = field(default_factory=dict)
    is_cut: bool = False

    def said(self, *, is_cut: bool = False) -> dict[str, Any]:
        """As it stands in the gateway's key; without histograms, if it is cut."""
        return {
            "waiting": self.waiting,
            "in_flight": self.in_flight,
            "idle": self.idle,
            "windows": {
                str(window_s): {
                    "covered_s": round(it.covered_s, 1),
                    "outcomes": dict(it.outcomes),
                    "took": {} if is_cut else it.took,
                    "first": {} if is_cut else {role or _ALL: counts for role, counts in it.first.items()},
                }
                for window_s, it in self.tallies.items()
            },
            "roles": {
                role: {
                    "waiting": it.waiting,
                    "active": _rounded(it.active),
                    "rps": _rounded(it.rps),
                    "ttft": {} if is_cut else _histograms(it.ttft),
                    "itl": {} if is_cut else _histograms(it.itl),
                }
                for role, it in self.roles.items()
            },
            "router_itl": {} if is_cut else _histograms(self.router_itl),
            "cut": is_cut,
        }

    @classmethod
    def of(cls, said: Any) -> Measured:
        """Raises ValueError, TypeError, KeyError, AttributeError, OverflowError for what no gateway wrote."""
        return cls(
            int(said["waiting"]),
            None if said["in_flight"] is None else float(said["in_flight"]),
            None if said["idle"] is None else said["idle"] is True,
            {int(window_s): _tally(it) for window_s, it in said["windows"].items()},
            {WorkerType(role): _role(it) for role, it in said["roles"].items()},
            _histograms_of(said["router_itl"]),
            said["cut"] is True,
        )


@dataclass(frozen=True, slots=True)
class Record:
    """What one gateway tells of its signals: `signals/NAME`.

    instance: tells it from another of its name. leaving: whether it is about to stop, and calls no hook any more.
    turn: grows, so that a record that says the same as before is seen to be new.
    """

    instance: str
    turn: int = 0
    leaving: bool = False
    services: Mapping[str, Measured] = field(default_factory=dict)

    def to_json(self) -> str:
        """As the key's value; not much longer than `MOST_BYTES`."""
        parts, size = {}, 0
        for name, it in sorted(self.services.items()):
            part = it.said()
            length = len(_json(part))
            if size + length > MOST_BYTES:
                part = it.said(is_cut=True)
                length = len(_json(part))
            parts[name], size = part, size + length
        said = {"instance": self.instance, "turn": self.turn, "leaving": self.leaving, "services": parts}
        return _json(said)

    @classmethod
    def from_json(cls, text: str) -> Record | None:
        """None for what no gateway wrote."""
        try:
            said = json.loads(text)
            services = {str(name): Measured.of(it) for name, it in said["services"].items()}
            return cls(str(said["instance"]), int(said["turn"]), said["leaving"] is True, services)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            return None


@dataclass(frozen=True, slots=True)
class Recommended:
    """What was recommended for a role. is_told: whether a hook is known to have accepted it."""

    desired: int
    reason: str = ""
    is_told: bool = False


@dataclass(frozen=True, slots=True)
class Voice:
    """Who speaks for a service, and what was recommended last: `scaling/SERVICE`.

    It is one key, without a lease: so who takes the voice over knows what was told, and each write by another one
    makes those of the last voice fail.
    """

    gateway: str
    instance: str
    roles: Mapping[WorkerType, Recommended] = field(default_factory=dict)

    def to_json(self) -> str:
        """As the key's value."""
        roles = {
            role: {"desired": it.desired, "reason": it.reason, "told": it.is_told} for role, it in self.roles.items()
        }
        return json.dumps({"gateway": self.gateway, "instance": self.instance, "roles": roles}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Voice | None:
        """None for what no gateway wrote."""
        try:
            said = json.loads(text)
            roles = {
                WorkerType(role): Recommended(int(it["desired"]), str(it["reason"]), it["told"] is True)
                for role, it in said["roles"].items()
            }
            return cls(str(said["gateway"]), str(said["instance"]), roles)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            return None


def records_in(snapshot: Snapshot, prefix: str) -> dict[str, Record]:
    """Gateway -> what it tells, of all whose lease holds. What no gateway wrote is left out."""
    found = {
        key.removeprefix(prefix): Record.from_json(it.value)
        for key, it in snapshot.entries.items()
        if key.startswith(prefix)
    }
    return {name: it for name, it in found.items() if it is not None}


def voice_in(snapshot: Snapshot, key: str) -> Voice | None:
    """What one service's key says."""
    entry = snapshot.entries.get(key)
    return Voice.from_json(entry.value) if entry is not None else None


def may_speak(voice: Voice, records: Mapping[str, Record], service: str) -> bool:
    """Whether who has the voice may still speak, as far as what it tells says."""
    it = records.get(voice.gateway)
    return it is not None and it.instance == voice.instance and service in it.services and not it.leaving


def voices_in(snapshot: Snapshot, voices: str, signals: str) -> dict[str, str | None]:
    """Service that some gateway scales -> the gateway that speaks for it; None while nobody does.

    voices, signals: the prefixes of these keys.
    """
    records = records_in(snapshot, signals)
    found: dict[str, str | None] = {}
    for service in sorted({name for it in records.values() for name in it.services}):
        voice = voice_in(snapshot, voices + service)
        found[service] = voice.gateway if voice is not None and may_speak(voice, records, service) else None
    return found


@dataclass(frozen=True, slots=True)
class Together:
    """One service at all gateways. parts: what each of them measured."""

    parts: Sequence[Measured]

    @property
    def waiting(self) -> int:
        """Requests that wait anywhere."""
        return sum(it.waiting for it in self.parts)

    @property
    def in_flight(self) -> float | None:
        """Requests that routers work on."""
        return _sum([it.in_flight for it in self.parts])

    @property
    def idle(self) -> bool | None:
        """Whether all are; None where one does not know it and none has anything to do."""
        if any(it.idle is False for it in self.parts):
            return False
        return True if all(it.idle for it in self.parts) else None

    def waiting_for(self, role: WorkerType) -> int:
        """Requests that wait for replicas of this role."""
        return sum(it.roles[role].waiting for it in self.parts if role in it.roles)

    def covered_s(self, window_s: int) -> float:
        """How much of the window every gateway watched."""
        return min((it.covered_s for it in self._tallies(window_s)), default=0.0)

    def outcomes(self, window_s: int) -> dict[Outcome, int] | None:
        """What became of all requests; None where one gateway does not know it."""
        tallies = self._tallies(window_s)
        if not tallies:
            return None
        each = {outcome: sum(it.outcomes.get(outcome, 0) for it in tallies) for outcome in Outcome}
        return {outcome: count for outcome, count in each.items() if count}

    def rps(self, window_s: int) -> float | None:
        """Requests that ended, per second."""
        return _sum([it.window().rps for it in self._tallies(window_s)])

    def errors_per_s(self, window_s: int) -> float | None:
        """Answers of 500 and more, per second."""
        return _sum([it.window().errors_per_s for it in self._tallies(window_s)])

    def took(self, window_s: int) -> Latency | None:
        """How long answered requests took."""
        return None if self._is_cut else latency_in(it.took for it in self._tallies(window_s))

    def ttft(self, window_s: int, role: WorkerType | None = None) -> tuple[Latency, str] | None:
        """Time to the first token, and who says so: nginx of streams; without any, the engines."""
        if self._is_cut:
            return None
        latency = latency_in(it.first.get(role, {}) for it in self._tallies(window_s))
        if latency is not None:
            return latency, "nginx"
        engines = self._latency([it.ttft for it in self._of_role(role)], window_s)
        return None if engines is None else (engines, "engines")

    def itl(self, window_s: int, role: WorkerType | None = None) -> tuple[Latency, str] | None:
        """Pause between tokens, and who says so."""
        if self._is_cut:
            return None
        sources = {
            "engines": [it.itl for it in self._of_role(role)],
            "router": [it.router_itl for it in self.parts],
        }
        telling = [name for name, them in sources.items() if self._latency(them, window_s) is not None]
        latency = self._latency([it for name in telling for it in sources[name]], window_s)
        return None if latency is None else (latency, "+".join(telling))

    def value(self, role: WorkerType, metric: Metric, window_s: int, *, is_alone: bool) -> float | None:
        """The measure that is held at its target; None where it is not known. is_alone: there is no other role."""
        match metric:
            case Metric.RPS:
                routed = self._of_all(role, "rps", window_s)
                if not is_alone or not self._tallies(window_s):
                    return routed
                if self.covered_s(window_s) < ENOUGH_S:
                    return None
                return self.rps(window_s) or routed or 0.0
            case Metric.CONCURRENCY:
                active = self._of_all(role, "active", window_s)
                return None if active is None else active + self.waiting_for(role)
            case Metric.TTFT:
                told = self.ttft(window_s, None if is_alone else role)
            case Metric.ITL:
                told = self.itl(window_s, role)
        return None if told is None else told[0].p90

    @property
    def _is_cut(self) -> bool:
        return any(it.is_cut for it in self.parts)

    def _tallies(self, window_s: int) -> list[Tally]:
        """Those of all gateways; none where one of them has none."""
        found = [it.tallies.get(window_s) for it in self.parts]
        known = [it for it in found if it is not None]
        return known if len(known) == len(found) else []

    def _of_role(self, role: WorkerType | None) -> list[RoleMeasured]:
        return [it for part in self.parts for each, it in part.roles.items() if role in (None, each)]

    def _of_all(self, role: WorkerType, what: str, window_s: int) -> float | None:
        """The sum over all gateways. One that has nothing to do has none of it, though no router says so."""
        found: list[float | None] = []
        for part in self.parts:
            it = part.roles.get(role)
            value = None if it is None else (it.rps if what == "rps" else it.active).get(window_s)
            found.append(0.0 if value is None and part.idle else value)
        return _sum(found)

    def _latency(self, histograms: Sequence[Histograms], window_s: int) -> Latency | None:
        buckets: dict[float, float] = {}
        for histogram in histograms:
            for bound, count in histogram.get(window_s, {}).items():
                buckets[bound] = buckets.get(bound, 0.0) + count
        return latency_of(buckets)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [it for it in values if it is not None]
    return sum(known) if known and len(known) == len(values) else None


def _rounded(by_window: ByWindow) -> dict[str, float]:
    return {str(window_s): round(value, 3) for window_s, value in by_window.items()}


def _histograms(by_window: Histograms) -> dict[str, dict[str, float]]:
    """Bounds as text, for one of them is infinite."""
    return {
        str(window_s): {repr(bound): round(count, 3) for bound, count in buckets.items()}
        for window_s, buckets in by_window.items()
        if buckets
    }


def _histograms_of(said: Any) -> Histograms:
    return {
        int(window_s): {float(bound): float(count) for bound, count in buckets.items()}
        for window_s, buckets in said.items()
    }


def _counts(said: Any) -> dict[int, int]:
    return {int(bucket): int(count) for bucket, count in said.items()}


def _tally(said: Any) -> Tally:
    outcomes = {Outcome(it): int(count) for it, count in said["outcomes"].items()}
    first = {None if role == _ALL else WorkerType(role): _counts(it) for role, it in said["first"].items()}
    return Tally(float(said["covered_s"]), outcomes, _counts(said["took"]), first)


def _role(said: Any) -> RoleMeasured:
    active, rps = ({int(it): float(value) for it, value in said[what].items()} for what in ("active", "rps"))
    return RoleMeasured(int(said["waiting"]), active, rps, _histograms_of(said["ttft"]), _histograms_of(said["itl"]))


def _json(said: object) -> str:
    return json.dumps(said, sort_keys=True, separators=(",", ":"))
