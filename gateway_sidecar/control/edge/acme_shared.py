"""What gateways have in common of certificates by ACME, and what a gateway that works alone has in its place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from gateway_sidecar.frontend.acme_state import Wanted
from gateway_sidecar.frontend.challenges import answered_at


class AcmeShared(Protocol):
    """Of all gateways one orders at a time."""

    @property
    def goes_on(self) -> bool:
        """Whether an order that another gateway did not end is gone on with at once."""
        ...

    def ordered_at(self, wanted: Wanted) -> str | None:
        """The other gateway that orders it now, as far as is known."""
        ...

    def lacks(self, wanted: Wanted) -> bool:
        """Whether the others do not have this gateway's certificate: it is from before they had anything in common."""
        ...

    async def take(self, wanted: Wanted) -> bool:
        """Has the others leave orders to this gateway until `release`; they then have what it has of this certificate.

        False if another gateway orders, or has brought something that this one does not know of yet. Raises StoreError.
        """
        ...

    async def release(self) -> None:
        """Lets the others order."""
        ...

    async def put(self, name: str, text: str) -> None:
        """Has the others have a file of `AcmeState`, too; of who took it alone. Raises StoreError."""
        ...

    async def drop(self, names: Collection[str]) -> None:
        """No service here needs these files any more, and they are of no use."""
        ...

    def answers(self, texts: Mapping[str, str]) -> AbstractContextManager[None]:
        """As `Answers`, at every gateway. Blocks."""
        ...

    def on_news(self, listener: Callable[[], None]) -> None:
        """Calls it when others have brought something."""
        ...


class Alone:
    """Nobody else has anything. at: where nginx looks for what ACME servers ask for."""

    goes_on = False

    def __init__(self, at: Path) -> None:
        self._at = at

    def ordered_at(self, wanted: Wanted) -> str | None:
        """By nobody else."""
        return None

    def lacks(self, wanted: Wanted) -> bool:
        """There is nobody to lack it."""
        return False

    async def take(self, wanted: Wanted) -> bool:
        """Always."""
        return True

    async def release(self) -> None:
        """Nobody waits."""

    async def put(self, name: str, text: str) -> None:
        """Nobody else is to have it."""

    async def drop(self, names: Collection[str]) -> None:
        """Nobody else has them."""

    def answers(self, texts: Mapping[str, str]) -> AbstractContextManager[None]:
        """Files at this gateway."""
        return answered_at(self._at, texts)

    def on_news(self, listener: Callable[[], None]) -> None:
        """There are none."""
