"""What `gateway-sidecar check` says of sglang-router, asked without starting a router."""

from __future__ import annotations

from collections.abc import Mapping

from gateway_sidecar.domain.findings import Finding, Level
from gateway_sidecar.errors import ProcessError
from gateway_sidecar.routers.base import RouterPorts
from gateway_sidecar.routers.program import Measured, check_program
from gateway_sidecar.routers.sglang_router.settings import SglangRouterSettings
from gateway_sidecar.routers.sglang_router.setup import SglangRouterSetup

MEASURED = Measured("0.3.2", "0.4")


async def check(services: Mapping[str, SglangRouterSettings]) -> list[Finding]:
    """Its program, and whether it takes the arguments that the daemon would start it with."""
    findings = []
    for service, settings in services.items():
        setup = SglangRouterSetup(settings, "x")
        try:
            program, command = setup.program(), setup.command(RouterPorts(1, 1), "x")
        except ProcessError as error:
            findings.append(Finding(Level.FAIL, f"{service}: {error}"))
            continue
        findings += await check_program(service, program, "sglang_router", command, MEASURED)
    return findings
