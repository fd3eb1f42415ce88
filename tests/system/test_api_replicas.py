"""Replicas put and deleted over the admin API, on the real daemon."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.system.clients import ask, stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, replica_of, service_of, states_of

Answer = tuple[int, dict[str, Any]]


async def call(gateway: Gateway, method: str, target: str, **options: Any) -> Answer:
    async with gateway.session.request(method, f"http://daemon/v1/services/chat/replicas{target}", **options) as it:
        return it.status, await it.json()


async def put(gateway: Gateway, replica: str, query: str = "", **entry: Any) -> Answer:
    return await call(gateway, "PUT", f"/{replica}{query}", json=entry)


def elsewhere(gateway: Gateway, replica: str) -> Path:
    """A socket that no pattern of the gateway shows."""
    return gateway.directory / f"{replica}.sock"


def record_of(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((gateway.directory / "state" / "replicas.json").read_text())
    return found


async def test_put_serves_and_delete_drains(gateway: Gateway, engine: StartEngine) -> None:
    """First 201, the same again 200 without a change; on disk before it is answered; then it goes, drained."""
    place = elsewhere(gateway, "a1")
    await engine(place)
    status, answer = await put(gateway, "a1", "?wait=serving", socket=str(place), labels={"rack": "b7"})
    assert (status, answer["created"], answer["changed"]) == (201, True, True)
    assert (answer["replica"]["state"], answer["replica"]["source"]) == ("serving", "api")
    assert record_of(gateway)["replicas"] == {"chat": {"a1": {"socket": str(place), "labels": {"rack": "b7"}}}}
    assert "a1" in await ask(gateway, "tiny", stream=False)
    again = await put(gateway, "a1", "?wait=serving", labels={"rack": "b7"}, socket=str(place))
    assert (again[0], again[1]["created"], again[1]["changed"]) == (200, False, False)
    assert again[1]["replica"]["worker_id"] == answer["replica"]["worker_id"]
    status, one = await call(gateway, "GET", "/a1")
    assert (status, one["worker_id"], one["source"]) == (200, answer["replica"]["worker_id"], "api")
    shown = replica_of(await gateway.status(), "a1")
    assert shown.keys() == one.keys()
    status, gone = await call(gateway, "DELETE", "/a1?drain_s=60")
    assert (status, gone["drained"], gone["in_flight"]) == (200, True, 0)
    assert record_of(gateway)["replicas"] == {"chat": {}}
    await gateway.until_states({})
    assert (await call(gateway, "GET", ""))[1] == {"replicas": []}
    status, unknown = await call(gateway, "DELETE", "/a1")
    assert (status, "has no replica 'a1'" in unknown["error"]) == (404, True)


async def test_replicas_of_the_api_survive_a_killed_daemon(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """They come back with the same port and worker id, several times, in a service that has no other source."""
    gateway = make_gateway()
    gateway.settings["services"][0]["replicas"] = {}
    await gateway.start()
    names = ["a1", "größe-2"]
    for name in names:
        await engine(elsewhere(gateway, name), name=name)
        assert (await put(gateway, name, "?wait=serving", socket=str(elsewhere(gateway, name))))[0] == 201
    wanted = dict.fromkeys(names, "serving")
    before = {name: replica_of(await gateway.status(), name) for name in names}
    await gateway.until_written(2)
    for _ in range(3):
        await gateway.kill()
        await gateway.start()
        status = await gateway.until_states(wanted)
        for name in names:
            row = replica_of(status, name)
            assert {k: row[k] for k in ("bridge", "worker_id", "source")} == {
                k: before[name][k] for k in ("bridge", "worker_id", "source")
            }
        assert status["problems"] == []


async def test_daemon_killed_between_record_and_answer(gateway: Gateway, engine: StartEngine) -> None:
    """What is on disk holds, answered or not: the next daemon does what this one had no time to do."""
    place = elsewhere(gateway, "a1")
    await engine(place)
    path = gateway.directory / "state" / "replicas.json"
    asking = asyncio.create_task(put(gateway, "a1", socket=str(place)))
    while not path.exists():
        await asyncio.sleep(0)
    await gateway.kill()
    with suppress(aiohttp.ClientError):  # It may have been answered in the last moment.
        await asking
    await gateway.start()
    await gateway.until_states({"a1": "serving"})
    taking = asyncio.create_task(call(gateway, "DELETE", "/a1?drain_s=60"))
    while record_of(gateway)["replicas"]["chat"]:
        await asyncio.sleep(0)
    await gateway.kill()
    with suppress(aiohttp.ClientError):
        await taking
    await gateway.start()
    await gateway.until_states({})
    await gateway.until_workers(lambda workers: workers == [])


async def test_another_sources_replica_is_refused_by_name(gateway: Gateway, engine: StartEngine) -> None:
    """409 names the source. A configured source that shows the same id later wins, and status tells of both."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    place = elsewhere(gateway, "a1")
    await engine(place, name="told")
    status, answer = await put(gateway, "r1", socket=str(place))
    assert (status, answer["source"]) == (409, "sockets")
    assert "belongs to sockets" in answer["error"]
    status, answer = await call(gateway, "DELETE", "/r1")
    assert (status, answer["source"]) == (409, "sockets")
    assert not (gateway.directory / "state" / "replicas.json").exists()

    assert (await put(gateway, "a1", "?wait=serving", socket=str(place)))[0] == 201
    await engine(gateway.socket("a1"), name="seen")
    shown = await gateway.until(
        lambda s: [replica_of(s, "a1")[key] for key in ("source", "state")] == ["sockets", "serving"]
    )
    assert "is in sockets and in api" in service_of(shown)["source"]["refused"]["a1"]
    status, answer = await put(gateway, "a1", socket=str(place), priority=3)
    assert (status, answer["source"]) == (409, "sockets")
    status, answer = await call(gateway, "DELETE", "/a1")
    assert (status in (200, 202), "drained" in answer) == (True, True), "what the API was told; not the replica"
    await gateway.until(lambda s: service_of(s)["source"]["refused"] == {})
    assert replica_of(await gateway.status(), "a1")["state"] == "serving"


