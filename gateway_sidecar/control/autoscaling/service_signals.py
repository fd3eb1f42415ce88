"""One service's measures, from three sources, and the recommendations that follow. nginx's events show what clients
saw, the first event of a stream too; the routers' metrics what is in flight and how much each worker got; the engines'
metrics how long the first and the following tokens took. If a source is missing, what depends on it is unknown, and
what is unknown changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from gateway_sidecar.config import ScalingSettings
from gateway_sidecar.control.autoscaling.hook import Notice, ScalingHook
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.fleet_signals import ENOUGH_S, Measured, Recommended, RoleMeasured, Together
from gateway_sidecar.domain.history import EVERY_S, Point
from gateway_sidecar.domain.model import ReplicaId, ReplicaState, WorkerType
from gateway_sidecar.domain.planning import Missing
from gateway_sidecar.domain.scaling import Metric, Policy, Scaler, Seen, forget_wishes, recommend
from gateway_sidecar.domain.signals import (
    Growth,
    Latency,
    Level,
    Outcome,
    RequestEnd,
    Traffic,
    TrafficWindow,
    buckets_over,
    latency_over,
)
from gateway_sidecar.engines.engine_metrics import EngineReading
from gateway_sidecar.routers.base import RouterReading
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

MOST_AGE_S = 15.0
"""A number that was read longer ago says nothing of now."""

_IDLE_WINDOW_S = 30  # The shortest of `WINDOWS_S`: what is idle is known soonest by it.
_POINT_WINDOW_S = int(EVERY_S) + 1
"""The seconds since the last point, and the one that has just begun."""
_UNIDENTIFIED_S = 10.0  # A choice: an engine that answers is identified in milliseconds; longer, and it may never be.
_COMING = (ReplicaState.SEEN, ReplicaState.LOADING, ReplicaState.REGISTERING)
_PAIR = frozenset((WorkerType.PREFILL, WorkerType.DECODE))
_MISSING_HALF = {Missing.PREFILL: WorkerType.PREFILL, Missing.DECODE: WorkerType.DECODE}


@dataclass(frozen=True, slots=True)
class Told:
    """A latency, and who says so: `nginx`, `engines` or `router`.

    share: of the requests that were answered meanwhile, how many it covers, from 0 to 1; None where that is not known.
    """

    latency: Latency
    source: str
    share: float | None = None


@dataclass(slots=True)
class RoleSignals:
    """What is measured of one role, and what was recommended for it."""

    active: Level = field(default_factory=Level)
    requests: Growth = field(default_factory=Growth)
    errors: Growth = field(default_factory=Growth)
    ttft: Growth = field(default_factory=Growth)
    itl: Growth = field(default_factory=Growth)
    policy: Policy | None = None
    scaler: Scaler = field(default_factory=Scaler)
    told: int | None = None


@dataclass(frozen=True, slots=True)
class FleetSignals:
    """What is known of the service at all gateways.

    voice: which gateway recommends and calls the hook; None where none is known to. is_own: whether it is this one.
    gateways: those that are added up. together: their signals; None where one of them is not known.
    problem: why nothing new is recommended; empty if it is.
    """

    voice: str | None = None
    is_own: bool = False
    gateways: tuple[str, ...] = ()
    together: Together | None = None
    problem: str = ""


def role_of(tenure: Tenure) -> WorkerType | None:
    """The part that a replica plays, once it is known."""
    return tenure.notes.overrides.worker_type or (tenure.probe.facts.worker_type if tenure.probe.facts else None)


def policy_of(settings: ScalingSettings, role: WorkerType) -> Policy:
    """What is wanted of a role: the service's settings, with the role's own above them."""
    own = {WorkerType.PREFILL: settings.prefill, WorkerType.DECODE: settings.decode}.get(role)
    said = own.model_dump(exclude_none=True) if own else {}
    return Policy(
        metric=Metric(said.get("metric", settings.metric)),
        target=said.get("target", settings.target),
        least=said.get("min", settings.min),
        most=said.get("max", settings.max),
        up_after_s=settings.up_after_s,
        down_after_s=settings.down_after_s,
        idle_after_s=settings.idle_after_s,
    )


class ServiceSignals:
    """One service's signals. Times are monotonic seconds."""

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self.service = service
        self.name = service.name
        self._metrics = metrics
        self._logger = get_logger(service=service.name)
        self._in_flight = Level()
        self._itl = Growth()
        self._role_at: dict[str, WorkerType] = {}
        self.traffic: Traffic | None = None
        self.roles: dict[WorkerType, RoleSignals] = {}
        self.hook = ScalingHook(service.name, metrics)
        self.router_read_at: float | None = None
        self.router_problem: str | None = "not read yet"
        self.engine_problems: dict[ReplicaId, str] = {}
        self.worked_by: dict[int, float] = {}
        self.requests_of: dict[str, float] = {}
        self.active_on: dict[str, float] = {}
        self._failed: dict[str, Mapping[str, float]] = {}
        self.fleet: FleetSignals | None = None
        """None for a gateway that works alone."""

    # -- what is told

    def watch(self, now_s: float, *, is_told: bool) -> None:
        """Whether nginx reports requests. Without reports a service is unknown, not quiet."""
        if is_told and self.traffic is None:
            self.traffic = Traffic(now_s)
        elif not is_told:
            self.traffic = None

    def record(self, now_s: float, end: RequestEnd) -> None:
        """One request has ended."""
        if self.traffic is None:
            return
        outcome = Outcome.of(end.status)
        self.traffic.record(now_s, end, self._roles_behind(end.worker))
        self._metrics.requests.labels(self.name, outcome.value).inc()
        if outcome is Outcome.OK:
            self._metrics.request_duration.labels(self.name).observe(end.took_s)
            if end.first_s is not None:
                self._metrics.first_token.labels(self.name).observe(end.first_s)

    def _roles_behind(self, url: str) -> Iterable[WorkerType]:
        """Who answered, where there is a choice: of a pair the router names one."""
        role = self._role_at.get(url) if len(self.roles) > 1 else None
        return _PAIR if role in _PAIR else () if role is None else (role,)

    def requests_to(self, tenure: Tenure) -> float:
        """How many requests routers have sent to an engine, under any of its names."""
        return sum(self.requests_of.get(url, 0.0) for url in tenure.urls)

    def active_at(self, urls: Iterable[str], now_s: float) -> float | None:
        """Requests in flight at the workers of these URLs, by the last reading; None where nobody says so.

        A worker that had no request yet is not named.
        """
        is_fresh = self.router_read_at is not None and now_s - self.router_read_at <= MOST_AGE_S
        if not is_fresh or (not self.active_on and self.in_flight(now_s) != 0):
            return None
        return sum(self.active_on.get(url, 0.0) for url in urls)

    def take_routers(self, now_s: float, readings: Mapping[str, RouterReading]) -> None:
        """What all of the service's routers say now, by a name that no two processes share."""
        in_flight = [reading.in_flight for reading in readings.values()]
        if None not in in_flight:
            self._in_flight.take(now_s, sum(value for value in in_flight if value is not None))
        self._itl.keep_only(set(readings))
        self.requests_of, self.active_on = {}, {}
        there = self.service.tenures.values()
        by_url = self._role_at = {url: role for t in there if (role := role_of(t)) for url in t.urls}
        # A worker that had no request yet is not named; a router that works and names none does not say.
        says_active = all(r.in_flight == 0 or r.active for r in readings.values())
        for role, signals in self.roles.items():
            if says_active:
                active = (n for r in readings.values() for url, n in r.active.items() if by_url.get(url) is role)
                signals.active.take(now_s, sum(active))
            signals.errors.keep_only(set(readings))
            for source, reading in readings.items():
                signals.errors.take(now_s, source, {0.0: reading.errors.get(role.value, 0.0)})
            signals.requests.keep_only({(source, url) for source, r in readings.items() for url in r.requests})
        for source, reading in readings.items():
            self._itl.take(now_s, source, reading.itl)
            for url, number in reading.active.items():
                self.active_on[url] = self.active_on.get(url, 0.0) + number
            for url, requests in reading.requests.items():
                self.requests_of[url] = self.requests_of.get(url, 0.0) + requests
                signal = self.roles.get(by_url[url]) if url in by_url else None
                if signal is not None:
                    signal.requests.take(now_s, (source, url), {0.0: requests})
        self._note_failures(readings)
        self.router_read_at, self.router_problem = now_s, None

    def _note_failures(self, readings: Mapping[str, RouterReading]) -> None:
        """Whom tries failed at since the last reading, those that the router tried elsewhere too."""
        for source, reading in readings.items():
            if (before := self._failed.get(source)) is not None:
                for url, count in reading.failed.items():
                    if count > before.get(url, 0.0):
                        self.service.note_failure(url)
        self._failed = {source: reading.failed for source, reading in readings.items()}

    def take_engine(self, now_s: float, tenure: Tenure, reading: EngineReading) -> None:
        """What one engine says of its latencies."""
        role = role_of(tenure)
        signals = self.roles.get(role) if role else None
        if signals is not None:
            signals.ttft.take(now_s, tenure.key, reading.ttft)
            signals.itl.take(now_s, tenure.key, reading.itl)

    def keep_engines(self, keys: set[int], replicas: set[ReplicaId]) -> None:
        """Forgets the engines that are none of these: a tenure's key does not come back."""
        for signals in self.roles.values():
            signals.ttft.keep_only(keys)
            signals.itl.keep_only(keys)
        self.worked_by = {key: work for key, work in self.worked_by.items() if key in keys}
        self.engine_problems = {name: why for name, why in self.engine_problems.items() if name in replicas}

    # -- what it comes to

    def windows(self, now_s: float) -> dict[int, TrafficWindow]:
        """What clients saw, by window; empty while nginx tells nothing."""
        return self.traffic.windows(now_s) if self.traffic is not None else {}

    def point(self, now_s: float) -> Point:
        """What was measured since the last point, at the beginning of a second."""
        windows = self.traffic.windows(now_s, (_POINT_WINDOW_S,)) if self.traffic is not None else {}
        window = windows.get(_POINT_WINDOW_S)
        ttft, took = self.ttft(now_s, _POINT_WINDOW_S, window), window.took if window else None
        return Point(
            requests=window.rps if window else None,
            errors=window.errors_per_s if window else None,
            in_flight=self.in_flight(now_s),
            waiting=float(self.service.hold.waiting),
            ttft_p50=ttft.latency.p50 if ttft else None,
            ttft_p99=ttft.latency.p99 if ttft else None,
            took_p50=took.p50 if took else None,
            took_p99=took.p99 if took else None,
        )

    def in_flight(self, now_s: float) -> float | None:
        """Requests that the routers work on; those that wait in the hold are not among them."""
        return self._in_flight.latest(now_s, MOST_AGE_S)

    def role_in_flight(self, role: WorkerType, now_s: float) -> float | None:
        """Requests on the workers of one role."""
        return self.roles[role].active.latest(now_s, MOST_AGE_S)

    def role_rps(self, role: WorkerType, now_s: float, window_s: int) -> float | None:
        """Requests per second that the routers gave to workers of this role; a retry counts again."""
        return self.roles[role].requests.rate(now_s, window_s)

    def role_errors_per_s(self, role: WorkerType, now_s: float, window_s: int) -> float | None:
        """Tries that failed on workers of this role, per second; one that was retried well counts too."""
        return self.roles[role].errors.rate(now_s, window_s)

    def ttft(
        self, now_s: float, window_s: int, traffic: TrafficWindow | None, role: WorkerType | None = None
    ) -> Told | None:
        """Time to first token as clients saw it, which nginx tells of streams; without any, the engines' own."""
        latency = traffic.first.get(role if len(self.roles) > 1 else None) if traffic is not None else None
        if latency is None:
            return self.engines_ttft(now_s, window_s, traffic, role)
        return Told(latency, "nginx", self._share(latency, now_s, window_s, traffic, role))

    def engines_ttft(
        self, now_s: float, window_s: int, traffic: TrafficWindow | None, role: WorkerType | None = None
    ) -> Told | None:
        """Time to first token by the engines' own clock, which begins when a request has reached the engine."""
        growths = [signals.ttft for each, signals in self.roles.items() if role in (None, each)]
        return self._merged({"engines": growths}, now_s, window_s, traffic, role)

    def itl(
        self, now_s: float, window_s: int, traffic: TrafficWindow | None, role: WorkerType | None = None
    ) -> Told | None:
        """Pause between tokens: what the engines say over HTTP, and the router, who knows it of gRPC workers."""
        growths = [signals.itl for each, signals in self.roles.items() if role in (None, each)]
        told = self._merged({"engines": growths, "router": [self._itl]}, now_s, window_s, traffic, role)
        return told and replace(told, share=None)  # Of pauses, not of requests.

    def _merged(
        self,
        sources: Mapping[str, list[Growth]],
        now_s: float,
        window_s: int,
        traffic: TrafficWindow | None,
        role: WorkerType | None,
    ) -> Told | None:
        """What these say together, each of requests that the others do not see."""
        telling = [name for name, growths in sources.items() if latency_over(growths, now_s, window_s) is not None]
        latency = latency_over([it for name in telling for it in sources[name]], now_s, window_s)
        if latency is None:
            return None
        return Told(latency, "+".join(telling), self._share(latency, now_s, window_s, traffic, role))

    def _share(
        self, latency: Latency, now_s: float, window_s: int, traffic: TrafficWindow | None, role: WorkerType | None
    ) -> float | None:
        """How many of the requests answered in the window a latency is of, as far as anybody counts them."""
        answered = 0.0 if traffic is None else float(traffic.outcomes.get(Outcome.OK, 0))
        if role is not None and len(self.roles) > 1:
            answered = sum(sum(step.values()) for step in self.roles[role].requests.within(now_s, window_s))
        return min(1.0, latency.samples / answered) if answered else None

    def _there(self) -> list[Tenure]:
        return [t for t in self.service.tenures.values() if t.leaving is None]

    def counts(self, role: WorkerType) -> tuple[int, int]:
        """Replicas of a role that serve, and those that load or register. A replica of unknown role is not counted."""
        mine = [t for t in self._there() if (role_of(t) or self._only_role()) is role]
        return (
            sum(t.status.state is ReplicaState.SERVING for t in mine),
            sum(t.status.state in _COMING for t in mine),
        )

    def _only_role(self) -> WorkerType | None:
        return next(iter(self.roles)) if len(self.roles) == 1 else None

    def waiting_for(self, role: WorkerType) -> int:
        """Requests that wait for replicas of this role; those that wait for a router are not."""
        missing = self.service.hold.missing
        if missing is None:
            return self.service.hold.waiting_for_models
        if missing is Missing.ROUTER or _MISSING_HALF.get(missing, role) is not role:
            return 0
        return self.service.hold.waiting

    def note_roles(self, awake_s: float) -> None:
        """Which roles there are: those seen, those configured, and those that there were before the last one left."""
        scaling = self.service.settings.scaling
        roles = {role for t in self._there() if (role := role_of(t))} - {WorkerType.ENCODE}
        if scaling is not None:
            own = ((WorkerType.PREFILL, scaling.prefill), (WorkerType.DECODE, scaling.decode))
            roles |= {role for role, settings in own if settings is not None}
        if roles & _PAIR:
            roles |= _PAIR
        if not roles and not self.roles:
            if any(awake_s - t.seen_at < _UNIDENTIFIED_S for t in self._there()):
                return  # What they are will be known in a moment.
            roles = {WorkerType.REGULAR}
        if roles and roles != set(self.roles):
            for gone in set(self.roles) - roles:
                self._metrics.forget_role(self.name, gone.value)
            order = [role for role in WorkerType if role in roles]
            self.roles = {role: self.roles.get(role) or RoleSignals() for role in order}

    def measured(self, now_s: float, window_s: int) -> Measured:
        """What the other gateways are told of the window that recommendations are made from."""

        def over(growth: Growth) -> dict[int, dict[float, float]]:
            return {window_s: buckets_over([growth], now_s, window_s)}

        def known(value: float | None) -> dict[int, float]:
            return {} if value is None else {window_s: value}

        return Measured(
            self.service.hold.waiting,
            self.in_flight(now_s),
            self._is_idle(self.windows(now_s), now_s),
            self.traffic.tallies(now_s, (window_s,)) if self.traffic is not None else {},
            {
                role: RoleMeasured(
                    self.waiting_for(role),
                    known(it.active.mean(now_s, window_s)),
                    known(it.requests.rate(now_s, window_s)),
                    over(it.ttft),
                    over(it.itl),
                )
                for role, it in self.roles.items()
            },
            over(self._itl),
        )

    # -- how many there should be

    def evaluate(self, now_s: float, awake_s: float) -> None:
        """Recommends, if that is wanted and the replicas are known, and has the hook told of changes.

        awake_s: by the clock that does not count stalls. What must have been wanted, or quiet, for so long goes by it.
        """
        scaling = self._wanted_scaling()
        if scaling is None or not self.service.has_looked:
            return
        windows = self.windows(now_s)
        for role, signals in self.roles.items():
            policy = self._follow_policy(role, signals, scaling)
            seen = self._see(role, policy.metric, scaling.window_s, windows, now_s)
            self._recommend(role, signals, policy, seen, awake_s)
            if signals.told != signals.scaler.desired and self.hook.settings is not None:
                signals.told = signals.scaler.desired
                self.hook.tell(self.notice(role))

    def evaluate_together(self, together: Together, gone: Iterable[str], awake_s: float) -> None:
        """Recommends by the signals of all gateways. Who speaks for them has the hook told.

        gone: gateways whose daemon has died. Their nginx may serve on, uncounted: meanwhile nothing goes down.
        """
        scaling = self._wanted_scaling()
        if scaling is None or not self.service.has_looked:
            return
        for role, signals in self.roles.items():
            policy = self._follow_policy(role, signals, scaling)
            serving, coming = self.counts(role)
            is_alone = len(self.roles) == 1
            value = together.value(role, policy.metric, scaling.window_s, is_alone=is_alone)
            seen = Seen(value, serving, coming, together.waiting_for(role), together.idle)
            self._recommend(role, signals, policy, seen, awake_s, tuple(gone))

    def follow(self, recommended: Mapping[WorkerType, Recommended], awake_s: float) -> None:
        """Another gateway recommends: that is shown here, and is where this one begins once it is its turn.

        It has been wanted until now, so that a change of the voice makes no change of the number.
        """
        scaling = self._wanted_scaling()
        if scaling is None:
            return
        for role, signals in self.roles.items():
            self._follow_policy(role, signals, scaling)
            it = recommended.get(role)
            signals.scaler = Scaler() if it is None else Scaler(it.desired, ((awake_s, it.desired),), reason=it.reason)
            if it is not None:
                self._metrics.desired_replicas.labels(self.name, role.value).set(it.desired)

    def notice(self, role: WorkerType) -> Notice:
        """What the hook is told of a role's recommendation."""
        it = self.roles[role]
        assert it.policy is not None
        assert it.scaler.desired is not None
        current = sum(self.counts(role))
        return Notice(self.name, role.value, it.scaler.desired, current, it.policy.metric.value, it.scaler.reason)

    def _wanted_scaling(self) -> ScalingSettings | None:
        """The settings in force, which the hook has, too. Without any, nothing is recommended any more."""
        scaling = self.service.settings.scaling
        self.hook.reconfigure(None if scaling is None else scaling.hook)
        if scaling is None:
            for role, signals in self.roles.items():
                signals.policy, signals.scaler, signals.told = None, Scaler(), None
                self._metrics.desired_replicas.remove_by_labels({"service": self.name, "role": role.value})
        return scaling

    def _follow_policy(self, role: WorkerType, signals: RoleSignals, scaling: ScalingSettings) -> Policy:
        policy = policy_of(scaling, role)
        if signals.policy is not None and signals.policy != policy:
            signals.scaler = forget_wishes(signals.scaler)
        signals.policy = policy
        return policy

    def _recommend(
        self,
        role: WorkerType,
        signals: RoleSignals,
        policy: Policy,
        seen: Seen,
        awake_s: float,
        gone: tuple[str, ...] = (),
    ) -> None:
        was = signals.scaler.desired
        signals.scaler = recommend(policy, signals.scaler, seen, awake_s)
        desired = signals.scaler.desired
        assert desired is not None
        if gone and was is not None and desired < was:
            why = f"{signals.scaler.reason}; nothing goes down while gateways are gone: {', '.join(gone)}"
            signals.scaler, desired = replace(signals.scaler, desired=was, reason=why), was
        self._metrics.desired_replicas.labels(self.name, role.value).set(desired)
        if was != desired:
            self._logger.info(
                "scaling.recommended", role=role.value, desired=desired, was=was,
                current=seen.serving + seen.coming, reason=signals.scaler.reason,
            )  # fmt: skip

    def _see(
        self, role: WorkerType, metric: Metric, window_s: int, windows: Mapping[int, TrafficWindow], now_s: float
    ) -> Seen:
        serving, coming = self.counts(role)
        value, share = self._value(role, metric, window_s, windows.get(window_s), now_s)
        return Seen(
            value=value,
            share=share,
            serving=serving,
            coming=coming,
            waiting=self.waiting_for(role),
            idle=self._is_idle(windows, now_s),
        )

    def _value(
        self, role: WorkerType, metric: Metric, window_s: int, traffic: TrafficWindow | None, now_s: float
    ) -> tuple[float | None, float | None]:
        """The measure, and of a latency the share of the requests that it covers."""
        signals = self.roles[role]
        match metric:
            case Metric.RPS:
                # Alone a role gets all that comes, and nginx counts what waits or is refused as well.
                routed = signals.requests.rate(now_s, window_s)
                if len(self.roles) > 1 or traffic is None:
                    return routed, None
                if traffic.covered_s < ENOUGH_S:
                    return None, None
                # A router that has work knows better than an nginx that is not heard.
                return traffic.rps or routed or 0.0, None
            case Metric.CONCURRENCY:
                mean = signals.active.mean(now_s, window_s)
                return None if mean is None else mean + self.waiting_for(role), None
            case Metric.TTFT:
                told = self.ttft(now_s, window_s, traffic, role)
            case Metric.ITL:
                told = self.itl(now_s, window_s, traffic, role)
        return (None, None) if told is None else (told.latency.p90, told.share)

    def _is_idle(self, windows: Mapping[int, TrafficWindow], now_s: float) -> bool | None:
        """Nothing comes, nothing is in flight, nothing waits; None unless all of that is known."""
        traffic, in_flight = windows.get(_IDLE_WINDOW_S), self.in_flight(now_s)
        if self.service.hold.waiting or in_flight or (traffic is not None and traffic.requests):
            return False
        if any(signals.requests.rate(now_s, _IDLE_WINDOW_S) for signals in self.roles.values()):
            return False
        if traffic is None or traffic.covered_s < ENOUGH_S:
            return None
        if in_flight is None and self.service.hold.missing is not Missing.ROUTER:
            return None
        return True
