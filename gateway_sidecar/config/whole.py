"""Every name of the package, for `__init__`."""

from gateway_sidecar.config.advice import advise
from gateway_sidecar.config.frontend import (
    AuthSettings,
    CorsSettings,
    FrontendSettings,
    LimitSettings,
    TlsSettings,
)
from gateway_sidecar.config.load import line_of, load_config, load_usable, parse_config
from gateway_sidecar.config.models import (
    AdminSettings,
    AdminTlsSettings,
    BridgeSettings,
    DrainSettings,
    HealthSettings,
    HoldSettings,
    LogSettings,
    MetricsSettings,
    PeersSettings,
    ProbeSettings,
    RefusedSettings,
    ReplicaSettings,
    ServiceSettings,
    Settings,
)
from gateway_sidecar.config.overrides import load_overrides, replica_schema
from gateway_sidecar.config.router import RouterSettings
from gateway_sidecar.config.scaling import HookSettings, ScalingSettings
from gateway_sidecar.config.schema import config_schema
from gateway_sidecar.config.tunnels import SshDefaults, tunnel_to
from gateway_sidecar.config.values import Endpoint, PathPattern, PortRange, parse_endpoint

__all__ = [
    "AdminSettings",
    "AdminTlsSettings",
    "AuthSettings",
    "BridgeSettings",
    "CorsSettings",
    "DrainSettings",
    "Endpoint",
    "FrontendSettings",
    "HealthSettings",
    "HoldSettings",
    "HookSettings",
    "LimitSettings",
    "LogSettings",
    "MetricsSettings",
    "PathPattern",
    "PeersSettings",
    "PortRange",
    "ProbeSettings",
    "RefusedSettings",
    "ReplicaSettings",
    "RouterSettings",
    "ScalingSettings",
    "ServiceSettings",
    "Settings",
    "SshDefaults",
    "TlsSettings",
    "advise",
    "config_schema",
    "line_of",
    "load_config",
    "load_overrides",
    "load_usable",
    "parse_config",
    "parse_endpoint",
    "replica_schema",
    "tunnel_to",
]
