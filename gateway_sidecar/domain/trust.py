"""Whether a file on a path is trusted, by owners and modes alone. Root and the daemon's user are trusted for all files
of theirs; every other user only for his own engine and socket.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

GROUP_WRITES, _ALL_WRITE = 0o020, 0o002  # inode(7)
OTHERS_WRITE = GROUP_WRITES | _ALL_WRITE
OTHERS = 0o007  # Whatever they may do: a file that holds a secret is its owner's, and at most its group's to read.
_STICKY = 0o1000  # S_ISVTX, as of /tmp: inode(7)
ROOT = 0  # credentials(7)


@dataclass(frozen=True, slots=True)
class Owned:
    """One file, directory or link: whose it is, and its permission bits."""

    path: str
    owner: int
    group: int
    mode: int

    @property
    def others_may_write(self) -> bool:
        """Whether anybody but its owner and root may."""
        return bool(self.mode & OTHERS_WRITE)

    @property
    def shown_mode(self) -> str:
        """As chmod takes it."""
        return f"mode {self.mode:04o}"


def trouble_with_links(links: Iterable[Owned], target: Owned, ours: Container[int]) -> str | None:
    """Why what the links lead to is not taken for what stands at their place; None if it is.

    A symlink exposes what its follower may reach, so its maker must own the target, or be one of `ours`.
    """
    for link in links:
        if link.owner not in ours and link.owner != target.owner:
            return (
                f"{link.path} is a link of user {link.owner} that leads to {target.path} of user {target.owner}; "
                f"let user {target.owner} or root make the link"
            )
    return None


def way_in(place: Owned, above: Iterable[Owned], owners: Container[int], groups: Container[int] = ()) -> str | None:
    """How somebody who is none of `owners` could put a name into a directory, or another directory in its place.

    above: the directories on the way to it. groups: whose members are as good as `owners` there.
    """
    if place.owner not in owners:
        return f"{place.path} belongs to user {place.owner}"
    if place.others_may_write:
        return f"users other than its owner may write in {place.path} ({place.shown_mode})"
    for each in above:
        if each.owner not in owners:
            return f"{each.path}, above it, belongs to user {each.owner}"
        if each.mode & _STICKY:
            continue  # Names in it are their owners' to change.
        if each.mode & _ALL_WRITE or (each.mode & GROUP_WRITES and each.group not in groups):
            return f"others may rename what is in {each.path}, above it ({each.shown_mode})"
    return None


def trouble_with_notes(notes: Owned, links: Sequence[Owned], socket_owner: int, ours: Container[int]) -> str | None:
    """Why a `<replica>.yaml` does not count for the socket beside it; None if it does."""
    if notes.owner != socket_owner and notes.owner not in ours:
        return (
            f"{notes.path} belongs to user {notes.owner}, and the socket beside it to user {socket_owner}; "
            "both must have one owner, or the file must be root's"
        )
    return trouble_with_links(links, notes, ours)


def trouble_with_key(notes: Owned, socket_owner: int, shared: str | None) -> str | None:
    """Why a key that a `<replica>.yaml` names is not shown at the socket beside it; None if it is.

    shared: how somebody else could place a socket there (`way_in`).
    """
    if notes.others_may_write:
        return (
            f"users other than its owner may change {notes.path} ({notes.shown_mode}): it cannot name a key; chmod go-w"
        )
    if notes.owner == socket_owner or shared is None:
        return None
    return (
        f"{notes.path} belongs to user {notes.owner}, the socket beside it to user {socket_owner}, and {shared}: "
        f"anyone who places that socket would be sent its key; give the file and its key to user {socket_owner}"
    )
