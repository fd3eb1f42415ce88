"""Several real gateways on a real etcd: one inventory, and what each promises when the store fails."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tests.etcd import Etcd, Front, running
from tests.stopping import stop
from tests.system.conftest import SOON_AWAY_S, MakeGateway, Start, StartEngine
from tests.system.gateway import Gateway, Status, service_of, states_of
from tests.system.test_clock import LIBRARY, by_the_clock_in

_LATE_S = 60.0


@pytest.fixture
def start(start_in_fleet: Start) -> Start:
    """As it is."""
    return start_in_fleet


async def put(gateway: Gateway, replica: str, socket: Path, **query: str) -> tuple[int, dict[str, Any]]:
    url = f"http://daemon/v1/services/chat/replicas/{replica}"
    async with gateway.session.put(url, json={"socket": str(socket)}, params=query) as answer:
        return answer.status, await answer.json()


async def put_serving(gateway: Gateway, replica: str, socket: Path) -> None:
    """Again after each 503, by which nothing was changed: a busy machine's store may need more than `SOON_AWAY_S`."""
    async with asyncio.timeout(_LATE_S):
        while (status := (await put(gateway, replica, socket, wait="serving"))[0]) == 503:
            await asyncio.sleep(0.1)
    assert status in (200, 201)


async def delete(gateway: Gateway, replica: str, **query: str) -> tuple[int, dict[str, Any]]:
    async with gateway.session.delete(f"http://daemon/v1/services/chat/replicas/{replica}", params=query) as answer:
        return answer.status, await answer.json()


async def port_of(gateway: Gateway, replica: str) -> int:
    row = next(it for it in service_of(await gateway.status())["replicas"] if it["id"] == replica)
    return int(row["bridge"].rpartition(":")[2])


async def accept(gateway: Gateway, action: str) -> str:
    code, out, err = await gateway.cli("store", action)
    assert code == 0, err
    return out


async def until_store(gateway: Gateway, state: str) -> Status:
    return await gateway.until(lambda status: status["store"]["state"] == state, within_s=_LATE_S)


async def until_serving(gateway: Gateway, *replicas: str) -> None:
    await gateway.until_states(dict.fromkeys(replicas, "serving"), within_s=_LATE_S)


async def ask(gateway: Gateway, tokens: int = 4) -> int:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": tokens}
    async with gateway.client() as session, session.post(f"{gateway.url()}/v1/chat/completions", json=body) as answer:
        await answer.read()
        return answer.status


async def stays_as_it_is(*gateways: Gateway, seconds: float = 2.0) -> None:
    """Every look of this time finds all replicas serving, and requests answered."""
    end = time.monotonic() + seconds
    before = [states_of(await gateway.status()) for gateway in gateways]
    assert all(set(states.values()) == {"serving"} for states in before)
    while time.monotonic() < end:
        for gateway, states in zip(gateways, before, strict=True):
            assert states_of(await gateway.status()) == states
            assert await ask(gateway) == 200
        await asyncio.sleep(0.1)


async def test_a_replica_put_at_one_gateway_serves_at_all(start: Start, shared_etcd: Etcd, engine: StartEngine) -> None:
    """One inventory: put, changed and deleted at any gateway, at all of them; and one bridge port."""
    a = await start("a", shared_etcd)
    b = await start("b", shared_etcd, beside=a)
    one, two = a.socket("r1"), a.socket("r2")
    await engine(one)
    await engine(two)
    assert (await put(a, "r1", one, wait="serving"))[0] == 201
    await until_serving(b, "r1")
    first = await port_of(a, "r1")
    assert await port_of(b, "r1") == first
    status, answer = await put(b, "r1", one)
    assert (status, answer["created"], answer["changed"]) == (200, False, False)
    assert (await put(b, "r1", two))[1]["changed"]
    await a.until(lambda s: [it["socket"] for it in service_of(s)["replicas"]] == [str(two)], within_s=_LATE_S)
    await until_serving(a, "r1")
    await until_serving(b, "r1")
    moved = await port_of(a, "r1")
    assert moved == await port_of(b, "r1") != first, "another engine, and so another port"
    assert (await put(b, "r2", one, wait="serving"))[0] == 201
    await until_serving(a, "r1", "r2")
    assert await port_of(a, "r2") == await port_of(b, "r2") != moved
    assert (await delete(a, "r1", drain_s="10"))[0] in (200, 202)
    await until_serving(b, "r2")
    await until_serving(a, "r2")
    assert (await delete(b, "r9"))[0] == 404
    await a.until(lambda s: [it["name"] for it in s["store"]["others"]] == ["b"], within_s=_LATE_S)
    assert await ask(a) == await ask(b) == 200


