"""vllm-router, the router of the vLLM project, as a kind of router. What is relied on was measured on 0.1.17."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway_sidecar.routers.base import RouterKind, Surroundings
from gateway_sidecar.routers.vllm_router.check import check
from gateway_sidecar.routers.vllm_router.paths import HEADERS, PATHS
from gateway_sidecar.routers.vllm_router.settings import VllmRouterSettings
from gateway_sidecar.routers.vllm_router.setup import VllmRouterSetup

if TYPE_CHECKING:
    from gateway_sidecar.config import ServiceSettings


def build(settings: VllmRouterSettings, _service: ServiceSettings, around: Surroundings) -> VllmRouterSetup:
    """One service's vllm-router."""
    return VllmRouterSetup(settings, around.bridge_key)


ROUTER = RouterKind("vllm-router", VllmRouterSettings, build, PATHS, HEADERS, check)
