"""Notifies systemd: ready, reloading, stopping, one line of status, and the loops' progress."""

from __future__ import annotations

import os
import socket
import time

_SPARE_S = 15.0  # A choice: for what follows the drain, which is to end routers and nginx within seconds.


class SystemdNotifier:
    """The sd_notify protocol; does nothing where systemd did not ask for it."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        asked = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(microseconds) / 1e6 if microseconds.isdigit() and asked else None

    def ready(self) -> None:
        """The daemon does its job."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A new configuration is being taken in; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, *, within_s: float) -> None:
        """The daemon is on its way out; it may take so long, and a little."""
        extension = f"\nEXTEND_TIMEOUT_USEC={int((within_s + _SPARE_S) * 1e6)}" if within_s else ""
        self._send(f"STOPPING=1{extension}")

    def status(self, line: str) -> None:
        """The line that `systemctl status` shows."""
        self._send(f"STATUS={line}")

    def alive(self) -> None:
        """Pets the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.sendto(message.encode(), self._address)
        except OSError:
            return  # systemd itself is restarting, and asks again; or no descriptor is left, and it may start us anew.
