"""sglang-router, from which SMG comes, as a kind of router. What is relied on was measured on 0.3.2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway_sidecar.routers.base import RouterKind, Surroundings
from gateway_sidecar.routers.sglang_router.check import check
from gateway_sidecar.routers.sglang_router.paths import HEADERS, PATHS
from gateway_sidecar.routers.sglang_router.settings import SglangRouterSettings
from gateway_sidecar.routers.sglang_router.setup import SglangRouterSetup

if TYPE_CHECKING:
    from gateway_sidecar.config import ServiceSettings


def build(settings: SglangRouterSettings, _service: ServiceSettings, around: Surroundings) -> SglangRouterSetup:
    """One service's sglang-router."""
    return SglangRouterSetup(settings, around.bridge_key)


ROUTER = RouterKind("sglang-router", SglangRouterSettings, build, PATHS, HEADERS, check)
