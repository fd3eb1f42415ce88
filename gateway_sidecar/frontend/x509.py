"""A certificate and its key: read, and proved to work together before nginx sees them."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from gateway_sidecar.config.text_file import read_file
from gateway_sidecar.errors import ConfigError, FrontendError
from gateway_sidecar.frontend.certificate import shown_at

_MOST_BYTES = 1024 * 1024
_OTHERS = 0o007


def read(certificate: Path, key: Path, now: float) -> tuple[bytes, float, float, float, tuple[str, ...]]:
    """What `Certificate` says of a pair. Raises FrontendError."""
    chain_text, key_text = _read(certificate), _read(key, secret=True)
    try:
        chain = x509.load_pem_x509_certificates(chain_text)
    except ValueError:
        raise _bad(certificate, "holds no certificate in PEM; put the chain there, from -----BEGIN on") from None
    first = chain[0]
    theirs = [each.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for each in chain]
    if (ours := _public(_private_key(key, key_text))) != theirs[0]:
        if ours in theirs:
            place = theirs.index(ours) + 1
            raise _bad(
                certificate, f"has the key's own certificate in place {place}; put it first, its issuer's after it"
            )
        raise _bad(key, f"is not the key of {certificate}; put the two that belong together there")
    begins, ends = first.not_valid_before_utc.timestamp(), first.not_valid_after_utc.timestamp()
    if now >= ends:
        raise _bad(certificate, f"expired at {shown_at(ends)}; renew it")
    if now < begins:
        raise _bad(certificate, f"is not valid before {shown_at(begins)}; check this machine's clock")
    pem = chain_text if certificate == key else chain_text.rstrip() + b"\n" + key_text
    _try_out(certificate, pem)
    return pem, begins, ends, min(ends, chain[:2][-1].not_valid_after_utc.timestamp()), _names(first)


def validity_in(pem: bytes) -> tuple[float, float] | None:
    """From when to when the first certificate is good; None if there is none."""
    try:
        first = x509.load_pem_x509_certificate(pem)
    except ValueError:
        return None
    return first.not_valid_before_utc.timestamp(), first.not_valid_after_utc.timestamp()


def names_in(pem: bytes) -> tuple[str, ...]:
    """The host names of the first certificate; none if there is none."""
    try:
        return _names(x509.load_pem_x509_certificate(pem))
    except ValueError:
        return ()


def _read(path: Path, *, secret: bool = False) -> bytes:
    try:
        file = read_file(path, _MOST_BYTES)
    except ConfigError as error:
        raise FrontendError([line.replace(", or name another with --config", "") for line in error.problems]) from None
    if secret and file.mode & _OTHERS:
        raise _bad(path, f"others may read or change it (mode {file.mode:04o}); use chmod 0600 or 0640")
    return file.content


def _private_key(path: Path, text: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(text, password=None)
    except TypeError:
        raise _bad(path, "has a passphrase, which the daemon cannot type; remove it (openssl pkey)") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _bad(path, "holds no private key in PEM that can be used; put the certificate's own there") from None


def _public(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _try_out(path: Path, pem: bytes) -> None:
    """Has OpenSSL take it: what a small key or a broken chain is refused for, it says here and not to clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    descriptor = os.memfd_create("certificate")  # In memory: the key is written to no other disk.
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except ssl.SSLError as error:
        raise _bad(path, f"is refused by OpenSSL ({error.reason or error}); make a new one") from None
    finally:
        os.close(descriptor)


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))


def _bad(path: Path, text: str) -> FrontendError:
    return FrontendError([f"{path}: {text}"])
