"""The Debian package in a clean root of its release, with a systemd and without a network: `make deb-test`."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml

from examples.simulated import EngineKind
from tests.namespaces import namespaces
from tests.system.conftest import StartEngine
from tests.system.systemd import SERVICE, SystemdMachine, why_not
from tests.system.test_systemd import BODY, CONFIG, URL, Stream, next_daemon, serves, until, what_stays

ROOT = Path(__file__).parents[2]
PACKAGES = sorted((ROOT / "dist").glob("gateway-sidecar_*.deb"))
RELEASES = {"12": "bookworm", "13": "trixie"}
APT = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--quiet=2", "--allow-downgrades")
CONFFILE = Path("etc/gateway-sidecar/gateway-sidecar.yaml")
NEXT = "99.9"

pytestmark = [
    pytest.mark.skipif(not PACKAGES, reason="dist/ has no Debian package; make deb"),
    pytest.mark.timeout(900),
    pytest.mark.parametrize("package", PACKAGES, ids=lambda path: release_of(path) if isinstance(path, Path) else None),
]
needs_systemd = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
needs_mmdebstrap = pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed")


def release_of(package: Path) -> str:
    """The release that a package is for."""
    found = re.search(r"\+deb(\d+)_", package.name)
    assert found is not None, package
    return RELEASES[found[1]]


def field(package: Path, name: str) -> str:
    """What a package says of itself."""
    command = ["dpkg-deb", "--field", str(package), name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def clean_root(package: Path) -> Path:
    """A minimal Debian with what the package depends on and recommends, and nothing of the package itself.

    Made once for each release and list: it takes half a minute, and the network.
    """
    wanted = sorted(
        re.split(r"[ :(|]", need.strip())[0]
        for name in ("Depends", "Recommends")
        for need in field(package, name).split(",")
    )
    root = ROOT / "build" / "deb" / f"root-{release_of(package)}"
    made_of = root.with_suffix(".made-of")
    if made_of.exists() and made_of.read_text().split() == wanted and root.is_dir():
        return root
    made_of.unlink(missing_ok=True)
    shutil.rmtree(root, ignore_errors=True)
    include = ",".join(["systemd", *wanted])
    # Nobody needs Debian's own service of nginx, which is started when it is installed: docs/guides/installing.md.
    mask = 'mkdir -p "$1/etc/systemd/system" && ln -s /dev/null "$1/etc/systemd/system/nginx.service"'
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={include}", f"--essential-hook={mask}",
         release_of(package), str(root)],
        check=True,
    )  # fmt: skip
    made_of.write_text("\n".join(wanted))
    return root


def next_version(package: Path, directory: Path) -> Path:
    """The same package as a later release would be: another version, and another example configuration."""
    tree = directory / "next"
    subprocess.run(["dpkg-deb", "--raw-extract", str(package), str(tree)], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub(r"^Version: .*$", f"Version: {NEXT}", control.read_text(), flags=re.MULTILINE))
    (code,) = tree.glob("opt/gateway-sidecar/lib/python*/site-packages/gateway_sidecar/__init__.py")
    code.write_text(re.sub(r"(?m)^__version__ = .*$", f'__version__ = "{NEXT}"', code.read_text()))
    for compiled in code.parent.glob("__pycache__/__init__.*.pyc"):
        compiled.unlink()
    with (tree / CONFFILE).open("a") as file:
        file.write("# A line of the next version.\n")
    made = directory / f"gateway-sidecar_{NEXT}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(made)], check=True)
    shutil.rmtree(tree)
    return made


@asynccontextmanager
async def machine_with(tree: Path, directory: Path) -> AsyncIterator[SystemdMachine]:
    """A machine that was booted from the tree, on a network of its own that leads nowhere."""
    with namespaces(1) as (network,):
        made = SystemdMachine(network, directory, tree)
        try:
            await made.start()
            yield made
        finally:
            await made.stop()


class Load:
    """Clients that ask one request after the other, and write down each that fails."""

    def __init__(self, machine: SystemdMachine, clients: int = 3) -> None:
        self.answered = 0
        self.failed: list[str] = []
        self._tasks = [asyncio.create_task(self._ask(machine)) for _ in range(clients)]

    async def more(self, count: int = 30) -> None:
        """Returns when so many more were answered, or failed."""
        wanted = self.answered + len(self.failed) + count
        async with asyncio.timeout(120):
            while self.answered + len(self.failed) < wanted:
                await asyncio.sleep(0.05)

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, machine: SystemdMachine) -> None:
        async with machine.client() as session:
            while True:
                try:
                    async with session.post(URL, json=BODY | {"max_tokens": 3}) as response:
                        text = await response.text()
                        if response.status == 200:
                            self.answered += 1
                        else:
                            self.failed.append(f"{response.status} {text}")
                except aiohttp.ClientError as error:
                    self.failed.append(repr(error))
                await asyncio.sleep(0.02)


def test_lintian_finds_no_error(package: Path) -> None:
    """What it overrides has its reason in debian/gateway-sidecar.lintian-overrides."""
    if shutil.which("lintian") is None:
        pytest.skip("lintian is not installed")
    done = subprocess.run(["lintian", "--fail-on", "error", str(package)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r"^E: ", done.stdout, re.MULTILINE), done.stdout


@needs_systemd
@needs_mmdebstrap
async def test_installed_upgraded_rolled_back_and_purged(package: Path, tmp_path: Path, engine: StartEngine) -> None:
    """No network, no failed request, the operator's configuration kept, and in the end nothing left."""
    tree = await asyncio.to_thread(clean_root, package)
    later = await asyncio.to_thread(next_version, package, tmp_path)
    directory = tmp_path / "machine"
    directory.mkdir()
    async with machine_with(tree, directory) as machine:
        for each in (package, later):
            await asyncio.to_thread(shutil.copy, each, machine.root / "opt" / each.name)
        begun = time.monotonic()
        await machine.run(*APT, f"/opt/{package.name}")
        assert await machine.show("ActiveState") == "inactive", "nothing is started before the operator says so"
        await machine.systemctl("enable", "--now", SERVICE)
        await machine.run("gateway-sidecar", "status")
        print(f"{release_of(package)}: installed, started and `status` after {time.monotonic() - begun:.1f} s")

        await what_is_installed(machine)
        config = yaml.safe_dump(CONFIG)
        (machine.root / CONFFILE).write_text(config)
        await machine.systemctl("restart", SERVICE)
        socket = machine.root / "run/replicas/chat/r1.sock"
        socket.parent.mkdir()
        await engine(socket, EngineKind.SGLANG_HTTP, token_interval_s=0.05)
        socket.chmod(0o777)
        before = await until(machine, serves)

        stream, load = Stream(machine), Load(machine)
        await load.more()
        first = await machine.run("gateway-sidecar", "--version")
        for each, version in ((later, f"gateway-sidecar {NEXT}\n"), (package, first)):
            pid = await machine.pid()
            await machine.run(*APT, "-o", "Dpkg::Options::=--force-confold", f"/opt/{each.name}")
            await next_daemon(machine, pid)
            status = await until(machine, serves)
            assert await machine.run("gateway-sidecar", "--version") == version
            assert what_stays(status) == what_stays(before), "nginx, router, port and worker"
            assert (machine.root / CONFFILE).read_text() == config, "the operator's"
            await stream.goes_on()
            await load.more()
        await load.leave()
        assert load.failed == [], f"of {load.answered + len(load.failed)}"
        await stream.leave()

        await machine.run("apt-get", "remove", "--yes", "--quiet=2", "gateway-sidecar")
        assert await processes_of(machine) == [], "nginx and the routers go with the package"
        assert (machine.root / CONFFILE).read_text() == config
        assert (machine.root / "var/lib/gateway-sidecar").is_dir()
        await machine.run("apt-get", "purge", "--yes", "--quiet=2", "gateway-sidecar")
        await nothing_is_left(machine)


