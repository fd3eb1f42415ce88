"""The reference in docs/ is what the code says: `make reference` writes it, and here it is held to be up to date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gateway_sidecar
from gateway_sidecar.commands.exit_codes import MEANINGS, Exit
from gateway_sidecar.config import Settings
from gateway_sidecar.config.differences import FIXED, TAKEN_IN
from gateway_sidecar.kinds import ROUTERS
from scripts.reference import DOCS, PARTS, written
from scripts.reference.commands import all_commands
from scripts.reference.settings import OF_ROUTERS, of_the_file
from scripts.reference.settings import PARTS as SETTINGS

UNIT = Path(gateway_sidecar.__file__).parent / "share" / "systemd" / "gateway-sidecar.service"


@pytest.mark.parametrize("page", PARTS)
def test_the_page_is_up_to_date(page: str) -> None:
    """Run `make reference`."""
    assert (DOCS / page).read_text("utf-8") == written(page)


def test_every_setting_is_in_one_table() -> None:
    """Of the configuration and of the kinds of routers that have settings of their own."""
    named = [name for write in SETTINGS.values() for name in re.findall(r"^\| `([^`]+)`", write(), re.MULTILINE)]
    assert {it.path for it in of_the_file()} <= set(named)
    assert len(named) == len(set(named))
    ours = [kind for kind in ROUTERS if kind.settings.__module__.startswith("gateway_sidecar.")]
    own = {kind.name for kind in ours if kind.settings.__annotations__.keys() - {"type", "command"}}
    assert own == {*OF_ROUTERS, "smg"}


def test_every_setting_is_explained_in_a_sentence() -> None:
    """It begins with a capital or a name, and ends."""
    for it in of_the_file():
        assert re.match(r"[A-Z0-9`]|nginx\b", it.meaning), it
        assert it.meaning.endswith("."), it


def test_each_setting_is_taken_in_by_a_reload_or_needs_a_restart() -> None:
    """Nobody wonders which."""
    assert sorted((*FIXED, *TAKEN_IN)) == sorted(Settings.model_fields)


def test_every_command_says_what_it_does() -> None:
    """And each of its options, where a word does not say it: SERVICE, REPLICA."""
    for command in all_commands():
        assert command.parser.description
        for action in command.parser._actions:
            assert action.help or not action.option_strings


def test_every_metric_is_explained_in_a_sentence() -> None:
    """Dashboards show it."""
    for row in PARTS["reference/metrics.md"]["metrics"]().splitlines()[2:]:
        assert re.search(r"\| [A-Z1][^|]*\. \|$", row), row


def test_the_unit_knows_the_exit_codes() -> None:
    """systemd starts the daemon again, or not, as the reference says."""
    kept = " ".join(str(int(code)) for code, it in MEANINGS.items() if it.restarts is False)
    assert f"RestartPreventExitStatus={kept}\n" in UNIT.read_text("utf-8")
    assert set(MEANINGS) == set(Exit)
