"""Writes into docs/ what the code says of itself: `make reference`. A test holds that the pages are up to date.

Between two marks in a page stands what this program writes. A person writes all else on the page.
"""

from __future__ import annotations

from pathlib import Path

from scripts.reference import api, commands, events, metrics, settings

DOCS = Path(__file__).parents[2] / "docs"
PARTS = {
    "configuration.md": settings.PARTS,
    **{f"routers/{kind}.md": parts for kind, parts in settings.OF_ROUTERS.items()},
    "reference/api.md": {"routes": api.routes, "operations": api.operations, "values": api.values},
    "reference/commands.md": {
        "commands": commands.commands,
        "common options": commands.common_options,
        "exit codes": commands.exit_codes,
    },
    "reference/events.md": {"events": events.events},
    "reference/metrics.md": {"metrics": metrics.metrics},
}
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
