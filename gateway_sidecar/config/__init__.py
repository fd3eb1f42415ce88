"""The configuration: YAML in, frozen settings out, every mistake reported at once with its line."""

from gateway_sidecar.config.advice import advise
from gateway_sidecar.config.frontend import (
    AuthSettings,
    CorsSettings,
    FrontendSettings,
    LimitSettings,
    TlsSettings,
)
from gateway_sidecar.config.load import line_of, load_config, parse_config, run_dir_of
from gateway_sidecar.config.models import (
    BridgeSettings,
    DrainSettings,
    HealthSettings,
    HoldSettings,
    LogSettings,
    MetricsSettings,
    ProbeSettings,
    RefusedSettings,
    ReplicaSettings,
    RouterSettings,
    ServiceSettings,
    Settings,
)
from gateway_sidecar.config.overrides import load_overrides
from gateway_sidecar.config.schema import config_schema
from gateway_sidecar.config.values import Endpoint, PathPattern, PortRange

__all__ = [
    "AuthSettings",
    "BridgeSettings",
    "CorsSettings",
    "DrainSettings",
    "Endpoint",
    "FrontendSettings",
    "HealthSettings",
    "HoldSettings",
    "LimitSettings",
    "LogSettings",
    "MetricsSettings",
    "PathPattern",
    "PortRange",
    "ProbeSettings",
    "RefusedSettings",
    "ReplicaSettings",
    "RouterSettings",
    "ServiceSettings",
    "Settings",
    "TlsSettings",
    "advise",
    "config_schema",
    "line_of",
    "load_config",
    "load_overrides",
    "parse_config",
    "run_dir_of",
]
