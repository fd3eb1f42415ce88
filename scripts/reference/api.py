"""docs/reference/api.md, from the OpenAPI description that the daemon serves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gateway_sidecar.api.openapi import describe_api
from scripts.reference.tables import table, words

Schema = Mapping[str, Any]


def routes() -> str:
    """One row for each request."""
    rows = [
        (f"[`{method.upper()} {path}`](#{_anchor(method, path)})", operation["summary"])
        for method, path, operation in _operations()
    ]
    return table(("request", "what it does"), rows)


def operations() -> str:
    """A section for each request: its parameters, its body and its answers."""
    return "\n\n".join(_section(*each) for each in _operations())


def values() -> str:
    """A section for each kind of value in bodies and answers."""
    return "\n\n".join(_of_schema(name, it) for name, it in sorted(describe_api()["components"]["schemas"].items()))


def _operations() -> Iterator[tuple[str, str, Schema]]:
    for path, methods in describe_api()["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def _anchor(method: str, path: str) -> str:
    """Of the heading, as a forge and the site make it."""
    return f"{method}-{re.sub(r'[^a-z0-9_-]', '', path)}"


def _section(method: str, path: str, operation: Schema) -> str:
    parts = [f"### {method.upper()} {path}", f"{operation['summary']}."]
    if operation["parameters"]:
        rows = [
            (f"`{it['name']}`", it["in"], _value(it["schema"]), it.get("description", ""))
            for it in operation["parameters"]
        ]
        parts.append(table(("parameter", "in", "value", "meaning"), rows))
    if "requestBody" in operation:
        parts.append(f"The body is {_content(operation['requestBody'])}.")
    answers = [
        (status, _content(answer), answer["description"]) for status, answer in sorted(operation["responses"].items())
    ]
    parts.append(table(("status", "body", "meaning"), answers))
    return "\n\n".join(parts)


def _content(said: Schema) -> str:
    return " or ".join(_value(it["schema"]) for it in said.get("content", {}).values()) or "none"


def _of_schema(name: str, schema: Schema) -> str:
    parts = [f"### {name}"]
    if schema.get("description"):
        parts.append(schema["description"])
    if "properties" not in schema:
        parts.append(f"{_value(schema)}.")
        return "\n\n".join(parts)
    required = schema.get("required", ())
    rows = [
        (f"`{field}`", _value(it), "yes" if field in required else "no", it.get("description", ""))
        for field, it in schema["properties"].items()
    ]
    parts.append(table(("field", "value", "always", "meaning"), rows))
    return "\n\n".join(parts)


def _value(schema: Schema) -> str:
    """What it may be, in words; a value with a section of its own is linked."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(dict.fromkeys(map(_value, schema.get("anyOf") or schema["oneOf"])))
    if "enum" in schema:
        return words([str(it) for it in schema["enum"]])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_value(schema.get('items', {}))}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"mapping to {_value(inner)}" if isinstance(inner, dict) else "object"
    return f"{kind}{_bounds(schema)}"


def _bounds(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if high is not None and low is not None:
        return f", {low} to {high:.0f}"
    return f", {low:g} or more" if low else ""
