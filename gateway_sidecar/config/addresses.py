"""The settings of shared addresses: one address for the models of several services."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema, field_validator, model_validator

from gateway_sidecar.config.frontend import AddressValue, FrontendSettings
from gateway_sidecar.config.section import Section
from gateway_sidecar.config.values import NAME_PATTERN, NotTextError, parse_name, show

MODEL_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._:/@+=,~-]{0,255}$"
"""What clients and engines write into JSON, forms and URLs without quoting it, and nginx's configuration carries."""

_CURE = "use 256 characters at most, of letters, digits and . _ : / @ + = , ~ -, for example Qwen/Qwen3-32B"


def parse_model(value: object) -> str:
    """A model's name, as requests say it."""
    if not isinstance(value, str):
        raise NotTextError(_CURE)
    if not re.fullmatch(MODEL_PATTERN, value):
        raise ValueError(f"{show(value)} is not a model's name that can be passed on; {_CURE}")
    return value


def _spelt_out(value: object) -> object:
    """`chat` is short for `{service: chat}`."""
    return {"service": value} if isinstance(value, str) else value


ModelValue = Annotated[str, PlainValidator(parse_model), WithJsonSchema({"type": "string", "pattern": MODEL_PATTERN})]
ServiceValue = Annotated[str, PlainValidator(parse_name), WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})]
_SHORT = {"type": "string", "pattern": NAME_PATTERN}


class TargetSettings(Section):
    """A service, and what the model is called there."""

    service: ServiceValue = Field(description="The service that gets the requests.", examples=["chat"])
    model: ModelValue | None = Field(
        default=None,
        description="The name with which the request goes on. By default it is the name that the client sent.",
        examples=["Qwen/Qwen3-32B"],
    )


class WeightedSettings(TargetSettings):
    """One of several services that share a model's requests."""

    weight: int = Field(
        default=1,
        ge=0,
        le=100_000,
        description="The service's share of the requests is this number divided by the sum of all weights. nginx keeps"
        " to it over few requests, too, in each of its worker processes.",
    )


FallbackValue = Annotated[TargetSettings, BeforeValidator(_spelt_out, json_schema_input_type=TargetSettings | str)]


class ModelSettings(Section):
    """Where the requests for one model go. `NAME: SERVICE` is short for `NAME: {service: SERVICE}`."""

    service: ServiceValue | None = Field(
        default=None, description="The service that gets the requests.", examples=["chat"]
    )
    model: ModelValue | None = Field(
        default=None,
        description="The model's name at that service, if clients use another name. The request goes on with this"
        " name.",
        examples=["Qwen/Qwen3-32B"],
    )
    services: Annotated[tuple[WeightedSettings, ...], Field(strict=False)] = Field(
        default=(),
        description="Several services that share the requests by weight. One without replicas is left out while"
        " another has some.",
    )
    fallback: FallbackValue | None = Field(
        default=None, description="The service that gets the requests while the others have no replica."
    )

    @model_validator(mode="after")
    def _complete(self) -> ModelSettings:
        if (self.service is None) == (not self.services):
            raise ValueError("needs service or services, and not both; give one of them")
        if self.services and self.model is not None:
            raise ValueError("model has no meaning beside services; move it into each entry of services")
        if self.services and not any(it.weight for it in self.services):
            raise ValueError("the weights of services add up to 0; give one of them a weight above 0")
        names = [it.service for it in self.targets]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"names service {name!r} twice; give it one weight")
        if self.fallback is not None and self.fallback.service in names:
            raise ValueError(
                f"falls back to {self.fallback.service!r}, which it already leads to; name another service"
            )
        return self

    @property
    def targets(self) -> tuple[WeightedSettings, ...]:
        """The services that share the requests."""
        if self.service is None:
            return self.services
        return (WeightedSettings(service=self.service, model=self.model),)


ModelTarget = Annotated[ModelSettings, BeforeValidator(_spelt_out, json_schema_input_type=ModelSettings | str)]


class AddressSettings(Section):
    """One address for the models of several services."""

    name: ServiceValue = Field(
        description="The address's name in `status`, logs and metrics. No service may have the same name.",
        examples=["api"],
    )
    listen: AddressValue = Field(
        description="The stable address, plain HTTP, like a service's `listen`.", examples=["127.0.0.1:8000"]
    )
    frontend: FrontendSettings = FrontendSettings()
    models: dict[str, ModelTarget] = Field(
        description="The models: each name as clients use it, and the service or services that its requests go to.",
        examples=[{"Qwen/Qwen3-32B": "chat", "gpt-4o": {"service": "chat", "model": "Qwen/Qwen3-32B"}}],
    )
    default: ServiceValue | None = Field(
        default=None,
        description="The service of requests that name no model, such as those for a stored response. Without it these"
        " requests get 400.",
        examples=["chat"],
    )

    @field_validator("models", mode="before")
    @classmethod
    def _some(cls, value: object) -> object:
        if value == {}:
            raise ValueError("is empty; name at least one model and its service")
        return value

    @property
    def services(self) -> tuple[str, ...]:
        """Every service that it leads to, once."""
        found: dict[str, Any] = {}
        for model in self.models.values():
            found |= dict.fromkeys(it.service for it in model.targets)
            found |= {model.fallback.service: None} if model.fallback is not None else {}
        return tuple(found | ({self.default: None} if self.default is not None else {}))
