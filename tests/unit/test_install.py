from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway_sidecar.config import load_config
from gateway_sidecar.errors import InstallError
from gateway_sidecar.install import (
    CONFIG,
    ENVIRONMENT,
    OF_PACKAGE,
    PEERS,
    SYSUSERS,
    TMPFILES,
    UNIT,
    Did,
    install,
    own_command,
    uninstall,
    unit_text,
)

COMMAND = ["/opt/gateway-sidecar/bin/gateway-sidecar"]
FILES = (UNIT, SYSUSERS, TMPFILES, CONFIG, ENVIRONMENT)


class Tools:
    """Writes down what would be run."""

    def __init__(self, failing: str = "") -> None:
        self.ran: list[str] = []
        self._failing = failing

    def __call__(self, command: Sequence[str]) -> str | None:
        self.ran.append(" ".join(command))
        return "it says no" if command[0] == self._failing else None


def tree(root: Path) -> dict[str, str | None]:
    return {str(p.relative_to(root)): p.read_text() if p.is_file() else None for p in sorted(root.rglob("*"))}


def test_everything_is_put_in_place(tmp_path: Path) -> None:
    """The unit starts this installation; the example configuration is valid and not for everybody's eyes."""
    said = list(install(tmp_path, command=COMMAND))
    unit = (tmp_path / UNIT).read_text()
    assert f"ExecStart={COMMAND[0]} run --config /{CONFIG}\n" in unit
    assert f"ExecReload={COMMAND[0]} reload --config /{CONFIG}\n" in unit
    assert "/usr/bin/env" not in unit
    assert load_config(tmp_path / CONFIG).services[0].name == "chat"
    modes = {path: stat.S_IMODE((tmp_path / path).stat().st_mode) for path in FILES}
    assert modes == {UNIT: 0o644, SYSUSERS: 0o644, TMPFILES: 0o644, CONFIG: 0o640, ENVIRONMENT: 0o644}
    for path in FILES:
        assert any(step.did is Did.CREATED and step.what == f"/{path}" for step in said)


def test_a_narrow_umask_does_not_lock_the_daemon_out(tmp_path: Path) -> None:
    """Root's umask is often 077."""
    before = os.umask(0o077)
    try:
        list(install(tmp_path, command=COMMAND))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / CONFIG.parent).stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / UNIT).stat().st_mode) == 0o644


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    """Idempotent, and it says so."""
    list(install(tmp_path, command=COMMAND))
    before = tree(tmp_path)
    said = list(install(tmp_path, command=COMMAND))
    assert tree(tmp_path) == before
    assert {step.did for step in said} <= {Did.UNCHANGED, Did.KEPT, Did.NOTE}


def test_an_operators_configuration_is_never_touched(tmp_path: Path) -> None:
    """Not by installing, not by removing."""
    config = tmp_path / CONFIG
    config.parent.mkdir(parents=True)
    config.write_text("mine")
    (step,) = [step for step in install(tmp_path, command=COMMAND) if step.what == f"/{CONFIG}"]
    assert step.did is Did.KEPT
    list(uninstall(tmp_path))
    assert config.read_text() == "mine"


def test_an_update_replaces_the_unit(tmp_path: Path) -> None:
    """Own changes belong in drop-ins, which stay."""
    list(install(tmp_path, command=COMMAND))
    drop_in = tmp_path / f"{UNIT}.d" / "override.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\n")
    steps = install(tmp_path, command=["/opt/other/bin/gateway-sidecar"])
    (step,) = [step for step in steps if step.what == f"/{UNIT}"]
    assert step.did is Did.UPDATED
    assert "ExecStart=/opt/other/bin/gateway-sidecar run" in (tmp_path / UNIT).read_text()
    assert drop_in.read_text() == "[Service]\n"
    assert not [path for path in tree(tmp_path) if path.endswith(".new")]


def test_a_symlink_is_never_replaced(tmp_path: Path) -> None:
    """It may be a copy that somebody keeps elsewhere; and systemd knows a masked unit by one. In a dry run, too."""
    (tmp_path / UNIT).parent.mkdir(parents=True)
    (tmp_path / UNIT).symlink_to("/dev/null")
    for dry_run in (True, False):
        with pytest.raises(InstallError, match="is a symlink to /dev/null; remove it, then install again"):
            list(install(tmp_path, command=COMMAND, dry_run=dry_run))
    assert (tmp_path / UNIT).is_symlink()


def test_a_dry_run_says_the_same_and_does_nothing(tmp_path: Path) -> None:
    """One line for each thing that would be done; no file, no command."""
    tools = Tools()
    dry = [(step.did, step.what) for step in install(tmp_path, command=COMMAND, dry_run=True, run=tools)]
    assert tree(tmp_path) == {}
    assert tools.ran == []
    wet = [(step.did, step.what) for step in install(tmp_path, command=COMMAND)]
    assert [one for one in dry if one[0] is Did.CREATED] == [one for one in wet if one[0] is Did.CREATED]
    before = tree(tmp_path)
    assert [step.did for step in uninstall(tmp_path, dry_run=True)].count(Did.REMOVED) == 3
    assert tree(tmp_path) == before


