"""What `gateway-sidecar check` says of SMG, asked without starting a router."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from gateway_sidecar.domain.findings import Finding, Level
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.errors import ProcessError
from gateway_sidecar.routers.base import MeshMember, RouterPorts
from gateway_sidecar.routers.program import Measured, parse, python_of, run_to_its_end
from gateway_sidecar.routers.smg.settings import SmgSettings
from gateway_sidecar.routers.smg.setup import find_smg, launch_command

_TESTED = Measured("1.13", "1.14")
"""1.13.0, and its later builds on PyPI (`tokenspeed-smg`)."""
_USABLE = Measured("1.13", "2")
_VERSION_S = 30  # As `_PARSE_S`: it takes a second to be imported on a machine that is at leisure.
_SHOWN = "smg 1.13"
_VERSION = re.compile(r"\b[0-9]{1,4}\.[0-9]{1,4}\b")


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
        findings = [about_version(program, await _version_of(program))]
    except ProcessError as error:
        return [Finding(Level.FAIL, str(error))]
    if python_of(program) is None:
        text = f"router.command: {program} is not a Python script, so its control-plane key will show in `ps`"
        findings.append(Finding(Level.WARN, f"{text}; name the `smg` script itself"))
    return findings


async def _version_of(program: Path) -> str:
    """What `smg --version` says. Raises ProcessError."""
    asked = f"{program} --version"
    code, output, said = await run_to_its_end([str(program), "--version"], {}, asked, patience_s=_VERSION_S)
    text = printable((output + said).decode("utf-8", "replace").strip()[-200:])
    if code != 0:
        raise ProcessError(f"{asked} ended with {code}: {text}")
    return text


def about_version(program: Path, said: str) -> Finding:
    """Whether this SMG is one that the daemon knows: `smg 1.13.0`, or a later build, `smg 1.13.0+post20261027`."""
    found, text = _VERSION.search(said), f"router {program}: {said}"
    if found is None:
        return Finding(Level.WARN, f"{text} is no version of SMG; name the `smg` program")
    if (age := _USABLE.age_of(found[0])) == "too old":
        return Finding(Level.FAIL, f"{text} is too old; install {_SHOWN} or a later build of it")
    if age == "too new":
        return Finding(Level.FAIL, f"{text} is too new: its worker API may differ; install {_SHOWN}")
    if _TESTED.age_of(found[0]) is not None:
        return Finding(Level.WARN, f"{text} is newer than what was tested, {_SHOWN}; try it beside the old one first")
    return Finding(Level.OK, text)


async def check_arguments(service: str, settings: SmgSettings) -> list[Finding]:
    """What SMG's own parser says of the command line that the daemon would start it with."""
    try:
        program = find_smg(settings.command)
    except ProcessError:
        return []  # It has been told of.
    place = MeshMember("x", "127.0.0.1", 1, "127.0.0.1:2", "/x", "/x", "/x", 0.0) if settings.mesh else None
    command = launch_command(program, RouterPorts(1, 1, place), settings, key="x")
    try:
        options = command.argv[command.argv.index("launch") + 1 :]
        objection = (await parse(program, "smg", options, settings.env)).objection
    except ProcessError as error:
        text = f"{service}: router.args: SMG's parser cannot check it: {error}; the first start will"
        return [Finding(Level.WARN, text)]
    if objection is not None:
        return [Finding(Level.FAIL, f"{service}: router.args: {objection}")]
    return [Finding(Level.OK, f"{service}: SMG takes its arguments")]
