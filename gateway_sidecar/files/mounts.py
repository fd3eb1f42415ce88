"""What systemd has put over a directory for one unit alone: there, nothing that others have placed is seen."""

from __future__ import annotations

from pathlib import Path

UNIT = Path("/etc/systemd/system/gateway-sidecar.service")
HIDDEN_BY_UNIT = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""What the unit that `install` writes hides from the daemon (PrivateTmp, ProtectHome)."""

_OWN = {"systemd-private-": "PrivateTmp", "/systemd/inaccessible/": "ProtectHome or InaccessiblePaths"}


def why_hidden(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Why this process sees a directory of its own there, with the cure; None where it sees everybody's. Blocks."""
    above = {str(directory), *map(str, directory.parents)}
    try:
        rows = [line.split(" ", 5)[3:5] for line in mounts.read_text("utf-8", "replace").splitlines()]
    except OSError:
        return None
    covering = [(root, point) for root, point in rows if point in above]
    root, point = max(covering, key=lambda row: len(row[1]), default=("/", "/"))
    setting = next((setting for mark, setting in _OWN.items() if mark in root), None)
    if setting is None:
        return None
    return (
        f"the daemon's unit hides {point} ({setting}): sockets that others place in {directory} are not there for the"
        " daemon; place them below /run, or change that setting of the unit (systemctl edit gateway-sidecar)"
    )
