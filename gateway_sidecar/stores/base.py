"""What every kind of store has (`kinds.STORES`): one folder each, with one `STORE = StoreKind(...)`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway_sidecar.domain.store_memory import Snapshot


class Store(Protocol):
    """Keys and texts that several gateways share. It raises `StoreError`; it never returns a guess.

    Each call has a deadline of its own. A revision is a number of the store's that grows with each write.
    """

    async def read(self, *prefixes: str) -> Snapshot:
        """Everything below these prefixes at one revision: nothing older than what had been written when it began."""
        ...

    async def read_changes(self, known: Snapshot, since: int, *prefixes: str) -> Snapshot | None:
        """What `read` would answer now, made of what has changed after revision `since`; None if that cannot be told.

        known: all that was below these prefixes at that revision, but for changes after it, of which it may know some.
        A store that cannot tell answers None, always: then all is read.
        """
        ...

    async def swap(self, key: str, value: str | None, *, seen: int | None, lease: str | None = None) -> int:
        """Writes the key, or removes it for None, if its revision is still `seen`; for None, if there is no such key.

        Returns the revision of that write. `lease`: the key is gone when the lease is.
        Raises StoreConflict if the key is at another revision, StoreInDoubt if it may have been written or not.
        """
        ...

    def watch(self, prefix: str, since: int) -> AsyncIterator[Mapping[str, int]]:
        """Yields whenever something below the prefix may have changed after revision `since`: a hint only.

        It has keys that were removed, each with the revision of its removal, as far as the store says so.
        May miss things and may end. Raises StoreError.
        """
        ...

    async def grant(self, ttl_s: int) -> str:
        """A new lease, which ends unless it is kept within `ttl_s` seconds."""
        ...

    async def keep(self, lease: str) -> None:
        """Keeps a lease for once more its time. Raises LeaseLost if it has ended."""
        ...

    async def kept_s(self, prefix: str) -> Mapping[str, float]:
        """Each key below the prefix that has a lease -> for how long that was not kept, in seconds. For people."""
        ...

    async def revoke(self, lease: str) -> None:
        """Ends a lease, and removes its keys. One that has ended is no error."""
        ...

    async def close(self) -> None:
        """Gives back its connections."""
        ...


def _no_places(_settings: Any) -> Sequence[tuple[str, int]]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreKind:
    """One kind of store.

    name: the key under `store`. settings: the model of what stands there, and what it is for.
    build: the settings' value -> store; connects to nobody yet.
    show: where the store is, as `status` and `check` have it.
    exposed: why others may read what lies there, and the cure, for `check`; empty if they may not.
    places: hosts and ports of the store; the way to the first tells this machine's address. None where there are none.
    """

    name: str
    settings: tuple[Any, Any]
    build: Callable[[Any], Store]
    show: Callable[[Any], str] = str
    exposed: Callable[[Any], str] = lambda _: ""
    places: Callable[[Any], Sequence[tuple[str, int]]] = _no_places
