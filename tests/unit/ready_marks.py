"""What nginx is told of readiness, without its files."""

from __future__ import annotations


class PlayedMarks:
    """`unready`: those of which nginx says that they are not ready. `fault`: why nothing can be written."""

    def __init__(self) -> None:
        self.unready: set[str] = set()
        self.is_leaving = False
        self.fault: OSError | None = None

    def mark(self, name: str, *, ready: bool) -> bool:
        if self.fault is not None:
            raise self.fault
        news = (name in self.unready) is ready
        self.unready = self.unready - {name} if ready else self.unready | {name}
        return news

    def keep_only(self, names: set[str]) -> None:
        self.unready &= names

    def leave(self, *, leaving: bool) -> None:
        self.is_leaving = leaving
