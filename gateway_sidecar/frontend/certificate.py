"""Certificates with their keys: what is known of those that can be served."""

from __future__ import annotations

import datetime
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Certificate:
    """One that can be served. `pem` holds the chain and the key; times are seconds since 1970.

    issuer_expires_at: when the certificate after it in the chain expires; its own end where there is none.
    """

    pem: bytes
    begins_at: float
    expires_at: float
    issuer_expires_at: float
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


def shown_at(at: float) -> str:
    """For people, to the minute."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def read_certificate(certificate: Path, key: Path, now: float) -> Certificate:
    """Reads the certificates. Raises FrontendError, with one line for what is wrong. One file may hold both."""
    from gateway_sidecar.frontend import x509  # Not before it is needed: what it is read with takes 8 MB.

    return Certificate(*x509.read(certificate, key, now))


def prove_certificate(pem: bytes, now: float) -> Certificate:
    """One PEM that holds both, and comes from no file. Raises FrontendError as `read_certificate`."""
    from gateway_sidecar.frontend import x509  # As above.

    return Certificate(*x509.prove(pem, pem, "the certificate", "the key", now))


def break_in(pem: bytes) -> str:
    """What is wrong with the order of a chain that can be read; empty if nothing is."""
    from gateway_sidecar.frontend import x509  # As above.

    return x509.break_in(pem)


def read_client_ca(path: Path, now: float) -> tuple[bytes, int]:
    """Certificates of authorities, in PEM, and how many. Raises FrontendError, with one line for what is wrong."""
    from gateway_sidecar.frontend import x509  # As above.

    return x509.read_authorities(path, now)


def names_in(pem: bytes) -> tuple[str, ...]:
    """The host names of a certificate that was served before; none if it cannot be read."""
    from gateway_sidecar.frontend import x509  # As above.

    return x509.names_in(pem)


def validity_in(pem: bytes) -> tuple[float, float] | None:
    """From when to when the first certificate is good, in seconds since 1970; None if there is none."""
    from gateway_sidecar.frontend import x509  # As above.

    return x509.validity_in(pem)
