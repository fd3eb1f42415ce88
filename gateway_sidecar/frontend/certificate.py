"""A certificate and its key: what is known of a pair that can be served."""

from __future__ import annotations

import time
from collections.abc import Collection
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
        return covers(self.names, name)


def covers(names: Collection[str], name: str) -> bool:
    """Whether a certificate with these names is for this host name."""
    return name.lower() in names or f"*.{name.lower().partition('.')[2]}" in names


def today() -> float:
    """Seconds since 1970. Certificates are dated by the wall clock; a clock that is wrong keeps what is served."""
    return time.time()


def read_certificate(certificate: Path, key: Path, now: float) -> Certificate:
    """Reads the certificates. Raises FrontendError, with one line for what is wrong."""
    from gateway_sidecar.frontend import x509  # Not before it is needed: what it is read with takes 8 MB.

    return Certificate(*x509.read(certificate, key, now))


def names_in(pem: bytes) -> tuple[str, ...]:
    """The host names of a certificate that was served before; none if it cannot be read."""
    from gateway_sidecar.frontend import x509  # As above.

    return x509.names_in(pem)
