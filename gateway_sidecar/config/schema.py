"""The configuration's JSON Schema, for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from gateway_sidecar.config.models import Settings
from gateway_sidecar.config.values import Endpoint, PathPattern, PortRange


class _Generator(GenerateJsonSchema):
    """Defaults as they are written in the file, and no titles that only repeat the key."""

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, (Endpoint, PortRange, PathPattern, Path)):
            return str(dft)
        return super().encode_default(dft)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def entry_schema(model: type[BaseModel], ref_template: str) -> dict[str, Any]:
    """JSON Schema of one mapping of ours, for a document of somebody else's."""
    return model.model_json_schema(mode="validation", schema_generator=_Generator, ref_template=ref_template)


def config_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of `gateway-sidecar.yaml`.

    It knows single settings; what lies between settings (`crosscheck`) is beyond a schema.
    """
    schema = Settings.model_json_schema(mode="validation", schema_generator=_Generator)
    schema["properties"]["metrics"] = {"anyOf": [schema["properties"]["metrics"], {"enum": [None, False]}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "gateway-sidecar configuration",
        "patternProperties": {"^x-": {"description": "Not read; a place for YAML anchors."}},
    }
