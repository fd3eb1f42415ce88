"""The settings of the store that several gateways share.

Kinds (`kinds.STORES`) are looked for only when a store's settings are read: a gateway without one imports none.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, Self

from pydantic import (
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from gateway_sidecar.config.router import OfItsKind
from gateway_sidecar.config.section import Section
from gateway_sidecar.config.section import number as _number
from gateway_sidecar.config.values import NAME_PATTERN, parse_name, parse_own_address
from gateway_sidecar.kinds import STORES

GatewayName = Annotated[str, PlainValidator(parse_name), WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})]


AddressOfGateway = Annotated[
    str, PlainValidator(parse_own_address), WithJsonSchema({"type": "string", "pattern": r"^[0-9A-Fa-f.:]+$"})
]


class StoreSettings(Section):
    """What several gateways share, which makes them one fleet: a store of one of these kinds."""

    gateway: GatewayName | None = Field(
        default=None,
        description="This gateway's name, which no other gateway may have. By default it is the machine's host name up"
        " to the first dot.",
        examples=["gateway-1"],
    )
    read_every_s: float = _number(
        5.0, 0.5, 300, "The whole store is read this often, whatever its hints report or miss."
    )
    lease_s: int = Field(
        default=15,
        ge=5,
        le=3600,
        description="Other gateways take a gateway for gone when the store has not heard from it for this long.",
    )

    address: AddressOfGateway | None = Field(
        default=None,
        description="An IP address of this machine, at which other gateways reach this one's routers (`router.mesh`)."
        " By default it is the address that this machine has on its way to the store.",
        examples=["10.0.0.1"],
    )

    @property
    def of_kind(self) -> tuple[str, Any]:
        """The kind's name, and its settings."""
        return next((name, value) for name in STORES.by_name if (value := getattr(self, name)) is not None)

    @model_validator(mode="after")
    def _one(self) -> Self:
        named = [name for name in STORES.by_name if getattr(self, name, None) is not None]
        if len(named) != 1:
            kinds = " or ".join(f"`{name}`" for name in STORES.by_name)
            raise ValueError(f"names {len(named) or 'no'} stores; give it one: {kinds}")
        return self


@cache
def store_model() -> type[StoreSettings]:
    """The model, with one field for each kind."""
    fields: dict[str, Any] = {kind.name: kind.settings for kind in STORES}
    return create_model("StoreSettings", __base__=StoreSettings, __doc__=StoreSettings.__doc__, **fields)


class OfStore(OfItsKind):
    """Annotates the field: its model is made when it is first needed."""

    def models(self) -> Iterable[type[Any]]:
        """The one model."""
        return [store_model()]

    def model_for(self, value: object) -> type[Any]:
        """The same."""
        return store_model()

    def read(self, value: object) -> Any:
        """The settings. Raises ValidationError, each part of it at its place."""
        return value if isinstance(value, StoreSettings) else store_model().model_validate(value)

    def __get_pydantic_core_schema__(self, _source: object, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(store_model().__pydantic_core_schema__)


StoreValue = Annotated[StoreSettings | None, OfStore()]
