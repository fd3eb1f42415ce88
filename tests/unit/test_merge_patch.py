"""What is sent of a document that changes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.domain.merge_patch import AGE, known, merge_patch

LEAVES = st.booleans() | st.integers(0, 3) | st.text("ab", max_size=1) | st.lists(st.integers(0, 2))
DOCUMENTS = st.recursive(LEAVES, lambda inner: st.dictionaries(st.sampled_from("abcd"), inner), max_leaves=20)
WHOLE = st.dictionaries(st.sampled_from("abcd"), DOCUMENTS)


def merged(document: object, patch: object) -> Any:
    """RFC 7396, as it is written there."""
    if not isinstance(patch, dict):
        return patch
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


@given(WHOLE, WHOLE)
def test_a_patch_makes_the_one_document_of_the_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    """And there is none where nothing has changed."""
    patch = merge_patch(before, after)
    assert merged(before, patch) == after
    assert (patch == {}) == (before == after)


def test_what_is_not_known_is_left_out() -> None:
    """None would say that it has gone. Zero and nothing are known."""
    assert known({"a": None, "b": 0, "c": [], "d": ""}) == {"b": 0, "c": [], "d": ""}


def test_an_age_goes_along_with_news_and_is_none_itself() -> None:
    """Or else every replica would be sent every second."""
    before = {"r1": {"state": "loading", AGE: 1.0}, "r2": {"state": "serving", AGE: 5.0}}
    older = {"r1": {"state": "loading", AGE: 2.0}, "r2": {"state": "serving", AGE: 6.0}}
    assert merge_patch(before, older) == {}
    changed = {"r1": {"state": "serving", AGE: 0.1}, "r2": {"state": "serving", AGE: 6.0}}
    assert merge_patch(older, changed) == {"r1": {"state": "serving", AGE: 0.1}}
