"""What `gateway-sidecar check` says of sglang-router, asked without starting a router."""

from __future__ import annotations

from collections.abc import Mapping

from gateway_sidecar.domain.findings import Finding
from gateway_sidecar.routers.program import Measured, check_programs
from gateway_sidecar.routers.sglang_router.settings import SglangRouterSettings
from gateway_sidecar.routers.sglang_router.setup import SglangRouterSetup

MEASURED = Measured("0.3.2", "0.4")


async def check(services: Mapping[str, SglangRouterSettings]) -> list[Finding]:
    """Its program, and whether it takes the arguments that the daemon would start it with."""
    routers = {service: SglangRouterSetup(settings, "x") for service, settings in services.items()}
    return await check_programs(routers, "sglang_router", MEASURED)
