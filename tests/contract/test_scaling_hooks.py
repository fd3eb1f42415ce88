"""The scaling hooks in examples/hooks, against programs that stand in for Slurm, systemd, Kubernetes and dstack."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

HOOKS = Path(__file__).parents[2] / "examples" / "hooks"

# Each keeps a file for each replica in $THERE, and writes what was asked of it to $SAID.
STANDINS = {
    "slurm": {
        "squeue": 'ls "$THERE"',
        "sbatch": 'touch "$THERE/${1#--job-name=}"',
        "scancel": 'rm "$THERE/${2#--name=}"',
    },
    "systemd": {
        "systemctl": """
            case $1 in
            list-units) for it in $(ls "$THERE"); do echo "engine@$it.service loaded active running An engine"; done ;;
            start) it=${3#engine@}; touch "$THERE/${it%.service}" ;;
            stop) it=${2#engine@}; rm "$THERE/${it%.service}" ;;
            esac"""
    },
    "kubernetes": {
        "kubectl": """
            case $1 in
            get) ls "$THERE" ;;
            create) touch "$THERE/$(sed -n 's/^name: //p')" ;;
            delete) rm "$THERE/$3" ;;
            esac"""
    },
    "dstack": {
        "dstack": """
            case $1 in
            ps) echo NAME STATUS; for it in $(ls "$THERE"); do echo "$it running"; done ;;
            apply) touch "$THERE/$5" ;;
            stop) rm "$THERE/$3" ;;
            esac"""
    },
}

Scale = Callable[[int], None]


@pytest.fixture(params=STANDINS)
def scale(request: pytest.FixtureRequest, tmp_path: Path) -> Scale:
    """Calls the hook as the daemon does, with this number. What drains is held up while `busy` is there."""
    programs, there = tmp_path / "bin", tmp_path / "there"
    programs.mkdir()
    there.mkdir()
    (tmp_path / "template").write_text("name: NAME\n")
    drain = f"""
        if [ $1 = status ]; then echo >> {tmp_path}/looked; [ ! -e {tmp_path}/away ]; exit; fi
        [ ! -e {tmp_path}/away ] || exit 1
        echo "$@" >> {tmp_path}/drained
        while [ -e {tmp_path}/busy ]; do sleep 0.02; done
        exit 1"""
    for name, script in {**STANDINS[request.param], "gateway-sidecar": drain}.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)

    def call(desired: int) -> None:
        subprocess.run(
            [HOOKS / request.param],
            env={
                "PATH": f"{programs}:{os.environ['PATH']}",
                "THERE": str(there),
                "POD_TEMPLATE": str(tmp_path / "template"),
                "SCALE_DIRECTORY": str(tmp_path / "retiring"),
                "GATEWAY_SIDECAR_SERVICE": "chat-eu",
                "GATEWAY_SIDECAR_ROLE": "regular",
                "GATEWAY_SIDECAR_DESIRED": str(desired),
            },
            check=True,
            timeout=60,
        )

    return call


def there(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "there").iterdir()}


def until_there(tmp_path: Path, *numbers: int) -> None:
    """The replicas of the service that run."""
    wanted = {f"chat-eu-regular-{number}" for number in numbers}
    end = time.monotonic() + 60
    while there(tmp_path) != wanted or any((tmp_path / "retiring").iterdir()):
        assert time.monotonic() < end, there(tmp_path)
        time.sleep(0.02)


def test_a_hook_brings_the_number_up_and_down(scale: Scale, tmp_path: Path) -> None:
    """Said twice it does nothing more; the last ones go first, and each is drained before."""
    scale(2)
    until_there(tmp_path, 1, 2)
    scale(11)
    until_there(tmp_path, *range(1, 12))
    scale(11)
    until_there(tmp_path, *range(1, 12))
    scale(1)
    until_there(tmp_path, 1)
    asked = (tmp_path / "drained").read_text().splitlines()
    assert sorted({line.split()[2] for line in asked}) == sorted(f"chat-eu-regular-{number}" for number in range(2, 12))
    assert {line.split()[0] for line in asked} == {"drain"}
    scale(0)
    until_there(tmp_path)


def test_a_hook_that_wants_more_while_one_drains_starts_another(scale: Scale, tmp_path: Path) -> None:
    """One that drains will end: it does not count, and nobody takes its name."""
    scale(2)
    (tmp_path / "busy").touch()
    scale(1)
    scale(2)
    assert there(tmp_path) == {"chat-eu-regular-1", "chat-eu-regular-2", "chat-eu-regular-3"}
    (tmp_path / "busy").unlink()
    until_there(tmp_path, 1, 3)


def test_what_was_cut_short_is_retired_by_the_next_call(scale: Scale, tmp_path: Path) -> None:
    """By a reboot: nobody drains the replica any more, and it would run for ever without being counted."""
    scale(2)
    (tmp_path / "retiring" / "chat-eu-regular-2").touch()
    scale(1)
    until_there(tmp_path, 1)


def test_a_daemon_that_is_away_is_waited_for(scale: Scale, tmp_path: Path) -> None:
    """A replica that was not drained is not stopped because the daemon is being restarted."""
    scale(2)
    (tmp_path / "away").touch()
    scale(1)
    assert there(tmp_path) == {"chat-eu-regular-1", "chat-eu-regular-2"}
    end = time.monotonic() + 60
    while not (tmp_path / "looked").exists():  # The drain has failed by then.
        assert time.monotonic() < end
        time.sleep(0.02)
    assert there(tmp_path) == {"chat-eu-regular-1", "chat-eu-regular-2"}
    assert not (tmp_path / "drained").exists()
    (tmp_path / "away").unlink()
    until_there(tmp_path, 1)
    assert (tmp_path / "drained").read_text().startswith("drain chat-eu chat-eu-regular-2 ")


def test_a_hook_leaves_others_alone(scale: Scale, tmp_path: Path) -> None:
    """Another role's, another service's, and what only looks alike."""
    others = {"chat-eu-decode-1", "chat-eu-regular-x", "my-chat-eu-regular-1", "chat-eu-regular-1-2"}
    for name in others:
        (tmp_path / "there" / name).touch()
    scale(1)
    assert there(tmp_path) == others | {"chat-eu-regular-1"}
    scale(0)
    end = time.monotonic() + 60
    while there(tmp_path) != others:
        assert time.monotonic() < end, there(tmp_path)
        time.sleep(0.02)
