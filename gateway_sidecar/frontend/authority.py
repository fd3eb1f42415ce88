"""Certificates that a fleet makes for itself: authorities, and what they sign for one address.

Times are seconds since 1970. Keys are on the curve P-256, in PKCS #8, as SMG wants them.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway_sidecar.domain.fleet_authority import CLOCKS_APART_S, Authority


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate and its key, in PEM."""

    certificate: str
    key: str = field(repr=False)


def make_authority(now: float, lasts_s: float) -> Authority:
    """A new authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"gateway-sidecar fleet {int(now)}")])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _dated(now, now + lasts_s)
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(_pem(certificate), _pem_of_key(key), now, now + lasts_s)


def sign(authority: Authority, name: str, address: str, now: float, ends: float) -> Signed:
    """A certificate of this IP address, as a server's and as a client's. Raises ValueError for what is no authority."""
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    try:
        issuer_key = load_pem_private_key(authority.key.encode(), None)
    except (TypeError, UnsupportedAlgorithm) as error:  # It is encrypted, or of no sort that is known.
        raise ValueError(f"the authority has a key that cannot be used: {error}") from error
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise ValueError(  # noqa: TRY004 - it is the value that is wrong
            "the authority has a key of another sort than this daemon makes"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _dated(now, min(ends, authority.ends))
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .sign(issuer_key, hashes.SHA256())
    )
    return Signed(_pem(certificate), _pem_of_key(key))


def bundle_of(authorities: Iterable[Authority]) -> str:
    """Their certificates, one after the other."""
    return "".join(it.certificate for it in authorities)


def _dated(begins: float, ends: float) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(begins - CLOCKS_APART_S, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(ends, datetime.UTC))
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
