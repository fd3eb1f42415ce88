"""The daemon's own directories: made for it, and writable for no other user."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from gateway_sidecar.domain.trust import ROOT, Owned, trouble_with_links, way_in
from gateway_sidecar.files.follow import follow, ours


def make_directory(path: Path, mode: int = 0o750) -> None:
    """Makes it and its missing parents, independent of the umask. An existing directory stays as it is. Raises OSError,
    also if it belongs to another user, who could put anything into it. Blocks.
    """
    try:
        there = path.stat()  # Most often it exists, and one call tells all: it is looked at every two seconds.
    except FileNotFoundError:
        _make_missing(path, mode)
        return
    if not stat.S_ISDIR(there.st_mode):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    if there.st_uid not in ours():
        raise _refused(path, f"it belongs to user {there.st_uid}, and the daemon runs as user {os.geteuid()}")


def _make_missing(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode=0o700)
    except FileNotFoundError:
        make_directory(path.parent)
        make_directory(path, mode)
    except FileExistsError:
        if not path.is_dir():
            raise
        make_directory(path, mode)  # Somebody else has just made it.
    else:
        path.chmod(mode)


def keep_directory(path: Path, mode: int = 0o750) -> None:
    """The same for a directory that the operator chose: no other user may write there. Raises OSError. Blocks."""
    trouble = way_in_for_others(path)
    if trouble is not None:
        raise _refused(path, trouble)
    make_directory(path, mode)


def way_in_for_others(path: Path) -> str | None:
    """How others could put files of theirs where the daemon writes; None if they cannot. Raises OSError. Blocks.

    What does not exist yet will be the daemon's, if nobody can come first.
    """
    if not os.path.lexists(path):  # It does not raise for what lies behind a closed directory.
        return _way_in_before_us(path)
    there = follow(str(path))
    trouble = trouble_with_links(there.links, there.owned, ours())
    return trouble or way_in(there.owned, there.above, ours(), (ROOT, os.getegid()))


def _way_in_before_us(path: Path) -> str | None:
    """The same for one that is to be made in the nearest directory that there is."""
    nearest = next(each for each in path.parents if os.path.lexists(each))
    there = follow(str(nearest))
    trouble = trouble_with_links(there.links, there.owned, ours())
    to_be = Owned(str(path), os.geteuid(), os.getegid(), 0o700)
    return trouble or way_in(to_be, (*there.above, there.owned), ours(), (ROOT, os.getegid()))


def _refused(path: Path, why: str) -> OSError:
    return OSError(errno.EPERM, f"{why}; name another directory, or give it to user {os.geteuid()} alone", str(path))
