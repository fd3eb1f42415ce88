"""Man pages and completions: made of the parser and of docs/, and complete."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway_sidecar.cli import _parser

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    shutil.which("lowdown") is None, reason="lowdown is not installed (Debian: package lowdown)"
)


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("manual")
    subprocess.run([sys.executable, str(ROOT / "scripts" / "manual.py"), str(directory)], check=True)
    return directory


def commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every command with what it belongs to: `replica add`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield name
                yield from (f"{name} {each}" for each in commands(below))


def test_the_page_of_the_program_has_every_command_and_exit_code(manual: Path) -> None:
    """`man gateway-sidecar` is as long as `--help` of all commands."""
    page = (manual / "gateway-sidecar.8").read_text("utf-8").replace("\\-", "-")
    for command in commands(_parser()):
        assert f"gateway-sidecar {command}" in page
    assert re.search(r"^\.B 79\n", page, re.MULTILINE)


def test_the_page_of_the_file_has_every_setting(manual: Path) -> None:
    """`man gateway-sidecar.yaml` is docs/configuration.md."""
    text = (ROOT / "docs/configuration.md").read_text("utf-8")
    cells = re.findall(r"^\| (.*?) (?<!\\)\|", text, re.MULTILINE)
    settings = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    page = (manual / "gateway-sidecar.yaml.5").read_text("utf-8").replace("\\-", "-")
    assert len(settings) > 100
    assert [setting for setting in settings if setting not in page] == []


@pytest.mark.parametrize(
    ("shell", "name"), [("bash", "gateway-sidecar"), ("zsh", "_gateway-sidecar"), ("fish", "gateway-sidecar.fish")]
)
def test_each_shell_completes_every_command(manual: Path, shell: str, name: str) -> None:
    """The shell, where it is installed, finds no error in the script."""
    script = manual / name
    text = script.read_text("utf-8")
    for command in commands(_parser()):
        assert command.split()[-1] in text
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n", str(script)], check=True)


def test_bash_completes_a_command(manual: Path) -> None:
    """As a person who presses TAB sees it."""
    script = f"""
        source {manual / "gateway-sidecar"}
        COMP_WORDS=(gateway-sidecar uninst) COMP_CWORD=1
        $(complete -p gateway-sidecar | sed 's/.*-F \\([^ ]*\\).*/\\1/') gateway-sidecar uninst gateway-sidecar
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["uninstall"], done.stderr
