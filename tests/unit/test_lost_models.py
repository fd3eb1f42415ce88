"""Which models a service has lost."""

from __future__ import annotations

from gateway_sidecar.domain.lost_models import REMEMBERED_S, LostModels


def test_a_model_is_lost_with_its_last_replica_and_found_with_the_next() -> None:
    """What was never answered is not lost."""
    models = LostModels()
    models.note(frozenset({"a", "b"}), (), 0.0)
    assert models.remembered((), 0.0) == set()
    models.note(frozenset({"a"}), (), 10.0)
    assert models.remembered((), 10.0) == {"b"}
    models.note(frozenset({"a", "b"}), (), 20.0)
    assert models.remembered((), 20.0) == set()


def test_it_is_forgotten_after_a_while_and_not_while_its_replica_is_there() -> None:
    """Nobody waits for ever for what does not come back; an engine that loads for an hour does."""
    models = LostModels()
    models.note(frozenset({"a", "b", "c"}), (), 0.0)
    models.note(frozenset({"a"}), (), 10.0)
    models.note(frozenset({"a"}), (), 500.0)
    assert models.remembered({"c"}, 10.0 + REMEMBERED_S) == {"b", "c"}
    assert models.remembered({"c"}, 11.0 + REMEMBERED_S) == {"c"}
    assert models.remembered((), 11.0 + REMEMBERED_S) == set()


def test_what_a_serving_engine_gave_up_is_not_lost() -> None:
    """And what an earlier daemon had lost is, until somebody answers for it."""
    models = LostModels()
    models.note(frozenset({"a", "lora"}), (), 0.0)
    models.note(frozenset({"a"}), {"lora"}, 1.0)
    assert not models.any_lost
    models.recall({"b"}, 2.0)
    assert models.remembered((), 2.0) == {"b"}
    models.note(frozenset({"b"}), (), 3.0)
    assert models.remembered((), 3.0) == {"a"}
