"""Engines that run already, at sockets nobody looks at, and come into view or vanish at one instant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.chat import MODEL
from bench.engines import EngineHost, EngineKind, settings


async def stage(engines: EngineHost, directory: Path, kinds: Sequence[EngineKind]) -> list[Path]:
    """Start one engine of each kind in the list; their sockets, in the same order."""
    directory.mkdir(exist_ok=True)
    sockets = [directory / f"e{number}.sock" for number in range(len(kinds))]
    await engines.start(*[settings(path, kind, model=MODEL) for path, kind in zip(sockets, kinds, strict=True)])
    return sockets


def show(sockets: Iterable[Path], places: Iterable[Path]) -> None:
    """Give each socket a second name: to whoever watches that place, a socket appears that listens already."""
    for socket, place in zip(sockets, places, strict=True):
        place.hardlink_to(socket)


def hide(places: Iterable[Path]) -> None:
    """Unlink the second names; the engines live on."""
    for place in places:
        place.unlink()