async def test_of_puts_at_two_gateways_at_once_the_last_holds_at_both(start: Start, shared_etcd: Etcd) -> None:
    """Each PUT is one compare-and-set: gateways never disagree about what was put."""
    a, b = await start("a", shared_etcd), await start("b", shared_etcd)
    puts = [put((a, b)[n % 2], "r1", a.socket(f"s{n}")) for n in range(20)]
    assert {status for status, _ in await asyncio.gather(*puts)} <= {200, 201, 503}

    def socket_of(status: Status) -> str:
        return str(next(it["socket"] for it in service_of(status)["replicas"]))

    async with asyncio.timeout(_LATE_S):
        while socket_of(await a.status()) != socket_of(await b.status()):
            await asyncio.sleep(0.05)


async def test_a_killed_store_changes_nothing_and_puts_are_refused(
    start: Start, etcd: Etcd, engine: StartEngine
) -> None:
    """Last good from memory, and after a restart of the daemon from disk. PUT and DELETE answer 503."""
    a, b = await start("a", etcd), await start("b", etcd)
    await engine(a.socket("r1"))
    await put(a, "r1", a.socket("r1"), wait="serving")
    await until_serving(b, "r1")
    etcd.kill()
    for gateway in (a, b):
        await until_store(gateway, "away")
    await stays_as_it_is(a, b)
    status, answer = await put(a, "r2", a.socket("r2"))
    assert status == 503
    assert "nothing was changed" in answer["error"]
    assert (await delete(b, "r1"))[0] == 503
    problems = (await a.status())["problems"]
    assert any("store: the store cannot be read" in it and "answer 503" in it for it in problems)
    await b.kill()
    await b.start()
    await until_serving(b, "r1")
    await stays_as_it_is(a, b, seconds=1)
    etcd.start()
    for gateway in (a, b):
        await until_store(gateway, "up")
    await stays_as_it_is(a, b, seconds=1)
    assert (await put(b, "r2", a.socket("r2")))[0] == 201
    await a.until(lambda s: "r2" in states_of(s), within_s=_LATE_S)


async def test_a_frozen_store_is_one_that_is_away(start: Start, etcd: Etcd, engine: StartEngine) -> None:
    """SIGSTOP: the watch says nothing at all, and the full read finds out. What lost its lease meanwhile serves on."""
    a = await start("a", etcd, timeout_s=SOON_AWAY_S)
    await engine(a.socket("r1"))
    await put_serving(a, "r1", a.socket("r1"))
    etcd.freeze()
    await until_store(a, "away")
    assert (await put(a, "r2", a.socket("r2")))[0] == 503
    await stays_as_it_is(a)
    etcd.thaw()
    await until_store(a, "up")
    await until_serving(a, "r1")


