from __future__ import annotations

from pathlib import Path

import pytest

from gateway_sidecar.domain.findings import Level
from gateway_sidecar.routers.smg.check import about_version
from gateway_sidecar.routers.smg.settings import check_argument

FOREIGN = [
    "--slurm-port=1",
    "--consul-anything-new",
    "--discovery-file",
    "--mesh-port",
    "--enable-mesh",
    "--admin-port",
]


@pytest.mark.parametrize("argument", ["--log-dir", "/var/log", "--max-payload-size=1", "-1", "x", "--prefill-policy"])
def test_options_and_their_values_pass(argument: str) -> None:
    """What the daemon does not set is the operator's."""
    assert check_argument(argument) == argument


@pytest.mark.parametrize(
    "argument", ["--port", "--port=1", "--por", "--prometheus-p=1", "--", "-h", "--pre", "a\0b", *FOREIGN]
)
def test_the_daemons_own_options_are_refused_in_every_spelling(argument: str) -> None:
    """SMG's parser takes `--por=1` for `--port 1`, and the last one given wins."""
    with pytest.raises(ValueError, match="leave it out"):
        check_argument(argument)


@pytest.mark.parametrize(
    ("said", "level", "why"),
    [
        ("smg 1.13.0", Level.OK, "smg 1.13.0"),
        ("smg 1.13.0+post20261027", Level.OK, "post20261027"),
        ("smg 1.12.9", Level.FAIL, "too old; install smg 1.13"),
        ("sglang-router 0.3.2", Level.FAIL, "too old"),
        ("smg 1.14.0", Level.WARN, "newer than what was tested"),
        ("smg 2.0.0", Level.FAIL, "too new"),
        ("hello", Level.WARN, "name the `smg` program"),
    ],
)
def test_a_version_that_is_too_old_or_too_new_is_told_in_one_line(said: str, level: Level, why: str) -> None:
    """What SMG says of itself is compared with what was tested."""
    finding = about_version(Path("/opt/smg"), said)
    assert finding.level is level
    assert finding.text.startswith(f"router /opt/smg: {said}")
    assert why in finding.text
