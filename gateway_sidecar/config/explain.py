"""pydantic's errors -> problems in our words: the value, what is wrong with it, and the cure."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from gateway_sidecar.config.router import OfItsKind
from gateway_sidecar.config.values import NotTextError, shorten, show
from gateway_sidecar.config.yamltree import Location, Problem, Tree, path_text
from gateway_sidecar.domain.similar import did_you_mean


def explain(error: ErrorDetails, model: type[BaseModel], tree: Tree) -> Problem:
    """The problem that one pydantic error stands for."""
    location = tuple(error["loc"])
    if error["type"] == "extra_forbidden":
        text = _unknown_key(location, _model_at(location[:-1], model, tree.data), model)
    else:
        text = _text(error, location, _field(location, model, tree.data), tree)
    return Problem(tree.line(location), path_text(location), text)


def _children(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo, type[BaseModel]]]:
    """Each field that has a model below it, seen through lists and None, with that model; one of several kinds, with
    each."""
    for name, info in model.model_fields.items():
        kinds = _kinds_in(info)
        for below in kinds.models() if kinds else [_model_in(info.annotation)]:
            if below is not None:
                yield name, info, below


def _text(error: ErrorDetails, location: Location, field: FieldInfo | None, tree: Tree) -> str:
    kind, value = error["type"], error["input"]
    cause = error["ctx"]["error"] if kind == "value_error" else None
    if cause is not None and not isinstance(cause, NotTextError):
        return str(cause)
    if kind == "missing":
        return f"is missing; add it{_example(field)}"
    if value is None:
        return "is empty; give it a value, or leave the line out for the default"
    place = tree.places.get(location)
    raw = place.raw if place is not None and not isinstance(value, str) else None
    written = show(value) if raw is None else shorten(raw)
    wanted = str(cause) if cause else _WANTED.get(kind, _bounds)(field, location)
    if (kind == "string_type" or cause) and not isinstance(value, (list, dict)):
        sort = "true or false" if isinstance(value, bool) else "a number"
        return f"{written} is {sort} to YAML, not a text; quote it: '{written}'"
    if kind == "literal_error":
        meant = did_you_mean(str(value), map(str, _choices(field)))
        return f"{written} is not one of the choices{meant and f' ({meant})'}; {wanted}"
    if isinstance(value, (list, dict)):
        written = "a list" if isinstance(value, list) else "a mapping"
        return f"{written} cannot stand here; {wanted}"
    what = _WRONG.get(kind, "cannot be used here")
    return f"{written} {what}; {wanted}"


_WRONG = {
    "greater_than_equal": "is too small",
    "greater_than": "is too small",
    "less_than_equal": "is too large",
    "finite_number": "is not a finite number",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "model_type": "is not a mapping",
    "dict_type": "is not a mapping",
    "tuple_type": "is not a list",
    "bool_type": "is neither true nor false",
    "string_too_short": "is empty",
    "string_too_long": "is too long",
    "string_pattern_mismatch": "cannot be passed on",
    "too_short": "is empty",
    "too_long": "is too long",
}


def _bounds(info: FieldInfo | None, location: Location) -> str:
    low = high = above = None
    for rule in _rules(info):
        if isinstance(rule, annotated_types.Ge):
            low = rule.ge
        elif isinstance(rule, annotated_types.Gt):
            above = rule.gt
        elif isinstance(rule, annotated_types.Le):
            high = rule.le
    unit = " seconds" if str(location[-1] if location else "").endswith("_s") else ""
    if above is not None:
        return f"use more than {above} and at most {high}{unit}"
    return f"use {low} to {high}{unit}"


def _rules(info: FieldInfo | None) -> Iterator[object]:
    """What bounds a field's value, also where it may be None instead."""
    yield from info.metadata if info else ()
    for choice in get_args(info.annotation) if info else ():
        for extra in getattr(choice, "__metadata__", ()):
            yield from extra.metadata if isinstance(extra, FieldInfo) else (extra,)


def _mapping(_info: FieldInfo | None, _location: Location) -> str:
    return "write `key: value` lines below it"


def _list(_info: FieldInfo | None, _location: Location) -> str:
    return "write a list, one `- item` to a line"


def _string(info: FieldInfo | None, _location: Location) -> str:
    return f"use a text{_example(info)}"


