"""`files`: where the files are that other programs read."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from importlib.resources import files as resources
from pathlib import Path

from gateway_sidecar.commands.shipped import IN_PACKAGE, NAMES, SCHEMAS
from gateway_sidecar.errors import InstallError
from gateway_sidecar.files.replace import replace_file

STABLE = Path("share/gateway-sidecar")
"""Below the environment's directory. Unlike the package's own, it has no version of Python in its name, so that what
Prometheus was told to read is still there after an upgrade. Whoever installs fills it, with `files --copy`."""
_WRITE_IT = "gateway-sidecar files --copy DIR writes it"


def files(arguments: argparse.Namespace) -> int:
    """Prints the path of one file, or a line for each. Raises InstallError, OSError."""
    if arguments.copy is not None:
        for path in copy_all(arguments.copy):
            print(path)
    elif arguments.name is not None:
        print(_path_on_disk(arguments.name))
    else:
        for name in NAMES:
            print(f"{name:<16}  {path_of(name) or f'not on disk; {_WRITE_IT}'}  ({(IN_PACKAGE | SCHEMAS)[name][1]})")
    return 0


def path_of(name: str, environment: Path | None = None) -> Path | None:
    """Where it is: in the place that outlives upgrades, else in the package; None for a schema that nobody wrote."""
    stable = (environment or Path(sys.prefix)) / STABLE / _file_name(name)
    if stable.is_file():
        return stable
    return _in_package(name) if name in IN_PACKAGE else None


def copy_all(directory: Path) -> Iterator[Path]:
    """Writes each file into a directory, readable for everybody. Raises OSError."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in NAMES:
        target = directory / _file_name(name)
        replace_file(target, _content(name), 0o644)
        yield target


def _path_on_disk(name: str) -> Path:
    path = path_of(name)
    if path is None:
        raise InstallError(f"{name} is not on disk; {_WRITE_IT}")
    return path


def _file_name(name: str) -> str:
    return Path(IN_PACKAGE[name][0]).name if name in IN_PACKAGE else f"{name}.json"


def _content(name: str) -> str:
    if name in IN_PACKAGE:
        return _in_package(name).read_text(encoding="utf-8")
    from gateway_sidecar.commands.schema import SCHEMA_OF  # All of the configuration: nearly a second of CPU.

    return json.dumps(SCHEMA_OF[SCHEMAS[name][0]](), indent=2) + "\n"


def _in_package(name: str) -> Path:
    return Path(str(resources("gateway_sidecar").joinpath("share", IN_PACKAGE[name][0])))
