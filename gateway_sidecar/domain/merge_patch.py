"""What changed in a document, as a JSON merge patch (RFC 7396).

A member that is absent has not changed, one that is null has gone. So a document that is sent in patches has no nulls:
what is not known is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Document = Mapping[str, Any]

AGE = "age_s"
"""A member of this name always changes. It goes along with news of its object, and is no news itself."""


def known(members: Document) -> dict[str, Any]:
    """The members that are known: None is not."""
    return {key: value for key, value in members.items() if value is not None}


def merge_patch(before: Document, after: Document) -> dict[str, Any]:
    """What makes `after` of `before`; empty if there is no news. Neither has nulls."""
    patch: dict[str, Any] = {}
    for key, value in after.items():
        was = before.get(key)
        if was == value or key == AGE:
            continue
        if isinstance(value, Mapping) and isinstance(was, Mapping):
            inner = merge_patch(was, value)
            if inner:
                patch[key] = inner
        else:
            patch[key] = value
    if before.keys() != after.keys():
        patch.update(dict.fromkeys(before.keys() - after.keys() - {AGE}))
    if patch and AGE in after:
        patch[AGE] = after[AGE]
    return patch
