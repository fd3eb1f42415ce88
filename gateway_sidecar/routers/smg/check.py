"""What `gateway-sidecar check` says of SMG, asked without starting a router."""

from __future__ import annotations

from collections.abc import Mapping

from gateway_sidecar.domain.findings import Finding, Level
from gateway_sidecar.errors import ProcessError
from gateway_sidecar.routers.base import RouterPorts
from gateway_sidecar.routers.smg.launch import find_smg, launch_command, objection_to, python_of, version_of
from gateway_sidecar.routers.smg.settings import SmgSettings


async def check(services: Mapping[str, SmgSettings]) -> list[Finding]:
    """Its programs, and whether they take the arguments that the daemon would start them with."""
    findings = []
    for command in sorted({settings.command for settings in services.values()}):
        findings += await _program(command)
    for service, settings in services.items():
        findings += await check_arguments(service, settings)
    return findings


async def _program(command: str) -> list[Finding]:
    try:
        program = find_smg(command)
        findings = [Finding(Level.OK, f"router {program}: {await version_of(program)}")]
    except ProcessError as error:
        return [Finding(Level.FAIL, str(error))]
    if python_of(program) is None:
        text = f"router.command: {program} is not a Python script, so its control-plane key will show in `ps`"
        findings.append(Finding(Level.WARN, f"{text}; name the `smg` script itself"))
    return findings


async def check_arguments(service: str, settings: SmgSettings) -> list[Finding]:
    """What SMG's own parser says of the command line that the daemon would start it with."""
    try:
        program = find_smg(settings.command)
    except ProcessError:
        return []  # It has been told of.
    command = launch_command(program, RouterPorts(1, 1), settings, key="x")
    try:
        objection = await objection_to(command.argv, program, settings.env)
    except ProcessError as error:
        text = f"{service}: router.args: SMG's parser cannot check it: {error}; the first start will"
        return [Finding(Level.WARN, text)]
    if objection is not None:
        return [Finding(Level.FAIL, f"{service}: router.args: {objection}")]
    return [Finding(Level.OK, f"{service}: SMG takes its arguments")]
