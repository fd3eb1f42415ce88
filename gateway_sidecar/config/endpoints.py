"""`services[].endpoints`: files that tell routers which somebody else runs of a service's replicas."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema, model_validator

from gateway_sidecar.config.section import Section
from gateway_sidecar.config.section import number as _number
from gateway_sidecar.config.values import parse_bridge_host, parse_file, show

_MODE = r"^0[0-7]{3}$"


def _mode(value: str) -> str:
    if not re.fullmatch(_MODE, value) or int(value, 8) & 0o022:
        raise ValueError(
            f"{show(value)} is not a mode that keeps others from writing; use one such as '0644' or '0640'"
        )
    return value


class EndpointsSettings(Section):
    """One file of the service's replicas over HTTP, for a router that the daemon does not run."""

    path: Annotated[str, PlainValidator(parse_file), WithJsonSchema({"type": "string", "pattern": "^/"})] = Field(
        description="The file's path. The file is replaced as a whole when something changes. Its directory must"
        " exist, and only the daemon's user may write there.",
        examples=["/var/lib/gateway-sidecar-endpoints/chat.json"],
    )
    format: Literal["json", "llm-d", "production-stack", "envoy"] = Field(
        default="json",
        description="Who reads the file: llm-d's endpoint picker (`file-discovery`), vLLM production-stack"
        " (`--dynamic-config-json`), Envoy (EDS by `path_config_source`), or any program (`json`).",
    )
    host: Annotated[str, PlainValidator(parse_bridge_host), WithJsonSchema({"type": "string"})] | None = Field(
        default=None,
        description="The IP address at which the router reaches this machine's bridges. By default it is"
        " `bridges.host`, or the address that a replica is advertised under.",
        examples=["10.0.0.5"],
    )
    read_within_s: float = _number(
        15.0,
        0,
        600,
        "The router reads a changed file within this time. A replica that is no longer in the file counts as out of"
        " rotation only then. Envoy and llm-d need a second; production-stack looks every 10 s.",
    )
    mode: Annotated[str, AfterValidator(_mode), WithJsonSchema({"type": "string", "pattern": _MODE})] = Field(
        default="0644", description="The file's mode. Its owner is the daemon's user."
    )
    group: str | None = Field(default=None, description="The file's group. The daemon's user must be a member.")
    fields: dict[str, str] = Field(
        default={},
        description="Further fields at the top of the document, or other values for its fields.",
        examples=[{"routing_logic": "session", "session_key": "x-user-id"}],
    )

    @model_validator(mode="after")
    def _address_of_llm_d(self) -> Self:
        if self.format == "llm-d" and self.host is not None and ipaddress.ip_address(self.host).version != 4:
            raise ValueError(f"llm-d knows IPv4 addresses only, and host is {self.host}; use an IPv4 address")
        return self
