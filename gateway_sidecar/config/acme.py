"""The settings of the account at an ACME server, which issues certificates for `frontend.tls.acme`."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, PlainValidator, WithJsonSchema, field_validator

from gateway_sidecar.config.frontend import FileValue
from gateway_sidecar.config.section import Section
from gateway_sidecar.config.values import NotTextError, show


def parse_directory_url(value: object) -> str:
    """An `https` URL without a user, a query or a fragment."""
    cure = "use the URL that the certificate authority names, such as https://acme-v02.api.letsencrypt.org/directory"
    if not isinstance(value, str):
        raise NotTextError(cure)
    try:
        parts = urlsplit(value)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.scheme != "https" or re.search(r"[\s?#@\x00-\x20\x7f]", value):
        raise ValueError(f"{show(value)} is not the https URL of an ACME directory; {cure}")
    return value


def _parse_email(value: object) -> str:
    cure = "use one address such as ops@example.com"
    if not isinstance(value, str):
        raise NotTextError(cure)
    if not re.fullmatch(r"[!-+\--?A-~]+@[!-+\--?A-~]+", value):
        raise ValueError(f"{show(value)} is not an address for mail; {cure}")
    return value


DirectoryUrlValue = Annotated[
    str, PlainValidator(parse_directory_url), WithJsonSchema({"type": "string", "pattern": r"^https://[^\s?#@]+$"})
]
EmailValue = Annotated[
    str, PlainValidator(_parse_email), WithJsonSchema({"type": "string", "pattern": r"^[^\s@,]+@[^\s@,]+$"})
]


class EabSettings(Section):
    """External account binding: a key by which the certificate authority knows whose account is made."""

    key_id: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[!-~]+$")] = Field(
        description="The name of the account's key, as the certificate authority gave it.", examples=["kid-1"]
    )
    hmac_key_file: FileValue = Field(
        description="A file with the HMAC key in base64url, as the certificate authority gave it. Others must not be"
        " able to read the file. The daemon reads it only while it makes an account.",
        examples=["/etc/gateway-sidecar/acme.hmac"],
    )


class AcmeSettings(Section):
    """The ACME server that issues the certificates of frontends with `tls: {acme: true}`, and the account there."""

    directory: DirectoryUrlValue = Field(
        description="The URL of the ACME server's directory.",
        examples=["https://acme-v02.api.letsencrypt.org/directory"],
    )
    accept_terms: bool = Field(
        description="Must be `true`: the operator accepts the terms of service of the certificate authority.",
        examples=[True],
    )
    email: EmailValue | None = Field(
        default=None,
        description="The address to which the certificate authority may write about the account.",
        examples=["ops@example.com"],
    )
    ca_file: FileValue | None = Field(
        default=None,
        description="CA certificates, in PEM, that vouch for the ACME server itself. `null` means the public ones.",
        examples=["/etc/gateway-sidecar/acme-ca.pem"],
    )
    eab: EabSettings | None = Field(
        default=None, description="External account binding, for certificate authorities that require it."
    )

    @field_validator("accept_terms")
    @classmethod
    def _accepted(cls, value: bool) -> bool:
        if not value:
            raise ValueError(
                "is false, and the daemon makes an account only if it is true; read the certificate authority's terms"
                " of service, then set it to true"
            )
        return value
