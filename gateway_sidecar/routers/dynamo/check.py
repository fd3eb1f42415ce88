"""What `gateway-sidecar check` says of Dynamo, asked without starting a router."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gateway_sidecar.domain.findings import Finding, Level
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.errors import ProcessError
from gateway_sidecar.routers.base import find_program
from gateway_sidecar.routers.dynamo.inside import frontend
from gateway_sidecar.routers.dynamo.settings import INSTALL, DynamoSettings
from gateway_sidecar.routers.dynamo.setup import options
from gateway_sidecar.routers.program import Measured, run_to_its_end

_MEASURED = Measured("1.6", "1.7")
"""The releases whose files and options were measured: 1.6.1."""
_PATIENCE_S = 60
"""It takes a second to be imported on a machine that is at leisure."""


async def check(services: Mapping[str, DynamoSettings]) -> list[Finding]:
    """Whether each has a frontend of a known release that takes its options."""
    return [await _check_one(service, settings) for service, settings in services.items()]


async def _check_one(service: str, settings: DynamoSettings) -> Finding:
    try:
        python = find_program(settings.command, INSTALL)
        code, version, said = await _ask(python, settings)
    except ProcessError as error:
        return Finding(Level.FAIL, f"{service}: {error}")
    if code == frontend.NO_DYNAMO:
        return Finding(Level.FAIL, f"{service}: router.command: {python} has no ai-dynamo ({said}); {INSTALL}")
    if (trouble := trouble_with(version)) is not None:
        return Finding(Level.FAIL, f"{service}: router.command: {python} has ai-dynamo {version}, which is {trouble}")
    if code == frontend.USAGE:
        return Finding(Level.FAIL, f"{service}: router.args: {said}")
    if code != 0:
        return Finding(Level.FAIL, f"{service}: router.command: {python}: exit code {code}: {said}")
    return Finding(Level.OK, f"{service}: router: ai-dynamo {version} of {python} takes its options")


def trouble_with(version: str) -> str | None:
    """What is wrong with a release of ai-dynamo, and the cure; None if nothing is."""
    if (age := _MEASURED.age_of(version)) is None:
        return None
    why = ": its files may differ" if age == "too new" else ""
    return f"{age}{why}; install ai-dynamo {_MEASURED.first} there"


async def _ask(python: Path, settings: DynamoSettings) -> tuple[int, str, str]:
    """(exit code, version, last words) of the frontend's own parser. Raises ProcessError."""
    argv = [str(python), frontend.__file__, frontend.CHECK, "0", *options(settings, 1)]
    try:
        code, output, said = await run_to_its_end(argv, settings.env, str(python), patience_s=_PATIENCE_S)
    except ProcessError as error:
        raise ProcessError(f"router.command: {error}") from error
    text = b"\n".join((output, said)).decode("utf-8", "replace")
    lines = [printable(line, 500) for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    return code, next((line for line in lines if line[:1].isdigit()), ""), last
