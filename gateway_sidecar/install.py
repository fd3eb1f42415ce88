"""Puts the systemd unit, the user, the directories and an example configuration in place, and takes them away.

Both ways are idempotent and say each thing that they did or left alone. What an operator wrote is never
overwritten or removed. Nothing is started: enabling the unit is the operator's decision.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path

from gateway_sidecar.config import load_usable
from gateway_sidecar.errors import ConfigError, InstallError, NginxError
from gateway_sidecar.files.mounts import HIDDEN_BY_UNIT
from gateway_sidecar.files.replace import replace_file
from gateway_sidecar.nginx.addresses import ClaimRules, PeerAddresses

UNIT = Path("etc/systemd/system/gateway-sidecar.service")
PEERS = Path("etc/systemd/system/gateway-sidecar.service.d/peers.conf")
SYSUSERS = Path("etc/sysusers.d/gateway-sidecar.conf")
TMPFILES = Path("etc/tmpfiles.d/gateway-sidecar.conf")
CONFIG = Path("etc/gateway-sidecar/gateway-sidecar.yaml")
ENVIRONMENT = Path("etc/default/gateway-sidecar")
OF_PACKAGE = Path("usr/lib/systemd/system/gateway-sidecar.service")
"""Where a package of the distribution has the unit."""

Run = Callable[[Sequence[str]], str | None]
"""Runs a command; None where it went well, else the reason why not."""

_SERVICE = "gateway-sidecar.service"
_COMMAND_IN_UNIT = "/usr/bin/env gateway-sidecar"
_PLAIN = re.compile(r"[A-Za-z0-9/._+@:-]+")


class Did(StrEnum):
    """What became of one thing."""

    CREATED = "created"
    UPDATED = "updated"
    REMOVED = "removed"
    UNCHANGED = "unchanged"
    KEPT = "kept"
    RAN = "ran"
    FAILED = "failed"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing done or left alone; `why` is empty where it goes without saying."""

    did: Did
    what: str
    why: str = ""

    @property
    def failed(self) -> bool:
        """Whether somebody has to do this by hand."""
        return self.did is Did.FAILED

    def __str__(self) -> str:
        return f"{self.did:<9}  {self.what}" + (f"  ({self.why})" if self.why else "")


def install(
    root: Path = Path("/"),
    *,
    command: Sequence[str] | None = None,
    peers: bool = False,
    dry_run: bool = False,
    run: Run | None = None,
) -> Iterator[Step]:
    """Put everything in place below `root`; with `dry_run` only say what would be done.

    `peers` adds the privilege that replicas with `advertise` need. `command` starts this program (default: the one
    that belongs to this Python). `run` starts the system's own tools; by default they are started only for the running
    system, as they act on no other. Raises InstallError.
    """
    command = list(command or own_command())
    place = _Place(root, dry_run, run or (_run if root == Path("/") else None))
    if (root / OF_PACKAGE).exists():
        yield Step(Did.KEPT, f"/{OF_PACKAGE}", "the Debian package has installed the unit and its files")
        if peers:
            yield place.write(PEERS, _shipped("systemd/peers.conf"), 0o644)
            yield from place.systemctl("daemon-reload")
        return
    yield place.write(UNIT, unit_text(command), 0o644)
    if peers:
        yield place.write(PEERS, _shipped("systemd/peers.conf"), 0o644)
    yield place.write(SYSUSERS, _shipped("systemd/gateway-sidecar.sysusers"), 0o644)
    yield place.write(TMPFILES, _shipped("systemd/gateway-sidecar.tmpfiles"), 0o644)
    yield place.directory(CONFIG.parent)
    yield place.write_once(CONFIG, _shipped("gateway-sidecar.yaml"), 0o640)
    yield place.write_once(ENVIRONMENT, _shipped("systemd/gateway-sidecar.default"), 0o644)
    yield from place.tool("systemd-sysusers", str(Path("/") / SYSUSERS), why="user and groups")
    yield from place.tool("systemd-tmpfiles", "--create", str(Path("/") / TMPFILES), why="directories and modes")
    yield from place.systemctl("daemon-reload")
    for program in dict.fromkeys([command[0], os.path.realpath(command[0]), os.path.realpath(sys.executable)]):
        if reason := _unreachable(Path(program)):
            cure = "install into a place such as /opt/gateway-sidecar, and from there again"
            yield Step(Did.NOTE, f"the daemon's user cannot run {program}", f"{reason}; {cure}")
    yield Step(Did.NOTE, f"next: edit /{CONFIG}; gateway-sidecar check --config /{CONFIG};")
    yield Step(Did.NOTE, "      systemctl enable --now gateway-sidecar")


