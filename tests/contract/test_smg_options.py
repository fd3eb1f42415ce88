"""The installed SMG's own options, held against those that are the daemon's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from gateway_sidecar.routers.smg.settings import FAMILIES, RESERVED, Policy, check_argument
from tests.smg import NEWEST, WITHOUT_NEWEST


@pytest.fixture(params=["smg", pytest.param(str(NEWEST), marks=WITHOUT_NEWEST, id="newest")])
def smg_help(request: pytest.FixtureRequest) -> str:
    """What the installed SMG, and the newest build on PyPI, say of their options."""
    program = shutil.which(request.param, path=str(Path(sys.executable).parent)) or shutil.which(request.param)
    if program is None:
        pytest.skip("smg is not installed")
    return subprocess.run([program, "launch", "--help"], capture_output=True, text=True, check=True).stdout


def test_only_options_of_the_daemon_are_refused(smg_help: str) -> None:
    """Every other option that SMG has can be given, in full."""
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+(?=[ \]\n,])", smg_help.partition("\nSMG Router")[0]))
    assert len(options) > 100
    refused = set()
    for option in options:
        try:
            check_argument(option)
        except ValueError:
            refused.add(option)
    assert refused == {name for name in options if name in RESERVED or name.startswith(tuple(FAMILIES))}


def test_every_reserved_option_exists_in_one_of_them() -> None:
    """The lists are of these SMGs, and a reason is given for each."""
    if not NEWEST.exists():
        pytest.skip("the newest SMG is not installed")
    said = subprocess.run([NEWEST, "launch", "--help"], capture_output=True, text=True, check=True).stdout
    for option, reason in {**RESERVED, **FAMILIES}.items():
        assert option == "--" or option in said
        assert reason


def test_the_policies_are_smgs(smg_help: str) -> None:
    """A policy that SMG would refuse is refused before it is started."""
    found = re.search(r"--policy \{([a-z_,]+)\}", smg_help)
    assert found is not None
    assert set(found[1].split(",")) == set(get_args(Policy))
