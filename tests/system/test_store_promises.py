"""What several gateways promise where they differ: by their clocks, their settings, their versions, and how fast the
store answers each of them. On a real etcd, with real daemons.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.etcd import Etcd, Front
from tests.system.conftest import MakeGateway, Start, StartEngine
from tests.system.gateway import Gateway, Status, states_of
from tests.system.test_clock import LIBRARY, by_the_clock_in
from tests.system.test_store import delete, port_of, put, status_with, until_answered, until_serving, until_store

LATE_S = 60.0
STORES = Path(__file__).parent.parent / "fixtures" / "stores"
OLD = sorted(STORES.glob("*.json"))
LATER: dict[str, Any] = {"of a later version": {"whatever": [1, None, "x"]}}
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


@pytest.fixture
def start(start_in_fleet: Start) -> Start:
    """These tests start gateways of a fleet alone."""
    return start_in_fleet


async def drain(gateway: Gateway, replica: str, timeout_s: float = LATE_S) -> dict[str, Any]:
    url = f"http://daemon/v1/services/chat/replicas/{replica}/drain?timeout_s={timeout_s:g}"
    async with gateway.session.post(url) as answer:
        return dict(await answer.json())


async def resume(gateway: Gateway, replica: str) -> None:
    async with gateway.session.post(f"http://daemon/v1/services/chat/replicas/{replica}/resume") as answer:
        assert answer.status == 200


async def key(gateway: Gateway, *words: str) -> str:
    code, out, err = await gateway.cli("key", *words, "--store")
    assert code == 0, err
    return out.strip()


async def fleet_of(gateway: Gateway) -> dict[str, Any]:
    code, out, err = await gateway.cli("status", "--fleet", "--json")
    assert code == 0, err
    return dict(json.loads(out))


def names_of_others(status: Status) -> list[str]:
    return [it["name"] for it in status["store"]["others"]]


class Load:
    """Clients of several gateways, with one key, that ask until they are told to stop."""

    def __init__(self, secret: str, *gateways: Gateway) -> None:
        self._headers = {"Authorization": f"Bearer {secret}"}
        self._stop = asyncio.Event()
        self.outcomes: Counter[str] = Counter()
        self._clients = [asyncio.create_task(self._ask(gateway)) for gateway in gateways for _ in range(2)]

    async def _ask(self, gateway: Gateway) -> None:
        url = f"{gateway.url()}/v1/chat/completions"
        async with gateway.client() as session:
            while not self._stop.is_set():
                async with session.post(url, json=BODY, headers=self._headers) as answer:
                    text = await answer.text()
                    self.outcomes["200" if answer.status == 200 else f"{answer.status} {text}"] += 1

    async def answered(self, more: int) -> None:
        wanted = self.outcomes["200"] + more
        async with asyncio.timeout(LATE_S):
            while self.outcomes["200"] < wanted:
                assert not any(client.done() for client in self._clients), "a client failed"
                await asyncio.sleep(0.01)

    async def stop(self) -> set[str]:
        self._stop.set()
        await asyncio.gather(*self._clients)
        return set(self.outcomes)


async def ask_as(gateway: Gateway, secret: str) -> tuple[int, int]:
    """The answer's status, and after how many seconds to ask again."""
    headers = {"Authorization": f"Bearer {secret}"}
    url = f"{gateway.url()}/v1/chat/completions"
    async with gateway.client() as session, session.post(url, json=BODY, headers=headers) as answer:
        await answer.read()
        return answer.status, int(answer.headers.get("Retry-After", 0))


async def voice_of(gateway: Gateway) -> tuple[str | None, str | None]:
    """The gateway that speaks for the service, and why nothing is recommended."""
    async with gateway.session.get("http://daemon/v1/services/chat/signals") as answer:
        seen = (await answer.json())["fleet"] or {}
        return seen.get("voice"), seen.get("problem")


@pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (Debian: package libfaketime)")
async def test_a_clock_that_jumps_under_load_changes_nothing_of_what_gateways_share(
    start: Start, etcd: Etcd, engine: StartEngine, tmp_path: Path
) -> None:
    """An hour ahead, an hour behind: no lease ends, and drains, keys, bounds and the voice are as before."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    env = by_the_clock_in(clock)
    told = tmp_path / "told"
    settings: dict[str, Any] = {
        "frontend": {"auth": {"store": True}},
        "scaling": {
            "metric": "rps",
            "target": 1000,
            "min": 2,
            "hook": {"command": ["/bin/sh", "-c", f"cat >> {told}"]},
        },
    }
    # A lease that a busy machine does not end.
    a = await start("a", etcd, env, lease_s=60, timeout_s=10.0, **settings)
    b = await start("b", etcd, lease_s=60, timeout_s=10.0, **settings)
    for replica in ("r1", "r2"):
        await engine(a.socket(replica))
        await put(a, replica, a.socket(replica), wait="serving")
    await until_serving(b, "r1", "r2")
    alice = await key(a, "add", "alice")
    bounded = await key(b, "add", "bounded", "--requests-per-minute", "2")  # One at each gateway.
    used_up_at = time.monotonic()
    for gateway in (a, b):
        await until_answered(gateway, alice, 200)
        await until_answered(gateway, bounded, 200)
        async with asyncio.timeout(LATE_S):
            while (await voice_of(gateway))[0] is None:
                await asyncio.sleep(0.1)
    voice = (await voice_of(a))[0]
    load = Load(alice, a, b)
    for offset in ("+1h", "-1h", "+0"):
        for jump in (None, offset):
            if jump is not None:
                clock.write_text(jump)
            asked_at, (status, again_s) = time.monotonic(), await ask_as(a, bounded)
            is_due = time.monotonic() - used_up_at > 50
            assert jump is None or status == 429 or is_due, "a jump filled what is bounded by the minute"
            if status == 200:
                used_up_at = asked_at
        assert again_s <= 60
        await load.answered(20)
        drained = await drain(a, "r2")
        assert (drained["drained"], [it["name"] for it in drained["gateways"]]) == (True, ["b"]), drained
        await b.until_states({"r1": "serving", "r2": "draining"}, within_s=LATE_S)
        await resume(b, "r2")
        for gateway in (a, b):
            await until_serving(gateway, "r1", "r2")
        fresh = await key(b, "add", "fresh")
        await until_answered(a, fresh, 200)
        await key(a, "revoke", "fresh")
        await until_answered(b, fresh, 401)
        for gateway in (a, b):
            assert await voice_of(gateway) == (voice, None)
            assert (await gateway.status())["store"]["state"] == "up"
        assert names_of_others(await b.status()) == ["a"]
    assert await load.stop() == {"200"}
    for gateway in (a, b):
        for quiet in ("store.lease_lost", "store.away", "scaling.voice_lost", "replica.unreachable", "loop.failed"):
            assert gateway.events(quiet) == [], quiet
    assert not told.exists() or len(told.read_text().splitlines()) <= 1, "what was told was told again"


async def test_gateways_with_different_settings_serve_and_say_where_they_differ(
    start: Start, shared_etcd: Etcd, engine: StartEngine, tmp_path: Path, make_gateway: MakeGateway
) -> None:
    """Other bridge ports, keys of the store and of a file, scaling at one only, another service."""
    scaling = {"metric": "rps", "target": 2}
    a = await start("a", shared_etcd, lease_s=60, frontend={"auth": {"store": True}}, scaling=scaling)
    keys = tmp_path / "chat.keys"
    keys.write_text(f"carol:{hashlib.sha256(b'sk-carol-carol-carol').hexdigest()}\n")
    keys.chmod(0o600)
    b = await start("b", shared_etcd, lease_s=60, frontend={"auth": {"keys_file": str(keys)}})
    c = make_gateway(store={**a.settings["store"], "gateway": "c"})
    c.configure(services=[{**c.service("chat"), "name": "images", "replicas": {}, "router": {"type": "none"}}])
    await c.start()
    ports = {gateway: gateway.settings["bridges"]["ports"] for gateway in (a, b)}
    expected = [
        "chat: frontend.auth is store here and keys_file at b",
        "chat: scaling is on here and off at b",
        f"bridges.ports is {ports[a]} here and {ports[b]} at b",
    ]
    await a.until(lambda s: all(any(it in line for line in s["problems"]) for it in expected), within_s=LATE_S)
    assert any("frontend.auth" in it["reason"] for it in a.events("store.settings_differ"))
    await b.until(lambda s: any("keys_file here and store at a" in line for line in s["problems"]), within_s=LATE_S)
    _, out, _ = await b.cli("check")
    assert "chat: scaling is off here and on at a" in out

    await engine(a.socket("r1"))
    await put(c, "r1", a.socket("r1"))  # It has no such service, and puts nothing.
    assert (await put(a, "r1", a.socket("r1"), wait="serving"))[0] == 201
    await until_serving(b, "r1")
    assert await port_of(a, "r1") != await port_of(b, "r1")
    alice = await key(a, "add", "alice")
    await until_answered(a, alice, 200)
    assert [await status_with(b, it) for it in (alice, "sk-carol-carol-carol")] == [401, 200]
    async with asyncio.timeout(LATE_S):
        while await voice_of(a) != ("a", None):
            await asyncio.sleep(0.1)
    async with asyncio.timeout(LATE_S):  # What a gateway sees it tells now and then.
        row = ""
        while "bridge ports differ" not in row:
            _, out, _ = await a.cli("status", "--fleet")
            row = next((line for line in out.splitlines() if line.strip().startswith("r1")), "")
    assert "no such service" in row
    assert "chat  scaling voice: a" in out
    drained = await drain(b, "r1")
    assert (drained["drained"], [it["name"] for it in drained["gateways"]]) == (True, ["a", "c"])


async def test_a_store_that_answers_after_seconds_is_used_as_any_other(
    start: Start, etcd: Etcd, engine: StartEngine
) -> None:
    """Each answer takes 1 to 4 s at one of two gateways, which is less than `timeout_s`. No lease ends for it."""
    front = Front(etcd.port)
    front.answers_s = (1.0, 4.0)
    frontend = {"auth": {"store": True}}
    try:
        far = await start("far", etcd, lease_s=60, frontend=frontend, endpoints=[await front.start()], timeout_s=20.0)
        near = await start("near", etcd, lease_s=60, frontend=frontend)
        for replica in ("r1", "r2"):
            await engine(near.socket(replica), token_interval_s=0.2)
        assert (await put(far, "r1", near.socket("r1"), wait="serving"))[0] == 201
        await until_serving(near, "r1")
        assert (await put(near, "r2", near.socket("r2"), wait="serving"))[0] == 201
        await until_serving(far, "r1", "r2")
        alice = await key(far, "add", "alice")
        for gateway in (near, far):
            await until_answered(gateway, alice, 200)
        load = Load(alice, near, far)
        await load.answered(10)
        for gateway in (near, far):
            drained = await drain(gateway, "r2")
            assert drained["drained"], drained
            assert len(drained["gateways"]) == 1
            await resume(gateway, "r2")
            for each in (near, far):
                await until_serving(each, "r1", "r2")
        assert await load.stop() == {"200"}
        await key(near, "revoke", "alice")
        await until_answered(far, alice, 401)
        assert (await delete(far, "r2", drain_s="60"))[1]["drained"]
        await near.until(lambda s: set(states_of(s)) == {"r1"}, within_s=LATE_S)
        for gateway in (near, far):
            assert (await gateway.status())["store"]["state"] == "up"
            assert gateway.events("store.away") == gateway.events("store.lease_lost") == []
    finally:
        await front.close()


def recorded(path: Path, gateway: Gateway, secret: str) -> dict[str, str]:
    """What gateways of an earlier version had in their store, on the sockets and ports of a gateway of now."""
    text = path.read_text()
    first = int(str(gateway.settings["bridges"]["ports"]).partition("-")[0])
    for name, value in {
        "SOCKETS": str(gateway.socket("r1").parent), "PORT-1": str(first), "PORT-2": str(first + 1),
        "DIGEST": hashlib.sha256(secret.encode()).hexdigest(),
    }.items():  # fmt: skip
        text = text.replace(name, value)
    return dict(json.loads(text)["entries"])


def of_a_later_version(entries: dict[str, str]) -> dict[str, str]:
    """The same with fields and keys that this version knows nothing of."""
    found = {key: _with_more(value) for key, value in entries.items()}
    return {**found, "later/chat": "x", "replicas-of-a-later-kind": "{}"}


def _with_more(value: str) -> str:
    return json.dumps({**json.loads(value), **LATER}) if value.startswith("{") else value


@pytest.mark.parametrize("is_later", [False, True], ids=["earlier", "later"])
@pytest.mark.parametrize("path", OLD, ids=[path.stem for path in OLD])
async def test_a_gateway_joins_a_fleet_of_another_version(
    start: Start, etcd: Etcd, engine: StartEngine, path: Path, is_later: bool
) -> None:
    """As in a rolling upgrade: what the others wrote was recorded. Nothing that they share is lost, or called safe."""
    prefix, secret = "/recorded/", "sk-alice-alice-alice"
    a = await start(
        "a", etcd, prefix=prefix, frontend={"auth": {"store": True}}, scaling={"metric": "rps", "target": 2}
    )
    await a.terminate()
    etcd.ctl("del", "--prefix", prefix)
    (a.directory / "state" / "fleet.json").unlink()
    entries = recorded(path, a, secret)
    if is_later:
        entries = of_a_later_version(entries)
    for name, value in entries.items():
        etcd.ctl("put", prefix + name, value)
    for replica in ("r1", "r2"):
        await engine(a.socket(replica))

    def stored(name: str) -> str:
        return etcd.ctl("get", "--print-value-only", prefix + name).strip()

    await a.start()
    held = "drains/chat/r2" in entries
    # A field that this version does not know may be what matters: such an entry is refused by its name, and kept.
    wanted = {"r1": "serving", "r2": "draining" if held else "serving"}
    await a.until_states(dict.fromkeys(wanted, "absent") if is_later else wanted, within_s=LATE_S)
    await a.until(lambda s: names_of_others(s) == ["b", "c"], within_s=LATE_S)
    assert (await a.status())["store"]["state"] == "up"
    assert [it["name"] for it in (await fleet_of(a))["gateways"]] == ["a", "b", "c"]
    if "keys/alice" in entries and not is_later:
        await until_answered(a, secret, 200)
    if held and not is_later:
        assert await port_of(a, "r1") == json.loads(entries["ports"])["current"]["chat/r1"]

    await engine(a.socket("r3"))
    assert (await put(a, "r3", a.socket("r3"), wait="serving"))[0] == 201
    drained = await drain(a, "r3", 2.0)  # They cannot be asked: nobody runs who would answer.
    assert (drained["drained"], drained["reason"].count("it has not answered for")) == (False, 2)
    kept = {it for it in entries if not it.startswith(("ports", "scaling/", "gateways/a"))}
    assert {it: stored(it) for it in kept} == {it: entries[it] for it in kept}
    for name in ("b", "c"):
        etcd.ctl("del", f"{prefix}gateways/{name}", "--prefix")  # They are upgraded, one after the other.
        etcd.ctl("del", f"{prefix}signals/{name}", "--prefix")
    drained = await drain(a, "r3")
    assert (drained["drained"], len(drained["gateways"])) == (True, 2), drained
    async with asyncio.timeout(LATE_S):
        while await voice_of(a) != ("a", None):
            await asyncio.sleep(0.1)
    assert a.events("loop.failed") == a.events("store.refused") == []


async def test_a_quota_of_the_day_holds_for_the_fleet_also_while_the_store_is_away(
    start: Start, etcd: Etcd, engine: StartEngine
) -> None:
    """Each gateway counts by itself, and adds what the others have told."""
    frontend = {"auth": {"store": True}, "usage": {}}
    a, b = await start("a", etcd, frontend=frontend), await start("b", etcd, frontend=frontend)
    await engine(a.socket("r1"))
    await put(a, "r1", a.socket("r1"), wait="serving")
    await until_serving(b, "r1")
    # So that both count in one day: the rest of it may be over in a moment.
    secret = await key(a, "add", "alice", "--tokens-per-month", "60")
    for gateway in (a, b):
        await until_answered(gateway, secret, 200)
    asked = 0
    while (await ask_as(a, secret))[0] == 200:
        asked += 1
    assert asked > 0
    async with asyncio.timeout(LATE_S):
        while (await ask_as(b, secret))[0] != 429:  # What it lets in meanwhile counts, too.
            await asyncio.sleep(0.5)
    async with asyncio.timeout(LATE_S):
        while True:
            _, out, _ = await a.cli("usage", "--fleet", "--json")
            rows = json.loads(out)["rows"]
            if rows and set(rows[0]["gateways"]) == {"a", "b"}:
                break
            await asyncio.sleep(0.5)
    assert rows[0]["month"] == sum(it["month"] for it in rows[0]["gateways"].values()) >= 60
    etcd.kill()
    await b.kill()
    await b.start()
    await until_store(b, "away")
    assert [(await ask_as(gateway, secret))[0] for gateway in (a, b)] == [429, 429]