async def test_changed_notes_are_taken_over_and_a_changed_place_replaces(gateway: Gateway, engine: StartEngine) -> None:
    """Notes: same port, registered anew. A place: the old one serves until the new one does; its streams end well."""
    one, two = elsewhere(gateway, "one"), elsewhere(gateway, "two")
    await engine(one, name="one", token_interval_s=0.02)
    await engine(two, name="two", load_s=1.0)
    _, first = await put(gateway, "a1", "?wait=serving", socket=str(one))
    status, noted = await put(gateway, "a1", "?wait=serving", socket=str(one), priority=7, labels={"rack": "b7"})
    assert (status, noted["created"], noted["changed"]) == (200, False, True)
    assert noted["replica"]["bridge"] == first["replica"]["bridge"]
    (worker,) = await gateway.workers()
    assert (worker["priority"], worker["labels"]["rack"]) == (7, "b7")

    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 150, started))
    await started.wait()
    lows: list[int] = []
    moving = asyncio.create_task(put(gateway, "a1", "?wait=serving", socket=str(two)))
    while not moving.done():
        lows.append(sum(worker["is_healthy"] for worker in await gateway.workers()))
        await asyncio.sleep(0.02)
    status, moved = await moving
    assert status == 200
    assert moved["replica"]["bridge"] != first["replica"]["bridge"]
    assert min(lows) >= 1, "the old engine serves until the new one does"
    assert await stream
    await gateway.until_states({"a1": "serving"})
    assert "two" in await ask(gateway, "tiny", stream=False)


