"""The main job: a socket appears, and a client's request reaches it through the router."""

from __future__ import annotations

import asyncio

import pytest

from examples.simulated import EngineKind, Role
from tests.system.clients import ask
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, Status, replica_of, service_of


@pytest.mark.parametrize(
    ("kind", "runtime_type", "connection_mode"),
    [
        (EngineKind.SGLANG_HTTP, "sglang", "http"),
        (EngineKind.SGLANG_GRPC, "sglang", "grpc"),
        (EngineKind.VLLM_HTTP, "vllm", "http"),
        (EngineKind.VLLM_GRPC, "vllm", "grpc"),
        (EngineKind.TRTLLM_HTTP, "trtllm", "http"),
        (EngineKind.TRTLLM_GRPC, "trtllm", "grpc"),
        (EngineKind.MLX_GRPC, "mlx", "grpc"),
        (EngineKind.TOKENSPEED_GRPC, "tokenspeed", "grpc"),
        (EngineKind.OPENAI_HTTP, "external", "http"),
    ],
)
async def test_every_engine_answers_chats(
    gateway: Gateway, engine: StartEngine, kind: EngineKind, runtime_type: str, connection_mode: str
) -> None:
    """A replica is asked what it is, and a client reaches it through the service address, streamed and not."""
    await engine(gateway.socket("r1"), kind)
    status = await gateway.until_states({"r1": "serving"})
    row = replica_of(status, "r1")
    assert (row["runtime_type"], row["connection_mode"]) == (runtime_type, connection_mode)
    assert row["worker_type"] == "regular"
    assert row["model"] == "tiny"
    assert row["bridge"] is not None
    assert row["worker_id"] is not None
    assert "r1" in await ask(gateway, "tiny", stream=False)
    assert "r1" in await ask(gateway, "tiny", stream=True)


async def test_scale_to_zero_and_back_many_times(gateway: Gateway, engine: StartEngine) -> None:
    """To zero and back works any number of times, and nginx is never reloaded for it."""
    for round_number in range(4):
        one = await engine(gateway.socket(f"r{round_number}"))
        two = await engine(gateway.socket("same"))
        await gateway.until_states({f"r{round_number}": "serving", "same": "serving"})
        assert await ask(gateway, "tiny", stream=False)
        await one.stop()
        await two.stop()
        status = await gateway.until_states({})
        assert service_of(status)["replicas"] == []
        assert await gateway.workers() == []
    assert (await gateway.status())["nginx"]["reloads"] == 0


async def test_prefill_and_decode_pair_answers(gateway: Gateway, engine: StartEngine) -> None:
    """Roles come from the engines themselves; a pair of them answers a chat."""
    prefill = await engine(gateway.socket("p1"), role=Role.PREFILL, bootstrap_port=8998)
    decode = await engine(gateway.socket("d1"), role=Role.DECODE)
    status = await gateway.until_states({"p1": "serving", "d1": "serving"})
    assert replica_of(status, "p1")["worker_type"] == "prefill"
    assert replica_of(status, "d1")["worker_type"] == "decode"
    by_type = {worker["worker_type"]: worker for worker in await gateway.workers()}
    assert by_type["prefill"]["bootstrap_port"] == 8998
    assert await ask(gateway, "tiny", stream=False)
    for half in (prefill, decode):
        await half.until(lambda seen: seen.completed >= 1)


async def test_vllm_pair_on_grpc_carries_its_kv_fields(gateway: Gateway, engine: StartEngine) -> None:
    """vLLM's roles and `kv_*` fields reach the router as the engine says them."""
    kv = {"kv_connector": "NixlConnector"}
    await engine(gateway.socket("p1"), EngineKind.VLLM_GRPC, role=Role.PREFILL, **kv)
    await engine(gateway.socket("d1"), EngineKind.VLLM_GRPC, role=Role.DECODE, **kv)
    await gateway.until_states({"p1": "serving", "d1": "serving"})
    by_type = {worker["worker_type"]: worker for worker in await gateway.workers()}
    assert by_type["prefill"]["kv_connector"] == "NixlConnector"
    assert by_type["prefill"]["kv_role"] == "kv_producer"
    assert by_type["decode"]["kv_role"] == "kv_consumer"
    assert await ask(gateway, "tiny", stream=False)


