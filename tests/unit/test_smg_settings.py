from __future__ import annotations

import pytest

from gateway_sidecar.routers.smg.settings import check_argument


@pytest.mark.parametrize("argument", ["--log-dir", "/var/log", "--max-payload-size=1", "-1", "x", "--prefill-policy"])
def test_options_and_their_values_pass(argument: str) -> None:
    """What the daemon does not set is the operator's."""
    assert check_argument(argument) == argument


@pytest.mark.parametrize("argument", ["--port", "--port=1", "--por", "--prometheus-p=1", "--", "-h", "--pre", "a\0b"])
def test_the_daemons_own_options_are_refused_in_every_spelling(argument: str) -> None:
    """SMG's parser takes `--por=1` for `--port 1`, and the last one given wins."""
    with pytest.raises(ValueError, match="leave it out"):
        check_argument(argument)
