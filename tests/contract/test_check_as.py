"""`check`, run by root, sees what the daemon's user may not do."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
import yaml

from gateway_sidecar.check import user_to_be
from gateway_sidecar.errors import ProcessError
from tests.system.test_front_door_tls import certificate
from tests.users import _with_python, why_not

UID = 42430


async def check(config: Path, *options: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *_with_python(), sys.executable, "-m", "gateway_sidecar", "check", "--config", str(config), *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    out, _ = await process.communicate()
    return process.returncode, out.decode()


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
async def test_root_checks_with_the_rights_of_the_daemons_user(tmp_path: Path) -> None:
    """Of whom run_dir is, or who is named: a TLS key that only root may read is a fault, and no uid is called wrong."""
    for each in (tmp_path, *tmp_path.parents):
        if each.stat().st_uid == os.geteuid() and each != Path("/") and str(each).startswith("/tmp/"):
            each.chmod(0o755)
    pem = certificate(tmp_path, "a.example.com")
    run_dir = tmp_path / "run"
    run_dir.mkdir(0o750)
    settings = {
        "run_dir": str(run_dir),
        "state_dir": str(tmp_path / "state"),
        "services": [
            {
                "name": "chat",
                "listen": "127.0.0.1:9876",
                "replicas": {"sockets": str(tmp_path / "replicas" / "{replica}.sock")},
                "frontend": {
                    "listen": ["127.0.0.1:9877"],
                    "tls": {"certificate": str(pem), "key": str(pem.with_suffix(".key"))},
                },
            }
        ],
    }
    config = tmp_path / "gateway-sidecar.yaml"
    config.write_text(yaml.safe_dump(settings))
    pem.chmod(0o644)
    pem.with_suffix(".key").chmod(0o600)
    refusal = f"FAIL  chat: {pem.with_suffix('.key')}: "
    _, out = await check(config)
    assert refusal not in out, out
    code, out = await check(config, "--as", str(UID))
    assert code == 1
    assert out.startswith(f"ok    with the rights of uid {UID}, as asked for\n")
    assert refusal in out, out
    os.chown(run_dir, UID, UID)
    code, out = await check(config)
    assert code == 1
    assert out.startswith(f"ok    with the rights of uid {UID}, to whom {run_dir} belongs\n")
    assert refusal in out, out
    assert "uid 0" not in out


def test_who_is_looked_as(tmp_path: Path) -> None:
    """A user that does not exist is said so."""
    with pytest.raises(ProcessError, match="there is no user 'nobody-of-that-name' on this machine"):
        user_to_be("nobody-of-that-name", tmp_path, unit_user=None)
    if os.geteuid() == 0:
        found = user_to_be(None, tmp_path / "not there", unit_user="daemon")
        assert found is not None
        assert found.name == "daemon"
        assert user_to_be(None, tmp_path / "not there", unit_user="nobody-of-that-name") is None
        assert user_to_be(None, tmp_path, unit_user="daemon") is None, "run_dir is there, and root's"
