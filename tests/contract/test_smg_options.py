"""The installed SMG's own options, held against those that are the daemon's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from gateway_sidecar.routers.smg.settings import RESERVED, Policy, check_argument


@pytest.fixture(scope="module")
def smg_help() -> str:
    program = shutil.which("smg", path=str(Path(sys.executable).parent)) or shutil.which("smg")
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
    assert refused == {name for name in RESERVED if name in options}


def test_every_reserved_option_exists(smg_help: str) -> None:
    """The list is of this SMG, and a reason is given for each."""
    for option, reason in RESERVED.items():
        assert option == "--" or option in smg_help
        assert reason


def test_the_policies_are_smgs(smg_help: str) -> None:
    """A policy that SMG would refuse is refused before it is started."""
    found = re.search(r"--policy \{([a-z_,]+)\}", smg_help)
    assert found is not None
    assert set(found[1].split(",")) == set(get_args(Policy))
