"""A certificate and its key: what is known of a pair that can be served."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Certificate:
    """One that can be served. `pem` holds the chain and the key; times are seconds since 1970."""

    pem: bytes
    expires_at: float
    names: tuple[str, ...]

    def covers(self, name: str) -> bool:
        """Whether it is for this host name; `*.` stands for one label, as browsers have it."""
        return name.lower() in self.names or f"*.{name.lower().partition('.')[2]}" in self.names


def today() -> float:
    """Seconds since 1970. Certificates are dated by the wall clock; a clock that is wrong keeps what is served."""
    return time.time()


def read_certificate(certificate: Path, key: Path, now: float) -> Certificate:
    """Reads the pair. Raises FrontDoorError, with one line for what is wrong."""
    from gateway_sidecar.doors import pair  # Not before it is needed: what it is read with takes 8 MB.

    return Certificate(*pair.read(certificate, key, now))