async def test_a_store_that_comes_back_empty_is_refused_until_an_operator_has_it_refilled(
    start: Start, etcd: Etcd, engine: StartEngine
) -> None:
    """Nobody is deregistered for it. `store refill` puts back what a gateway knows, for all of them."""
    a, b = await start("a", etcd), await start("b", etcd)
    await engine(a.socket("r1"))
    await put(a, "r1", a.socket("r1"), wait="serving")
    await until_serving(b, "r1")
    etcd.kill()
    etcd.wipe()
    etcd.start()
    for gateway in (a, b):
        status = await until_store(gateway, "refused")
        assert any("it holds nothing of ours" in it and "store refill" in it for it in status["problems"])
    await stays_as_it_is(a, b)
    assert (await put(a, "r2", a.socket("r2")))[0] == 503
    await b.kill()
    await b.start()
    await until_store(b, "refused")
    await until_serving(b, "r1")
    assert etcd.ctl("get", "--prefix", "--keys-only", "") == ""  # Nothing is written to it, either.
    assert "1 key put back" in await accept(a, "refill")
    for gateway in (a, b):
        await until_store(gateway, "up")
    await stays_as_it_is(a, b, seconds=1)
    assert (await put(b, "r2", a.socket("r2")))[0] == 201


async def test_a_store_that_was_restored_from_a_backup_is_refused_until_an_operator_accepts_it(
    start: Start, etcd: Etcd, engine: StartEngine, tmp_path: Path
) -> None:
    """A replica that was put since would leave. It stays refused also when the store has grown again."""
    a, b = await start("a", etcd), await start("b", etcd)
    for name in ("r1", "r2"):
        await engine(a.socket(name))
    await put(a, "r1", a.socket("r1"), wait="serving")
    backup = tmp_path / "backup"
    etcd.ctl("snapshot", "save", str(backup))
    await put(a, "r2", a.socket("r2"), wait="serving")
    await until_serving(b, "r1", "r2")
    etcd.kill()
    etcd.restore(backup)
    etcd.start()
    for gateway in (a, b):
        status = await until_store(gateway, "refused")
        assert "gone back" in status["store"]["reason"] or "another store" in status["store"]["reason"]
    for number in range(100):
        etcd.ctl("put", "/somebody/elses", str(number))
    await stays_as_it_is(a, b)
    assert (await a.status())["store"]["state"] == "refused"
    await accept(b, "accept")
    for gateway in (a, b):
        await until_store(gateway, "up")
        await until_serving(gateway, "r1")


async def test_a_gateway_that_dies_is_listed_until_its_lease_ends_and_others_serve_on(
    start: Start, shared_etcd: Etcd, engine: StartEngine
) -> None:
    """A killed daemon's own nginx goes on, too; the next one takes its name over at once."""
    a, b = await start("a", shared_etcd), await start("b", shared_etcd)
    await engine(a.socket("r1"))
    await put(a, "r1", a.socket("r1"), wait="serving")
    await until_serving(b, "r1")
    await a.until(lambda s: [it["name"] for it in s["store"]["others"]] == ["b"], within_s=_LATE_S)
    await b.kill()
    assert await ask(b) == 200
    await a.until(lambda s: s["store"]["others"] == [], within_s=_LATE_S)
    await b.start()
    await a.until(lambda s: [it["name"] for it in s["store"]["others"]] == ["b"], within_s=_LATE_S)
    await until_serving(b, "r1")


