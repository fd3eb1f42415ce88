"""What `gateway-sidecar check` says of vllm-router, asked without starting a router."""

from __future__ import annotations

from collections.abc import Mapping

from gateway_sidecar.domain.findings import Finding, Level
from gateway_sidecar.routers.program import Measured, check_programs
from gateway_sidecar.routers.vllm_router.settings import VllmRouterSettings
from gateway_sidecar.routers.vllm_router.setup import VllmRouterSetup

MEASURED = Measured("0.1.17", "0.2")


async def check(services: Mapping[str, VllmRouterSettings]) -> list[Finding]:
    """Its program, and whether it takes the arguments that the daemon would start it with."""
    routers = {service: VllmRouterSetup(settings, "x") for service, settings in services.items()}
    findings = await check_programs(routers, "vllm_router", MEASURED)
    text = "vllm-router has no key for its API: any user of this machine can add and remove its workers"
    findings.append(Finding(Level.WARN, f"{', '.join(services)}: {text}; let no others log in here, or use smg"))
    return findings
