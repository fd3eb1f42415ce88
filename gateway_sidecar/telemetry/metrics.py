"""Every Prometheus metric of the daemon. The series of vanished replicas and services disappear with them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from gateway_sidecar import __version__

_PROBE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5)
_FIRST_TOKEN_BUCKETS = (
    *(0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75),
    *(1, 1.5, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640),
)
"""About those of the engines' own histograms."""
_DURATION_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 1.5, 2.5, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 240, 480, 960, 1920)
"""About those of vLLM's own `vllm:e2e_request_latency_seconds`."""
_SERVING_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)


class Metrics:
    """One registry with everything that is counted."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collect in (ProcessCollector, PlatformCollector, GCCollector):
            collect(registry=self.registry)
        prefix = "gateway_sidecar_"

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(prefix + name, text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(prefix + name, text, labels, registry=self.registry)

        self.replicas = gauge("replicas", "Replicas by state.", "service", "state")
        self.replica_serving = gauge(
            "replica_serving",
            "1 while the replica serves.",
            "service",
            "replica",
            "worker_type",
            "runtime_type",
        )
        self.state_changes = counter("replica_state_changes", "State changes.", "service", "state")
        self.probes = counter("probes", "Probes by question and result.", "service", "kind", "outcome")
        self.probe_seconds = Histogram(
            prefix + "probe_duration_seconds",
            "Duration of a probe.",
            ("service", "kind"),
            buckets=_PROBE_BUCKETS,
            registry=self.registry,
        )
        self.serving_seconds = Histogram(
            prefix + "socket_to_serving_seconds",
            "From the first sight of a socket to its worker being ready in the router; loading included.",
            ("service",),
            buckets=_SERVING_BUCKETS,
            registry=self.registry,
        )
        self.unanswered_models = gauge(
            "unanswered_models", "Models with half a prefill-decode pair and no other worker that answers.", "service"
        )
        self.registrations = counter("registrations", "Registrations by outcome.", "service", "outcome")
        self.deregistrations = counter("deregistrations", "Deregistrations by reason.", "service", "reason")
        self.drains = counter("drains", "Drains by outcome.", "service", "outcome")
        self.refused_names = gauge(
            "refused_replicas", "Files that match the pattern but cannot be replicas.", "service"
        )
        self.source_up = gauge("source_up", "1 while the service's sources can be read whole.", "service")
        self.tunnel_state = gauge(
            "tunnel_state", "1 for the current state of a replica's SSH tunnel.", "service", "replica", "state"
        )
        self._tunnel_states: dict[tuple[str, str], str] = {}
        self.tunnel_links = gauge("tunnel_connections", "SSH connections by whether they are up.", "state")
        self.router_up = gauge("router_up", "1 while the router's API answers.", "service")
        self.router_starts = counter("router_starts", "Router processes started.", "service")
        self.router_start_seconds = gauge(
            "router_start_duration_seconds", "Launch to first answer of the running router.", "service"
        )
        self.router_rss = gauge("router_resident_memory_bytes", "Resident memory of the router.", "service")
        self.router_errors = counter("router_api_errors", "Requests to the router that failed.", "service")
        self.waiting_requests = gauge(
            "waiting_requests", "Requests that wait for the router or a replica now.", "service"
        )
        self.waited_requests = counter(
            "waited_requests",
            "Requests that were held, by what they waited for and how they ended.",
            "service",
            "missing",
            "outcome",
        )
        self.service_missing = gauge(
            "service_missing", "1 while the service lacks this, so that requests wait.", "service", "missing"
        )
        self.frontend_keys = gauge("frontend_keys", "Keys that let clients in.", "service")
        self.frontend_expiry = gauge(
            "frontend_certificate_expiry_timestamp_seconds", "When the served certificate expires.", "service"
        )
        self.frontend_problem = gauge(
            "frontend_problem", "1 while the frontend's part cannot be used as it is.", "service", "part"
        )
        self.acme_renewal = gauge(
            "acme_renewal_timestamp_seconds", "When the certificate by ACME is to be ordered anew.", "service"
        )
        self.acme_orders = counter("acme_orders", "Orders of certificates by outcome.", "service", "outcome")
        self.requests = counter("requests", "Requests for an answer that have ended, by outcome.", "service", "outcome")
        self.first_token = Histogram(
            prefix + "time_to_first_token_seconds",
            "From a request's first byte to the first event of its streamed answer, at nginx; waiting included.",
            ("service",),
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.request_duration = Histogram(
            prefix + "request_duration_seconds",
            "From a request's first byte to its answer's last, at nginx, waiting included; errors are not in it.",
            ("service",),
            buckets=_DURATION_BUCKETS,
            registry=self.registry,
        )
        self.lost_events = gauge(
            "lost_request_events", "Ends of requests that nginx reported and the daemon had no time to read."
        )
        self.usage_requests = counter(
            "usage_requests", "Requests by key and model, by outcome.", "service", "key", "model", "outcome"
        )
        self.usage_tokens = counter(
            "usage_tokens", "Tokens that answers say, by key and model.", "service", "key", "model", "direction"
        )
        self.usage_unknown = counter(
            "usage_unknown_answers", "Answers whose tokens nobody knows.", "service", "key", "model"
        )
        self.request_rate = gauge(
            "request_rate", "Requests per second over the window of this many seconds.", "service", "role", "window"
        )
        self.error_rate = gauge("error_rate", "Failures per second.", "service", "role", "window")
        self.in_flight = gauge("in_flight_requests", "Requests that the router works on.", "service", "role")
        self.latency = gauge(
            "latency_seconds", "Quantiles of latencies.", "service", "role", "kind", "window", "percentile"
        )
        self.desired_replicas = gauge("desired_replicas", "Recommended number of replicas.", "service", "role")
        self.scaling_hook_runs = counter("scaling_hook_runs", "Calls of the scaling hook.", "service", "outcome")
        self.bridge_ports = gauge("bridge_ports", "Bridge ports by use.", "use")
        self.service_bridge_ports = gauge(
            "service_bridge_ports", "Bridge ports that a service holds, including those at rest.", "service"
        )
        self.bridge_port_share = gauge("bridge_port_share", "Bridge ports that each service is sure of.")
        self.nginx_up = gauge("nginx_up", "1 while nginx runs.")
        self.service_in_force = gauge(
            "service_in_force", "1 while nginx serves the service as its listen and frontend say.", "service"
        )
        self.service_ready = gauge(
            "service_ready", "1 while load balancers are told to send the service's requests here.", "service"
        )
        self.leave_phase = gauge("leave_phase", "1 for the phase that a gateway that is leaving is in.", "phase")
        self.leave_connections = gauge("leave_connections", "Connections of clients while the gateway is leaving.")
        self.nginx_reloads = counter("nginx_reloads", "Reloads of nginx; scale events cause none.")
        self.nginx_starts = counter("nginx_starts", "Times nginx was started.")
        self.peer_addresses = gauge(
            "peer_addresses", "Addresses that replicas are advertised under, by state.", "state"
        )
        self.endpoints_up = gauge("endpoints_up", "1 while the service's files of endpoints can be written.", "service")
        self.record_up = gauge("record_up", "1 while the records for the next daemon can be written.", "directory")
        self.store_up = gauge("store_up", "1 while the store can be read, and is believed.", "store")
        self.store_read_age = gauge("store_read_age_seconds", "Age of the last good read of the store.", "store")
        self.store_errors = counter("store_errors", "Reads of the store that brought nothing, by kind.", "kind")
        self.fleet_gateways = gauge("fleet_gateways", "Gateways that are alive, as this one sees it.", "store")
        self.loop_lag = Histogram(
            prefix + "loop_lag_seconds",
            "How late the event loop runs what is due.",
            buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
            registry=self.registry,
        )
        self.loop_failures = counter("loop_failures", "Faults of the daemon's own that a loop survived.", "service")
        self.reloads = counter("config_reloads", "Reloads of the configuration by outcome.", "outcome")
        for outcome in ("done", "refused"):
            self.reloads.labels(outcome)  # From 0: who alerts on an increase sees the first one, too.
        Info(prefix + "build", "What runs.", registry=self.registry).info({"version": __version__})

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
