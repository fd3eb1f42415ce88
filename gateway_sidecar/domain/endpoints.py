"""A service's replicas in a file, as a router that somebody else runs reads them: a document for each format. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gateway_sidecar.domain.model import WorkerType


@dataclass(frozen=True, slots=True, order=True)
class FileEndpoint:
    """One replica in a file. models: its names. draining: it finishes what it has begun, and gets nothing new."""

    replica: str
    host: str
    port: int
    models: tuple[str, ...]
    engine: str
    worker_type: WorkerType
    draining: bool = False

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def name(self) -> str:
        """A name that no other has: a replica may have two stays, whose ports differ."""
        return f"{self.replica}-{self.port}"


Document = Mapping[str, object]
_LLM_D_ROLES = {WorkerType.PREFILL: "prefill", WorkerType.DECODE: "decode"}


def _plain(service: str, endpoints: Sequence[FileEndpoint]) -> Document:
    """All that is known, those that drain among them."""
    rows = [
        {
            "replica": it.replica,
            "url": it.url,
            "state": "draining" if it.draining else "serving",
            "models": it.models,
            "engine": it.engine,
            "worker_type": it.worker_type.value,
        }
        for it in endpoints
    ]
    return {"service": service, "endpoints": rows}


def _llm_d(service: str, endpoints: Sequence[FileEndpoint]) -> Document:
    """The `file-discovery` of llm-d's endpoint picker: a port is a text, and nothing can be marked as draining."""
    rows = []
    for it in _serving(endpoints):
        labels = {"service": service, "replica": it.replica, "engine": it.engine}
        if it.worker_type in _LLM_D_ROLES:
            labels["llm-d.ai/role"] = _LLM_D_ROLES[it.worker_type]
        rows.append({"name": it.name, "address": it.host, "port": str(it.port), "labels": labels})
    return {"endpoints": rows}


def _production_stack(_service: str, endpoints: Sequence[FileEndpoint]) -> Document:
    """vLLM production-stack's `--dynamic-config-json`: a URL and a model in turn, each pair a backend."""
    pairs = [(it.url, model) for it in _serving(endpoints) for model in it.models]
    return {
        "service_discovery": "static",
        "routing_logic": "roundrobin",
        "static_backends": ",".join(url for url, _ in pairs),
        "static_models": ",".join(model for _, model in pairs),
    }


def _envoy(service: str, endpoints: Sequence[FileEndpoint]) -> Document:
    """Envoy's EDS as a file (`path_config_source`): a cluster of the service's name.

    Who drains is left out: of one that it does not know any more Envoy closes the idle connections at once and lets
    requests end, and of one that is marked as `DRAINING` it keeps them for an hour (seen with 1.40).
    """
    rows = [
        {
            "health_status": "HEALTHY",
            "endpoint": {"address": {"socket_address": {"address": it.host, "port_value": it.port}}},
            "metadata": {
                "filter_metadata": {
                    "envoy.lb": {"replica": it.replica, "worker_type": it.worker_type.value, "models": it.models}
                }
            },
        }
        for it in _serving(endpoints)
    ]
    cluster = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
    return {"resources": [{"@type": cluster, "cluster_name": service, "endpoints": [{"lb_endpoints": rows}]}]}


def _serving(endpoints: Sequence[FileEndpoint]) -> list[FileEndpoint]:
    return [it for it in endpoints if not it.draining]


FORMATS: Mapping[str, Callable[[str, Sequence[FileEndpoint]], Document]] = {
    "json": _plain,
    "llm-d": _llm_d,
    "production-stack": _production_stack,
    "envoy": _envoy,
}


def document(format_: str, service: str, endpoints: Sequence[FileEndpoint], fields: Mapping[str, str]) -> str:
    """The whole file, the same for the same replicas. fields: further ones at its top, or other values for some."""
    said = {**FORMATS[format_](service, sorted(endpoints)), **fields}
    return json.dumps(said, indent=1, ensure_ascii=False) + "\n"