def test_the_running_system_is_told(tmp_path: Path) -> None:
    """User, directories, systemd: by the system's own tools; systemd only where it runs the machine."""
    tools = Tools()
    list(install(tmp_path, command=COMMAND, run=tools))
    assert tools.ran == [f"systemd-sysusers /{SYSUSERS}", f"systemd-tmpfiles --create /{TMPFILES}"]
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    list(install(tmp_path, command=COMMAND, run=tools))
    assert tools.ran[-1] == "systemctl daemon-reload"


def test_a_tool_that_fails_is_reported_and_the_rest_is_done(tmp_path: Path) -> None:
    """A person can do by hand what a tool could not."""
    tools = Tools(failing="systemd-sysusers")
    said = list(install(tmp_path, command=COMMAND, run=tools))
    (failed,) = [step for step in said if step.did is Did.FAILED]
    assert str(failed) == f"failed     systemd-sysusers /{SYSUSERS}  (it says no)"
    assert len(tools.ran) == 2


def test_removal_ends_what_would_outlive_the_daemon(tmp_path: Path) -> None:
    """The daemon first, then its children, which it would start again; then the files, and no others."""
    list(install(tmp_path, command=COMMAND))
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    tools = Tools()
    said = list(uninstall(tmp_path, run=tools))
    assert tools.ran == [
        "systemctl stop gateway-sidecar.service",
        "systemctl kill --kill-whom=all gateway-sidecar.service",
        "systemctl disable gateway-sidecar.service",
        "systemctl daemon-reload",
    ]
    assert [step.what for step in said if step.did is Did.REMOVED] == [f"/{UNIT}", f"/{SYSUSERS}", f"/{TMPFILES}"]
    assert not (tmp_path / UNIT).exists()
    assert (tmp_path / CONFIG).exists()
    again = list(uninstall(tmp_path, run=(idle := Tools())))
    assert {step.did for step in again} == {Did.UNCHANGED, Did.RAN, Did.KEPT}
    assert idle.ran == ["systemctl daemon-reload"]


@pytest.mark.parametrize("program", ["gateway-sidecar", "/opt/a b/gateway-sidecar", "/opt/100%/x", "/opt/$x/y"])
def test_a_path_that_systemd_would_read_differently_is_refused(program: str) -> None:
    """Spaces, % and $ mean something in a unit."""
    with pytest.raises(InstallError, match="install into such a directory"):
        unit_text([program])


def test_a_program_that_the_daemons_user_cannot_run_is_named(tmp_path: Path) -> None:
    """A virtual environment in somebody's home would end in 203/EXEC at the first start."""
    tmp_path.chmod(0o755)
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o700)
    for program in (f"{closed}/gateway-sidecar", "/home/alice/venv/bin/gateway-sidecar"):
        said = [str(step) for step in install(tmp_path / "root", command=[program])]
        assert any(f"the daemon's user cannot run {program}" in line for line in said)


def test_what_cannot_be_written_is_an_error_with_a_cure(tmp_path: Path) -> None:
    """One sentence, no traceback."""
    (tmp_path / "etc").write_text("a file")
    with pytest.raises(InstallError, match=r"etc/systemd.*: .*; "):
        list(install(tmp_path, command=COMMAND))


def test_the_unit_starts_the_installation_that_wrote_it() -> None:
    """Not another one that PATH happens to find."""
    command = own_command()
    assert Path(command[0]).is_absolute()
    assert Path(command[0]).exists()


def test_the_privilege_for_addresses_is_given_when_asked_for(tmp_path: Path) -> None:
    """A drop-in of its own, which outlives updates and goes with the rest."""
    list(install(tmp_path, command=COMMAND))
    assert not (tmp_path / PEERS).exists()
    list(install(tmp_path, command=COMMAND, peers=True))
    assert "AmbientCapabilities=CAP_NET_ADMIN\n" in (tmp_path / PEERS).read_text()
    list(install(tmp_path, command=COMMAND))
    assert (tmp_path / PEERS).exists()
    said = list(uninstall(tmp_path))
    assert any(step.did is Did.REMOVED and step.what == f"/{PEERS}" for step in said)
    assert not (tmp_path / PEERS).exists()


def test_what_the_debian_package_installed_is_left_to_it(tmp_path: Path) -> None:
    """A unit in /etc would hide the package's own; only the privilege for addresses is added, when asked for."""
    unit = tmp_path / OF_PACKAGE
    unit.parent.mkdir(parents=True)
    unit.write_text("the package's")
    before = tree(tmp_path)
    (step,) = install(tmp_path, command=COMMAND)
    assert (step.did, step.what) == (Did.KEPT, f"/{OF_PACKAGE}")
    assert tree(tmp_path) == before
    list(install(tmp_path, command=COMMAND, peers=True))
    assert sorted(tree(tmp_path).keys() - before.keys())[-1] == str(PEERS)
    with pytest.raises(InstallError, match="apt remove gateway-sidecar"):
        list(uninstall(tmp_path))
    assert unit.read_text() == "the package's"


def test_the_environment_that_an_operator_wrote_is_kept(tmp_path: Path) -> None:
    """/etc/default is the operator's, like the configuration; the unit reads it, and does without it."""
    environment = tmp_path / ENVIRONMENT
    environment.parent.mkdir(parents=True)
    environment.write_text("HF_HOME=/srv/hf\n")
    list(install(tmp_path, command=COMMAND))
    assert environment.read_text() == "HF_HOME=/srv/hf\n"
    assert f"EnvironmentFile=-/{ENVIRONMENT}\n" in (tmp_path / UNIT).read_text()