async def test_place_that_is_not_there_yet_costs_nothing(gateway: Gateway, engine: StartEngine) -> None:
    """The old place serves until the socket of the new one has come and its engine serves; a delete ends both."""
    one, two = elsewhere(gateway, "one"), elsewhere(gateway, "two")
    await engine(one, name="one")
    await put(gateway, "a1", "?wait=serving", socket=str(one))
    await put(gateway, "a1", socket=str(two))
    await gateway.until(lambda s: [row["state"] for row in service_of(s)["replicas"]] == ["absent", "serving"])
    status, answer = await put(gateway, "a1", "?wait=serving&timeout_s=0.5", socket=str(two))
    assert (status, answer["replica"]["state"]) == (504, "absent")
    rows = [(row["id"], row["state"]) for row in service_of(await gateway.status())["replicas"]]
    assert rows == [("a1", "absent"), ("a1", "serving")]
    assert "one" in await ask(gateway, "tiny", stream=False)
    await engine(two, name="two")
    status, _ = await put(gateway, "a1", "?wait=serving", socket=str(two))
    assert status == 200
    assert "two" in await ask(gateway, "tiny", stream=False)
    await put(gateway, "a1", "?wait=serving&timeout_s=0.5", socket=f"{two}.not")
    assert (await call(gateway, "DELETE", "/a1?drain_s=60"))[1]["drained"]
    await gateway.until_states({})


async def test_wait_says_why_it_does_not_serve_and_a_client_that_leaves_cancels_nothing(
    gateway: Gateway, engine: StartEngine
) -> None:
    """504 with the state and the reason, and it stays as it was put; so it does when nobody waits for the answer."""
    await put(gateway, "a1", socket=str(elsewhere(gateway, "a1")))
    await gateway.until(lambda s: replica_of(s, "a1")["reason"] is not None)
    status, answer = await put(gateway, "a1", "?wait=serving&timeout_s=0.3", socket=str(elsewhere(gateway, "a1")))
    assert (status, answer["replica"]["state"]) == (504, "absent")
    assert f"there is no socket {elsewhere(gateway, 'a1')}" in answer["error"]
    assert states_of(await gateway.status()) == {"a1": "absent"}
    await engine(elsewhere(gateway, "a2"), load_s=600)
    await put(gateway, "a2", socket=str(elsewhere(gateway, "a2")))
    await gateway.until_state("a2", "loading")
    status, answer = await put(gateway, "a2", "?wait=serving&timeout_s=0.5", socket=str(elsewhere(gateway, "a2")))
    assert (status, answer["replica"]["state"]) == (504, "loading")
    asking = asyncio.create_task(put(gateway, "a3", "?wait=serving", socket=str(elsewhere(gateway, "a3"))))
    await gateway.until_state("a3", "absent")
    asking.cancel()  # The client gives up.
    with pytest.raises(asyncio.CancelledError):
        await asking
    await engine(elsewhere(gateway, "a3"))
    await gateway.until_state("a3", "serving")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no place": ({"priority": 1}, "needs one place; give it either `socket` or `ssh`"),
    "two places": ({"socket": "/s", "ssh": {"host": "h", "forward": "h:1"}}, "needs one place"),
    "unknown": ({"socket": "/s", "prority": 1}, "prority: unknown setting; did you mean 'priority'?"),
    "value": ({"socket": "/s", "priority": -1}, "priority: -1 is too small; use 0 to 4294967295"),
    "label": ({"socket": "/s", "labels": {"a": 5}}, "labels.a: 5 is a number, not a text; quote it: '5'"),
    "key": ({"socket": "/s", "api_key_file": "key"}, "api_key_file: 'key' is relative"),
    "no key": ({"socket": "/s", "api_key_file": "/no/key"}, "api_key_file: '/no/key' no such file; create it"),
    "direct": ({"socket": "/s", "direct": True}, "add advertise: HOST:PORT"),
    "ssh": ({"ssh": {"host": "h", "forward": "nowhere"}}, "ssh.forward: 'nowhere' is not an engine's address"),
    "relative": ({"socket": "s.sock"}, "socket: 's.sock' is relative"),
}


