"""What `make install` puts in place is just what pyproject.toml asks for, and no byte of it is anybody else's."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
_HASHES = r"(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)"
_HASHED = re.compile(rf"^(?P<pin>[^#\s][^\\\n]*?) \\\n{_HASHES}", re.MULTILINE)


def pins() -> Iterator[tuple[Requirement, int]]:
    """What is locked, and how many hashes it has."""
    for found in _HASHED.finditer(LOCK):
        yield Requirement(found["pin"].strip()), found["hashes"].count("sha256")


def wanted() -> list[Requirement]:
    project = PROJECT["project"]
    smg = project["optional-dependencies"]["smg"]
    return [Requirement(text) for text in (*project["dependencies"], *smg, *PROJECT["build-system"]["requires"])]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_dependency_is_locked_as_the_project_asks_for_it(python: str, machine: str) -> None:
    """`make lock` writes it anew where this fails."""
    here = {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine}
    locked = {canonicalize_name(pin.name): pin for pin, _ in pins() if not pin.marker or pin.marker.evaluate(here)}
    for need in wanted():
        pin = locked.get(canonicalize_name(need.name))
        assert pin is not None, f"{need} is not in requirements.lock: make lock"
        (version,) = [one.version for one in pin.specifier]
        assert need.specifier.contains(version), f"{need}, and requirements.lock has {version}: make lock"


def test_every_line_is_a_pin_with_hashes() -> None:
    """No option, no address of an index, no requirement that might be anything."""
    assert all([one.operator for one in pin.specifier] == ["=="] and hashes > 0 for pin, hashes in pins())
    rest = [line for line in _HASHED.sub("", LOCK).splitlines() if line.strip() and not line.startswith("#")]
    assert rest == []
    assert "://" not in LOCK


def test_what_is_installed_is_what_is_locked() -> None:
    """pip refuses what has no hash there or another one, and looks for nothing else on the project's behalf."""
    script = (ROOT / "scripts" / "setup.sh").read_text("utf-8")
    _, app = script.split("\nif wants app; then\n")
    locked, own = [line.strip() for line in app.splitlines() if "environment " in line or "pip install" in line]
    assert locked == 'environment "$prefix" "$(date)" --require-hashes --requirement requirements.lock'
    assert own.endswith(" --no-deps --no-build-isolation .")
