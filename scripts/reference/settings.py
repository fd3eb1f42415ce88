"""The tables of settings, from the models that read them, by way of the JSON Schema that editors have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import yaml

from gateway_sidecar.config import RouterSettings, config_schema
from gateway_sidecar.config.differences import FIXED
from gateway_sidecar.config.overrides import OverridesFile
from gateway_sidecar.config.section import entry_schema
from gateway_sidecar.kinds import ROUTERS
from gateway_sidecar.sources.entry import InventoryEntry
from scripts.reference.tables import table, words

Schema = Mapping[str, Any]
_REF = "#/$defs/{model}"
_UNITS = {"_s": "seconds", "_mb": "MiB", "_days": "days"}
_TYPES = {"integer": "whole number", "number": "number", "object": "mapping", "array": "list"}


class Setting(NamedTuple):
    """One setting: its path, what may be said, what holds if nothing is said, and what it means."""

    path: str
    value: str
    default: str
    meaning: str


# -- reading a schema


def settings_in(schema: Schema, node: Schema, prefix: str = "") -> Iterator[Setting]:
    """Each setting below a node of a schema."""
    for name, field in node["properties"].items():
        inner = field.get("anyOf", [field])[0]
        items = "[]" if "$ref" in inner.get("items", {}) else ""
        reference = inner.get("$ref") or inner.get("items", {}).get("$ref")
        path = f"{prefix}{name}{items}"
        if path == "addresses[].frontend":
            yield Setting(path, "mapping", "`{}`", "As [`services[].frontend`](#frontend).")
            continue
        if reference or "properties" in inner:
            below = schema["$defs"][reference.rpartition("/")[2]] if reference else inner
            yield from settings_in(schema, below, f"{path}.")
        else:
            default = f"`{_inline(field['default'])}`" if "default" in field else "required"
            yield Setting(path, _value(name, field), default, field["description"])
        named = field.get("additionalProperties") or {}
        if "anyOf" in named:  # Whatever the name, one of these.
            below = schema["$defs"][named["anyOf"][0]["$ref"].rpartition("/")[2]]
            yield from settings_in(schema, below, f"{path}.NAME.")


def _inline(value: object) -> str:
    """A value as it is written in YAML, on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix("...").strip()


def _value(name: str, field: Schema) -> str:
    """What may be said, in words."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    texts = [_of_kind(name, kind, field.get("examples", ())) for kind in kinds]
    if len(kinds) < len(field.get("anyOf", [field])) and field.get("default") is not None:
        texts.append("`null`")
    return " or ".join(dict.fromkeys(texts))


def _of_kind(name: str, kind: Schema, examples: Sequence[object]) -> str:
    if "enum" in kind or "const" in kind:
        return words([_inline(choice) for choice in kind.get("enum", [kind.get("const")])])
    if kind.get("type") == "boolean":
        return "`true` or `false`"
    unit = next((f" {unit}" for ending, unit in _UNITS.items() if name.endswith(ending)), "")
    if "maximum" in kind:
        above = kind.get("exclusiveMinimum")
        low = f"more than {_number(above)}, at most" if above is not None else f"{_number(kind['minimum'])} to"
        return f"{low} {_number(kind['maximum'])}{unit}"
    its = {"array": list, "object": dict}.get(kind.get("type", ""), str)
    example = next((f"`{_inline(it)}`" for it in examples if isinstance(it, its)), "")
    if "type" not in kind or kind["type"] == "string":
        return f"such as {example}" if example else "text"
    text = _TYPES[kind["type"]]
    return f"{text}, such as {example}" if example else text


def _number(value: float) -> str:
    """With all its digits, as a person writes it into the file."""
    return str(int(value)) if value == int(value) else str(value)


# -- the pages


@cache
def of_the_file() -> tuple[Setting, ...]:
    """All of gateway-sidecar.yaml, with the first kind of router."""
    return tuple(settings_in(config_schema(), config_schema()))


def of_a_replica() -> Iterator[Setting]:
    """All of a `<replica>.yaml`."""
    schema = entry_schema(OverridesFile, _REF)
    return settings_in(schema, schema)


def of_an_inventory() -> Iterator[Setting]:
    """What an inventory's entry has beside all of a `<replica>.yaml`."""
    schema = entry_schema(InventoryEntry, _REF)
    return settings_in(schema, {"properties": {name: schema["properties"][name] for name in ("socket", "ssh")}})


def of_a_router(kind: str) -> Iterator[Setting]:
    """What a kind of router has of its own."""
    schema, common = ROUTERS[kind].settings.model_json_schema(), RouterSettings.model_json_schema()["properties"]
    for each in settings_in(schema, schema):
        if schema["properties"][each.path] != common.get(each.path):
            yield each


SECTIONS: Mapping[str, tuple[str, ...]] = {
    "settings of the daemon": (
        *("state_dir", "run_dir", "log.", "access_log.", "usage.", "metrics.", "admin.", "acme.", "store."),
        *("rescan_interval_s", "leave."),
    ),
    "settings of nginx": ("nginx.",),
    "settings of bridges": ("bridges.", "router_ports", "peers."),
    "settings of services": tuple(f"services[].{name}" for name in ("name", "listen", "replicas.", "engine")),
    "settings of routers": ("services[].router.",),
    "settings of health": tuple(f"services[].{name}." for name in ("probe", "health", "refused", "drain")),
    "settings of hold": ("services[].hold.",),
    "settings of endpoints": ("services[].endpoints[].",),
    "settings of frontends": ("services[].frontend.",),
    "settings of addresses": ("addresses[].",),
    "settings of scaling": ("services[].scaling.",),
}
"""Mark in docs/configuration.md -> how the settings there begin."""


def _section(*beginnings: str) -> str:
    rows = [
        (
            f"`{it.path}`",
            it.value,
            it.default,
            "restart" if it.path.partition(".")[0] in FIXED else "reload",
            it.meaning,
        )
        for it in of_the_file()
        if it.path.startswith(beginnings)
    ]
    return table(("setting", "value", "default", "change", "meaning"), rows)


def _plain(read: Callable[[], Iterator[Setting]]) -> str:
    """Of settings that count as soon as their file has changed."""
    rows = [(f"`{it.path}`", it.value, it.default, it.meaning) for it in read()]
    return table(("setting", "value", "default", "meaning"), rows)


PARTS: Mapping[str, Callable[[], str]] = {
    **{mark: partial(_section, *beginnings) for mark, beginnings in SECTIONS.items()},
    "settings of inventories": partial(_plain, of_an_inventory),
    "settings of a replica": partial(_plain, of_a_replica),
}
OF_ROUTERS: Mapping[str, Mapping[str, Callable[[], str]]] = {
    kind: {"settings": partial(_plain, partial(of_a_router, kind))}
    for kind in ("vllm-router", "sglang-router", "dynamo")
}
