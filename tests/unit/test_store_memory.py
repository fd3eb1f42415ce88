"""What of a store is believed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.domain.store_memory import FORMAT, LINEAGE, Entry, Lineage, Memory, Snapshot, judge, lineage_of

OURS = Lineage("ours")


def snapshot(revision: int, lineage: Lineage | None = OURS, cluster: str = "one", **keys: int) -> Snapshot:
    """Keys by the revision of their last write."""
    entries = {key: Entry(f"{key}@{at}", at) for key, at in keys.items()}
    if lineage is not None:
        entries[LINEAGE] = Entry(lineage.to_json(), 2)
    return Snapshot(cluster, revision, entries)


KNOWN = Memory(snapshot(10, a=4, b=9))


def test_a_store_of_which_nobody_has_made_anything_is_new() -> None:
    """The first gateway of all begins its lineage."""
    verdict = judge(Memory(), snapshot(1, None))
    assert verdict.is_new
    assert not verdict.refusal


def test_a_gateway_that_knows_nothing_believes_a_fleets_store() -> None:
    """A new gateway joins without a word."""
    seen = snapshot(10, a=4)
    assert judge(Memory(), seen).memory == Memory(seen)


@pytest.mark.parametrize("seen", [snapshot(10, a=4, b=9), snapshot(12, a=12), snapshot(11)])
def test_what_goes_on_is_believed_whatever_was_deleted(seen: Snapshot) -> None:
    """Keys come, change and go; the lineage stays."""
    verdict = judge(KNOWN, seen)
    assert (verdict.refusal, verdict.memory) == ("", Memory(seen))


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (snapshot(1, None), "it holds nothing of ours, and had 2 keys before"),
        (snapshot(50, None), "it holds nothing of ours"),
        (snapshot(50, None, x=50), "it holds nothing of ours"),
        (snapshot(9, a=4), "gone back from revision 10 to 9"),
        (snapshot(50, a=3), "'a' has gone back from revision 4 to 3"),
        (snapshot(50, cluster="two", a=4, b=9), "it is another store: two, and was one"),
        (snapshot(50, Lineage("theirs")), "was begun by other gateways"),
    ],
)
def test_what_is_empty_older_or_another_store_is_refused(seen: Snapshot, why: str) -> None:
    """And nothing that was known is forgotten for it."""
    verdict = judge(KNOWN, seen)
    assert why in verdict.refusal
    assert verdict.memory.known == KNOWN.known
    assert not verdict.is_new


def test_a_store_that_went_back_stays_refused_when_it_has_grown_again() -> None:
    """Revisions of another history look right one day."""
    memory = judge(KNOWN, snapshot(9, a=4)).memory
    verdict = judge(memory, snapshot(500, a=4, b=9))
    assert "gone back" in verdict.refusal
    assert verdict.memory.known == KNOWN.known


def test_an_address_that_led_elsewhere_for_a_while_needs_no_operator() -> None:
    """The right store is recognised when it is back."""
    memory = judge(KNOWN, snapshot(50, Lineage("theirs"), cluster="two")).memory
    seen = snapshot(11, a=4, b=9)
    assert judge(memory, seen).memory == Memory(seen)


@pytest.mark.parametrize("before", [KNOWN, replace(KNOWN, distrust="went back")])
def test_what_an_operator_accepted_is_believed_by_all_who_knew_what_was_before(before: Memory) -> None:
    """One command for the whole fleet, also for a gateway that was off meanwhile."""
    seen = snapshot(5, Lineage("third", ("ours", "second")), cluster="two")
    verdict = judge(before, seen)
    assert (verdict.refusal, verdict.memory) == ("", Memory(seen))


def test_a_gateway_that_lost_its_memory_does_not_believe_an_empty_store() -> None:
    """Its replicas say that there was something."""
    verdict = judge(Memory(expects=3), snapshot(1, None))
    assert "had 3 replicas" in verdict.refusal
    assert not verdict.is_new
    assert judge(Memory(expects=3), snapshot(5)).refusal == ""


@pytest.mark.parametrize("before", [Memory(), KNOWN, Memory(expects=3)])
def test_what_only_a_later_version_can_read_is_refused_and_nothing_is_forgotten(before: Memory) -> None:
    """Also by a gateway that knows nothing yet: it would take the rest for what it is not."""
    verdict = judge(before, snapshot(50, replace(OURS, format=FORMAT + 1), a=4, b=9))
    assert f"it has format {FORMAT + 1}, and this version of gateway-sidecar reads format {FORMAT}" in verdict.refusal
    assert verdict.is_later
    assert verdict.memory == before
    assert judge(before, snapshot(50, a=4, b=9)).refusal == "", "and when it is put right, it needs no operator"


def test_a_lineage_without_a_format_has_the_first_one() -> None:
    """As gateways wrote it before there was one."""
    entry = Entry('{"id": "ours", "ancestors": []}', 2)
    assert lineage_of(Snapshot("one", 5, {LINEAGE: entry})) == OURS
    assert FORMAT == 1


@given(st.text())
def test_a_lineage_that_nobody_of_us_wrote_is_none(text: str) -> None:
    """Garbage at the key is no reason to fail, and none to believe."""
    seen = Snapshot("one", 50, {LINEAGE: Entry(text, 50)})
    if lineage_of(seen) is None:
        assert judge(KNOWN, seen).refusal


def test_a_write_of_ours_stands_before_the_next_read() -> None:
    """And takes nothing else away."""
    after = snapshot(10, a=4).with_entry("b", "x", 11)
    assert after.revision == 11
    assert {key: it.value for key, it in after.entries.items() if key != LINEAGE} == {"a": "a@4", "b": "x"}
    assert set(after.with_entry("a", None, 12).entries) == {"b", LINEAGE}
