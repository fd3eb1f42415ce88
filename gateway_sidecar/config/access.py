"""How an engine is reached and asked for its health: the same settings for a service and for one replica."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

from gateway_sidecar.config.frontend_values import parse_prefix
from gateway_sidecar.config.section import Section
from gateway_sidecar.config.values import show
from gateway_sidecar.domain.model import Access

_PATH = r"^/[!-~]*$"
_VERSION = re.compile(r"/v[0-9]+[a-z0-9]*$")


def _path(value: str) -> str:
    if not re.fullmatch(_PATH, value) or "#" in value:
        raise ValueError(f"{show(value)} is not a path that can be asked for; use one such as /healthz")
    return value


def _prefix(value: str) -> str:
    """Where the API is, in place of `/v1`."""
    prefix = parse_prefix(value)
    return prefix if _VERSION.search(prefix) else f"{prefix}/v1"


_PathValue = Annotated[str, AfterValidator(_path), WithJsonSchema({"type": "string", "pattern": _PATH})]
_PrefixValue = Annotated[str, AfterValidator(_prefix), WithJsonSchema({"type": "string", "pattern": "^/"})]


class AccessSection(Section):
    """How an engine is reached and asked for its health, where its own answers do not show it."""

    path: _PathValue | None = Field(
        default=None,
        description="The page that says whether the engine is well. By default it is `/health` or, if the engine has"
        " none (Ollama, LM Studio), its model list.",
        examples=["/healthz"],
    )
    expect: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="A text that the body of that page must contain. By default a body that says otherwise, such as"
        " `unhealthy`, `loading` or `down`, counts as ill, whatever its status is.",
        examples=["ready"],
    )
    prefix: _PrefixValue | None = Field(
        default=None,
        description="The path of the engine's API. `/openai` stands before `/v1`; a prefix that ends in a version,"
        " such as `/v3`, stands in its place. Clients and the router still use `/v1`.",
        examples=["/v3", "/openai"],
    )
    tls: bool | None = Field(
        default=None,
        description="Whether the engine speaks TLS. Its certificate is not checked, because whatever is behind the"
        " replica's socket is trusted already.",
        examples=[True],
    )

    def access(self) -> Access:
        """The same as a value."""
        return Access(self.path, self.expect, self.prefix, self.tls)
