"""A router whose program is a Python script: how it is run with a secret, and what its own parser says of arguments.

Nothing here starts a router.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from gateway_sidecar.domain.findings import Finding, Level
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.errors import ProcessError
from gateway_sidecar.routers import parse_only, with_key
from gateway_sidecar.routers.base import LONGEST_MESSAGE, USAGE_EXIT, LaunchCommand, RouterPorts
from gateway_sidecar.supervision.awake import within

_PARSE_S = 30
"""SMG takes a second to be imported on a machine that is at leisure."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a router's own parser says: its package's version, empty where it has none, and why it refuses, if so."""

    version: str
    objection: str | None


def python_of(program: Path) -> list[str] | None:
    """The interpreter named in a script's first line, if it is a Python; None for any other program."""
    with program.open("rb") as file:
        first = file.readline(512)
    if not first.startswith(b"#!"):
        return None
    words = first[2:].decode("utf-8", "replace").split()
    return words if any(Path(word).name.startswith("python") for word in words) else None


def keeping_secret(
    program: Path, options: Sequence[str], secret: Sequence[str], env: Mapping[str, str]
) -> LaunchCommand:
    """The command that runs `program` with the secret words after its options, and shows them to nobody if it can."""
    interpreter = python_of(program)
    if interpreter is None:
        # Not a Python entry point: they can go nowhere but on the command line.
        return LaunchCommand([str(program), *options, *secret], env, shows_key=True)
    argv = [*interpreter, with_key.__file__, str(program), *options]
    return LaunchCommand(argv, {**env, with_key.SECRET_VARIABLE: "\n".join(secret)})


async def parse(program: Path, package: str, options: Iterable[str], env: Mapping[str, str]) -> Parsed:
    """What the parser of this program's package says of these options. Raises ProcessError if it cannot be asked."""
    interpreter = python_of(program)
    if interpreter is None:
        raise ProcessError(f"{program} is not a Python script")
    argv = [*interpreter, parse_only.__file__, package, *options]
    code, version, said = await run_to_its_end(argv, env, str(program), patience_s=_PARSE_S)
    last = printable(said.decode("utf-8", "replace").strip().rpartition("\n")[2], LONGEST_MESSAGE)
    if code not in (0, USAGE_EXIT):
        raise ProcessError(f"{program}: exit code {code}: {last}")
    named = printable(version.decode("utf-8", "replace").partition("\n")[0].strip(), 40)
    return Parsed(named, last if code == USAGE_EXIT else None)


async def run_to_its_end(
    argv: Sequence[str], env: Mapping[str, str], name: str, *, patience_s: int
) -> tuple[int, bytes, bytes]:
    """(exit code, stdout, stderr) of a program that says something and ends.

    Raises ProcessError if it cannot be started, or is not done after `patience_s` seconds; it is ended then.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **env},
        )
    except OSError as error:
        raise ProcessError(f"cannot start {argv[0]}: {error.strerror}") from error
    try:
        async with within(patience_s):
            output, said = await process.communicate()
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise ProcessError(f"{name}: no answer within {patience_s} s") from error
    return process.returncode or 0, output, said


@dataclass(frozen=True, slots=True)
class Measured:
    """Which versions of a router are known to do what is relied on.

    first: the oldest. beyond: the first of those that may have changed it.
    """

    first: str
    beyond: str

    def age_of(self, version: str) -> Literal["too old", "too new"] | None:
        """What is wrong with a version; one that is no number is too old."""
        if _numbers(version) < _numbers(self.first):
            return "too old"
        return "too new" if _numbers(version) >= _numbers(self.beyond) else None

    def objection(self, name: str, version: str) -> str | None:
        """Why this version of a package is not used."""
        if (age := self.age_of(version)) is None:
            return None
        why = ": what it does has not been measured" if age == "too new" else ""
        return f"{name} {version} is {age}{why}; pip install '{name}>={self.first},<{self.beyond}'"


def _numbers(version: str) -> tuple[int, ...]:
    """`0.3.2.post1` -> (0, 3, 2)."""
    numbers: list[int] = []
    for word in version.split("."):
        if not word.isdigit():
            break
        numbers.append(int(word))
    return tuple(numbers)


class OwnProgram(Protocol):
    """A router of one service, as far as its program is looked at. Raises ProcessError."""

    def program(self) -> Path: ...

    def command(self, ports: RouterPorts, key: str) -> LaunchCommand: ...


async def check_programs(routers: Mapping[str, OwnProgram], package: str, measured: Measured) -> list[Finding]:
    """What is to be said of these services' programs, each a script of this package."""
    findings = []
    for service, router in routers.items():
        try:
            program, command = router.program(), router.command(RouterPorts(1, 1), "x")
        except ProcessError as error:
            findings.append(Finding(Level.FAIL, f"{service}: {error}"))
            continue
        findings += await _check_program(service, program, package, command, measured)
    return findings


async def _check_program(
    service: str, program: Path, package: str, command: LaunchCommand, measured: Measured
) -> list[Finding]:
    """Whether the program that a service names is a version that we know, and takes the arguments that we give it.

    command: as it would be started, its options after the program's own path.
    """
    name = package.replace("_", "-")
    options = [word for word in command.argv[command.argv.index(str(program)) + 1 :] if word != "launch"]
    try:
        parsed = await parse(program, package, options, command.env)
    except ProcessError as error:
        text = f"{service}: router.command: this is no {name}: {error}"
        return [Finding(Level.FAIL, f"{text}; pip install '{name}>={measured.first},<{measured.beyond}'")]
    objection = measured.objection(name, parsed.version)
    if objection is not None:
        return [Finding(Level.FAIL, f"{service}: router.command: {program}: {objection}")]
    if parsed.objection is not None:
        return [Finding(Level.FAIL, f"{service}: router.args: {parsed.objection}")]
    return [Finding(Level.OK, f"{service}: router {program}: {name} {parsed.version}, which takes its arguments")]
