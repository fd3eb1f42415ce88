"""Mutual TLS for the admin API: a client without a certificate of the CA in the settings gets no answer."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway_sidecar.config import AdminTlsSettings
from gateway_sidecar.errors import ConfigError

_MOST_BYTES = 1024 * 1024  # As of a certificate's file elsewhere (`frontend/x509.py`).
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Authenticated encryption with forward secrecy alone, as at frontends: no CBC."""


@dataclass(frozen=True, slots=True)
class Tls:
    """What the files say. `digest` is the same for the same files."""

    context: ssl.SSLContext
    digest: str


def read_tls(tls: AdminTlsSettings) -> Tls:
    """Reads the three files. Raises ConfigError with a line for each that cannot be used. Blocks."""
    contents: dict[str, bytes] = {}
    problems: list[str] = []
    for name, path in _files(tls):
        try:
            with path.open("rb") as file:
                contents[name] = file.read(_MOST_BYTES)
        except OSError as error:
            problems.append(
                f"admin.tls.{name}: cannot read {path}: {error.strerror}; the daemon's user must be able to"
            )
    if problems:
        raise ConfigError(problems)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)  # Those of TLS 1.3 are all of this kind.
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        # A key with a passphrase is one that nobody can type it for.
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
    except (OSError, ValueError) as error:
        problems.append(
            f"admin.tls.certificate: {tls.certificate} and the key {tls.key} cannot be used together ({error}); "
            f"use PEM files, the certificate's own first, and a key without a passphrase"
        )
    try:
        context.load_verify_locations(tls.client_ca)
    except (OSError, ValueError) as error:
        problems.append(f"admin.tls.client_ca: {tls.client_ca} holds no certificate ({error}); use a PEM file")
    if problems:
        raise ConfigError(problems)
    return Tls(context, hashlib.sha256(b"".join(hashlib.sha256(it).digest() for it in contents.values())).hexdigest())


def _files(tls: AdminTlsSettings) -> Iterator[tuple[str, Path]]:
    yield "certificate", Path(tls.certificate)
    yield "key", Path(tls.key)
    yield "client_ca", Path(tls.client_ca)