async def test_one_gateway_calls_the_hook_for_all_and_when_it_is_killed_the_other_goes_on(
    start: Start, shared_etcd: Etcd, engine: StartEngine, tmp_path: Path
) -> None:
    """Under load at both. What the first one told is not told again."""
    record, rates = tmp_path / "told", {"a": 4.0, "b": 4.0}

    def scaling(name: str) -> dict[str, Any]:
        command = ["/bin/sh", "-c", f'echo "$(cat)" {name} >> {record}']
        return {"metric": "rps", "target": 2, "max": 99, "window_s": 30, "hook": {"command": command}}

    def told() -> list[tuple[str, int]]:
        lines = record.read_text().splitlines() if record.exists() else []
        return [(name, json.loads(notice)["desired"]) for notice, _, name in (it.rpartition(" ") for it in lines)]

    async def signals_of(gateway: Gateway) -> dict[str, Any]:
        async with gateway.session.get("http://daemon/v1/services/chat/signals") as answer:
            return dict((await answer.json())["fleet"] or {})

    async def load(gateway: Gateway, name: str) -> None:
        while True:
            await asyncio.gather(ask(gateway, tokens=1), asyncio.sleep(1 / rates[name]))

    gateways = {name: await start(name, shared_etcd, scaling=scaling(name)) for name in rates}
    a, b = gateways.values()
    await engine(a.socket("r1"))
    await put(a, "r1", a.socket("r1"), wait="serving")
    await until_serving(b, "r1")
    loads = [asyncio.create_task(load(gateway, name)) for name, gateway in gateways.items()]
    async with asyncio.timeout(_LATE_S):
        while not told() or told()[-1][1] < 3:  # More than either of them has requests for.
            await asyncio.sleep(0.1)
    first = told()[-1][0]
    other = "b" if first == "a" else "a"
    assert {name for name, _ in told()} == {first}
    for name, gateway in gateways.items():
        seen = await signals_of(gateway)
        assert (seen["voice"], seen["is_voice"], seen["gateways"]) == (first, name == first, ["a", "b"])
    assert f"scaling voice: {first}" in (await gateways[other].cli("status"))[1]
    async with asyncio.timeout(_LATE_S):
        while time.time() - record.stat().st_mtime < 4:  # Else what is on its way to the hook may be told by both.
            await asyncio.sleep(0.1)
    await gateways[first].kill()
    before = len(told())
    async with asyncio.timeout(_LATE_S):
        while not (await signals_of(gateways[other]))["is_voice"]:
            await asyncio.sleep(0.1)
    rates[other] = 40.0
    async with asyncio.timeout(_LATE_S):
        while len(told()) == before:
            await asyncio.sleep(0.1)
    for task in loads:
        task.cancel()
    await asyncio.gather(*loads, return_exceptions=True)
    assert {name for name, _ in told()[before:]} == {other}
    numbers = [desired for _, desired in told()]
    assert all(one != two for one, two in itertools.pairwise(numbers)), numbers


async def test_a_lease_that_was_taken_away_is_taken_anew(start: Start, etcd: Etcd, engine: StartEngine) -> None:
    """A lost lease never stops serving."""
    a, b = await start("a", etcd), await start("b", etcd)
    await engine(a.socket("r1"))
    await put(a, "r1", a.socket("r1"), wait="serving")
    await a.until(lambda s: [it["name"] for it in s["store"]["others"]] == ["b"], within_s=_LATE_S)
    for lease in etcd.ctl("lease", "list").split()[3:]:
        etcd.ctl("lease", "revoke", lease)
    await b.until_logged("store.lease_lost", within_s=_LATE_S)
    await a.until(lambda s: [it["name"] for it in s["store"]["others"]] == ["b"], within_s=_LATE_S)
    await stays_as_it_is(a, seconds=0.5)


async def test_two_gateways_of_one_name_are_told(start: Start, shared_etcd: Etcd, engine: StartEngine) -> None:
    """The second one reads and serves, says what to do, and is seen by a name of its own: drains wait for it."""
    first, second = await start("same", shared_etcd), await start("same", shared_etcd)
    await second.until(
        lambda s: any("another gateway is called 'same'" in it for it in s["problems"]), within_s=_LATE_S
    )
    name = (await second.status())["store"]["gateway"]
    assert name.startswith("same@")
    busy = await engine(first.socket("r1"), token_interval_s=0.2)
    await put(first, "r1", first.socket("r1"), wait="serving")
    await until_serving(second, "r1")
    answering = asyncio.create_task(ask(second, tokens=3000))
    await second.until(lambda s: service_of(s)["replicas"][0]["in_flight"] == 1, within_s=_LATE_S)
    status, answer = await drain(first, 1.0)
    assert (status, [(it["name"], it["safe"]) for it in answer["gateways"]]) == (504, [(name, False)])
    busy.behave(token_interval_s=0.0)
    status, answer = await drain(first, _LATE_S)
    assert (status, answer["drained"], await answering) == (200, True, 200)


