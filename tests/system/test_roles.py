"""Prefill and decode as parts of one whole: what is told of half a pair, and what a drain minds."""

from __future__ import annotations

import asyncio
import re

import pytest

from examples.simulated import EngineKind, Role
from tests.system.clients import ask
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, replica_of, service_of

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


async def chat(gateway: Gateway) -> int:
    """The status of one chat."""
    async with (
        gateway.client() as client,
        client.post(f"{gateway.url()}/v1/chat/completions", json=CHAT) as answer,
    ):
        return answer.status


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [(EngineKind.SGLANG_HTTP, Role.PREFILL, Role.DECODE), (EngineKind.SGLANG_GRPC, Role.DECODE, Role.PREFILL)],
)
async def test_half_a_pair_is_told(
    make_gateway: MakeGateway, engine: StartEngine, kind: EngineKind, first: Role, second: Role
) -> None:
    """A replica that serves is no service: status, metric and log say what is missing, until it is there.

    Beside another model that is answered, so that the service as a whole lets requests through.
    """
    gateway = make_gateway()
    gateway.settings["services"][0]["hold"] = {"asleep_s": 0}
    await gateway.start()
    await engine(gateway.socket("r1"), model="other")
    await gateway.until_states({"r1": "serving"})
    await engine(gateway.socket("one"), kind, role=first)
    status = await gateway.until(lambda s: bool(service_of(s)["unanswered"]))
    assert service_of(status)["unanswered"] == {"tiny": f"1 {first.value} worker and no {second.value} worker"}
    assert await chat(gateway) == 503, "what the router says is what we say"
    await gateway.until_logged("service.half_pair")
    _, shown, _ = await gateway.cli("status")
    assert f"UNANSWERED: model tiny: 1 {first.value} worker and no {second.value} worker" in shown
    other = await engine(gateway.socket("other"), kind, role=second)
    await gateway.until(lambda s: not service_of(s)["unanswered"])
    assert await ask(gateway, "tiny", stream=False)
    assert gateway.events("service.whole")[0]["model"] == "tiny"
    await other.stop()
    await gateway.until(lambda s: bool(service_of(s)["unanswered"]))


async def test_half_a_pair_beside_a_regular_worker_is_no_trouble(gateway: Gateway, engine: StartEngine) -> None:
    """The regular worker answers."""
    await engine(gateway.socket("p1"), role=Role.PREFILL)
    await engine(gateway.socket("r1"))
    status = await gateway.until_states({"p1": "serving", "r1": "serving"})
    assert service_of(status)["unanswered"] == {}
    assert await chat(gateway) == 200


