"""What a file says, held to its model: the model's value, or every mistake at once."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from gateway_sidecar.config.explain import explain
from gateway_sidecar.config.yamltree import Problem, Tree
from gateway_sidecar.errors import ConfigError

M = TypeVar("M", bound=BaseModel)


def build(model: type[M], tree: Tree, name: str, further: list[Problem]) -> M:
    """The model's value; or `ConfigError` with the tree's, the model's and `further` problems."""
    problems = tree.problems + further
    value: M | None = None
    # A file whose YAML cannot be read at all has no settings to judge.
    if tree.data is not None or not problems:
        try:
            value = model.model_validate(tree.data)
        except ValidationError as error:
            found = [detail for detail in error.errors() if tuple(detail["loc"]) not in tree.unread]
            problems += [explain(detail, model, tree) for detail in found]
    if value is None or problems:
        unique = dict.fromkeys(sorted(problems, key=lambda problem: problem.line or 0))
        raise ConfigError([problem.render(name) for problem in unique])
    return value
