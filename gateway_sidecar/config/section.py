"""What every mapping of the file has in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import GenerateJsonSchema

from gateway_sidecar.config.values import Endpoint, PathPattern, PortRange


class Section(BaseModel):
    """One mapping of the file: closed, frozen, and without conversions between YAML's types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def number(default: float, low: float, high: float, description: str) -> Any:
    """A field for a number with its bounds."""
    return Field(default=default, ge=low, le=high, description=description)


class SchemaGenerator(GenerateJsonSchema):
    """Defaults as they are written in the file, and no titles that only repeat the key."""

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, (Endpoint, PortRange, PathPattern, Path)):
            return str(dft)
        return super().encode_default(dft)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def entry_schema(model: type[BaseModel], ref_template: str) -> dict[str, Any]:
    """JSON Schema of one mapping of ours, for a document of somebody else's."""
    return model.model_json_schema(mode="validation", schema_generator=SchemaGenerator, ref_template=ref_template)