def _yes_or_no(_info: FieldInfo | None, _location: Location) -> str:
    return "use true or false"


def _printable(_info: FieldInfo | None, _location: Location) -> str:
    return "use ASCII that can be printed, with no space at its ends"


def _length(info: FieldInfo | None, _location: Location) -> str:
    longest = next((rule.max_length for rule in _rules(info) if isinstance(rule, annotated_types.MaxLen)), None)
    return f"use at most {longest} characters" if longest else f"use a shorter one{_example(info)}"


def _literal(info: FieldInfo | None, _location: Location) -> str:
    choices = [str(choice) for choice in _choices(info)]
    return f"use {', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else f"use {choices[0]}"


_WANTED: Mapping[str, Callable[[FieldInfo | None, Location], str]] = {
    "model_type": _mapping,
    "dict_type": _mapping,
    "tuple_type": _list,
    "string_type": _string,
    "string_too_short": _string,
    "string_too_long": _length,
    "string_pattern_mismatch": _printable,
    "bool_type": _yes_or_no,
    "literal_error": _literal,
}


def _unknown_key(location: Location, parent: type[BaseModel] | None, model: type[BaseModel]) -> str:
    key = str(location[-1])
    known = list(parent.model_fields) if parent else []
    if meant := did_you_mean(key, known):
        return f"unknown setting; {meant}"
    here = path_text(location[:-1])
    homes = dict.fromkeys([*(_homes(parent, key, here) if parent else ())] or _homes(model, key))
    homes.pop("under " + re.sub(r"\[\d+\]", "[]", here), None)  # Another kind's that could stand here.
    if homes:
        return f"unknown setting here; it belongs {' or '.join(homes)}"
    return f"unknown setting; use one of {', '.join(known)}"


def _homes(model: type[BaseModel], key: str, prefix: str = "") -> Iterator[str]:
    """The mappings that have a setting of this name."""
    if key in model.model_fields:
        yield f"under {prefix}" if prefix else "at the top of the file"
    for name, info, below in _children(model):
        many = "[]" if get_origin(info.annotation) is tuple else ""
        yield from _homes(below, key, f"{prefix}.{name}{many}" if prefix else f"{name}{many}")


def _field(location: Location, model: type[BaseModel], data: object) -> FieldInfo | None:
    """The field that an error is about, or about an item of."""
    while location and not isinstance(location[-1], str):
        location = location[:-1]
    parent = _model_at(location[:-1], model, data)
    return parent.model_fields.get(str(location[-1])) if parent and location else None


def _model_at(location: Location, model: type[BaseModel], data: object) -> type[BaseModel] | None:
    """The model of what stands at a place in a file. Of one of several kinds its value says which it is of."""
    at: type[BaseModel] | None = model
    is_key = False
    for part in location:
        if isinstance(part, int):
            data = data[part] if isinstance(data, list) and part < len(data) else None
            continue
        data = data.get(part) if isinstance(data, dict) else None
        if is_key:  # Any name, of one value of many: `at` is their model already.
            is_key = False
            continue
        info = at.model_fields.get(part) if at else None
        kinds = _kinds_in(info) if info else None
        at = kinds.model_for(data) if kinds else _model_in(info.annotation) if info else None
        is_key = info is not None and get_origin(info.annotation) is dict
    return at


def _kinds_in(info: FieldInfo) -> OfItsKind | None:
    return next((it for it in info.metadata if isinstance(it, OfItsKind)), None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    if get_origin(annotation) is Annotated:
        return _model_in(get_args(annotation)[0])
    if get_origin(annotation) in (tuple, list, dict, Union, types.UnionType):
        return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)
    return None


def _choices(info: FieldInfo | None) -> list[Any]:
    found: list[Any] = []
    waiting = [info.annotation] if info else []
    for annotation in waiting:
        arguments = list(get_args(annotation))
        if arguments and not any(isinstance(argument, type) for argument in arguments):
            found += [argument for argument in arguments if argument is not None and not get_args(argument)]
        waiting += [argument for argument in arguments if get_args(argument)]
    return found


def _example(info: FieldInfo | None) -> str:
    example = info.examples[0] if info and info.examples else None
    return f", for example {example}" if isinstance(example, str) else ""