async def what_is_installed(machine: SystemdMachine) -> None:
    """The commands, the files, and whose they are."""
    await machine.run("systemd-analyze", "verify", SERVICE)
    out = await machine.run("gateway-sidecar", "check")
    assert out.startswith("ok    with the rights of gateway-sidecar (uid "), out
    for path in (await machine.run("gateway-sidecar", "files")).splitlines():
        assert "  /opt/gateway-sidecar/share/gateway-sidecar/" in path, path
    alerts = (await machine.run("gateway-sidecar", "files", "alerts")).strip()
    assert (machine.root / alerts.lstrip("/")).is_file()
    for path in (
        "usr/share/bash-completion/completions/gateway-sidecar",
        "usr/share/zsh/vendor-completions/_gateway-sidecar",
        "usr/share/fish/vendor_completions.d/gateway-sidecar.fish",
        "etc/default/gateway-sidecar",
    ):
        assert (machine.root / path).is_file(), path
    completed = "source /usr/share/bash-completion/completions/gateway-sidecar; complete -p gateway-sidecar"
    assert "gateway-sidecar" in await machine.run("bash", "-c", completed)
    config = (await machine.run("stat", "-c", "%a %U %G", f"/{CONFFILE}")).strip()
    assert config == "640 root gateway-sidecar"
    out = await machine.run("gateway-sidecar", "install")
    assert "the Debian package has installed the unit" in out


async def processes_of(machine: SystemdMachine) -> list[str]:
    """What runs as the daemon's user."""
    return (await machine.run("find", "/proc", "-maxdepth", "1", "-user", "gateway-sidecar")).splitlines()


async def nothing_is_left(machine: SystemdMachine) -> None:
    """No file, no user, no group, no unit."""
    places = ("etc", "opt", "run", "usr", "var/lib", "var/log")
    found = await machine.run("sh", "-c", f"cd / && find {' '.join(places)} -xdev -name '*gateway*'")
    assert [line for line in found.splitlines() if not line.startswith(("opt/gateway-sidecar_", "var/lib/dpkg/"))] == []
    assert "gateway" not in (machine.root / "etc/passwd").read_text() + (machine.root / "etc/group").read_text()
    assert await machine.show("LoadState") == "not-found"
