"""`check`, run by root, sees what the daemon's user may not do."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway_sidecar.check import not_who_is_meant, user_to_be
from gateway_sidecar.commands.check import check as check_command
from gateway_sidecar.config import Settings
from gateway_sidecar.errors import ProcessError
from gateway_sidecar.supervision import unit
from gateway_sidecar.supervision.privileges import CAP_NET_BIND_SERVICE
from tests.certificates import certificate
from tests.users import why_not, with_python

UID = 42430


async def check(config: Path, *options: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *with_python(), sys.executable, "-m", "gateway_sidecar", "check", "--config", str(config), *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    out, _ = await process.communicate()
    return process.returncode, out.decode()


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that others may look into: pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(prefix="gw-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
async def test_root_checks_with_the_rights_of_the_daemons_user(open_path: Path) -> None:
    """A TLS key that only root may read is a fault, and no uid is called wrong."""
    pem = certificate(open_path, "a.example.com")
    settings = minimal(open_path)
    settings["services"][0]["frontend"] = {
        "listen": ["127.0.0.1:9877"],
        "tls": {"certificate": str(pem), "key": str(pem.with_suffix(".key"))},
    }
    config = open_path / "gateway-sidecar.yaml"
    config.write_text(yaml.safe_dump(settings))
    config.chmod(0o644)
    pem.chmod(0o644)
    pem.with_suffix(".key").chmod(0o600)
    refusal = f"FAIL  chat: {pem.with_suffix('.key')}: "
    _, out = await check(config)
    assert refusal not in out, out
    code, out = await check(config, "--as", str(UID))
    assert code == 1
    first = f"ok    with the rights of uid {UID}, as asked for; assumed: its groups in /etc/group and no capabilities"
    assert out.startswith(first), out
    assert refusal in out, out
    assert "uid 0" not in out


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
async def test_a_directory_of_somebody_else_chooses_nobodys_eyes(open_path: Path) -> None:
    """Whoever made it would choose what is looked at, and by whom; it is a fault, and `--as` is the cure."""
    config, run_dir, state_dir = open_path / "gateway-sidecar.yaml", open_path / "run", open_path / "state"
    for directory in (run_dir, state_dir):
        directory.mkdir(0o750)
    config.write_text(yaml.safe_dump(minimal(open_path)))
    config.chmod(0o644)
    for strange in ((run_dir,), (state_dir,), (run_dir, state_dir)):
        for directory in (run_dir, state_dir):
            os.chown(directory, *((UID, UID) if directory in strange else (0, 0)))
        code, out = await check(config)
        assert code == 1
        assert "with the rights of" not in out
        for directory in strange:
            fault = f"{directory.name}_dir: {directory}: {directory} belongs to user {UID}; name another"
            assert f"FAIL  {fault}" in out, out
        assert out.count(f"check --as {UID}") == len(strange)
    _, out = await check(config, "--as", str(UID))
    assert f"ok    run_dir: {run_dir} is writable" in out, out


def minimal(directory: Path) -> dict[str, Any]:
    service = {
        "name": "chat",
        "listen": "127.0.0.1:9876",
        "replicas": {"sockets": str(directory / "replicas" / "{replica}.sock")},
    }
    return {"run_dir": str(directory / "run"), "state_dir": str(directory / "state"), "services": [service]}


def settings_in(directory: Path) -> Settings:
    return Settings.model_construct(run_dir=directory / "run", state_dir=directory / "state", services=())


def systemd_says(monkeypatch: pytest.MonkeyPatch, directory: Path, *lines: str) -> None:
    """A machine whose systemd answers so, of the unit; without lines it does not run there."""
    program = directory / "systemctl"
    program.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.setattr(unit, "_BOOTED", directory if lines else directory / "not booted")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root looks with other eyes")
def test_who_is_looked_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom the unit starts the daemon as, where these are its settings, or the directories are that user's."""
    settings = settings_in(tmp_path)
    with pytest.raises(ProcessError, match="there is no user 'nobody-of-that-name' on this machine"):
        user_to_be("nobody-of-that-name", settings, of_unit=False)
    systemd_says(monkeypatch, tmp_path, "LoadState=loaded", "User=nobody-of-that-name")
    assert user_to_be(None, settings, of_unit=True) is None
    monkeypatch.setattr(unit, "_USER", "nobody-of-that-name")
    systemd_says(monkeypatch, tmp_path, "LoadState=not-found", "User=daemon")
    assert user_to_be(None, settings, of_unit=True) is None
    systemd_says(monkeypatch, tmp_path, "LoadState=loaded", "User=daemon")
    found = user_to_be(None, settings, of_unit=True)
    assert found is not None
    assert found.name == "daemon"
    assert user_to_be(None, settings, of_unit=False) is None
    settings.run_dir.mkdir()
    assert user_to_be(None, settings, of_unit=True) == found, "whoever made the directory"
    os.chown(settings.run_dir, found.uid, found.gid)
    assert user_to_be(None, settings, of_unit=False) == found, "it is the unit's user's"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root looks with other eyes")
