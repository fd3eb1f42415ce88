"""A command imports what it needs itself: `status` and `drain` are typed, and called by scripts, all day."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway_sidecar.cli import _imported, _parser

HEAVY = {
    *("aiohttp", "asyncinotify", "asyncio", "asyncssh", "cryptography", "google", "hpack", "httptools", "orjson"),
    *("prometheus_client", "pydantic", "pydantic_core", "pyroute2", "structlog", "typing_extensions", "uvloop"),
    *(
        "importlib.metadata",
        "gateway_sidecar.api.models",
        "gateway_sidecar.config.whole",
        "gateway_sidecar.control",
        "gateway_sidecar.nginx",
        "gateway_sidecar.app",
    ),
}
"""What the daemon needs, and a command that asks it does not."""

_RUN = """
import sys
from gateway_sidecar.cli import main
try:
    main()
finally:
    print("\\n".join(sys.modules), file=open({where!r}, "w"))
"""

_ASK = """
import sys
import gateway_sidecar.cli
import gateway_sidecar.commands.ask
import gateway_sidecar.commands.events
import gateway_sidecar.commands.explain
import gateway_sidecar.commands.status
import gateway_sidecar.commands.replica
import gateway_sidecar.commands.stop
from gateway_sidecar.config.places import find_places
from pathlib import Path
print(find_places(Path(sys.argv[1])).run_dir)
print("\\n".join(sys.modules), file=open({where!r}, "w"))
"""


def _modules_after(directory: Path, script: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """What the script printed, and what it had imported in the end."""
    where = directory / "modules"
    done = subprocess.run(
        [sys.executable, "-c", script.format(where=str(where)), *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done, set(where.read_text().split())


def _config(directory: Path) -> Path:
    path = directory / "gateway-sidecar.yaml"
    path.write_text(
        f"run_dir: {directory}/run\nservices:\n"
        "- {name: chat, listen: '127.0.0.1:8000', replicas: {sockets: '/run/x/{replica}.sock'}}\n"
    )
    return path


def test_help_imports_no_more_than_the_parser(tmp_path: Path) -> None:
    """Not even what reads a file."""
    done, modules = _modules_after(tmp_path, _RUN, "--help")
    assert done.returncode == 0, done.stderr
    assert modules & (HEAVY | {"yaml", "http.client", "ssl", "gateway_sidecar.config"}) == set()


@pytest.mark.parametrize(
    "arguments", [("key", "add", "--file", "{}", "ours"), ("key", "plan", "--file", "{}", "team", "--concurrent", "1")]
)
def test_keys_are_kept_without_what_serves_them(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """They are in a file. Only `list` reads the configuration, which says where it is noted when they were used."""
    (tmp_path / "keys").write_text("# none yet\n")
    (tmp_path / "keys").chmod(0o600)
    done, modules = _modules_after(tmp_path, _RUN, *(word.format(tmp_path / "keys") for word in arguments))
    assert done.returncode == 0, done.stderr
    assert modules & HEAVY == set()


@pytest.mark.parametrize("rest", ["", "mistake: 1\n", "services: [\n"])
def test_asking_a_daemon_needs_no_models(tmp_path: Path, rest: str) -> None:
    """Nor does a file that has become invalid since the daemon started, if it still tells where that is."""
    config = _config(tmp_path)
    config.write_text(config.read_text() + rest)
    done, modules = _modules_after(tmp_path, _ASK, str(config))
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/run\n"), done.stderr
    assert modules & HEAVY == set()


def test_asking_where_no_daemon_ever_ran_needs_no_models_either(tmp_path: Path) -> None:
    """What an earlier daemon left is looked for: at processes first, and in its record only if there is one."""
    done, modules = _modules_after(tmp_path, _RUN, "status", "--config", str(_config(tmp_path)))
    assert done.returncode == 1
    assert "the daemon does not run" in done.stderr
    assert modules & (HEAVY - {"asyncio", "gateway_sidecar.control"}) == set()


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """It, and all those below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _parsers(below)


def test_every_command_names_a_function_that_is_there() -> None:
    """They are names until they are called."""
    names = {parser.get_default("command") for parser in _parsers(_parser())} - {None}
    assert len(names) > 15
    assert all(callable(_imported(name)) for name in names)
    assert callable(_imported("left:left_beside"))
