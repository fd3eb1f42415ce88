"""The last events: of the real daemon, over its restarts, and as they are logged."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

from gateway_sidecar.domain.model import ReplicaState
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway


async def events_of(gateway: Gateway, *arguments: str) -> list[dict[str, Any]]:
    """What `events` prints."""
    code, out, err = await gateway.cli("events", "--json", *arguments)
    assert (code, err.replace("no events\n", "")) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


async def test_events_outlive_a_daemon_that_is_killed(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Also where the log shows errors only: the journal has the whole story of each replica."""
    gateway = make_gateway(log={"format": "json", "level": "error"})
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    story = names(await events_of(gateway, "chat", "r1"))
    assert story[0] == "replica.seen"
    assert story[-1] == f"replica.{ReplicaState.SERVING}"
    assert gateway.log() == ""
    file = gateway.directory / "state" / "events.jsonl"
    async with asyncio.timeout(60):
        while not file.exists() or b"replica.serving" not in file.read_bytes():
            await asyncio.sleep(0.02)
    await gateway.kill()
    with file.open("ab") as torn:
        torn.write(b'{"seq": 17, "timestamp": "20')
    await gateway.start()
    await gateway.until_states({"r1": "serving"})
    later = names(await events_of(gateway, "chat", "r1"))
    assert later[: len(story)] == story
    assert later.count("replica.seen") == 2
    assert names(await events_of(gateway)).count("daemon.started") == 2
    assert await events_of(gateway, "chat", "r1", "--since", "0s") == []
    (latest,) = await events_of(gateway, "chat", "--last", "1")
    assert (latest["service"], latest["replica"]) == ("chat", "r1")


async def test_events_are_followed_over_a_restart_of_the_daemon(gateway: Gateway, engine: StartEngine) -> None:
    """Each event comes once, and who follows need not begin again."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway_sidecar", "events", "-f", "--json", "chat"),
        *("--config", str(gateway.config_path)),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    seen: list[dict[str, Any]] = []
    assert process.stdout is not None

    async def until(name: str, **said: object) -> None:
        async with asyncio.timeout(60):
            assert process.stdout is not None
            while not any(it["event"] == name and said.items() <= it.items() for it in seen):
                seen.append(json.loads(await process.stdout.readline()))

    try:
        await until("router.started")
        await engine(gateway.socket("r1"))
        await until("replica.serving", replica="r1")
        assert await gateway.terminate() == 0
        await gateway.start()
        await engine(gateway.socket("r2"))
        await until("replica.serving", replica="r2")
    finally:
        process.kill()
        await process.wait()
    assert len({it["seq"] for it in seen}) == len(seen)
    assert [it["seq"] for it in seen] == sorted(it["seq"] for it in seen)


async def test_server_sent_events_go_on_behind_the_last_one(gateway: Gateway, engine: StartEngine) -> None:
    """As a browser's EventSource asks for them."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    first, second, *_ = await events_of(gateway, "chat", "r1")
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(first["seq"])}
    url = "http://daemon/v1/events?service=chat&replica=r1&follow=1"
    async with gateway.session.get(url, headers=headers) as response:
        assert response.content_type == "text/event-stream"
        assert await response.content.readline() == b"id: %d\n" % second["seq"]
        assert json.loads((await response.content.readline()).removeprefix(b"data: ")) == second


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("replica=r1", "say `service`, too"),
        ("since=yesterday", "'yesterday' is neither a time ago"),
        ("follow=yes", "'yes' is neither 0 nor 1"),
        ("last=-1", "'-1' is not a whole number"),
        ("lst=1", "'lst' is not a parameter"),
    ],
)
async def test_what_cannot_be_asked_for_is_said(gateway: Gateway, query: str, words: str) -> None:
    """What, which value, and how to ask."""
    async with gateway.session.get(f"http://daemon/v1/events?{query}") as response:
        assert response.status == 400
        assert words in (await response.json())["error"]
    code, _, err = await gateway.cli("events", "caht")
    assert (code, "no service 'caht'; did you mean 'chat'?" in err) == (1, True)


async def test_explain_names_the_step_that_fails(gateway: Gateway, engine: StartEngine) -> None:
    """Of an engine that loads, one that was killed, one that is drained, and one that is no more."""
    one = await engine(gateway.socket("r1"))
    await engine(gateway.socket("r2"), load_s=3600)
    await gateway.until_states({"r1": "serving", "r2": "loading"})
    code, out, _ = await gateway.cli("explain", "chat", "r1")
    assert (code, "chat/r1 is serving" in out) == (0, True)
    code, out, _ = await gateway.cli("explain", "chat", "r2", "--json")
    (stay,) = json.loads(out)["stays"]
    assert stay["why"].startswith("probe: ")
    assert [step["state"] for step in stay["steps"]] == ["ok", "ok", "waiting", "not reached", "not reached"]
    assert (await gateway.cli("drain", "chat", "r1"))[0] == 0
    assert "drain   nothing is in flight: safe to stop" in (await gateway.cli("explain", "chat", "r1"))[1]
    await one.stop(grace_s=0)
    gateway.socket("r1").unlink(missing_ok=True)
    await gateway.until_states({"r2": "loading"})
    code, out, _ = await gateway.cli("explain", "chat", "r1")
    assert code == 0
    assert "chat/r1 is gone" in out
    assert "replica.gone" in out
    code, _, err = await gateway.cli("explain", "chat", "r22")
    assert (code, "did you mean 'r2'?" in err) == (1, True)
