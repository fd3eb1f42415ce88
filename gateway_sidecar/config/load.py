"""A configuration file -> settings, or every mistake in it at once."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from gateway_sidecar.config.crosscheck import cross_problems
from gateway_sidecar.config.explain import explain
from gateway_sidecar.config.models import Settings
from gateway_sidecar.config.yamltree import Problem, Tree, read_tree
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.files.follow import Followed, opened_at

M = TypeVar("M", bound=BaseModel)

_MOST_BYTES = 1024 * 1024
_NEEDED = ("run_dir", "state_dir")
_WHERE = {*_NEEDED, "bridges", "peers"}


@dataclass(frozen=True, slots=True)
class FileText:
    """A file's bytes and who may change or read it."""

    content: bytes
    owner: int
    mode: int
    group: int = 0


def load_config(path: Path) -> Settings:
    """Read and check the daemon's configuration.

    Raises `ConfigError`, whose `problems` hold one line for each mistake, in the file's order.
    """
    return parse_config(read_file(path, _MOST_BYTES).content, str(path))


def load_usable(path: Path) -> Settings:
    """What a file says of where its daemon is and what that uses, whatever else has become wrong since it started.

    For asking and ending a daemon, not for starting one: there are no services in it. Raises `ConfigError` only if the
    file cannot be read, or says nothing usable of `run_dir` or `state_dir`.
    """
    content = read_file(path, _MOST_BYTES).content
    try:
        return parse_config(content, str(path))
    except ConfigError as error:
        data = _readable(content)
        found: dict[str, Any] = {}
        for name in _WHERE & data.keys():
            try:
                found[name] = TypeAdapter(Settings.model_fields[name].rebuild_annotation()).validate_python(data[name])
            except ValidationError:
                if name in _NEEDED:
                    raise error from None
        begins = (re.compile(rb"(?m)^['\" ]*" + name.encode()) for name in _NEEDED if name not in found)
        if not data or any(pattern.search(content) for pattern in begins):
            raise  # It says something of them, and nobody can tell what: the default would be another daemon's.
        return Settings.model_construct(services=(), **found)


def _readable(content: bytes) -> dict[str, object]:
    """The file's top-level settings; where it is no YAML, of each what stands below it if that alone is."""
    whole = read_tree(content).data
    if isinstance(whole, dict):
        return whole
    parts = (read_tree(part).data for part in re.split(rb"(?m)^(?=[A-Za-z_])", content))
    return {name: value for part in parts if isinstance(part, dict) for name, value in part.items()}


def line_of(path: Path, setting: str) -> int:
    """The line of a top-level setting; that of the file's beginning if it is not there."""
    return read_tree(read_file(path, _MOST_BYTES).content).line((setting,))


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


def read_file(path: Path, most_bytes: int, *, followed: Followed | None = None) -> FileText:
    """A regular file's content; never waits for a FIFO's writer. Raises `ConfigError`.

    followed: where the path was seen to lead. A file that lies elsewhere, since a link was changed, is not read.
    """
    leads_to, more = (path, 0) if followed is None else (Path(followed.real), os.O_NOFOLLOW)
    try:
        descriptor = os.open(leads_to, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | more)
    except FileNotFoundError:
        raise _unreadable(path, "no such file; create it, or name another with --config") from None
    except PermissionError:
        raise _unreadable(path, f"may not be read by user {os.geteuid()}; change its owner or mode") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, f"cannot be opened: {error}; name a readable file") from None
    try:
        status = os.fstat(descriptor)
        if followed is not None and opened_at(descriptor) != followed.real:
            raise _unreadable(path, "was moved while it was opened; it is read again when it stays")
        if stat.S_ISDIR(status.st_mode):
            raise _unreadable(path, "is a directory; name the file in it")
        if not stat.S_ISREG(status.st_mode):
            raise _unreadable(path, "is not a regular file; copy it into one")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror}; check its disk") from None
    finally:
        os.close(descriptor)
    if len(content) > most_bytes:
        raise _unreadable(path, f"is larger than {most_bytes // 1024} KiB; this cannot be the right file")
    return FileText(content, status.st_uid, stat.S_IMODE(status.st_mode), status.st_gid)


def _unreadable(path: Path, text: str) -> ConfigError:
    return ConfigError([Problem(None, "", text).render(str(path))])
