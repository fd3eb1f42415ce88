"""As whom the systemd unit starts the daemon, and with which rights: its own lines, and those of drop-ins."""

from __future__ import annotations

import grp
import subprocess
from dataclasses import replace
from pathlib import Path

from gateway_sidecar.supervision.privileges import CAP_NET_ADMIN, CAP_NET_BIND_SERVICE, User, user_called

UNIT = "gateway-sidecar.service"
_USER = "gateway-sidecar"  # Until a drop-in says otherwise.
_BOOTED = Path("/run/systemd/system")
_CAPABILITIES = {"cap_net_admin": CAP_NET_ADMIN, "cap_net_bind_service": CAP_NET_BIND_SERVICE}
"""Those that the daemon has a use for."""
_GROUPS, _AMBIENT = "SupplementaryGroups", "AmbientCapabilities"
_PROPERTIES = ("LoadState", "User", "Group", _GROUPS, _AMBIENT)
_ANSWER_S = 10.0  # A choice: `systemctl show` asks systemd over D-Bus, and `check` goes on without its answer.


def unit_user() -> User | None:
    """Whom systemd names, where it runs and has the unit, else whom `install` makes; None if there is none. Blocks."""
    said = _asked()
    why = f"as whom {UNIT} starts the daemon"
    try:
        if said is None:
            return user_called(_USER, why)
        user = user_called(said["User"] or "root", why)
        gid = _group(said["Group"]) if said["Group"] else user.gid
        groups = tuple(map(_group, said[_GROUPS].split()))
    except KeyError:
        return None  # systemd could not start it either.
    kept = frozenset(_CAPABILITIES[name] for name in said[_AMBIENT].split() if name in _CAPABILITIES)
    told = f"systemd says {_GROUPS}={said[_GROUPS]} {_AMBIENT}={said[_AMBIENT]}"
    return replace(user, gid=gid, groups=groups, capabilities=kept, told=told)


def _asked() -> dict[str, str] | None:
    """What systemd says of the unit; None where it does not run, or has no such unit."""
    if not _BOOTED.is_dir():
        return None
    command = ["systemctl", "show", f"--property={','.join(_PROPERTIES)}", UNIT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_ANSWER_S)
    except (OSError, subprocess.SubprocessError):
        return None
    said = dict.fromkeys(_PROPERTIES, "") | dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return said if said["LoadState"] == "loaded" else None


def _group(text: str) -> int:
    """Raises KeyError if there is none of that name."""
    return int(text) if text.isdecimal() else grp.getgrnam(text).gr_gid