def uninstall(root: Path = Path("/"), *, dry_run: bool = False, run: Run | None = None) -> Iterator[Step]:
    """Stop the daemon and all that it started, and remove what `install` wrote; raises InstallError.

    The configuration, the state and the user stay: they may be wanted again, and files may belong to the user.
    """
    place = _Place(root, dry_run, run or (_run if root == Path("/") else None))
    if (root / OF_PACKAGE).exists():
        raise InstallError(f"/{OF_PACKAGE} is of the Debian package; apt remove gateway-sidecar, or apt purge for all")
    if (root / UNIT).exists():
        # In this order: what the daemon started lives on without it, and would be started again with it.
        yield from place.systemctl("stop", _SERVICE)
        for step in place.systemctl("kill", "--kill-whom=all", _SERVICE):
            nothing_left = step.did is Did.FAILED and "not loaded" in step.why
            yield Step(Did.UNCHANGED, step.what, "nothing is left running") if nothing_left else step
        yield from place.systemctl("disable", _SERVICE)
    if root == Path("/"):
        yield from _give_addresses_back(root / CONFIG, dry_run=dry_run)
    for path in (UNIT, SYSUSERS, TMPFILES):
        yield place.remove(path)
    if (root / PEERS).exists():
        yield place.remove(PEERS)
    yield from place.systemctl("daemon-reload")
    for kept in (CONFIG, ENVIRONMENT, Path("var/lib/gateway-sidecar")):
        if (root / kept).exists():
            yield Step(Did.KEPT, f"/{kept}", "remove it by hand if it is not wanted again")


def _give_addresses_back(config: Path, *, dry_run: bool) -> Iterator[Step]:
    """The addresses of replicas that the daemon made this machine's own."""
    try:
        settings = load_usable(config)
        addresses = PeerAddresses(ClaimRules(settings.peers.interface, (), settings.run_dir))
        held = addresses.held()
        what = f"{', '.join(sorted(map(str, held)))} on {settings.peers.interface}"
        if held and not dry_run:
            addresses.keep_only(frozenset())
        if held:
            yield Step(Did.REMOVED, what, "dry run: not done" if dry_run else "")
    except ConfigError:
        return  # Without the file there is no telling which interface it was.
    except NginxError as error:
        yield Step(Did.NOTE, "addresses of replicas were left alone", str(error))


def own_command() -> list[str]:
    """The command that starts this installation, independent of PATH."""
    script = Path(sys.executable).parent / "gateway-sidecar"
    return [str(script)] if script.exists() else [sys.executable, "-m", "gateway_sidecar"]


def unit_text(command: Sequence[str]) -> str:
    """The unit, started by this command. Raises InstallError."""
    if not command[0].startswith("/") or not all(_PLAIN.fullmatch(part) for part in command):
        raise InstallError(
            f"{' '.join(command)!r} cannot stand in a systemd unit; it must be an absolute path of letters,"
            " digits and . _ + @ : - only: install into such a directory"
        )
    return _shipped("systemd/gateway-sidecar.service").replace(_COMMAND_IN_UNIT, " ".join(command))