async def test_what_cannot_be_used_is_refused_field_by_field(gateway: Gateway) -> None:
    """What, where, which value and how to repair it; nothing is written."""
    for what, (entry, words) in BAD.items():
        status, answer = await put(gateway, "a1", **entry)
        assert (status, words in "\n".join(answer["problems"])) == (422, True), (what, answer)
    status, answer = await put(gateway, "a1", socket=5, priority="high", cost=0)
    assert [line.partition(":")[0] for line in answer["problems"]] == ["priority", "cost", "socket"]
    for bad in ("a%2Fb", "%01", "x" * 201):
        assert (await put(gateway, bad, socket="/s"))[0] == 422
    raw = {"Content-Type": "application/json"}
    for body, words in (
        (b"{", "not JSON"),
        (b'{"socket": "/a", "socket": "/b"}', "given twice"),
        (b'{"socket": "/\\ud800"}', "surrogate"),
        (b'{"cost": NaN}', "NaN"),
        (b"\xff", "not JSON"),
    ):
        status, answer = await call(gateway, "PUT", "/a1", data=body, headers=raw)
        assert (status, words in answer["error"]) == (400, True), answer
    assert (await call(gateway, "PUT", "/a1", data=b"{}", headers={"Content-Type": "text/yaml"}))[0] == 415
    assert (await call(gateway, "PUT", "/a1", data=b" " * 70_000, headers=raw))[0] == 413
    assert (await put(gateway, "a1", "?wait=ready", socket="/s"))[0] == 400
    async with gateway.session.put("http://daemon/v1/services/chta/replicas/a1", json={"socket": "/s"}) as it:
        assert (it.status, (await it.json())["error"]) == (
            404,
            "no service 'chta'; did you mean 'chat'? there are: chat",
        )
    assert not (gateway.directory / "state" / "replicas.json").exists()


async def test_parameter_that_is_not_known_changes_nothing(gateway: Gateway, engine: StartEngine) -> None:
    """`drain` in the place of `drain_s` would take the replica out without waiting for anybody."""
    await engine(elsewhere(gateway, "r1"))
    status, _ = await put(gateway, "r1", "?wait=serving", socket=str(elsewhere(gateway, "r1")))
    assert status == 201
    for query, said in (
        ("drain=30", "'drain' is not a parameter of this request; use drain_s"),
        ("drain_s=30&drain_s=1", "drain_s is given twice; keep one of them"),
        ("drain_s=1_0", "drain_s: '1_0' is not a number of seconds from 0 to 86400"),
    ):
        assert await call(gateway, "DELETE", f"/r1?{query}") == (400, {"error": said})
    assert (await put(gateway, "r1", "?timeout=3", socket="/elsewhere"))[0] == 400
    assert states_of(await gateway.status()) == {"r1": "serving"}


async def test_record_that_cannot_be_used_is_kept_aside(gateway: Gateway, engine: StartEngine) -> None:
    """Of garbage, or of a newer version: told, never overwritten, and replicas from it serve until somebody decides."""
    for name in ("a1", "a2"):
        await engine(elsewhere(gateway, name), name=name)
        assert (await put(gateway, name, "?wait=serving", socket=str(elsewhere(gateway, name))))[0] == 201
    before = await gateway.status()
    await gateway.until_written(2)
    path = gateway.directory / "state" / "replicas.json"
    for number, garbage in enumerate((b'{"version": 2, "replicas": {}}', b'{"version": 1, "repl'), start=1):
        await gateway.kill()
        path.write_bytes(garbage)
        await gateway.start()
        assert path.with_name(f"replicas.json.unusable-{number}").read_bytes() == garbage
        status = await gateway.until_states({"a1": "serving", "a2": "serving"})
        assert [replica_of(status, name)["worker_id"] for name in ("a1", "a2")] == [
            replica_of(before, name)["worker_id"] for name in ("a1", "a2")
        ]
        assert any("chat/a1, chat/a2 are lost" in problem for problem in status["problems"]), status["problems"]
    await gateway.kill()
    await gateway.start()
    status = await gateway.until_states({"a1": "serving", "a2": "serving"})
    assert any("are lost" in problem for problem in status["problems"]), "over restarts"
    assert (await put(gateway, "a1", "?wait=serving", socket=str(elsewhere(gateway, "a1"))))[0] == 201
    assert (await call(gateway, "DELETE", "/a2"))[0] in (200, 202)
    status = await gateway.until(lambda s: states_of(s) == {"a1": "serving"} and s["problems"] == [])
    assert replica_of(status, "a1")["worker_id"] == replica_of(before, "a1")["worker_id"]


