"""A configuration file -> settings, or every mistake in it at once."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gateway_sidecar.config.build import build
from gateway_sidecar.config.crosscheck import cross_problems
from gateway_sidecar.config.models import Settings
from gateway_sidecar.config.places import MOST_BYTES, places_in, readable
from gateway_sidecar.config.text_file import read_file
from gateway_sidecar.config.yamltree import Problem, read_tree
from gateway_sidecar.errors import ConfigError, KindError
from gateway_sidecar.kinds import ENGINES

_USED = {"bridges", "peers"}


def load_config(path: Path) -> Settings:
    """Read and check the daemon's configuration.

    Raises `ConfigError`, whose `problems` hold one line for each mistake, in the file's order, and `KindError`.
    """
    list(ENGINES)  # One that cannot be imported is told of before anything starts, and not at each probe.
    return parse_config(read_file(path, MOST_BYTES).content, str(path))


def load_usable(path: Path) -> Settings:
    """Where a file's daemon keeps its things, even if the rest of the file has become invalid since the daemon started.
    Commands use it to reach or end a daemon, not to start one: it has no services. Raises `ConfigError` only if the
    file cannot be read, or says nothing usable of `run_dir` or `state_dir`.
    """
    content = read_file(path, MOST_BYTES).content
    try:
        return parse_config(content, str(path))
    except (ConfigError, KindError):
        data = readable(content)
        places = places_in(data, content)
        if places is None:
            raise
        found: dict[str, Any] = {}
        for name in _USED & data.keys():
            with suppress(ValidationError):
                found[name] = TypeAdapter(Settings.model_fields[name].rebuild_annotation()).validate_python(data[name])
        return Settings.model_construct(services=(), run_dir=places.run_dir, state_dir=places.state_dir, **found)


def line_of(path: Path, setting: str) -> int:
    """The line of a top-level setting; that of the file's beginning if it is not there."""
    return read_tree(read_file(path, MOST_BYTES).content).line((setting,))


def parse_config(content: bytes | str, name: str = "gateway-sidecar.yaml") -> Settings:
    """The same for text that is at hand; `name` begins each problem line. Raises `ConfigError`."""
    tree = read_tree(content.encode() if isinstance(content, str) else content)
    if isinstance(tree.data, dict):
        # `x-...` at the top is a place for anchors, as in compose files.
        tree.data = {key: value for key, value in tree.data.items() if not key.startswith("x-")}
    elif not tree.problems:
        what = "is empty" if tree.data is None else "is not a mapping at the top"
        problem = Problem(tree.line(()), "", f"{what}; begin with `services:` (docs/configuration.md)")
        raise ConfigError([problem.render(name)])
    return build(Settings, tree, name, list(cross_problems(tree)))
