"""The wheel and the source archive install and run without the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.ssh_servers import free_port

ROOT = Path(__file__).parents[2]
_BUILD = "import sys, setuptools.build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"


def built(what: str, source: Path, into: Path) -> Path:
    """What the build backend makes of a source, as `make dist` has it made."""
    into.mkdir()
    command = [sys.executable, "-c", _BUILD, what, str(into)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    (made,) = into.iterdir()
    return made


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the source archive, unpacked; the dependencies are those of this environment."""
    pytest.importorskip("setuptools", "77", reason="the build backend is not installed")
    directory = tmp_path_factory.mktemp("dist")
    clone = directory / "clone"
    clone.mkdir()
    shutil.copytree(ROOT / "gateway_sidecar", clone / "gateway_sidecar", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone / name)
    with tarfile.open(built("build_sdist", clone, directory / "sdist")) as archive:
        archive.extractall(directory / "source", filter="data")
    shutil.rmtree(clone)
    (source,) = (directory / "source").iterdir()
    with zipfile.ZipFile(built("build_wheel", source, directory / "wheel")) as archive:
        archive.extractall(directory / "site")
    shutil.rmtree(source)
    return directory / "site"


def command(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """One command of what is installed, away from the repository."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    whole = [sys.executable, "-m", "gateway_sidecar", *words]
    return subprocess.run(whole, cwd="/", env=environment, capture_output=True, text=True, check=False)


def test_every_file_of_the_package_comes_with_the_wheel(installed: Path) -> None:
    """A template that is missing would be missed at the first start, on the operator's machine."""
    here = {path.relative_to(ROOT) for path in (ROOT / "gateway_sidecar").rglob("*") if path.is_file()}
    here = {path for path in here if "__pycache__" not in path.parts}
    assert sorted(map(str, here - {path.relative_to(installed) for path in installed.rglob("*")})) == []


def test_commands_run_without_the_repository(installed: Path, tmp_path: Path) -> None:
    """From the wheel's own files."""
    files = command(installed, "files", "alerts")
    assert Path(files.stdout.strip()).is_relative_to(installed), files
    assert "properties" in json.loads(command(installed, "schema").stdout)
    done = command(installed, "install", "--root", str(tmp_path))
    assert done.returncode == 0, done
    assert (tmp_path / "etc/systemd/system/gateway-sidecar.service").is_file()


@pytest.mark.skipif(shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None, reason="nginx is missing")
def test_the_daemon_runs_without_the_repository(installed: Path, tmp_path: Path) -> None:
    """nginx's templates and its Lua come with it."""
    settings = {
        "run_dir": str(tmp_path / "run"),
        "state_dir": str(tmp_path / "state"),
        "metrics": None,
        "nginx": {"workers": 1},
        "bridges": {"ports": f"{(bridge := free_port())}-{bridge}"},
        "services": [
            {
                "name": "chat",
                "listen": f"127.0.0.1:{free_port()}",
                "router": {"type": "none"},
                "replicas": {"sockets": str(tmp_path / "replicas" / "{replica}.sock")},
            }
        ],
    }
    config = tmp_path / "gateway-sidecar.yaml"
    config.write_text(yaml.safe_dump(settings))
    option = ("--config", str(config))
    log = tmp_path / "log"
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "gateway_sidecar", "run", *option],
            cwd="/", env=os.environ | {"PYTHONPATH": str(installed)}, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        while (status := command(installed, "status", *option)).returncode != 0:
            assert daemon.poll() is None, log.read_text()
            time.sleep(0.2)
        assert "router none" in status.stdout, status
    finally:
        stopped = command(installed, "stop", "--all", "--timeout", "60", *option)
        daemon.kill()
        daemon.wait()
    assert stopped.returncode == 0, stopped
