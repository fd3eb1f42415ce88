"""The part of `models` that is about signals: what is measured of a service, and how many replicas are recommended."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from gateway_sidecar.domain.model import WorkerType
from gateway_sidecar.domain.planning import Missing
from gateway_sidecar.domain.scaling import Metric
from gateway_sidecar.domain.signals import Outcome

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0)]


class Latency(TypedDict):
    """Quantiles of a time, in seconds, and who measured it."""

    p50: Seconds
    """Half of them were shorter."""
    p90: Seconds
    """Nine of ten were shorter."""
    p99: Seconds
    """99 of 100 were shorter."""
    samples: Count
    """How many were measured."""
    source: str
    """`nginx` (as clients saw it), `engines`, `router`; `engines+router` for both together."""
    share: Annotated[float, Field(ge=0, le=1)] | None
    """How many of the requests answered meanwhile were measured, from 0 to 1; null if not known."""


class RoleWindow(TypedDict):
    """What was measured of a role over a window. Null: not known."""

    requests_per_s: Rate | None
    """Requests that the router gave to its workers, per second."""
    errors_per_s: Rate | None
    """Requests that failed at its workers, retried or not, per second."""
    ttft_s: Latency | None
    """Time to the first token of streams as clients saw it, waiting included; without any, as `engines_ttft_s`."""
    engines_ttft_s: Latency | None
    """The same by the engines' own clock, for streams and answers in one piece."""
    itl_s: Latency | None
    """Pause between tokens."""


class Window(TypedDict):
    """What was measured of a service over a window. Null: not known."""

    covered_s: Seconds
    """How much of the window was watched, in seconds."""
    requests_per_s: Rate | None
    """Requests that ended, per second; those that waited and were refused count."""
    errors_per_s: Rate | None
    """Answers of 500 and more, per second."""
    outcomes: dict[Outcome, Count] | None
    """Outcome, as clients saw it -> requests."""
    e2e_s: Latency | None
    """From a request's first byte to its answer's last, waiting included; answered requests only."""
    ttft_s: Latency | None
    """Time to the first token of streams as clients saw it, waiting included; without any, as `engines_ttft_s`."""
    engines_ttft_s: Latency | None
    """The same by the engines' own clock, for streams and answers in one piece."""
    itl_s: Latency | None
    """Pause between tokens."""


class Role(TypedDict):
    """What was measured of a role."""

    serving: Count
    """Replicas that serve."""
    coming: Count
    """Replicas that will serve soon."""
    in_flight: Rate | None
    """Requests that its workers have, up to 15 s old; null if the router has not said so."""
    waiting: Count
    """Requests that wait for this role."""
    windows: dict[str, RoleWindow]
    """Seconds -> what was measured over so long."""


class NginxSource(TypedDict):
    """nginx's access events."""

    problem: str | None
    """Why they do not arrive."""


class RouterSource(TypedDict):
    """The router's metrics."""

    age_s: Seconds | None
    """How long ago they were read; null if never."""
    problem: str | None
    """Why they cannot be read."""


class EnginesSource(TypedDict):
    """The engines' metrics."""

    read: Count
    """Engines whose metrics were read."""
    problems: dict[str, str]
    """Replica -> why its metrics cannot be read."""


class SignalSources(TypedDict):
    """Who tells the signals of a service."""

    nginx: NginxSource
    """Requests as clients saw them."""
    router: RouterSource
    """Requests in flight, and which worker got how many."""
    engines: EnginesSource
    """Pause between tokens, and their own clock's time to the first token."""


class RoleScaling(TypedDict):
    """How many replicas of a role are recommended."""

    desired: Count
    """Replicas that are recommended."""
    current: Count
    """Replicas that serve or will serve soon."""
    reason: str
    """The measure that led to it, in words."""
    metric: Metric
    """What is held at `target`."""
    target: float
    """For each replica: requests per second or in flight; or a latency in seconds."""
    min: Count
    """No fewer replicas than this are recommended."""
    max: Count
    """No more replicas than this are recommended."""


class Scaling(TypedDict):
    """What `scaling` recommends."""

    roles: dict[WorkerType, RoleScaling]
    """Role -> recommendation."""
    hook_problem: str | None
    """Why the hook did not take the last recommendation."""
    voice: str | None
    """The gateway that recommends and calls the hook; null without a store, or while none is known to."""
    problem: str | None
    """Why nothing new is recommended: the signals of all gateways are not known."""


class FleetWindow(TypedDict):
    """What was measured at all gateways over the window. Null: one of them does not know it."""

    covered_s: Seconds
    """How much of the window every gateway watched, in seconds."""
    requests_per_s: Rate | None
    """Requests that ended, per second."""
    errors_per_s: Rate | None
    """Answers of 500 and more, per second."""
    outcomes: dict[Outcome, Count] | None
    """Outcome, as clients saw it -> requests."""
    e2e_s: Latency | None
    """From a request's first byte to its answer's last; of the merged histograms."""
    ttft_s: Latency | None
    """Time to the first token; of the merged histograms."""
    itl_s: Latency | None
    """Pause between tokens; of the merged histograms."""


class FleetSignals(TypedDict):
    """The signals of all gateways that scale the service, as the voice recommends by them."""

    voice: str | None
    """The gateway that recommends and calls the hook; null while none is known to."""
    is_voice: bool
    """Whether this gateway is that one."""
    gateways: list[str]
    """Those that are added up."""
    problem: str | None
    """Why they are not known, and nothing is recommended."""
    in_flight: Rate | None
    """Requests that the routers work on."""
    waiting: Count | None
    """Requests that wait for a router or a replica."""
    windows: dict[str, FleetWindow]
    """Seconds (`scaling.window_s`) -> what was measured over so long."""


class Signals(TypedDict):
    """What an autoscaler needs to know of a service. Null: not known."""

    service: str
    """The service's name."""
    in_flight: Rate | None
    """Requests that the router works on, up to 15 s old."""
    waiting: Count
    """Requests that wait for a router or a replica now."""
    missing: Missing | None
    """What the service lacks to answer requests; null if it lacks nothing."""
    windows: dict[str, Window]
    """Seconds (30, 60, 300) -> what was measured over so long."""
    roles: dict[WorkerType, Role]
    """Role -> what was measured of it."""
    scaling: Scaling | None
    """What is recommended; null where nothing is configured or measured."""
    fleet: FleetSignals | None
    """The same of all gateways; null without a store or `scaling`. All else is of this gateway alone."""
    sources: SignalSources
    """Who told it, and what is wrong with whom."""
