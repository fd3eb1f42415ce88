"""A certificate and its key: read, and proved to work together before nginx sees them."""

from __future__ import annotations

import itertools
import os
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from gateway_sidecar.config.text_file import read_file
from gateway_sidecar.domain.trust import OTHERS, OTHERS_WRITE
from gateway_sidecar.errors import ConfigError, FrontendError
from gateway_sidecar.frontend.certificate import shown_at

_MOST_BYTES = 1024 * 1024  # A choice: a chain has some KB, and Debian's bundle of all authorities 220 KB.


Fields = tuple[bytes, float, float, float, tuple[str, ...]]
"""What `Certificate` says."""
_Where = Path | str
"""A file, or in words what it was given as."""


def read(certificate: Path, key: Path, now: float) -> Fields:
    """Two files, or one that holds both. Raises FrontendError."""
    return prove(_read(certificate), _read(key, secret=True), certificate, key, now)


def prove(chain_text: bytes, key_text: bytes, certificate: _Where, key: _Where, now: float) -> Fields:
    """What was read there. Raises FrontendError."""
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
    pem = chain_text if chain_text == key_text else chain_text.rstrip() + b"\n" + key_text
    _try_out(certificate, pem)
    return pem, begins, ends, min(ends, chain[:2][-1].not_valid_after_utc.timestamp()), _names(first)


def break_in(pem: bytes) -> str:
    """Which certificate of a chain did not sign the one before it; empty if each did."""
    chain = x509.load_pem_x509_certificates(pem)
    for place, (signed, signer) in enumerate(itertools.pairwise(chain), start=2):
        try:
            signed.verify_directly_issued_by(signer)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            return f"certificate {place} did not sign the one before it; put each issuer's after what it signed"
    return ""


def validity_in(pem: bytes) -> tuple[float, float] | None:
    """From when to when the first certificate is good; None if there is none."""
    try:
        first = x509.load_pem_x509_certificate(pem)
    except ValueError:
        return None
    return first.not_valid_before_utc.timestamp(), first.not_valid_after_utc.timestamp()


def read_authorities(path: Path, now: float) -> tuple[bytes, int]:
    """The certificates of a bundle, in PEM and nothing else, and how many. Raises FrontendError."""
    text = _read(path, decides=True)
    try:
        found = list(dict.fromkeys(x509.load_pem_x509_certificates(text)))
    except ValueError:
        raise _bad(path, "holds no certificate in PEM; put the authorities' there, from -----BEGIN on") from None
    last = max(each.not_valid_after_utc.timestamp() for each in found)
    if now >= last:
        raise _bad(path, f"expired at {shown_at(last)}, and no client's certificate would count; renew it")
    # As it was read here: nginx would also take in what stands beside certificates (TRUSTED CERTIFICATE, CRLs).
    pem = b"".join(each.public_bytes(Encoding.PEM) for each in found)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=pem.decode())
    except ssl.SSLError as error:
        raise _bad(path, f"is refused by OpenSSL ({error.reason or error}); make a new one") from None
    return pem, len(found)


def names_in(pem: bytes) -> tuple[str, ...]:
    """The host names of the first certificate; none if there is none."""
    try:
        return _names(x509.load_pem_x509_certificate(pem))
    except ValueError:
        return ()


def _read(path: Path, *, secret: bool = False, decides: bool = False) -> bytes:
    try:
        file = read_file(path, _MOST_BYTES)
    except ConfigError as error:
        raise FrontendError([line.replace(", or name another with --config", "") for line in error.problems]) from None
    if secret and file.mode & OTHERS:
        raise _bad(path, f"others may read or change it (mode {file.mode:04o}); use chmod 0600 or 0640")
    if decides and file.mode & OTHERS_WRITE:
        raise _bad(path, f"others may change it, and so let anybody in (mode {file.mode:04o}); use chmod 0644 or 0640")
    if decides and file.owner not in (0, os.geteuid()):
        raise _bad(path, f"belongs to user {file.owner}; it must be root's or the daemon's (user {os.geteuid()})")
    return file.content


def _private_key(path: _Where, text: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(text, password=None)
    except TypeError:
        raise _bad(path, "has a passphrase, which the daemon cannot type; remove it (openssl pkey)") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _bad(path, "holds no private key in PEM that can be used; put the certificate's own there") from None


def _public(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _try_out(path: _Where, pem: bytes) -> None:
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


def _bad(path: _Where, text: str) -> FrontendError:
    return FrontendError([f"{path}: {text}"])
