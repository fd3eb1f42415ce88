"""The command line: what is asked for is done, or refused; no option is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.__main__ import _parser as bench_parser
from gateway_sidecar.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code, and what was said on standard error."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("stop", "--timeout", "3"), 2, "--timeout belongs to --all"),
        (("replica", "add", "chat", "r", "--socket", "/s", "--timeout", "3"), 2, "--timeout belongs to --wait"),
        (("status", "--ca", "ca.pem"), 1, "--cert, --key and --ca belong to --admin"),
    ],
)
def test_an_option_without_the_one_that_it_belongs_to_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, said: str
) -> None:
    """`stop --timeout 3` once stopped the daemon, and ignored the rest."""
    config = tmp_path / "gateway-sidecar.yaml"
    config.write_text(f"run_dir: {tmp_path}\n")
    found, err = run(capsys, *arguments, "--config", str(config))
    assert (found, said in err) == (code, True), err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("statsu",), "did you mean 'status'?"),
        (("replica", "ad"), "did you mean 'add'?"),
        (("key", "lst"), "did you mean 'list'?"),
        (("schema", "inventry"), "did you mean 'inventory'?"),
    ],
)
def test_a_word_that_is_nearly_right_is_told(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    """As with settings."""
    code, err = run(capsys, *arguments)
    assert (code, said in err) == (2, True), err


def test_a_word_that_is_like_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is guessed."""
    code, err = run(capsys, "frobnicate")
    assert (code, "did you mean" in err) == (2, False)


def test_bench_measures_all_that_is_asked_for() -> None:
    """In one option or in several."""
    asked = bench_parser().parse_args(["--only", "router-kill", "--only", "nginx-kill"])
    assert asked.only == ["router-kill", "nginx-kill"]
