"""What is amiss with the daemon itself, as `status` shows it: one line for each name, and one writer for each line."""

from __future__ import annotations

from collections.abc import Mapping


class Problem:
    """One line. `text` is empty while nothing is amiss."""

    def __init__(self) -> None:
        self.text = ""

    def set(self, text: str) -> bool:
        """Tells what is amiss, with an empty text that nothing is; whether that is news."""
        news, self.text = text != self.text, text
        return news


class Problems:
    """All of them."""

    def __init__(self) -> None:
        self._by_name: dict[str, Problem] = {}

    def of(self, name: str) -> Problem:
        """The line of this name, for whoever writes it. Raises ValueError if it is given out already."""
        if name in self._by_name:
            raise ValueError(f"'{name}' has a writer already")
        return self._by_name.setdefault(name, Problem())

    def told(self) -> Mapping[str, str]:
        """What is amiss now: name -> text."""
        return {name: problem.text for name, problem in self._by_name.items() if problem.text}
