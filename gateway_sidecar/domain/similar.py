"""What somebody may have meant by a name that is not there. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_ALIKE = 0.65  # A choice: stricter than `difflib`'s own 0.6, which offers what nobody meant.
_FEW = 10  # As many as two lines have room for.


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'chat'?`; empty if no name is similar."""
    alike = _alike(name, known)
    return f"did you mean '{alike[0]}'?" if alike else ""


def near(name: str, known: Iterable[str]) -> str:
    """What there is in its place, the most similar names first: `did you mean 'chat'? there are: chat, code`."""
    names = sorted(known)
    alike = _alike(name, names) or [it for it in names if it.casefold().endswith(name.casefold())][:3]
    shown = [*alike, *(it for it in names if it not in alike)][:_FEW]
    more = f", and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    meant = f"did you mean '{alike[0]}'? " if alike else ""
    return f"{meant}there are: {', '.join(shown) or 'none'}{more}"


def _alike(name: str, known: Iterable[str]) -> list[str]:
    by_plain = {_plain(it): it for it in known}
    return [by_plain[it] for it in get_close_matches(_plain(name), by_plain, n=3, cutoff=_ALIKE)]


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")
