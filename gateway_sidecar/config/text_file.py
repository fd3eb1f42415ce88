"""A small file of another writer, read within bounds and without following what it should not."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from gateway_sidecar.config.yamltree import Problem, read_tree
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.files.follow import Followed, opened_at

_MOST_ENTRY_BYTES = 64 * 1024  # As `<replica>.yaml` (`overrides.py`).


@dataclass(frozen=True, slots=True)
class FileText:
    """A file's bytes and who may change or read it."""

    content: bytes
    owner: int
    mode: int
    group: int = 0


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
            raise _unreadable(
                path, "was moved while the daemon opened it; leave it in its place, and the daemon reads it again"
            )
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
        raise _unreadable(path, f"is larger than {most_bytes // 1024} KiB; name the right file")
    return FileText(content, status.st_uid, stat.S_IMODE(status.st_mode), status.st_gid)


def read_mapping(path: Path) -> dict[str, object]:
    """A YAML file that holds one entry, as JSON would have it. Raises ConfigError with lines. Blocks."""
    tree = read_tree(read_file(path, _MOST_ENTRY_BYTES).content)
    problems = [problem.render(str(path)) for problem in tree.problems]
    if not problems and not isinstance(tree.data, dict):
        problems = [f"{path}: is not a mapping at the top; write lines such as `socket: /run/r1.sock`"]
    if problems:
        raise ConfigError(problems)
    assert isinstance(tree.data, dict)
    return tree.data


def _unreadable(path: Path, text: str) -> ConfigError:
    return ConfigError([Problem(None, "", text).render(str(path))])
