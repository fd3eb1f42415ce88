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


@pytest.mark.parametrize("argument", ["--log-dir", "/var/log", "--max-payload-size=1", "-1", "x", "--prefill-policy"])
def test_options_and_their_values_pass(argument: str) -> None:
    """What the daemon does not set is the operator's."""
    assert check_argument(argument) == argument


@pytest.mark.parametrize("argument", ["--port", "--port=1", "--por", "--prometheus-p=1", "--", "-h", "--pre", "a\0b"])
def test_the_daemons_own_options_are_refused_in_every_spelling(argument: str) -> None:
    """SMG's parser takes `--por=1` for `--port 1`, and the last one given wins."""
    with pytest.raises(ValueError, match="leave it out"):
        check_argument(argument)
