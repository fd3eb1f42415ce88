"""Where a path leads, link by link, and whose the links are: the kernel follows them without a word."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from gateway_sidecar.domain.trust import ROOT, Owned

_MOST_LINKS = 40  # As many as the kernel follows.


@dataclass(frozen=True, slots=True)
class Followed:
    """What a path leads to.

    real: the path without any link on it. found: what is there.
    links: the links that were followed. above: the directories that were searched.
    """

    real: str
    found: os.stat_result
    links: tuple[Owned, ...] = ()
    above: tuple[Owned, ...] = ()

    @property
    def owned(self) -> Owned:
        """Whose it is."""
        return _owned(self.real, self.found)


def ours() -> frozenset[int]:
    """The users that are trusted for all files of theirs."""
    return frozenset((ROOT, os.geteuid()))


def follow(path: str, start: Followed | None = None) -> Followed:
    """Follows an absolute path; one that is relative begins in the directory `start`. Raises OSError. Blocks."""
    if path.startswith("/"):
        start = None
    here = start or Followed("/", os.lstat("/"))
    at, found, links, above = here.real, here.found, list(here.links), list(here.above)
    left = path.split("/")[::-1]
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            at = os.path.dirname(at)  # noqa: PTH120 - no Path objects: every socket is followed every few seconds
            found = os.lstat(at)
            continue
        above.append(_owned(at, found))
        inside = f"{at.rstrip('/')}/{name}"
        found = os.lstat(inside)
        if not stat.S_ISLNK(found.st_mode):
            at = inside
            continue
        if len(links) == _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        links.append(_owned(inside, found))
        target = os.readlink(inside)  # noqa: PTH115 - as above
        if target.startswith("/"):
            at = "/"
        found = os.lstat(at)
        left += target.split("/")[::-1]
    return Followed(at, found, tuple(links), tuple(above))


def opened_at(descriptor: int) -> str:
    """Where what is open lies, as the kernel knows it: without links, whoever changed the path meanwhile."""
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - as above


def _owned(path: str, found: os.stat_result) -> Owned:
    return Owned(path, found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))
