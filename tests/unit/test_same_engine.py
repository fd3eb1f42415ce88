"""Whether an engine was started again in between, by what it says of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from gateway_sidecar.domain.discovery import HttpAnswer, ModelList
from gateway_sidecar.domain.model import ConnectionMode, EngineFacts
from gateway_sidecar.engines import sglang, vllm

FACTS = EngineFacts("sglang", ConnectionMode.HTTP, model="tiny", instance="seed 1")


def test_only_two_instances_that_are_both_known_and_differ_tell_engines_apart() -> None:
    """Unknown is not different: what an older daemon wrote down has none."""
    assert FACTS.is_same_engine(FACTS)
    assert FACTS.is_same_engine(replace(FACTS, instance=None))
    assert replace(FACTS, instance=None).is_same_engine(FACTS)
    assert not FACTS.is_same_engine(replace(FACTS, instance="seed 2"))
    assert not FACTS.is_same_engine(replace(FACTS, model="other"))


def test_a_connector_that_was_only_guessed_makes_no_other_engine() -> None:
    """The metrics page that shows it may not be there the next time."""
    guessed = replace(FACTS, kv_connector="NixlConnector")
    assert FACTS.is_same_engine(guessed)
    assert guessed.is_same_engine(FACTS)
    assert not guessed.is_same_engine(replace(guessed, kv_connector="MooncakeConnector"))
    told = replace(guessed, connection_mode=ConnectionMode.GRPC)
    assert not told.is_same_engine(replace(told, kv_connector=None))


def test_sglang_tells_by_its_seed_or_its_start() -> None:
    """A seed that it was given, or none, or one that is no number, says nothing new."""
    info = {"model_path": "tiny", "random_seed": 552515057}
    for seed, instance in ((552515057, "seed 552515057"), (None, None), ("x", None)):
        body = json.dumps(info | {"random_seed": seed}).encode()
        found = sglang.read_http(ModelList(("tiny",), "sglang"), (HttpAnswer(200, body),))
        assert isinstance(found, EngineFacts)
        assert found.instance == instance
    found = sglang.read_grpc({"server_args": {"dp_size": 1.0}, "start_time": {"seconds": 17}}, {})
    assert isinstance(found, EngineFacts)
    assert found.instance == "started at 17"


def test_vllm_tells_by_the_machine_it_is_on() -> None:
    """As much as it says."""
    found = vllm.read_grpc({"shm_namespace_id": "b54703e6:27"}, {})
    assert isinstance(found, EngineFacts)
    assert found.instance == "b54703e6:27"


def test_recorded_answers_have_what_is_read() -> None:
    """Those of the real engines."""
    recorded = Path(__file__).parents[1] / "fixtures" / "engines"
    assert '"random_seed": 552515057' in (recorded / "sglang-http.json").read_text()
    assert '"start_time": "2026-11-20T18:32:36Z"' in (recorded / "sglang-grpc.json").read_text()
    assert '"shm_namespace_id": "b54703e6-' in (recorded / "vllm-grpc.json").read_text()
