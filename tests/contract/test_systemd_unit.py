from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gateway_sidecar.commands.exit_codes import Exit
from gateway_sidecar.install import PEERS, SYSUSERS, TMPFILES, UNIT, install, own_command

SOURCE = Path(__file__).parents[2] / "systemd" / "gateway-sidecar.service"
WORST_EXPOSURE = 2.5

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (Debian: package systemd)"
)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit as it is installed, started by this very installation."""
    list(install(tmp_path, command=own_command()))
    return tmp_path / UNIT


def analyze(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def directives(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_systemd_finds_nothing_wrong(installed: Path) -> None:
    """`systemd-analyze verify` is silent, for the source and for what is installed."""
    assert analyze("verify", str(SOURCE)) == (0, "")
    assert analyze("verify", str(installed)) == (0, "")


def test_the_daemon_is_confined(installed: Path) -> None:
    """What the daemon does not need is taken from it: exposure 2.5 of 10 at the most."""
    _, output = analyze("security", "--offline=true", str(installed))
    found = re.search(r"Overall exposure level for gateway-sidecar\.service: ([0-9.]+)", output)
    assert found is not None, output
    assert float(found[1]) <= WORST_EXPOSURE


def test_nginx_and_routers_outlive_the_daemon() -> None:
    """Nothing in the unit ends or robs what goes on serving while the daemon is away."""
    unit = directives(SOURCE.read_text())
    assert {"KillMode=process", "RuntimeDirectoryPreserve=yes", "OOMPolicy=continue"} <= set(unit)
    names = {line.partition("=")[0] for line in unit}
    assert not names & {"PrivateTmp", "RemoveIPC", "ProtectProc", "ProcSubset", "MemoryDenyWriteExecute"}


def test_memory_is_bounded_and_never_written_to_a_core_file() -> None:
    """What an engine makes a router hold ends with the router, not with the machine; secrets stay in memory.

    MemoryHigh would throttle the daemon and nginx as well, which share the unit with the router that is too large.
    """
    unit = directives(SOURCE.read_text())
    assert {"LimitCORE=0", "MemoryMax=85%", "OOMPolicy=continue"} <= set(unit)
    assert not [line for line in unit if line.startswith("MemoryHigh")]


def test_what_the_daemon_writes_is_its_own() -> None:
    """Keys and leases are nobody else's to read; the group may reach admin.sock, and change nothing beside it."""
    unit = set(directives(SOURCE.read_text()))
    assert {"User=gateway-sidecar", "UMask=0077", "RuntimeDirectoryMode=0750", "StateDirectoryMode=0700"} <= unit


def test_a_dead_or_stuck_daemon_is_started_again() -> None:
    """Always and without giving up, but for a configuration that cannot work, and for an operator's `stop`."""
    unit = set(directives(SOURCE.read_text()))
    assert {"Type=notify", "NotifyAccess=main", "Restart=always", "StartLimitIntervalSec=0"} <= unit
    assert {f"RestartPreventExitStatus={Exit.CONFIG} {Exit.STOPPED}", f"SuccessExitStatus={Exit.STOPPED}"} <= unit
    assert any(re.fullmatch(r"WatchdogSec=\d+", line) for line in unit)


@pytest.mark.skipif(os.geteuid() != 0, reason="making users and directories in a tree needs root")
@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="systemd-tmpfiles is not installed")
def test_user_groups_and_directories_are_made(tmp_path: Path) -> None:
    """The daemon's user is a member of the group that replica sockets belong to."""
    list(install(tmp_path, command=own_command()))
    for command in (["systemd-sysusers", SYSUSERS.name], ["systemd-tmpfiles", "--create", TMPFILES.name]):
        command.insert(1, f"--root={tmp_path}")
        subprocess.run(command, check=True, capture_output=True)
    groups = dict(line.split(":")[::3] for line in (tmp_path / "etc/group").read_text().splitlines())
    assert groups["gateway-replicas"] == "gateway-sidecar"
    user = next(line for line in (tmp_path / "etc/passwd").read_text().splitlines() if "gateway-sidecar" in line)
    assert user.split(":")[5:] == ["/var/lib/gateway-sidecar", "/usr/sbin/nologin"]
    replicas = (tmp_path / "run/replicas").stat()
    assert replicas.st_mode & 0o7777 == 0o3775
    assert replicas.st_gid != 0
    config = (tmp_path / "etc/gateway-sidecar/gateway-sidecar.yaml").stat()
    assert config.st_mode & 0o7777 == 0o640
    assert config.st_gid != 0


def test_the_privilege_for_addresses_is_all_that_the_drop_in_adds(tmp_path: Path) -> None:
    """`verify` is silent about the two together."""
    list(install(tmp_path, command=own_command(), peers=True))
    assert analyze("verify", str(tmp_path / UNIT)) == (0, "")
    added = directives((tmp_path / PEERS).read_text())
    assert added == ["[Service]", "CapabilityBoundingSet=CAP_NET_ADMIN", "AmbientCapabilities=CAP_NET_ADMIN"]
