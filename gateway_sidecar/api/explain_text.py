"""`explain` for people: the verdict first, then each step with its evidence, then the last events."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from gateway_sidecar.api.event_lines import event_line
from gateway_sidecar.domain.printable import age, printable

if TYPE_CHECKING:
    from gateway_sidecar.api.models import Explained, Stay, Step

_STATES: dict[str, str] = {"ok": "ok", "waiting": "WAITING", "failed": "FAILED", "not reached": "-"}
_LONGEST = 1000  # A choice: a dozen lines of a terminal.
_NARROW = 60  # A choice: below it the 16 columns of state and name leave too little for the words.
_LEAST = 16  # A choice: a long word; what is narrower is indented by two columns only.


def render_explained(answer: Explained, width: int | None) -> str:
    """The answer of `explain` as text, in lines of `width` at most; None for as long as they are."""
    name = f"{answer['service']}/{answer['replica']}"
    parts = []
    for number, stay in enumerate(answer["stays"]):
        parts.append("\n".join(_stay(name if number == 0 else f"{name}, an earlier stay,", stay, width)))
    if answer["events"]:
        whole = f"gateway-sidecar events {answer['service']} {answer['replica']}"
        lines = wrapped(f"Last events (all: {whole}):", width)
        lines += [line for it in answer["events"] for line in wrapped(event_line(it, named=False), width, "  ", 8)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _stay(name: str, stay: Stay, width: int | None) -> list[str]:
    lasted = f" for {age(stay['state_age_s'])}" if stay["state_age_s"] else ""
    because = "" if stay["why"].startswith("it serves") else f", because of {stay['why'].partition(':')[0]}"
    lines = wrapped(f"{name} is {stay['state']}{lasted}{because}", width)
    for step in stay["steps"]:
        lines += _step(step, width)
    return lines


def _step(step: Step, width: int | None) -> list[str]:
    state = _STATES.get(step["state"], step["state"])
    deep = 16 if width is None or width >= _NARROW else 4
    lines = wrapped(f"{state:8}{step['name']:7} {step['says']}".rstrip(), width, "  ", deep)
    for each in step["evidence"]:
        lines += wrapped(each, width, " " * (deep + 2), 0)
    if step["change"] and step["state"] != "ok":
        lines += wrapped(f"-> {step['change']}", width, " " * (deep + 2), 3)
    return lines


def wrapped(text: str, width: int | None, indent: str = "", more: int = 2, *, most: int = _LONGEST) -> list[str]:
    """The text in lines of `width` at most, the further ones `more` deeper; one line without a width."""
    text = printable(text, most)
    if width is None or len(indent) + len(text) <= width:
        return [indent + text]
    room = max(width - len(indent), 12)
    lines = textwrap.wrap(
        text,
        room,
        subsequent_indent=" " * (more if room - more >= _LEAST else 2),
        break_on_hyphens=False,
        drop_whitespace=True,
    )
    return [indent + line for line in lines]
