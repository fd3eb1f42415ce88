"""How SMG is started, and what its program says of itself without being started."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway_sidecar.domain.printable import printable
from gateway_sidecar.errors import ProcessError
from gateway_sidecar.routers.base import LaunchCommand, RouterPorts, find_program
from gateway_sidecar.routers.smg import parse_only, with_key
from gateway_sidecar.routers.smg.settings import SmgSettings
from gateway_sidecar.supervision.awake import within

_CONNECTION_GAP_S = 1
"""Between those attempts: SMG's own 30 s keep an engine that was away for a moment out for half a minute."""
_PARSE_S = 30
"""SMG takes a second to be imported on a machine that is at leisure."""
_USAGE_EXIT = 2
_LONGEST_MESSAGE = 2000


def find_smg(command: str) -> Path:
    """The `smg` to run. Raises ProcessError."""
    return find_program(command, "pip install 'gateway-sidecar[smg]' into the daemon's environment")


def launch_command(program: Path, ports: RouterPorts, settings: SmgSettings, *, key: str) -> LaunchCommand:
    """The command that starts SMG on private loopback ports, its key kept off the command line."""
    options = [
        "launch",
        *("--host", "127.0.0.1", "--port", str(ports.api)),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(ports.metrics)),
        "--enable-igw",  # without it a gRPC worker that is registered at run time gets no traffic
        *("--worker-startup-check-interval", str(_CONNECTION_GAP_S)),
        "--disable-circuit-breaker",  # ten failures, a client's or nginx's own, shut an engine out that was well
        "--trust-tenant-header",  # nginx names the tenant, so that one key does not see what another stored
        *("--policy", settings.policy),
        *("--log-json", "--log-level", settings.log_level),
        *settings.args,
    ]
    interpreter = python_of(program)
    if interpreter is None:
        # Not a Python entry point: the key can go nowhere but on the command line.
        keys = ["--control-plane-api-keys", f"gateway-sidecar:gateway-sidecar:admin:{key}"]
        return LaunchCommand([str(program), *options, *keys], settings.env, shows_key=True)
    argv = [*interpreter, with_key.__file__, str(program), *options]
    return LaunchCommand(argv, {**settings.env, with_key.KEY_VARIABLE: key})


def python_of(program: Path) -> list[str] | None:
    """The interpreter named in a script's first line, if it is a Python; None for any other program."""
    with program.open("rb") as file:
        first = file.readline(512)
    if not first.startswith(b"#!"):
        return None
    words = first[2:].decode("utf-8", "replace").split()
    return words if any(Path(word).name.startswith("python") for word in words) else None


async def version_of(program: Path) -> str:
    """What `smg --version` says. Raises ProcessError."""
    try:
        process = await asyncio.create_subprocess_exec(
            str(program),
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with within(30):
            output, _ = await process.communicate()
    except (OSError, TimeoutError) as error:
        raise ProcessError(f"{program} --version: {error or 'no answer within 30 s'}") from error
    if process.returncode != 0:
        raise ProcessError(
            f"{program} --version ended with {process.returncode}: {output[-200:].decode('utf-8', 'replace')}"
        )
    return output.decode("utf-8", "replace").strip()


async def objection_to(argv: Sequence[str], program: Path, env: Mapping[str, str]) -> str | None:
    """Why SMG would refuse to start with this command line, by its own parser; None if it would not.

    Starts no router. Raises ProcessError if its parser cannot be asked.
    """
    interpreter = python_of(program)
    if interpreter is None:
        raise ProcessError(f"{program} is not a Python script")
    options = argv[argv.index("launch") + 1 :]
    try:
        process = await asyncio.create_subprocess_exec(
            *interpreter, parse_only.__file__, *options,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **env},
        )  # fmt: skip
    except OSError as error:
        raise ProcessError(f"cannot start {interpreter[0]}: {error.strerror}") from error
    try:
        async with within(_PARSE_S):
            _, said = await process.communicate()
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise ProcessError(f"{program}: no answer within {_PARSE_S} s") from error
    last = printable(said.decode("utf-8", "replace").strip().rpartition("\n")[2], _LONGEST_MESSAGE)
    if process.returncode == 0:
        return None
    if process.returncode == _USAGE_EXIT:
        return last
    raise ProcessError(f"{program}: exit code {process.returncode}: {last}")