async def test_replica_commands(gateway: Gateway, engine: StartEngine) -> None:
    """`replica add`, `list` and `remove`, with their exit codes and words."""
    place, notes = elsewhere(gateway, "a1"), gateway.directory / "entry.yaml"
    await engine(place)
    code, out, err = await gateway.cli("replica", "add", "chat", "a1", "--socket", str(place), "--wait")
    assert (code, out.startswith("a1 is new: serving at 127.0.0.1:")) == (0, True), err
    notes.write_text(f"socket: {place}\npriority: 4\n")
    code, out, err = await gateway.cli("replica", "add", "chat", "a1", "--file", str(notes), "--wait")
    assert (code, out.startswith("a1 is changed: serving")) == (0, True), err
    assert (await gateway.workers())[0]["priority"] == 4
    notes.write_text(f"socket: {place}\nprority: 4\n")
    code, _, err = await gateway.cli("replica", "add", "chat", "a1", "--file", str(notes))
    assert (code, err) == (78, f"{notes}: prority: unknown setting; did you mean 'priority'?\n")
    code, _, err = await gateway.cli("replica", "add", "chat", "a2", "--ssh", "gpu7", "--forward", "127.0.0.1:8000")
    assert (code, "gpu7 has neither key_file nor agent" in err) == (78, True), err
    code, _, err = await gateway.cli(
        "replica", "add", "chat", "a2", "--socket", f"{place}.not", "--wait", "--timeout", "0.2"
    )
    assert (code, "'a2' is absent after" in err) == (1, True), err
    code, out, _ = await gateway.cli("replica", "list", "chat")
    assert code == 0
    assert [line.split()[:4] for line in out.splitlines()[1:]] == [
        ["chat", "a1", "api", "serving"],
        ["chat", "a2", "api", "absent"],
    ]
    code, out, _ = await gateway.cli("replica", "list", "--json")
    assert [row["id"] for row in json.loads(out)["chat"]] == ["a1", "a2"]
    code, out, err = await gateway.cli("replica", "remove", "chat", "a1", "--drain", "60")
    warning = "no replica would serve model tiny without a1: it is the model's only replica\n"
    assert (code, err, out) == (0, warning, f"{warning}a1 is gone, with nothing in flight: safe to stop\n")
    code, _, err = await gateway.cli("replica", "remove", "chat", "a1")
    assert (code, "has no replica 'a1'; there are: none" in err) == (1, True), err


async def test_delete_lets_what_is_in_flight_end(gateway: Gateway, engine: StartEngine) -> None:
    """A stream goes on to its end; DELETE says what is still there when its time is over. A put takes it back."""
    place = elsewhere(gateway, "a1")
    here = await engine(place, token_interval_s=0.5)
    await put(gateway, "a1", "?wait=serving", socket=str(place))
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 200, started))
    await started.wait()
    deleting = asyncio.create_task(call(gateway, "DELETE", "/a1?drain_s=60"))
    await gateway.until_state("a1", "draining")
    status, _ = await put(gateway, "a1", "?wait=serving", socket=str(place))
    assert status == 201
    status, answer = await deleting
    assert (status, "was put again" in answer["error"]) == (409, True)
    status, gone = await call(gateway, "DELETE", "/a1?drain_s=0.2")
    assert (status, gone["drained"]) == (202, False)
    here.behave(token_interval_s=0)
    assert await stream
