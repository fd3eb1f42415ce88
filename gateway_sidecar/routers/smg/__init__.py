"""SMG, the Shepherd Model Gateway, as a kind of router. What is relied on was measured on smg 1.13."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gateway_sidecar.routers.base import RouterKind, Surroundings
from gateway_sidecar.routers.smg.check import check
from gateway_sidecar.routers.smg.paths import HEADERS, PATHS
from gateway_sidecar.routers.smg.settings import SmgSettings
from gateway_sidecar.routers.smg.setup import SmgSetup

if TYPE_CHECKING:
    from gateway_sidecar.config import ServiceSettings


def build(settings: SmgSettings, service: ServiceSettings, around: Surroundings) -> SmgSetup:
    """One service's SMG."""
    health = {
        "timeout_secs": math.ceil(service.health.timeout_s),
        "failure_threshold": service.health.failures,
        "drain_settle_secs": math.ceil(service.drain.settle_s),
    }
    return SmgSetup(settings, health, around.bridge_key, service.name)


ROUTER = RouterKind("smg", SmgSettings, build, PATHS, HEADERS, check)