async def test_replicas_of_a_gateway_that_worked_alone_are_moved_to_the_store(
    start: Start, shared_etcd: Etcd, engine: StartEngine, make_gateway: MakeGateway
) -> None:
    """Nothing that was put is lost when a gateway joins a fleet, and no replica leaves for it."""
    a = await start("a", shared_etcd)
    store = a.settings["store"]
    alone = make_gateway()
    alone.configure(services=[{**alone.service("chat"), "replicas": {}, "router": {"type": "none"}}])
    await alone.start()
    assert (await alone.status())["store"] is None
    await engine(alone.socket("r1"))
    await put(alone, "r1", alone.socket("r1"), wait="serving")
    await alone.terminate()
    alone.configure(store={**store, "gateway": "b"})
    await alone.start()
    await until_serving(a, "r1")
    await until_serving(alone, "r1")
    await alone.until_logged("store.moved")
    assert (await delete(a, "r1"))[0] in (200, 202)
    await alone.until_states({}, within_s=_LATE_S)


async def test_check_says_whether_the_store_can_be_read(make_gateway: MakeGateway, etcd: Etcd) -> None:
    """Before a daemon needs it, and changing nothing there."""
    gateway = make_gateway(store={"etcd": {"endpoints": [etcd.endpoint], "timeout_s": 20.0}})
    gateway.configure()
    _, out, _ = await gateway.cli("check")
    assert f"store: etcd {etcd.endpoint} /gateway-sidecar/ can be read, and has 0 keys at revision 1" in out
    etcd.kill()
    code, out, _ = await gateway.cli("check")
    assert code == 1
    assert "Connect call failed" in out


async def test_a_gateway_that_is_cut_off_from_the_store_serves_on_and_catches_up(
    start: Start, shared_etcd: Etcd, engine: StartEngine
) -> None:
    """Nothing passes, and no connection ends. The others go on putting replicas, and it has them when it is back."""
    front = Front(shared_etcd.port)
    try:
        far = await start("far", shared_etcd, endpoints=[await front.start()], timeout_s=SOON_AWAY_S)
        near = await start("near", shared_etcd)
        for name in ("r1", "r2"):
            await engine(near.socket(name))
        await put(near, "r1", near.socket("r1"), wait="serving")
        await until_serving(far, "r1")
        front.cut()
        await until_store(far, "away")
        assert (await put(near, "r2", near.socket("r2"), wait="serving"))[0] == 201
        assert (await put(far, "r3", near.socket("r3")))[0] == 503
        await stays_as_it_is(far)
        await near.until(lambda s: s["store"]["others"] == [], within_s=_LATE_S)  # Its lease has ended.
        front.mend()
        await until_store(far, "up")
        await until_serving(far, "r1", "r2")
        await near.until(lambda s: [it["name"] for it in s["store"]["others"]] == ["far"], within_s=_LATE_S)
    finally:
        await front.close()


async def test_a_slow_store_is_used_as_long_as_it_keeps_the_deadline(
    start: Start, shared_etcd: Etcd, engine: StartEngine
) -> None:
    """Slow is not away; slower than `timeout_s` is."""
    front = Front(shared_etcd.port)
    front.delay_s = 0.3
    try:
        a = await start("a", shared_etcd, endpoints=[await front.start()], timeout_s=5.0)
        await engine(a.socket("r1"))
        assert (await put(a, "r1", a.socket("r1"), wait="serving"))[0] == 201
        assert (await a.status())["store"]["state"] == "up"
        front.delay_s = 10.0
        await until_store(a, "away")
        await stays_as_it_is(a)
    finally:
        await front.close()