@dataclass(frozen=True, slots=True)
class _Place:
    """The file tree that is written to, and the tools that may be run for it."""

    root: Path
    dry_run: bool
    run: Run | None

    def write(self, path: Path, text: str, mode: int) -> Step:
        target = self.root / path
        try:
            same = target.read_text() == text
            did = Did.UNCHANGED if same else Did.UPDATED
        except FileNotFoundError:
            did = Did.CREATED
        except (OSError, UnicodeDecodeError) as error:
            raise InstallError(f"{target}: cannot be read: {error}; check it, then move it away") from error
        if did is not Did.UNCHANGED and target.is_symlink():
            # It may be somebody's own copy, or /dev/null, by which systemd knows a masked unit.
            raise InstallError(f"{target}: is a symlink to {target.readlink()}; remove it, then install again")
        if did is not Did.UNCHANGED and not self.dry_run:
            _replace(target, text, mode)
        return self._step(did, path)

    def write_once(self, path: Path, text: str, mode: int) -> Step:
        if (self.root / path).exists():
            return Step(Did.KEPT, f"/{path}", "it is yours")
        return self.write(path, text, mode)

    def directory(self, path: Path) -> Step:
        target = self.root / path
        if target.is_dir():
            return Step(Did.UNCHANGED, f"/{path}/")
        if not self.dry_run:
            _make_directory(target)
        return self._step(Did.CREATED, path, slash="/")

    def remove(self, path: Path) -> Step:
        target = self.root / path
        if not target.exists():
            return Step(Did.UNCHANGED, f"/{path}", "is not there")
        if not self.dry_run:
            try:
                target.unlink()
            except OSError as error:
                raise _refused(target, error) from error
        return self._step(Did.REMOVED, path)

    def systemctl(self, *arguments: str) -> Iterator[Step]:
        """systemctl, where systemd runs the machine; elsewhere there is nothing to tell."""
        if (self.root / "run/systemd/system").is_dir():
            yield from self.tool("systemctl", *arguments)

    def tool(self, *command: str, why: str = "") -> Iterator[Step]:
        line = " ".join(command)
        if self.run is None:
            yield Step(Did.NOTE, f"not run: {line}", "acts on the running system only; the next boot does this")
        elif self.dry_run:
            yield Step(Did.NOTE, f"would run: {line}", why)
        elif reason := self.run(command):
            yield Step(Did.FAILED, line, reason)
        else:
            yield Step(Did.RAN, line, why)

    def _step(self, did: Did, path: Path, slash: str = "") -> Step:
        return Step(did, f"/{path}{slash}", "dry run: not done" if self.dry_run else "")


def _shipped(name: str) -> str:
    return files("gateway_sidecar").joinpath("share", name).read_text(encoding="utf-8")


def _make_directory(path: Path) -> None:
    """Open to all, independent of the umask: the daemon's user must pass."""
    for missing in reversed([part for part in (path, *path.parents) if not part.exists()]):
        try:
            missing.mkdir()
            missing.chmod(0o755)
        except OSError as error:
            raise _refused(missing, error) from error


def _replace(target: Path, text: str, mode: int) -> None:
    """Leaves all of the new content or all of the old, even after a crash."""
    _make_directory(target.parent)
    try:
        replace_file(target, text, mode)
    except OSError as error:
        raise _refused(target, error) from error


def _refused(path: Path, error: OSError) -> InstallError:
    cure = "run it as root" if isinstance(error, PermissionError) else "see what is there"
    return InstallError(f"{path}: {error.strerror}; {cure}")


def _run(command: Sequence[str]) -> str | None:
    program = shutil.which(command[0])
    if program is None:
        return f"{command[0]} is not on this machine; do its work by hand"
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def _unreachable(program: Path) -> str | None:
    """Why the daemon's user, inside the unit's sandbox, cannot run this program; None if it can."""
    for directory in reversed(program.parents):
        if str(directory) in HIDDEN_BY_UNIT:
            return f"the unit hides {directory}"
        try:
            mode = directory.stat().st_mode
        except OSError as error:
            return f"{directory}: {error.strerror}"
        if not mode & 0o001:
            return f"{directory} is closed to other users, mode {mode & 0o7777:04o}"
    return None
