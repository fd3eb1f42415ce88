"""Every Prometheus metric of the daemon. The series of vanished replicas and services disappear with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from gateway_sidecar import __version__

_PREFIX = "gateway_sidecar_"

_PROBE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5)
"""A choice: an engine that is well answers in milliseconds, and 5 s is the time-out by default."""
_FIRST_TOKEN_BUCKETS = (
    *(0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75),
    *(1, 1.5, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640),
)
"""About those of the engines' own histograms."""
_DURATION_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 1.5, 2.5, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 240, 480, 960, 1920)
"""About those of vLLM's own `vllm:e2e_request_latency_seconds`."""
_SERVING_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)
"""A choice: from a replica that comes back at once to a large model that is loaded from a slow disk."""

M = TypeVar("M", Counter, Gauge, Histogram)


@dataclass(frozen=True, slots=True)
class _Declared(Generic[M]):
    """A metric as `Metrics` names it: an instance has one of its own in this place, which `make` makes."""

    make: Callable[[CollectorRegistry], M]

    def __get__(self, instance: object, owner: type) -> M:
        raise AttributeError("only an instance has metrics")


def counter(name: str, text: str, *labels: str) -> _Declared[Counter]:
    """One that only grows; its name ends with `_total` on the page."""
    return _Declared(lambda registry: Counter(_PREFIX + name, text, labels, registry=registry))


def gauge(name: str, text: str, *labels: str) -> _Declared[Gauge]:
    """One that says how it is now."""
    return _Declared(lambda registry: Gauge(_PREFIX + name, text, labels, registry=registry))


def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> _Declared[Histogram]:
    """One that counts by size."""
    return _Declared(lambda registry: Histogram(_PREFIX + name, text, labels, buckets=buckets, registry=registry))


