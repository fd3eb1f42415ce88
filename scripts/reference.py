"""Writes what docs/ says of the code from the code itself: `make reference`. A test holds that it is up to date.

Between two marks in a page stands what this program writes; all else on the page is written by hand.
"""

from __future__ import annotations

from pathlib import Path

from gateway_sidecar.telemetry.events import GROUPS

DOCS = Path(__file__).parents[1] / "docs"


def events() -> str:
    """A table of events for each group."""
    parts: list[str] = []
    for title, group in GROUPS.items():
        rows = [
            f"| `{name}` | {', '.join(event.levels)} | {_cell(event.meaning)} | {_cell(event.cure)} |"
            for name, event in group.items()
        ]
        parts.append(
            "\n".join([f"### {title}", "", "| event | level | means | do |", "| --- | --- | --- | --- |", *rows])
        )
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


PARTS = {"reference/events.md": {"events": events}}
"""Page -> mark -> what writes the text there."""


def written(page: str) -> str:
    """The page as it has to be. Raises ValueError if a mark is missing."""
    text = (DOCS / page).read_text("utf-8")
    for mark, write in PARTS[page].items():
        begin, end = f"<!-- {mark}: written by `make reference` -->", f"<!-- end of {mark} -->"
        before, is_there, rest = text.partition(begin)
        _, ends, after = rest.partition(end)
        if not is_there or not ends:
            raise ValueError(f"docs/{page}: the marks `{begin}` and `{end}` are missing; put them back")
        text = f"{before}{begin}\n\n{write()}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    for name in PARTS:
        (DOCS / name).write_text(written(name), "utf-8")