@pytest.mark.parametrize(
    ("prefill", "decode"),
    [
        ("kv_role: kv_producer\nkv_connector: NixlConnector\nkv_engine_id: e1", "kv_role: kv_consumer"),
        ("worker_type: prefill", "worker_type: decode"),
    ],
)
async def test_vllm_pair_on_http_gets_its_kv_fields_from_its_notes(
    gateway: Gateway, engine: StartEngine, prefill: str, decode: str
) -> None:
    """Outside development mode it does not say them over HTTP; `status` says what to write, until it is written."""
    first = await engine(gateway.socket("p1"), EngineKind.VLLM_HTTP, role=Role.PREFILL)
    second = await engine(gateway.socket("d1"), EngineKind.VLLM_HTTP, role=Role.DECODE)
    status = await gateway.until_states({"p1": "serving", "d1": "serving"})
    for name in ("p1", "d1"):
        assert replica_of(status, name)["worker_type"] == "regular"
        assert "does not say its role, so no KV is transferred; write `kv_role: " in replica_of(status, name)["reason"]
    for name, notes in (("p1", prefill), ("d1", decode)):
        gateway.socket(name).with_suffix(".yaml").write_text(notes)

    def is_pair(status: Status) -> bool:
        rows = [replica_of(status, name) for name in ("p1", "d1")]
        told = [(row["state"], row["worker_type"], row["reason"]) for row in rows]
        return told == [("serving", "prefill", None), ("serving", "decode", None)]

    await gateway.until(is_pair)
    # Status shows what is noted as soon as that is read: before the router is told of it.
    workers = await gateway.until_workers(
        lambda rows: (
            sorted((row["worker_type"], row["status"]) for row in rows) == [("decode", "ready"), ("prefill", "ready")]
        )
    )
    by_type = {worker["worker_type"]: worker for worker in workers}
    told = [(by_type[role]["kv_connector"], by_type[role]["kv_role"]) for role in ("prefill", "decode")]
    assert told == [("NixlConnector", "kv_producer"), ("NixlConnector", "kv_consumer")]
    assert await ask(gateway, "tiny", stream=False)
    asked = [one.ledger.requests[-1].body["kv_transfer_params"] for one in (first, second)]
    assert asked[0]["do_remote_decode"] is True
    assert asked[1]["remote_engine_id"] == "engine-of-p1"
    await gateway.kill()
    await gateway.start()
    await gateway.until(is_pair)
    assert {worker["id"] for worker in await gateway.workers()} == {worker["id"] for worker in by_type.values()}


async def test_vllm_whose_first_answer_about_itself_is_slow_is_never_out_of_reach(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """A real one takes over 5 s to collect it: meanwhile it loads, and no router knows it in a wrong role."""
    gateway = make_gateway()
    gateway.settings["services"][0]["probe"] = {"timeout_s": 0.5}
    await gateway.start()
    slow = await engine(gateway.socket("p1"), EngineKind.VLLM_HTTP, role=Role.PREFILL, dev_mode=True, first_info_s=3600)
    await gateway.until(
        lambda s: (
            [
                row["state"] == "loading" and "no answer to /server_info" in (row["reason"] or "")
                for row in service_of(s)["replicas"]
            ]
            == [True]
        )
    )
    assert await gateway.workers() == []
    slow.behave(first_info_s=0)
    status = await gateway.until_states({"p1": "serving"})
    assert replica_of(status, "p1")["worker_type"] == "prefill"
    (worker,) = await gateway.workers()
    assert (worker["kv_connector"], worker["kv_role"]) == ("NixlConnector", "kv_producer")


async def test_mixed_fleet_in_one_service(gateway: Gateway, engine: StartEngine) -> None:
    """HTTP and gRPC, SGLang and vLLM, side by side: each is probed for itself and each answers."""
    await engine(gateway.socket("h"), EngineKind.SGLANG_HTTP, model="one")
    await engine(gateway.socket("g"), EngineKind.VLLM_GRPC, model="two")
    await gateway.until_states({"h": "serving", "g": "serving"})
    answers = await asyncio.gather(ask(gateway, "one", stream=True), ask(gateway, "two", stream=True))
    assert [name in answer for name, answer in zip("hg", answers, strict=True)] == [True, True]


async def test_loading_engine_is_loading_until_it_serves(gateway: Gateway, engine: StartEngine) -> None:
    """Answering an info call is not readiness: 503 and NOT_SERVING are Loading, a state with an age."""
    for name, kind in (("h", EngineKind.SGLANG_HTTP), ("g", EngineKind.VLLM_GRPC)):
        loading = await engine(gateway.socket(name), kind, load_s=3600)
        status = await gateway.until_state(name, "loading")
        assert replica_of(status, name)["worker_id"] is None
        assert await gateway.workers() == [] or name == "g"
        loading.behave(load_s=0)
        await gateway.until_state(name, "serving")


async def test_engine_that_names_no_model_gets_its_name_from_the_operator(
    gateway: Gateway, engine: StartEngine
) -> None:
    """No request would reach it; `status` says what to write, and that is heeded at once and by the next daemon."""
    await engine(gateway.socket("r1"), EngineKind.OPENAI_HTTP, model="")
    status = await gateway.until_states({"r1": "serving"})
    assert "names no model" in replica_of(status, "r1")["reason"]
    assert "model: NAME" in replica_of(status, "r1")["reason"]
    gateway.socket("r1").with_suffix(".yaml").write_text("model: my/model\n")

    def is_named(status: Status, name: str) -> bool:
        row = replica_of(status, "r1")
        return (row["state"], row["model"], row["reason"]) == ("serving", name, None)

    await gateway.until(lambda status: is_named(status, "my/model"))
    assert await ask(gateway, "my/model", stream=True)
    await gateway.kill()
    gateway.socket("r1").with_suffix(".yaml").write_text("model: another\n")
    await gateway.start()
    await gateway.until(lambda status: is_named(status, "another"))
    assert await ask(gateway, "another", stream=False)


@pytest.mark.parametrize("kind", [EngineKind.SGLANG_HTTP, EngineKind.VLLM_GRPC])
async def test_name_from_the_operator_stands_above_the_engine(
    gateway: Gateway, engine: StartEngine, kind: EngineKind
) -> None:
    """Two replicas of one model that call it by different names are one model to clients."""
    gateway.socket("r1").with_suffix(".yaml").write_text("model: common\n")
    await engine(gateway.socket("r1"), kind, model="/data/models/a")
    await engine(gateway.socket("r2"), kind, model="common")
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    assert {worker["model_id"] for worker in await gateway.workers()} == {"common"}
    assert await ask(gateway, "common", stream=True)
