"""The configuration's JSON Schema, for editors."""

from __future__ import annotations

from typing import Any

from gateway_sidecar.config.models import Settings
from gateway_sidecar.config.section import SchemaGenerator


def config_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of `gateway-sidecar.yaml`.

    It knows single settings; what lies between settings (`crosscheck`) is beyond a schema.
    """
    schema = Settings.model_json_schema(mode="validation", schema_generator=SchemaGenerator)
    schema["properties"]["metrics"] = {"anyOf": [schema["properties"]["metrics"], {"enum": [None, False]}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "gateway-sidecar configuration",
        "patternProperties": {"^x-": {"description": "Not read; a place for YAML anchors."}},
    }