async def test_two_halves_that_do_not_pair_are_told(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """One over HTTP and one over gRPC: the router sends neither anything."""
    gateway = make_gateway()
    gateway.settings["services"][0]["hold"] = {"asleep_s": 0}
    await gateway.start()
    await engine(gateway.socket("p1"), EngineKind.SGLANG_HTTP, role=Role.PREFILL)
    await engine(gateway.socket("d1"), EngineKind.SGLANG_GRPC, role=Role.DECODE)
    await gateway.until_states({"p1": "serving", "d1": "serving"})
    status = await gateway.until(lambda s: bool(service_of(s)["unanswered"]) and service_of(s)["missing"] is None)
    assert service_of(status)["unanswered"]["tiny"].endswith("do not pair")
    assert await chat(gateway) == 503


async def test_draining_the_last_of_a_role_says_so(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """It is done, as it was asked for; who asked learns what it means."""
    gateway = make_gateway()
    gateway.settings["services"][0]["hold"] = {"asleep_s": 0}
    await gateway.start()
    for name, role in (("p1", Role.PREFILL), ("d1", Role.DECODE), ("d2", Role.DECODE)):
        await engine(gateway.socket(name), role=role)
    await gateway.until_states({"p1": "serving", "d1": "serving", "d2": "serving"})
    code, _, err = await gateway.cli("drain", "chat", "d1")
    assert (code, err) == (0, "")
    assert await chat(gateway) == 200
    code, _, err = await gateway.cli("drain", "chat", "p1")
    assert code == 0
    assert err == "no replica would serve model tiny without p1: 1 decode worker and no prefill worker\n"
    assert await chat(gateway) == 503


async def test_a_drained_vllm_prefill_engine_is_kept_for_what_is_fetched_from_it(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """It answers before its KV blocks are fetched; a decode engine owes nobody anything."""
    gateway = make_gateway()
    gateway.settings["services"][0]["drain"] = {"handover_s": 4, "settle_s": 0}
    await gateway.start()
    for name, role in (("p1", Role.PREFILL), ("d1", Role.DECODE)):
        await engine(gateway.socket(name), EngineKind.VLLM_GRPC, role=role)
    await gateway.until_states({"p1": "serving", "d1": "serving"})
    took: dict[str, float] = {}
    for name in ("d1", "p1"):
        async with gateway.session.post(f"http://daemon/v1/services/chat/replicas/{name}/drain") as answer:
            took[name] = (await answer.json())["took_s"]
            assert answer.status == 200
    assert took["p1"] >= 4


@pytest.mark.parametrize("kind", [EngineKind.SGLANG_GRPC, EngineKind.TOKENSPEED_GRPC])
async def test_an_encode_worker_is_registered_as_such_and_answers_nobody(
    gateway: Gateway, engine: StartEngine, kind: EngineKind
) -> None:
    """Its part is told by its yaml file; beside a pair it is one worker more."""
    gateway.socket("e1").with_suffix(".yaml").write_text("worker_type: encode\nbootstrap_port: 9005\n")
    await engine(gateway.socket("e1"), kind)
    status = await gateway.until_states({"e1": "serving"})
    assert service_of(status)["missing"] == "replica"
    (worker,) = await gateway.workers()
    assert (worker["worker_type"], worker["bootstrap_port"]) == ("encode", 9005)
    await engine(gateway.socket("p1"), kind, role=Role.PREFILL)
    await engine(gateway.socket("d1"), kind, role=Role.DECODE)
    await gateway.until(lambda s: service_of(s)["missing"] is None)
    assert await chat(gateway) == 200
    assert (await gateway.cli("drain", "chat", "e1"))[0] == 0
    assert await chat(gateway) == 200


PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


async def look(gateway: Gateway) -> tuple[int, str]:
    """A chat about an image; status and text of the answer."""
    content = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    body = {"model": "llava-1.5", "messages": [{"role": "user", "content": content}], "max_tokens": 3}
    async with gateway.client() as client, client.post(f"{gateway.url()}/v1/chat/completions", json=body) as answer:
        return answer.status, await answer.text()


async def test_an_image_goes_to_the_encode_worker_and_the_prefill_engine_is_told_where_that_is(
    gateway: Gateway, engine: StartEngine
) -> None:
    """TokenSpeed says itself that it encodes; SMG sends it the image, and the prefill engine there for the result."""
    kind = EngineKind.TOKENSPEED_GRPC
    sees = {"model": "llava-1.5", "vision": True}
    encoder = await engine(gateway.socket("e1"), kind, role=Role.ENCODE, bootstrap_port=9005, **sees)
    prefill = await engine(gateway.socket("p1"), kind, role=Role.PREFILL, **sees)
    await engine(gateway.socket("d1"), kind, role=Role.DECODE, **sees)
    status = await gateway.until_states(dict.fromkeys(("d1", "e1", "p1"), "serving"))
    assert replica_of(status, "e1")["worker_type"] == "encode"
    status_code, text = await look(gateway)
    assert status_code == 200, text
    while not encoder.ledger.requests:  # SMG asks it beside the others, and does not wait for it.
        await asyncio.sleep(0.01)
    asked = [request.body for request in encoder.ledger.requests]
    told = [request.body["encode_bootstrap_info"]["items"] for request in prefill.ledger.requests]
    assert len(asked) == len(told) == 1
    ((item,),) = told
    assert (item["bootstrap_host"], item["bootstrap_port"]) == ("127.0.0.2", 9005)
    assert asked[0]["items"] == [{"bootstrap_room": item["bootstrap_room"]}]
    # Without it the prefill engine is sent the image itself. SMG 1.13 keeps its connections to one that has left.
    code, _, err = await gateway.cli("drain", "chat", "e1", "--timeout", "1")
    assert code == 1
    assert re.search(r" connections? in flight", err)
    status_code, text = await look(gateway)
    assert status_code == 200, text
    assert "encode_bootstrap_info" not in prefill.ledger.requests[-1].body
    assert len(encoder.ledger.requests) == 1
