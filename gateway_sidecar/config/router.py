"""The settings of a service's router: those that every kind has, and the way to those of the kind that is named.

A kind (`kinds.ROUTERS`) brings a model that extends `RouterSettings`. Kinds are looked for when a router's settings are
read, so that their own modules may import this one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from gateway_sidecar.config.section import Section
from gateway_sidecar.config.section import number as _number
from gateway_sidecar.config.values import parse_command, show
from gateway_sidecar.domain.similar import did_you_mean
from gateway_sidecar.kinds import ROUTERS

CommandValue = Annotated[
    str,
    PlainValidator(parse_command),
    WithJsonSchema({"type": "string", "pattern": r"^(/.+|[^-/\s][^/\s]*)$"}),
]


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL character, which ends a text to the kernel; leave it out")
    return value


EnvironmentValue = Annotated[str, AfterValidator(_without_nul)]


class RouterSettings(Section):
    """What every kind of router has.

    A kind's own settings extend it: its name as the one `type`, a default for `command`, what else it takes.
    """

    type: str
    command: CommandValue
    env: dict[str, EnvironmentValue] = Field(
        default={},
        repr=False,
        description="Environment variables for the router, added to the daemon's own. A proxy that they name"
        " (`https_proxy`) is used for host names only. Addresses are never asked through a proxy, so workers are asked"
        " directly.",
        examples=[{"HF_HOME": "/var/cache/huggingface"}],
    )
    retire_timeout_s: float = _number(
        600.0,
        0,
        86400,
        "A router that was replaced may finish its requests for this long. Then the router is ended and its remaining"
        " requests are cut off.",
    )
    start_timeout_s: float = _number(
        30.0, 1, 600, "A router that does not answer within this time after its start is stopped and started again."
    )
    api_timeout_s: float = _number(
        5.0, 0.1, 60, "If the router's API takes longer than this, that counts as no answer."
    )
    memory_limit_mb: Literal["auto"] | int | None = Field(
        default="auto",
        description="A router whose resident memory grows beyond this many MiB is replaced by a new one, without"
        " failing a request. `auto` is a quarter of the memory of the machine, or of the unit's MemoryMax, and at"
        " least 512. `null` sets no limit.",
        json_schema_extra={
            "anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 16, "maximum": 1048576}, {"type": "null"}]
        },
    )

    @field_validator("memory_limit_mb", mode="before")
    @classmethod
    def _memory(cls, value: object) -> object:
        is_size = isinstance(value, int) and not isinstance(value, bool) and 16 <= value <= 1048576
        if value in ("auto", None) or is_size:
            return value
        raise ValueError(f"{show(value)} is not a limit in MiB; use 16 to 1048576, auto, or null for none")

    @field_validator("env")
    @classmethod
    def _env(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not name or "=" in name or "\0" in name:
                raise ValueError(f"{show(name)} is not a variable's name; use one without = and NUL")
        return value


class OfItsKind:
    """Annotates a field whose model is that of the kind that its value names."""

    def models(self) -> Iterable[type[RouterSettings]]:
        """The models of all kinds."""
        return [kind.settings for kind in ROUTERS]

    def model_for(self, value: object) -> type[RouterSettings]:
        """The model that explains this value: that of its kind, or what all have."""
        kind = ROUTERS.named_in(value)
        return RouterSettings if kind is None else kind.settings

    def read(self, value: object) -> RouterSettings:
        """The settings. Raises ValidationError, each part of it at its place."""
        if isinstance(value, RouterSettings):
            return value
        kind = ROUTERS.named_in(value)
        if kind is None:
            assert isinstance(value, dict)
            raise _unknown(value["type"])
        settings: RouterSettings = kind.settings.model_validate(value)
        return settings

    def __get_pydantic_core_schema__(self, _source: object, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schemas = [handler(model.__pydantic_core_schema__) for model in self.models()]
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


RouterValue = Annotated[RouterSettings, OfItsKind()]


def default_router() -> RouterSettings:
    """The settings of a service that says nothing of its router."""
    return OfItsKind().read({})


def _unknown(name: str) -> ValidationError:
    names = list(ROUTERS.by_name)
    meant = did_you_mean(name, names)
    text = f"{show(name)} is not one of the choices{meant and f' ({meant})'}; use {' or '.join(names)}"
    why = PydanticCustomError("value_error", "{error}", {"error": ValueError(text)})
    return ValidationError.from_exception_data("router", [InitErrorDetails(type=why, loc=("type",), input=name)])
