"""What an engine measures of itself, as Prometheus' text: time to first token, and the pauses between tokens."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_ITL = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


class Latencies:
    """One engine's figures; `prefix` is how its kind begins every name."""

    def __init__(self, prefix: str, model: str, *, has_nixl: bool) -> None:
        self._registry = CollectorRegistry()
        labels = {"model_name": model}

        def histogram(name: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(prefix + name, name, [*labels], buckets=buckets, registry=self._registry)
            return made.labels(**labels)

        self.ttft = histogram("time_to_first_token_seconds", _TTFT)
        self.itl = histogram("inter_token_latency_seconds", _ITL)
        name = "num_running_reqs" if prefix == "sglang:" else "num_requests_running"
        running = Gauge(prefix + name, "running", [*labels], registry=self._registry)
        self.running = running.labels(**labels)
        tokens = Counter(prefix + "generation_tokens", "tokens", [*labels], registry=self._registry)
        self.tokens = tokens.labels(**labels)

        self.transfers = histogram("nixl_xfer_time_seconds", _TTFT) if has_nixl else None

    def page(self) -> str:
        """The metrics page."""
        return generate_latest(self._registry).decode()