def test_without_systemd_the_unit_is_as_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a run_dir of root's says that it is another who runs the daemon here: a container's root."""
    settings = settings_in(tmp_path)
    systemd_says(monkeypatch, tmp_path)
    monkeypatch.setattr(unit, "_USER", "daemon")
    found = user_to_be(None, settings, of_unit=True)
    assert found is not None
    assert (found.name, found.told) == ("daemon", None)
    settings.run_dir.mkdir()
    assert user_to_be(None, settings, of_unit=True) is None


def test_what_a_drop_in_grants_is_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`User=`, `Group=`, `SupplementaryGroups=` and `AmbientCapabilities=` are those that systemd says."""
    systemd_says(
        monkeypatch, tmp_path, "LoadState=loaded", "User=daemon", "Group=adm", "SupplementaryGroups=mail 4242",
        "AmbientCapabilities=cap_net_bind_service cap_chown",
    )  # fmt: skip
    found = unit.unit_user()
    assert found is not None
    groups = (grp.getgrnam("mail").gr_gid, 4242)
    assert (found.name, found.gid, found.groups) == ("daemon", grp.getgrnam("adm").gr_gid, groups)
    assert found.capabilities == {CAP_NET_BIND_SERVICE}
    assert found.told == (
        "systemd says SupplementaryGroups=mail 4242 AmbientCapabilities=cap_net_bind_service cap_chown"
    )


def test_another_user_is_told_whose_rights_these_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What alice may open says little of the daemon; where the settings are not the unit's, nothing is said."""
    settings = settings_in(tmp_path)
    systemd_says(monkeypatch, tmp_path, "LoadState=loaded", "User=daemon")
    monkeypatch.setattr(os, "geteuid", lambda: UID)
    found = not_who_is_meant(settings, of_unit=True)
    assert found is not None
    assert found.line().startswith(f"warn  with the rights of uid {UID}, not of daemon (uid ")
    assert found.text.endswith("; run this with sudo to check with those")
    assert not_who_is_meant(settings, of_unit=False) is None
    for who in (0, pwd.getpwnam("daemon").pw_uid):
        monkeypatch.setattr(os, "geteuid", lambda who=who: who)
        assert not_who_is_meant(settings, of_unit=True) is None


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_file_that_is_the_daemons_alone_is_looked_at_with_sudo(open_path: Path) -> None:
    """The installed configuration is root's and the daemon's: that alice may not read it is no fault of it."""
    config = open_path / "gateway-sidecar.yaml"
    config.write_text(yaml.safe_dump(minimal(open_path)))
    config.chmod(0o600)
    os.seteuid(UID)
    try:
        with pytest.raises(ProcessError) as refused:
            check_command(Namespace(config=config, as_user=None))
    finally:
        os.seteuid(0)
    assert str(refused.value) == f"{config}: may not be read by user {UID}; run this with sudo"
