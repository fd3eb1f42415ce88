"""Where etcd is, and how we show who we are."""

from __future__ import annotations

import re
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, PlainValidator, WithJsonSchema, field_validator, model_validator

from gateway_sidecar.config.section import Section
from gateway_sidecar.config.section import number as _number
from gateway_sidecar.config.values import NotTextError, parse_file, show

_PREFIX = r"^/[A-Za-z0-9._/-]*/$"
FileValue = Annotated[str, PlainValidator(parse_file), WithJsonSchema({"type": "string", "pattern": "^/"})]


def parse_endpoint_url(value: object) -> str:
    """`http://HOST:PORT` or `https://HOST:PORT`, without more. Raises ValueError."""
    if not isinstance(value, str):
        raise NotTextError("use http://HOST:PORT or https://HOST:PORT")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in ("http", "https") or not parts.hostname or not port or not plain:
        raise ValueError(f"{show(value)} is not the address of an etcd; use http://HOST:PORT or https://HOST:PORT")
    return f"{parts.scheme}://{parts.netloc}"


EndpointUrl = Annotated[
    str,
    PlainValidator(parse_endpoint_url),
    WithJsonSchema({"type": "string", "pattern": r"^https?://[^/?#@]+:[0-9]{1,5}/?$"}),
]


class EtcdTlsSettings(Section):
    """TLS with etcd. PEM files; changed ones are read at the next connection."""

    ca: FileValue | None = Field(
        default=None,
        description="The CA that signed etcd's certificates. By default it is any CA that this machine trusts.",
        examples=["/etc/gateway-sidecar/etcd-ca.crt"],
    )
    certificate: FileValue | None = Field(
        default=None,
        description="This gateway's certificate, for an etcd with `--client-cert-auth`.",
        examples=["/etc/gateway-sidecar/etcd.crt"],
    )
    key: FileValue | None = Field(
        default=None, description="The private key of `certificate`.", examples=["/etc/gateway-sidecar/etcd.key"]
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("`certificate` and `key` belong together; give both, or none")
        return self


class EtcdSettings(Section):
    """An etcd."""

    endpoints: Annotated[tuple[EndpointUrl, ...], Field(strict=False)] = Field(
        description="Addresses of the members' client ports. Each call tries them in turn.",
        examples=[["https://10.0.0.1:2379", "https://10.0.0.2:2379"]],
        json_schema_extra={"minItems": 1},
    )
    prefix: str = Field(
        default="/gateway-sidecar/",
        description="All keys of the gateways begin with this. Gateways with the same prefix share services.",
        examples=["/gateway-sidecar/"],
        json_schema_extra={"pattern": _PREFIX},
    )
    tls: EtcdTlsSettings = EtcdTlsSettings()
    user: str | None = Field(
        default=None,
        min_length=1,
        description="The user to log in as, if etcd has authentication on.",
        examples=["gateways"],
    )
    password_file: FileValue | None = Field(
        default=None,
        description="A file with the user's password. It is read at each login.",
        examples=["/etc/gateway-sidecar/etcd.password"],
    )
    timeout_s: float = _number(
        2.0, 0.1, 60, "If a member does not answer a call in this time, the next member is asked."
    )

    @field_validator("endpoints", mode="before")
    @classmethod
    def _some(cls, value: object) -> object:
        if value == []:
            raise ValueError("is empty; name at least one member of etcd")
        return value

    @field_validator("prefix")
    @classmethod
    def _prefix(cls, value: str) -> str:
        if not re.fullmatch(_PREFIX, value):
            raise ValueError(f"{show(value)} is not a prefix; begin and end with /, like /gateway-sidecar/")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        schemes = {urlsplit(endpoint).scheme for endpoint in self.endpoints}
        if len(schemes) > 1:
            raise ValueError("some `endpoints` are http and some https; use one for all")
        if schemes == {"http"} and self.tls != EtcdTlsSettings():
            raise ValueError("`tls` is for https, and `endpoints` say http; write https://HOST:PORT, or remove tls")
        if (self.user is None) != (self.password_file is None):
            raise ValueError("`user` and `password_file` belong together; give both, or none")
        return self