async def test_a_store_that_refuses_us_is_one_that_is_away(start: Start, etcd: Etcd, engine: StartEngine) -> None:
    """A password that is wrong from now on. Once it is right again nothing more is needed."""
    for command in (
        "user add root:root", "user grant-role root root", "role add ours", "user add gw:secret",
        "role grant-permission ours --prefix=true readwrite /", "user grant-role gw ours", "auth enable",
    ):  # fmt: skip
        etcd.ctl(*command.split())
    password = etcd.directory / "password"
    password.write_text("secret")
    a = await start("a", etcd, user="gw", password_file=str(password), timeout_s=20.0)
    await engine(a.socket("r1"))
    await put(a, "r1", a.socket("r1"), wait="serving")
    etcd.ctl("--user=root:root", "user", "passwd", "gw", "--interactive=false", stdin="other\n")
    etcd.kill()
    etcd.start()  # Logins are in memory alone.
    await a.until(lambda s: "etcd refused user 'gw'" in (s["store"]["reason"] or ""), within_s=_LATE_S)
    assert (await a.status())["store"]["state"] == "away"
    assert (await put(a, "r2", a.socket("r2")))[0] == 503
    await stays_as_it_is(a)
    password.write_text("other")
    await until_store(a, "up")
    await until_serving(a, "r1")


async def test_an_expired_certificate_changes_nothing_and_a_renewed_one_is_read(
    start: Start, engine: StartEngine, tmp_path: Path
) -> None:
    """etcd's own certificate runs out while the gateways serve."""
    authority = Authority(tmp_path, "ca")
    with running(authority=authority) as etcd:
        a = await start("a", etcd, tls={"ca": str(authority.certificate)})
        await engine(a.socket("r1"))
        assert (await put(a, "r1", a.socket("r1"), wait="serving"))[0] == 201
        etcd.kill()
        etcd.issue(authority, days=-1)
        etcd.start()
        status = await until_store(a, "away")
        await a.until(lambda s: "expired" in (s["store"]["reason"] or ""), within_s=_LATE_S)
        assert status["store"]["read_age_s"] is not None
        await stays_as_it_is(a)
        etcd.issue(authority)
        await until_store(a, "up")
        await until_serving(a, "r1")


async def test_a_full_store_takes_no_put_and_goes_on_to_be_read(start: Start, engine: StartEngine) -> None:
    """507 with the cure, and what is there stays."""
    with running(quota=1 << 20) as etcd:
        a, b = await start("a", etcd, timeout_s=10.0), await start("b", etcd, timeout_s=10.0)
        await engine(a.socket("r1"))
        await put(a, "r1", a.socket("r1"), wait="serving")
        await until_serving(b, "r1")
        for number in range(40):
            with suppress(AssertionError):
                etcd.ctl("put", f"/somebody/{number}", "x" * 100_000)
        status, answer = await put(a, "r2", a.socket("r2"))
        assert status == 507
        assert "compact and defragment" in answer["error"]
        await stays_as_it_is(a, b)
        assert (await a.status())["store"]["state"] == "up"


@pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (Debian: package libfaketime)")
async def test_clocks_that_jump_apart_change_nothing(
    start: Start, etcd: Etcd, engine: StartEngine, tmp_path: Path
) -> None:
    """One gateway's clock is hours ahead, then days back, and the other's is right: no lease ends."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    env = by_the_clock_in(clock)
    # A lease, and a time to answer, that a busy machine keeps.
    a = await start("a", etcd, env, lease_s=60, timeout_s=10.0)
    b = await start("b", etcd, lease_s=60, timeout_s=10.0)
    await engine(a.socket("r1"))
    await put(a, "r1", a.socket("r1"), wait="serving")
    await until_serving(b, "r1")
    await b.until(lambda s: [it["name"] for it in s["store"]["others"]] == ["a"], within_s=_LATE_S)
    for offset in ("+6h", "-3d", "+0"):
        clock.write_text(offset)
        await stays_as_it_is(a, b)
        for gateway in (a, b):
            assert (await gateway.status())["store"]["state"] == "up"
        assert [it["name"] for it in (await b.status())["store"]["others"]] == ["a"]
    assert a.events("store.lease_lost") == a.events("store.away") == []


async def drain(gateway: Gateway, timeout_s: float) -> tuple[int, dict[str, Any]]:
    url = f"http://daemon/v1/services/chat/replicas/r1/drain?timeout_s={timeout_s:g}"
    async with gateway.session.post(url) as answer:
        return answer.status, await answer.json()


async def test_a_drain_means_the_whole_fleet(start: Start, etcd: Etcd, engine: StartEngine) -> None:
    """Safe to stop is what every living gateway says; a frozen one is named, and counts after its lease and a grace."""
    a, b = await start("a", etcd), await start("b", etcd)
    busy = await engine(a.socket("r1"), token_interval_s=0.2)
    await put(a, "r1", a.socket("r1"), wait="serving")
    await until_serving(b, "r1")

    answering = asyncio.create_task(ask(b, tokens=3000))
    await b.until(lambda s: service_of(s)["replicas"][0]["in_flight"] == 1, within_s=_LATE_S)
    status, answer = await drain(a, 1.0)
    assert (status, answer["drained"], answer["in_flight"]) == (504, False, 0)
    assert [(it["name"], it["safe"]) for it in answer["gateways"]] == [("b", False)]
    assert answer["reason"].startswith("b: ")
    busy.behave(token_interval_s=0.0)
    status, answer = await drain(a, _LATE_S)
    assert (status, answer["drained"], answer["reason"]) == (200, True, None)
    assert await answering == 200
    for gateway in (a, b):
        await gateway.until_states({"r1": "draining"}, within_s=_LATE_S)

    async with asyncio.timeout(_LATE_S):
        while "r1       draining, safe  draining, safe  drain asked at a" not in (await a.cli("status", "--fleet"))[1]:
            pass  # What each of them sees is told every two seconds.

    c = await start("c", etcd)  # It joins during the drain.
    await c.until_states({"r1": "draining"}, within_s=_LATE_S)
    assert not c.events("replica.serving")
    assert (await c.cli("stop", "--all"))[0] == 0
    await b.kill()
    await b.start()
    await b.until_states({"r1": "draining"}, within_s=_LATE_S)
    async with b.session.post("http://daemon/v1/services/chat/replicas/r1/resume") as resumed:
        assert resumed.status == 200
    for gateway in (a, b):
        await until_serving(gateway, "r1")

    assert b.process is not None
    stop(b.process.pid)
    status, answer = await drain(a, 1.0)
    assert status == 504
    assert "b: it has not answered for" in answer["reason"] or "b: its lease ended" in answer["reason"]
    code, _, err = await a.cli("drain", "chat", "r1", "--timeout", "0.5")
    assert code == 1
    assert "r1 is not safe to stop after" in err
    assert "b: it has not answered for" in err or "b: its lease ended" in err
    status, answer = await drain(a, _LATE_S)
    assert (status, answer["drained"]) == (200, True)
    assert [it["name"] for it in answer["gateways"] if "counts as dead" in (it["reason"] or "")] == ["b"]
    b.process.send_signal(signal.SIGCONT)
    await b.until_states({"r1": "draining"}, within_s=_LATE_S)

    etcd.kill()
    await until_store(a, "away")
    status, answer = await drain(a, 10.0)
    assert (status, answer["drained"]) == (504, False)
    assert "the other gateways could not be asked" in answer["reason"]
    etcd.start()
    for gateway in (a, b):
        await until_store(gateway, "up")
    await a.until(lambda s: [it["name"] for it in s["store"]["others"]] == ["b"], within_s=_LATE_S)
    assert (await delete(a, "r1"))[0] == 202  # Without drain_s nobody is asked.
    for gateway in (a, b):
        await gateway.until_states({}, within_s=_LATE_S)
    await put(a, "r1", a.socket("r1"), wait="serving")
    await until_serving(b, "r1")
    status, answer = await delete(b, "r1", drain_s="30")
    assert (status, answer["drained"], [it["name"] for it in answer["gateways"]]) == (200, True, ["a"])


async def status_with(gateway: Gateway, secret: str) -> int:
    headers = {"Authorization": f"Bearer {secret}"}
    async with gateway.client() as session, session.get(f"{gateway.url()}/v1/models", headers=headers) as answer:
        await answer.read()
        return answer.status


async def until_answered(gateway: Gateway, secret: str, status: int) -> float:
    """How long it takes until a request with this key gets this answer, in seconds."""
    began = time.monotonic()
    async with asyncio.timeout(_LATE_S):
        while await status_with(gateway, secret) != status:
            await asyncio.sleep(0.005)
    return time.monotonic() - began


async def test_a_key_of_the_store_lets_in_at_every_gateway_until_it_is_revoked_at_any(
    start: Start, etcd: Etcd, engine: StartEngine
) -> None:
    """Only its hash is in the store. Its limits are shared out, and while the store is away it counts as before."""
    frontend = {"auth": {"store": True}}
    a, b = await start("a", etcd, frontend=frontend), await start("b", etcd, frontend=frontend)
    await engine(a.socket("r1"))
    await put(a, "r1", a.socket("r1"), wait="serving")
    await until_serving(b, "r1")

    async def key(gateway: Gateway, *words: str) -> str:
        code, out, err = await gateway.cli("key", *words, "--store")
        assert code == 0, err
        return out.strip()

    assert await status_with(b, "sk-unknown-to-everybody") == 401
    await key(a, "plan", "team", "--concurrent", "8")
    secret = await key(a, "add", "alice", "--plan", "team", "--requests-per-minute", "1000")
    for gateway in (a, b):
        await until_answered(gateway, secret, 200)
        await gateway.until(lambda s: len(s["store"]["others"]) == 1, within_s=_LATE_S)
    assert secret not in etcd.ctl("get", "--prefix", "")
    code, out, err = await b.cli("key", "list", "--store", "--json")
    assert (code, "shared out over 2 gateways" in err) == (0, True), err
    (row,) = json.loads(out)["keys"]
    assert (row["name"], row["bounds"]) == ("alice", {"requests_per_minute": "1000"})
    assert row["last_used"] is not None
    url = "http://daemon/v1/store/keys/bob"
    for body, no in (
        ({"line": "bob:sk-a-secret-in-clear", "seen": None}, 422),
        ({"line": None, "seen": None}, 422),
        ({"line": None, "seen": 1}, 409),
        ({"line": 1}, 422),
    ):
        async with a.session.put(url, json=body) as answer:
            assert answer.status == no, await answer.text()
            assert "sk-a-secret" not in await answer.text()
    took_ms: dict[int, list[float]] = {200: [], 401: []}
    bob, seen = "sk-bob-bob-bob-bob", None
    for _ in range(10):
        for status in (200, 401):
            line = f"bob:{hashlib.sha256(bob.encode()).hexdigest()}" if status == 200 else None
            began = time.monotonic()
            there = asyncio.create_task(until_answered(b, bob, status))
            async with a.session.put(url, json={"line": line, "seen": seen}) as answer:
                assert answer.status == 200, await answer.text()
                seen = (await answer.json())["revision"] if line is not None else None
            await there
            took_ms[status].append((time.monotonic() - began) * 1000)
    told = {status: f"{sorted(took)[5]:.0f} ms at most {max(took):.0f}" for status, took in took_ms.items()}
    print(f"from the request at one gateway to the answer of the other: {told}")

    etcd.kill()
    for gateway in (a, b):
        await until_store(gateway, "away")
    assert await status_with(a, secret) == await status_with(b, secret) == 200
    for words in (("revoke", "alice"), ("add", "carol")):
        code, _, err = await a.cli("key", *words, "--store")
        assert (code, "nothing was changed" in err) == (1, True), err
    _, out, err = await b.cli("key", "list", "--store")
    assert ("alice" in out, "the store cannot be read" in err) == (True, True), err
    await b.kill()
    await b.start()
    assert await status_with(b, secret) == 200
    assert await status_with(b, bob) == 401
