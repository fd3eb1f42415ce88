"""A real systemd, in namespaces of its own, that runs the unit as `gateway-sidecar install` puts it in place."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import yaml

import gateway_sidecar
from gateway_sidecar.supervision.process import start_ticks
from tests.namespaces import Namespace

SERVICE = "gateway-sidecar.service"
_SCRIPT = Path(__file__).with_name("systemd_in_namespaces.sh")
_SCRIPT_FOR_TREE = Path(__file__).with_name("systemd_in_tree.sh")
_SYSTEMD = Path("/lib/systemd/systemd")
_HIDDEN = ("/home", "/root", "/tmp", "/var/tmp")
"""What the unit hides. An interpreter or a clone of the repository below one of them is shown to it by a drop-in."""


def why_not() -> str | None:
    """Why there can be no systemd of our own here; None where there can."""
    if os.geteuid() != 0:
        return "namespaces with a systemd in them need root"
    missing = [name for name in ("unshare", "nsenter", "systemctl", "systemd-sysusers") if shutil.which(name) is None]
    if missing or not _SYSTEMD.exists():
        return f"{', '.join(missing) or _SYSTEMD} is not there (Debian: package systemd)"
    if _cgroups() is None:
        return "no cgroup2 is mounted here"
    return None


class SystemdMachine:
    """One machine: a systemd with an `/etc`, a `/run` and a `/var/lib` of its own, on the network of `namespace`.

    tree: a file tree of a Debian that is all the machine has in place of this one's; it is not written to.
    """

    def __init__(self, namespace: Namespace, directory: Path, tree: Path | None = None) -> None:
        self._namespace = namespace
        self._becomes = [str(_SCRIPT), str(directory)]
        if tree is not None:
            self._becomes = [str(_SCRIPT_FOR_TREE), str(directory), str(tree)]
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self._pid = 0
        self._cgroup: Path | None = None

    @property
    def root(self) -> Path:
        """Its file system, as seen from here."""
        return Path(f"/proc/{self._pid}/root")

    async def start(self) -> None:
        """Starts it; returns when it answers. Raises RuntimeError with what it said if it does not."""
        cgroups = _cgroups()
        assert cgroups is not None
        self._cgroup = cgroups / self._namespace.name
        self._cgroup.mkdir()
        output = self._directory / "systemd.log"
        join = f'echo $$ > {self._cgroup}/cgroup.procs && exec "$@"'
        with output.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                "sh", "-c", join, "sh", *self._namespace.enter,
                "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--cgroup", "--ipc", "--uts",
                *self._becomes, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            async with asyncio.timeout(60):
                while not await self._answers():
                    if self._process.returncode is not None:
                        raise RuntimeError(f"systemd does not start: {output.read_text().strip()[-500:]}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise RuntimeError(f"systemd does not answer: {output.read_text().strip()[-500:]}") from None

    async def stop(self) -> None:
        """Ends it with all that runs in it: they are one pid namespace."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._cgroup is not None:
            async with asyncio.timeout(60):
                while "populated 0" not in (self._cgroup / "cgroup.events").read_text():
                    await asyncio.sleep(0.05)
            for directory in sorted(self._cgroup.rglob("*/"), key=lambda path: len(path.parts), reverse=True):
                directory.rmdir()
            self._cgroup.rmdir()

    async def install(self, config: dict[str, Any], *unit: str) -> None:
        """Installs everything as an operator would, with this configuration and these lines in a drop-in."""
        command = Path(sys.executable).with_name("gateway-sidecar")
        await self.run(str(command), "install")
        (self.root / "etc/gateway-sidecar/gateway-sidecar.yaml").write_text(yaml.safe_dump(config))
        await self.drop_in("StandardOutput=append:/var/lib/daemon.log", "StandardError=inherit", *unit, *_shown())

    async def drop_in(self, *lines: str) -> None:
        """Adds lines to the `[Service]` section of the unit; they hold from the daemon's next start."""
        path = self.root / f"etc/systemd/system/{SERVICE}.d/test.conf"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write("\n".join(["[Service]", *lines, ""]))
        await self.systemctl("daemon-reload")

    async def systemctl(self, *words: str) -> str:
        """`systemctl WORDS`; its output. It must succeed."""
        return await self.run("systemctl", *words)

    async def run(self, *command: str) -> str:
        """A command inside; its output. It must succeed."""
        process = await asyncio.create_subprocess_exec(
            *self._enter(), *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, f"{' '.join(command)}: {output.decode()}"
        return output.decode()

    async def show(self, name: str) -> str:
        """A property of the daemon's unit."""
        return (await self.systemctl("show", "--value", "--property", name, SERVICE)).strip()

    async def pid(self) -> int:
        """The daemon's process id, as it is inside; 0 if it does not run."""
        return int(await self.show("MainPID"))

    async def status(self) -> dict[str, Any]:
        """The daemon's own status. Raises aiohttp.ClientError while it does not answer."""
        path = str(self.root / "run/gateway-sidecar/admin.sock")
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session,
            session.get("http://daemon/v1/status") as response,
        ):
            status: dict[str, Any] = json.loads(await response.text())
            return status

    def client(self) -> aiohttp.ClientSession:
        """A client on the machine's network."""
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=self._namespace.socket))

    def events(self) -> str:
        """All that the daemons wrote."""
        with suppress(FileNotFoundError):
            return (self.root / "var/lib/daemon.log").read_text()
        return ""

    async def _answers(self) -> bool:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        with suppress(OSError):
            self._pid = int((children.read_text().split() or ["0"])[0])
        if not self._pid or start_ticks(self._pid) is None or not (self.root / "run/systemd/private").exists():
            return False
        process = await asyncio.create_subprocess_exec(
            *self._enter(), "systemctl", "is-system-running",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        output, _ = await process.communicate()
        return output.decode().strip() in ("running", "degraded")

    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self._pid), "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup"]


def _cgroups() -> Path | None:
    """Where the machine's cgroup2 hierarchy is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(place)
    return None


def _shown() -> list[str]:
    """Lines of a unit that show it this interpreter and this package, wherever they are."""
    needed = {Path(sys.base_prefix), Path(sys.prefix), Path(gateway_sidecar.__file__).parents[1]}
    hidden = [path for path in needed if any(path.is_relative_to(place) for place in _HIDDEN)]
    if not hidden:
        return []
    return ["ProtectHome=tmpfs", f"BindReadOnlyPaths={' '.join(map(str, hidden))}"]