class Metrics:
    """One registry with everything that is counted: each metric's name, meaning and labels."""

    replicas = gauge("replicas", "Replicas by state.", "service", "state")
    replica_serving = gauge(
        "replica_serving",
        "1 while the replica serves.",
        *("service", "replica", "worker_type", "runtime_type"),
    )
    state_changes = counter("replica_state_changes", "Changes of replicas into a state.", "service", "state")
    serving_seconds = histogram(
        "socket_to_serving_seconds",
        "Time from the first sight of a socket until the router lists its worker as ready, loading included.",
        _SERVING_BUCKETS,
        "service",
    )
    probes = counter(
        "probes",
        "Questions to replicas by kind, `identify` or `health`, and by outcome.",
        *("service", "kind", "outcome"),
    )
    probe_seconds = histogram(
        "probe_duration_seconds",
        "Time that a question to a replica takes. Health questions to a healthy engine are timed in steps of 0.1 s.",
        _PROBE_BUCKETS,
        *("service", "kind"),
    )
    registrations = counter(
        "registrations", "Registrations of workers by outcome: `ready` or `failed`.", "service", "outcome"
    )
    deregistrations = counter("deregistrations", "Workers that left the router, by reason.", "service", "reason")
    drains = counter("drains", "Drains by outcome: `drained` or `timeout`.", "service", "outcome")
    unanswered_models = gauge(
        "unanswered_models",
        "Models that have only one half of a prefill/decode pair and no other worker that answers.",
        "service",
    )
    refused_names = gauge("refused_replicas", "Files that match the pattern and cannot be replicas.", "service")
    source_up = gauge("source_up", "1 while all sources of the service can be read completely.", "service")
    tunnel_state = gauge(
        "tunnel_state", "1 for the state that the replica's SSH tunnel is in.", "service", "replica", "state"
    )
    tunnel_links = gauge("tunnel_connections", "SSH connections by state: `up` or `down`.", "state")
    router_up = gauge("router_up", "1 while the router's API answers.", "service")
    router_starts = counter("router_starts", "Router processes that were started.", "service")
    router_start_seconds = gauge(
        "router_start_duration_seconds",
        "Time from the launch of the running router to its first answer.",
        "service",
    )
    router_rss = gauge("router_resident_memory_bytes", "Resident memory of the router.", "service")
    router_errors = counter("router_api_errors", "Requests of the daemon to the router that failed.", "service")
    waiting_requests = gauge("waiting_requests", "Requests that wait for the router or for a replica now.", "service")
    waited_requests = counter(
        "waited_requests",
        "Requests that were held, by what the service lacked and by outcome: `went_on`; `full` and `too_long`,"
        " answered 503; `lost` with their router and `unreadable`, answered 502.",
        *("service", "missing", "outcome"),
    )
    service_missing = gauge(
        "service_missing",
        "1 while the service lacks its `router`, any `replica`, or the `prefill` or `decode` half of a pair, so that"
        " requests wait.",
        *("service", "missing"),
    )
    frontend_keys = gauge("frontend_keys", "Valid API keys of clients.", "service")
    key_bound_used = gauge(
        "key_bound_used_ratio",
        "Share that a key has used of its bound, `tokens_per_day` or `tokens_per_month`, in the current day or month"
        " (UTC): 1 is all of it. Only frontends that count usage have it. The 200 keys that have used the largest"
        " shares are named.",
        *("service", "key", "bound"),
    )
    frontend_expiry = gauge(
        "frontend_certificate_expiry_timestamp_seconds", "Time at which the served certificate expires.", "service"
    )
    frontend_problem = gauge(
        "frontend_problem",
        "1 while this part of the frontend has a problem: `keys`, `certificate` or `client_ca` cannot be used,"
        " `expiry` is near, the certificate does not cover all `names`, the `disk` with the files does not answer, or"
        " `acme` has brought no certificate or fails to renew it.",
        *("service", "part"),
    )
    acme_renewal = gauge(
        "acme_renewal_timestamp_seconds", "Time at which the certificate by ACME is to be renewed.", "service"
    )
    acme_orders = counter(
        "acme_orders", "Orders of certificates by outcome: `issued` or `failed`.", "service", "outcome"
    )
    requests = counter(
        "requests",
        "Inference requests that have ended, by outcome: `ok`, `client_error`, `client_left`, `error` (status 500 and"
        " above), or `diverted` by a shared address to another service because this one had no replica.",
        *("service", "outcome"),
    )
    usage_requests = counter(
        "usage_requests",
        "Requests of services with `frontend.usage`, by key, model and outcome: `answered`, `refused` (4xx), `failed`"
        " (5xx) or `aborted`. The 200 keys and models with the most use are named; all others are `(others)`.",
        *("service", "key", "model", "outcome"),
    )
    usage_tokens = counter(
        "usage_tokens",
        "Tokens that answers report, by key, model and direction: `in` or `out`.",
        *("service", "key", "model", "direction"),
    )
    usage_unknown = counter(
        "usage_unknown_answers", "Answers that report no number of tokens.", "service", "key", "model"
    )
    request_rate = gauge(
        "request_rate",
        "Requests per second over a window: `30s`, `60s` or `300s`. nginx counts the role `all`, the router counts"
        " the others.",
        *("service", "role", "window"),
    )
    error_rate = gauge(
        "error_rate",
        "Answers of status 500 and above per second over a window; for a role, attempts that failed on its workers.",
        *("service", "role", "window"),
    )
    in_flight = gauge("in_flight_requests", "Requests that the router works on now.", "service", "role")
    latency = gauge(
        "latency_seconds",
        "Percentiles p50, p90 and p99 of latencies over a window, by kind: `ttft`, as clients saw it; `engines_ttft`,"
        " by the engines' own clocks; `itl`; `e2e`.",
        *("service", "role", "kind", "window", "percentile"),
    )
    first_token = histogram(
        "time_to_first_token_seconds",
        "Time from the first byte of a request to the first event of its streamed answer, measured at nginx, waiting"
        " included.",
        _FIRST_TOKEN_BUCKETS,
        "service",
    )
    request_duration = histogram(
        "request_duration_seconds",
        "Time from the first byte of a request to the last byte of its answer, measured at nginx, waiting included."
        " Requests that failed are left out.",
        _DURATION_BUCKETS,
        "service",
    )
    desired_replicas = gauge("desired_replicas", "Number of replicas that `scaling` recommends.", "service", "role")
    scaling_hook_runs = counter(
        "scaling_hook_runs", "Calls of the scaling hook by outcome: `done` or `failed`.", "service", "outcome"
    )
    lost_events = gauge(
        "lost_request_events",
        "Ends of requests that nginx reported faster than the daemon could read them. Request rates are too low by"
        " this number.",
    )
    bridge_ports = gauge("bridge_ports", "Bridge ports by use: `leased`, `quarantined` or `free`.", "use")
    service_bridge_ports = gauge(
        "service_bridge_ports", "Bridge ports that the service holds, quarantined ones included.", "service"
    )
    bridge_port_share = gauge("bridge_port_share", "Bridge ports that each service is guaranteed.")
    nginx_up = gauge("nginx_up", "1 while nginx runs.")
    nginx_starts = counter("nginx_starts", "Starts of nginx.")
    nginx_reloads = counter("nginx_reloads", "Reloads of nginx. Scaling a service causes none.")
    service_in_force = gauge(
        "service_in_force",
        "1 while nginx serves the service, or the shared address, as its `listen` and `frontend` say.",
        "service",
    )
    service_ready = gauge(
        "service_ready",
        "1 while load balancers are told to send the requests of the service, or of the shared address, here.",
        "service",
    )
    leave_phase = gauge(
        "leave_phase",
        "1 for the phase of a gateway that is leaving: `waiting`, `draining` or `stopping`.",
        "phase",
    )
    leave_connections = gauge(
        "leave_connections",
        "Connections of clients while the gateway is leaving. In the phase `draining` each has a request in flight.",
    )
    peer_addresses = gauge(
        "peer_addresses", "Advertised addresses that are bridged, by state: `up`, `down` or `refused`.", "state"
    )
    endpoints_up = gauge(
        "endpoints_up",
        "1 while the service's files for other routers can be written. While it is 0, no drain of the service ends.",
        "service",
    )
    record_up = gauge(
        "record_up",
        "1 while the daemon can write what the next daemon needs: records in `state` (state_dir) and `run` (run_dir),"
        " `replicas` of the admin API, the last `events`, and with a store what is `shared`.",
        "directory",
    )
    store_up = gauge("store_up", "1 while the store can be read and is believed.", "store")
    store_read_age = gauge("store_read_age_seconds", "Time since the last successful read of the store.", "store")
    store_errors = counter(
        "store_errors",
        "Reads of the store that failed, by kind: `away`, `denied`, `full`, `refused` (read, but not believed) or"
        " `error`.",
        "kind",
    )
    fleet_gateways = gauge(
        "fleet_gateways", "Gateways that this gateway believes to be alive, itself included.", "store"
    )
    loop_lag = histogram(
        "loop_lag_seconds",
        "Delay with which the daemon's event loop runs what is due.",
        (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
    )
    loop_failures = counter(
        "loop_failures", "Faults of the daemon itself that a loop survived. Please report each.", "service"
    )
    reloads = counter(
        "config_reloads",
        "Reloads of the configuration by outcome: `done`, or `refused` if it was not applied, or not completely.",
        "outcome",
    )
    build = gauge("build_info", "Always 1: the version of the daemon that runs.", "version")

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collect in (ProcessCollector, PlatformCollector, GCCollector):
            collect(registry=self.registry)
        for name, declared in vars(Metrics).items():
            if isinstance(declared, _Declared):
                vars(self)[name] = declared.make(self.registry)
        self._tunnel_states: dict[tuple[str, str], str] = {}
        for outcome in ("done", "refused"):
            self.reloads.labels(outcome)  # From 0: who alerts on an increase sees the first one, too.
        self.build.labels(__version__).set(1)

    def note_tunnel(self, service: str, replica: str, state: str) -> None:
        """Says which state a replica's tunnel is in, and that it is in no other."""
        if self._tunnel_states.get((service, replica)) != state:
            self._forget_tunnel(service, replica)
            self._tunnel_states[service, replica] = state
            self.tunnel_state.labels(service, replica, state).set(1)

    def _forget_tunnel(self, service: str, replica: str) -> None:
        state = self._tunnel_states.pop((service, replica), None)
        if state is not None:
            self.tunnel_state.remove(service, replica, state)

    def forget_replica(self, service: str, replica: str) -> None:
        """Removes a vanished replica's series."""
        self.replica_serving.remove_by_labels({"service": service, "replica": replica})
        self._forget_tunnel(service, replica)

    def forget_role(self, service: str, role: str) -> None:
        """Removes the series of a role that a service has no more."""
        for metric in (self.request_rate, self.error_rate, self.in_flight, self.latency, self.desired_replicas):
            metric.remove_by_labels({"service": service, "role": role})

    def forget_service(self, service: str) -> None:
        """Removes a removed service's series."""
        for of, replica in list(self._tunnel_states):
            if of == service:
                self._forget_tunnel(of, replica)
        for metric in vars(self).values():
            if isinstance(metric, Counter | Gauge | Histogram) and "service" in metric._labelnames:
                metric.remove_by_labels({"service": service})
