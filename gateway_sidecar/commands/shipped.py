"""The files for other programs, by the names that `files` knows them by: data alone, since the parser needs them."""

from __future__ import annotations

IN_PACKAGE = {
    "alerts": ("prometheus/alerts.yaml", "alert rules for Prometheus"),
    "prometheus": ("prometheus/prometheus.yaml", "a configuration of Prometheus that scrapes all of a gateway"),
    "dashboard": ("grafana/gateway-sidecar.json", "a dashboard for Grafana"),
    "example": ("gateway-sidecar.yaml", "the example configuration"),
}
"""Below share/, and what each is."""
SCHEMAS = {
    "schema": ("configuration", "JSON Schema of the configuration, for editors"),
    "schema-inventory": ("inventory", "JSON Schema of an inventory, for editors"),
    "schema-replica": ("replica", "JSON Schema of a <replica>.yaml, for editors"),
}
"""What `schema` calls each, and what it is."""
NAMES = (*IN_PACKAGE, *SCHEMAS)
