"""What keys may do: models, tokens, requests, and how many at once. nginx alone holds keys to it."""

from __future__ import annotations

import asyncio
import calendar
import hashlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from openai import AsyncOpenAI, NotFoundError, PermissionDeniedError, RateLimitError

from gateway_sidecar.config import AuthSettings, FrontendSettings
from gateway_sidecar.frontend.edit_keys import add_key, change_key, change_plan, rotate_key
from gateway_sidecar.frontend.keys import parse_keys
from gateway_sidecar.frontend.served_files import place_keys
from gateway_sidecar.nginx.frontend_places import FrontendPlaces
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.test_frontend_keys import bare_nginx, guarded, listening, post, serving, until_gone, until_status
from tests.system.test_shared_address import ask as ask_shared
from tests.system.test_shared_address import chat, serve, shared

SECRET = "a-secret-of-alice-1"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
OWN_CLOCK = """
local function said(name)
    local file = io.open("%s/" .. name, "r")
    local number = tonumber(file:read("*a"))
    file:close()
    return number
end
bounds.now = function() return said("clock") end
bounds.elapsed = bounds.now
return bounds
"""


class Bounded:
    """An nginx with one key file, a clock of ours, and a router that answers as it is told."""

    def __init__(self, directory: Path) -> None:
        self.places = FrontendPlaces(directory)
        self._clock = directory / "clock"
        self.url = ""
        self.tokens: dict[str, int] | None = {"prompt_tokens": 3, "completion_tokens": 7}
        self.choices: list[dict[str, Any]] = []
        self.hangs_at = "nowhere"
        self.asked = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.at(calendar.timegm((2027, 1, 15, 12, 0, 0)))

    def at(self, now: float) -> None:
        """It is this time, in seconds since 1970."""
        self.now = now
        fresh = self._clock.with_suffix(".new")
        fresh.write_text(repr(float(now)))
        fresh.replace(self._clock)

    def say(self, *lines: str) -> None:
        """These lines are in force; `alice` stands for the key of `SECRET`."""
        text = "\n".join(line.replace("alice:", f"alice:{DIGEST}") for line in lines)
        place_keys(self.places.keys("chat"), parse_keys(text.encode(), "f").links())

    async def router(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        await self.go_on.wait()
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": it} for it in ("tiny", "large", "base:lora")]})
        if request.headers.get("Content-Length") and (await request.json()).get("stream"):
            answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await answer.prepare(request)
            for word in ("", "a", "b", "c"):
                if word == self.hangs_at:
                    await asyncio.sleep(3600)
                chunk = {"choices": [{"delta": {"role": "assistant", "content": word}}]}
                await answer.write(f"data: {json.dumps(chunk)}\n\n".encode())
            if self.tokens is not None:
                await answer.write(f"data: {json.dumps({'choices': [], 'usage': self.tokens})}\n\n".encode())
            await answer.write(b"data: [DONE]\n\n")
            return answer
        return web.json_response({"choices": self.choices, "usage": self.tokens})

    async def ask(self, **more: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
        headers = {"Authorization": f"Bearer {SECRET}"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/v1/chat/completions", json={**BODY, **more}, headers=headers) as answer,
        ):
            text = await answer.text()
            said = {name.lower(): value for name, value in answer.headers.items()}
            return answer.status, json.loads(text) if text.startswith("{") else {}, said

    async def statuses(self, count: int, **more: Any) -> list[int]:
        return [(await self.ask(**more))[0] for _ in range(count)]


@asynccontextmanager
async def bounded(tmp_path: Path, *lines: str, workers: int = 1, **more: Any) -> AsyncIterator[Bounded]:
    script = (resources.files("gateway_sidecar") / "share" / "bounds.lua").read_text()
    (tmp_path / "bounds.lua").write_text(script.rsplit("return bounds", 1)[0] + OWN_CLOCK % tmp_path)
    it = Bounded(tmp_path)
    it.say(*lines)
    frontend = FrontendSettings(auth=AuthSettings(keys_file=tmp_path / "unused"), **more)
    async with (
        listening(it.router) as router,
        bare_nginx(tmp_path, it.places, router, frontend, requests=64, workers=workers) as it.url,
    ):
        yield it


async def test_tokens_per_minute_are_a_bucket(tmp_path: Path) -> None:
    """A request is let in while something is left; what it took is known at its end, and comes back within a minute."""
    async with bounded(tmp_path, "alice: tokens_per_minute=15") as it:
        status, _, headers = await it.ask()
        assert status == 200
        assert headers["x-ratelimit-limit-tokens"] == "15"
        assert headers["x-ratelimit-remaining-tokens"] == "15", "nobody knows yet what this one takes"
        assert headers["x-ratelimit-reset-tokens"] == "0s"
        assert (await it.ask())[2]["x-ratelimit-remaining-tokens"] == "5"
        status, body, headers = await it.ask()
        assert status == 429, "20 of 15 are gone"
        assert body["error"] == {
            "message": "Rate limit reached for this API key: 15 tokens per minute. Try again in 20s, at"
            " 2027-01-15T12:00:20Z.",
            "type": "tokens",
            "param": None,
            "code": "rate_limit_exceeded",
        }
        assert headers["retry-after"] == "20"
        assert headers["x-ratelimit-remaining-tokens"] == "0"
        assert headers["x-ratelimit-reset-tokens"] == "1m20s"
        assert it.asked == 2
        it.at(it.now + 19)
        assert (await it.ask())[0] == 429
        it.at(it.now + 2)
        assert await it.statuses(2) == [200, 429]
        it.at(it.now + 3600)
        assert (await it.ask())[2]["x-ratelimit-remaining-tokens"] == "15", "it does not fill beyond its bound"


async def test_requests_per_minute_are_a_bucket_too(tmp_path: Path) -> None:
    """And only what may cost something is counted."""
    async with bounded(tmp_path, "alice: requests_per_minute=2") as it:
        _, _, headers = await it.ask()
        assert headers["x-ratelimit-limit-requests"] == "2"
        assert headers["x-ratelimit-remaining-requests"] == "1"
        assert headers["x-ratelimit-reset-requests"] == "30s"
        assert "x-ratelimit-limit-tokens" not in headers
        status, body, headers = (await it.ask(), await it.ask())[1]
        assert (status, body["error"]["type"], headers["retry-after"]) == (429, "requests", "30")
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {SECRET}"}) as session,
            session.get(f"{it.url}/v1/models") as answer,
        ):
            assert answer.status == 200
            assert "x-ratelimit-limit-requests" not in answer.headers
        it.at(it.now + 30)
        assert await it.statuses(2) == [200, 429]


async def test_a_key_sees_only_its_models(tmp_path: Path) -> None:
    """In the router's list, whichever plan names them, and by name; what a client may not use does not exist for it."""
    async with bounded(tmp_path, "alice: models=tiny,base:lora,none-such concurrent=3") as it:

        async def get(path: str, method: str = "GET") -> tuple[int, Any]:
            headers = {"Authorization": f"Bearer {SECRET}"}
            async with (
                aiohttp.ClientSession(headers=headers) as session,
                session.request(method, f"{it.url}/v1/models{path}") as answer,
            ):
                text = await answer.text()
                return answer.status, json.loads(text) if text else None

        assert await get("") == (200, {"object": "list", "data": [{"id": "tiny"}, {"id": "base:lora"}]})
        assert await get("", "HEAD") == (200, None)
        assert (await get("/tiny"))[0] == 200
        status, body = await get("/large")
        assert (status, body["error"]["code"]) == (404, "model_not_found")
        it.say("plan team models=large", "alice: plan=team")
        assert (await get(""))[1]["data"] == [{"id": "large"}]
        it.say("alice: concurrent=3")
        assert len((await get(""))[1]["data"]) == 3
        assert await it.statuses(2) == [200, 200]


async def test_a_days_and_a_months_tokens_end_with_them_in_utc(tmp_path: Path) -> None:
    """At midnight the day's are there again, and those of the month with its first day; a leap day is one."""
    async with bounded(tmp_path, "alice: tokens_per_day=15 tokens_per_month=35") as it:
        it.at(calendar.timegm((2028, 2, 28, 23, 59, 30)))
        assert await it.statuses(3) == [200, 200, 429]
        _, body, headers = await it.ask()
        assert body["error"]["code"] == body["error"]["type"] == "insufficient_quota"
        assert body["error"]["message"].endswith(
            "15 tokens per day (UTC). Try again in 30s, at 2028-02-29T00:00:00Z."
        ), body
        assert (headers["retry-after"], headers["x-should-retry"]) == ("30", "false")
        assert headers["x-ratelimit-limit-tokens"] == "15"
        assert headers["x-ratelimit-reset-tokens"] == "30s"
        it.at(it.now + 30)
        assert await it.statuses(3) == [200, 200, 429]
        _, body, headers = await it.ask()
        assert "35 tokens per month (UTC). Try again in 24h0m0s, at 2028-03-01T00:00:00Z." in body["error"]["message"]
        it.at(it.now + 86400 - 0.001)
        assert (await it.ask())[0] == 429
        it.at(it.now + 0.001)
        assert (await it.ask())[0] == 200
        for year, month in ((2028, 12), (2029, 1), (2100, 2), (2000, 2)):
            it.at(calendar.timegm((year, month, 15, 0, 0, 0)))
            assert await it.statuses(3) == [200, 200, 429]
            it.at(it.now + 86400)
            assert await it.statuses(3) == [200, 200, 429]
            ends = calendar.timegm((year + month // 12, month % 12 + 1, 1, 0, 0, 0))
            assert int((await it.ask())[2]["retry-after"]) == ends - it.now


@pytest.mark.own_users
async def test_what_says_no_tokens_is_not_free(tmp_path: Path) -> None:
    """Of a stream without them, or one that its client leaves, each event with content is a token."""
    async with bounded(tmp_path, "alice: tokens_per_day=100") as it:
        remaining = "x-ratelimit-remaining-tokens"
        assert (await it.ask(stream=True))[0] == 200
        assert (await it.ask())[2][remaining] == "90", "as it says itself"
        it.tokens = None
        assert (await it.ask(stream=True))[2][remaining] == "80"
        assert (await it.ask())[2][remaining] == "77", "three events had content"
        it.hangs_at = "c"
        headers = {"Authorization": f"Bearer {SECRET}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"{it.url}/v1/chat/completions", json={**BODY, "stream": True}) as answer,
        ):
            async for line in answer.content:
                if b'"b"' in line:
                    break
        async with asyncio.timeout(60):
            while (left := (await it.ask())[2][remaining]) == "77":
                await asyncio.sleep(0.05)
        assert left == "75", "two events had passed when the client left"


async def test_text_of_a_clients_own_is_no_token(tmp_path: Path) -> None:
    """A reranker repeats the documents in an answer in one piece, and says the tokens of the prompt alone."""
    async with bounded(tmp_path, "alice: tokens_per_day=100") as it:
        it.choices = [{"document": {"text": "a"}}] * 9
        it.tokens = {"prompt_tokens": 5}
        remaining = "x-ratelimit-remaining-tokens"
        assert [(await it.ask())[2][remaining] for _ in range(2)] == ["100", "95"]
        it.tokens = None
        assert [(await it.ask())[2][remaining] for _ in range(2)] == ["90", "90"]


async def test_no_more_at_once_than_a_key_may(tmp_path: Path) -> None:
    """Whichever worker has them; one that ends, or whose client goes, makes room."""
    async with bounded(tmp_path, "alice: concurrent=3", workers=2) as it:
        it.go_on.clear()
        asking = [asyncio.create_task(it.ask()) for _ in range(3)]
        async with asyncio.timeout(60):
            while it.asked < 3:
                await asyncio.sleep(0.01)
        for _ in range(4):
            status, body, headers = await it.ask()
            assert (status, body["error"]["code"], headers["retry-after"]) == (429, "rate_limit_exceeded", "1")
        asking.pop().cancel()
        async with asyncio.timeout(60):
            while it.asked == 3:
                more = asyncio.create_task(it.ask())
                while it.asked == 3 and not more.done():
                    await asyncio.sleep(0.01)
        assert it.asked == 4
        asking.append(more)
        it.go_on.set()
        assert [status for status, _, _ in await asyncio.gather(*asking)] == [200] * 3
        assert await it.statuses(5) == [200] * 5


async def test_a_plan_bounds_its_keys_and_their_own_bounds_come_first(tmp_path: Path) -> None:
    """What changes in a plan counts from the next request on, without a reload."""
    plan = "plan team tokens_per_day=5 models=tiny"
    async with bounded(tmp_path, plan, "alice: plan=team") as it:
        assert await it.statuses(2) == [200, 429]
        it.say("plan team tokens_per_day=15", "alice: plan=team")
        assert await it.statuses(2) == [200, 429]
        it.say(plan, "alice: plan=team tokens_per_day=25 models=none")
        assert await it.statuses(2, model="large") == [200, 429]
        it.say(plan, "alice: plan=team tokens_per_day=none")
        assert await it.statuses(2) == [200, 200]
        it.say(plan, "alice: plan=team tokens_per_day=none paused")
        assert await it.statuses(1) == [403]
        (it.places.keys("chat") / "@team").unlink()
        it.say("alice: tokens_per_day=none")
        assert await it.statuses(1) == [200]


@pytest.mark.own_users
async def test_a_key_uses_its_models_only(tmp_path: Path) -> None:
    """At a service's own address, too: 404 in OpenAI's form, with the names that it may use."""
    async with bounded(tmp_path, "alice: models=tiny,small") as it:
        assert await it.statuses(1) == [200]
        status, body, _ = await it.ask(model="large")
        assert status == 404
        assert body["error"] == {
            "message": "The model 'large' does not exist at this address. Use one of: tiny, small.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
        headers = {"Authorization": f"Bearer {SECRET}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            for sent, wanted in (
                (b'{"model": "large", "model": "tiny"}', 200),
                (b'{"model": "tiny", "model": "large"}', 404),
                (b'{"m\\u006fdel": "large"}', 404),
                (b'{"messages": []}', 400),
                (b"{", 400),
                (b'{"model": 1}', 400),
            ):
                async with session.post(f"{it.url}/v1/chat/completions", data=sent) as answer:
                    assert (answer.status, sent) == (wanted, sent), await answer.text()
            async with session.get(f"{it.url}/v1/responses/x") as answer:
                assert answer.status == 200
        assert it.asked == 3


async def test_a_worker_that_is_killed_leaves_nothing_in_flight(tmp_path: Path) -> None:
    """What it had does not count any more once nginx has another in its place."""
    async with bounded(tmp_path, "alice: concurrent=2") as it:
        it.go_on.clear()
        asking = [asyncio.create_task(it.ask()) for _ in range(2)]
        async with asyncio.timeout(60):
            while it.asked < 2:
                await asyncio.sleep(0.01)
        assert (await it.ask())[0] == 429
        (worker,) = await _workers(tmp_path)
        os.kill(worker, signal.SIGKILL)
        await asyncio.gather(*asking, return_exceptions=True)
        it.go_on.set()
        async with asyncio.timeout(60):
            while (await it.ask())[0] != 200:
                await asyncio.sleep(0.05)


async def test_a_worker_that_is_killed_after_a_reload_leaves_nothing_in_flight(tmp_path: Path) -> None:
    """nginx starts none in the place of one that is about to end, and nobody is locked out for that."""
    async with bounded(tmp_path, "alice: concurrent=1") as it:
        it.go_on.clear()
        asking = asyncio.create_task(it.ask())
        async with asyncio.timeout(60):
            while it.asked < 1:
                await asyncio.sleep(0.01)
        (old,) = await _workers(tmp_path)
        os.kill(int((tmp_path / "nginx.pid").read_text()), signal.SIGHUP)
        async with asyncio.timeout(60):
            while "shutting down" not in Path(f"/proc/{old}/cmdline").read_text():
                await asyncio.sleep(0.05)
        assert (await it.ask())[0] == 429, "by the new one, which has begun"
        os.kill(old, signal.SIGKILL)
        await asyncio.gather(asking, return_exceptions=True)
        it.go_on.set()
        async with asyncio.timeout(60):
            while (await it.ask())[0] != 200:
                await asyncio.sleep(0.1)
        assert await it.statuses(2) == [200, 200]


async def test_a_reload_keeps_what_is_counted(tmp_path: Path) -> None:
    """In the day, in the bucket, and in flight at workers that end with their last stream."""
    async with bounded(tmp_path, "alice: tokens_per_day=35 concurrent=1") as it:
        assert await it.statuses(1) == [200]
        it.go_on.clear()
        asking = asyncio.create_task(it.ask())
        async with asyncio.timeout(60):
            while it.asked < 2:
                await asyncio.sleep(0.01)
        before = await _workers(tmp_path)
        os.kill(int((tmp_path / "nginx.pid").read_text()), signal.SIGHUP)
        async with asyncio.timeout(60):
            while not await _workers(tmp_path) - before:
                await asyncio.sleep(0.05)
        assert (await it.ask())[0] == 429
        it.go_on.set()
        assert (await asking)[0] == 200
        async with asyncio.timeout(60):
            while await _workers(tmp_path) & before:  # With its answer it has not yet counted what that took.
                await asyncio.sleep(0.05)
        assert await it.statuses(3) == [200, 200, 429]


async def _workers(directory: Path) -> set[int]:
    master = int((directory / "nginx.pid").read_text())
    return {int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()}


# -- with the daemon


def _headed(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_what_clients_make_of_it(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """The `openai` client raises its own errors, with the code and the headers; the engine sees no refused request."""
    gateway = make_gateway()
    file = guarded(gateway)
    change_plan(file, "small", {"tokens_per_day": "5", "models": "tiny"})
    key = add_key(file, "alice", plan="small")
    here = await serving(gateway, engine)
    async with AsyncOpenAI(base_url=f"{gateway.url()}/v1", api_key=key, max_retries=3) as client:

        async def ask(model: str = "tiny") -> Any:
            return await client.chat.completions.with_raw_response.create(
                model=model, messages=BODY["messages"], max_tokens=8
            )

        answer = await ask()
        assert answer.headers["x-ratelimit-limit-tokens"] == "5"
        assert answer.parse().usage.total_tokens >= 5
        with pytest.raises(RateLimitError) as caught:
            await ask()
        assert caught.value.code == "insufficient_quota"
        assert caught.value.type == "insufficient_quota"
        assert int(caught.value.response.headers["retry-after"]) <= 86400
        change_key(file, "alice", {"tokens_per_day": "none"})
        await until_status(gateway, key, 200)
        with pytest.raises(NotFoundError) as not_found:
            await ask("large")
        assert not_found.value.code == "model_not_found"
        assert "tiny" in str(not_found.value)
        before = here.ledger.received
        change_key(file, "alice", {"paused": ""})
        await until_status(gateway, key, 403)
        with pytest.raises(PermissionDeniedError) as paused:
            await ask()
        assert paused.value.code == "key_paused"
        received = here.ledger.received
        assert (await post(gateway, key))[0] == 403
        assert here.ledger.received == received >= before


async def test_a_shared_address_names_what_the_key_may_use(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """In its list, in its refusals and by name: another model does not exist for this key."""
    gateway = shared(make_gateway, {"tiny": "chat", "large": "code", "other": "code"})
    file = gateway.directory / "api.keys"
    gateway.settings["addresses"][0]["frontend"] = {"auth": {"keys_file": str(file)}}
    some, every = add_key(file, "some", models="tiny,other,unknown"), add_key(file, "every")
    await serve(gateway, engine, chat="tiny", code="large")
    async with aiohttp.ClientSession() as session:
        for key, names in ((some, ["other", "tiny"]), (every, ["large", "other", "tiny"])):
            async with session.get(f"{gateway.url('api')}/v1/models", headers=_headed(key)) as answer:
                assert [it["id"] for it in (await answer.json())["data"]] == names
        async with session.get(f"{gateway.url('api')}/v1/models/large", headers=_headed(some)) as answer:
            assert answer.status == 404
            assert "Use one of: other, tiny." in (await answer.json())["error"]["message"]
    assert (await ask_shared(gateway, chat("tiny"), **_headed(some)))[0] == 200
    for model in ("large", "huge"):
        status, body = await ask_shared(gateway, chat(model), **_headed(some))
        assert (status, body["error"]["code"]) == (404, "model_not_found")
        assert body["error"]["message"].endswith("Use one of: other, tiny.")
    assert (await ask_shared(gateway, chat("large"), **_headed(every)))[0] == 200
    change_key(file, "some", {"models": "unknown"})
    async with asyncio.timeout(60):
        while (await ask_shared(gateway, chat("tiny"), **_headed(some)))[0] != 404:
            await asyncio.sleep(0.05)
    _, body = await ask_shared(gateway, chat("tiny"), **_headed(some))
    assert "this API key may use none there" in body["error"]["message"]
    _, out, _ = await gateway.cli("check")
    assert "api.keys: models: 'unknown' is no model of api, whose models are large, other, tiny" in out


async def test_a_rotated_key_has_two_secrets_for_a_while(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Both are the same key, with one quota; the old one ends by itself, with the daemon dead."""
    gateway = make_gateway()
    file = guarded(gateway)
    old = add_key(file, "alice", concurrent="2")
    await serving(gateway, engine)
    assert (await post(gateway, old))[0] == 200
    for within_s in (4, 16, 64, 256):  # On a busy machine it may be over before anybody could use it.
        ends = (now := time.time()) + within_s
        new, _ = rotate_key(file, "alice", keep_old_s=within_s, now=now)
        await until_status(gateway, new, 200)
        worked = (await post(gateway, old))[0] == 200 and time.time() < ends - 1
        if worked:
            break
        old = new
    assert worked
    await gateway.kill()
    await until_status(gateway, old, 401, within_s=within_s + 60)
    assert time.time() >= ends - 1
    assert (await post(gateway, new))[0] == 200


async def test_when_a_key_was_used_outlasts_daemon_and_directory(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """nginx notes it without a daemon; a copy is there after a reboot, which takes the links away."""
    gateway = make_gateway()
    file = guarded(gateway)
    key, unused = add_key(file, "alice", note="the app of Alice"), add_key(file, "unused")
    assert unused
    await serving(gateway, engine)
    before = int(time.time())

    async def used() -> dict[str, str | None]:
        code, out, err = await gateway.cli("key", "list", "--json", "--file", str(file))
        assert (code, err) == (0, "")
        return {it["name"]: it["last_used"] for it in json.loads(out)["keys"]}

    assert await used() == {"alice": None, "unused": None}
    await gateway.kill()
    assert (await post(gateway, key))[0] == 200
    first = (await used())["alice"]
    assert first is not None
    assert calendar.timegm(time.strptime(first, "%Y-%m-%dT%H:%M:%SZ")) >= before
    await gateway.start()
    change_key(file, "alice", {"tokens_per_day": "5M"})
    rotated, _ = rotate_key(file, "alice", keep_old_s=0, now=time.time())
    await until_status(gateway, key, 401)
    assert (await used())["alice"] is not None
    _, out, _ = await gateway.cli("key", "list", "--file", str(file))
    assert [line.split()[0] for line in out.splitlines()] == ["key", "alice", "unused"]
    assert "tokens_per_day=5M" in out
    assert "the app of Alice" in out
    await gateway.cli("stop", "--all")
    await until_gone(gateway.directory / "run" / "frontends" / "chat.keys")
    assert (await used())["alice"] is not None
    assert rotated


async def test_keys_are_changed_by_command(make_gateway: MakeGateway) -> None:
    """Each action changes one line; each mistake has one clear line and changes nothing."""
    gateway = make_gateway()
    file = gateway.directory / "made.keys"

    async def key(*words: str) -> str:
        code, out, err = await gateway.cli("key", *words, "--file", str(file), config=False)
        assert (code, err) == (0, ""), words
        return out.strip()

    assert await key("plan", "team", "--tokens-per-day", "2M", "--models", "a,b/c:8b") == (
        "plan team: models=a,b/c:8b tokens_per_day=2M"
    )
    await key("add", "alice", "--plan", "team", "--note", "Alice, mobile", "--expires", "2100-01-01")
    assert await key("set", "alice", "--tokens-per-day", "none", "--concurrent", "4", "--expires", "none") == (
        'alice: plan=team tokens_per_day=none concurrent=4 note="Alice, mobile"'
    )
    assert await key("set", "alice", "--tokens-per-day", "plan") == 'alice: plan=team concurrent=4 note="Alice, mobile"'
    assert await key("pause", "alice") == "alice is paused"
    assert " paused " in file.read_text()
    assert await key("resume", "alice") == "alice is no longer paused"
    assert " paused" not in file.read_text()
    first = await key("rotate", "alice")
    assert first.startswith("sk-")
    text = file.read_text()
    for words, reason in {
        ("set", "bob", "--concurrent", "1"): "has no key 'bob'; `gateway-sidecar key list` names them",
        ("set", "alice"): "nothing is to be changed; give an option such as",
        ("set", "alice", "--plan", "gold"): "--plan: there is no plan 'gold'; use team, or make it with",
        ("set", "alice", "--tokens-per-day", "2G"): "--tokens-per-day: '2G' is not a number above 0; use one such as",
        ("set", "alice", "--note", 'a "b"'): "--note: is not a text of 200 printable characters without quotes",
        ("plan", "team", "--remove"): "plan 'team' is that of alice; give them another one with",
        ("rotate", "alice", "--keep-old", "soon"): "--keep-old: 'soon' is not a time; use one such as 24h",
        ("pause", "bob"): "has no key 'bob'",
    }.items():
        code, _, err = await gateway.cli("key", *words, "--file", str(file), config=False)
        assert (code, err.count("\n")) == (1, 1), err
        assert reason in err
        assert file.read_text() == text
    await key("set", "alice", "--plan", "none")
    assert await key("plan", "team", "--remove") == "plan team is removed"


async def test_a_new_nginx_does_not_fill_a_quota(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """The daemon tells it what each key has used, also of what nobody had taken in before the old one was killed. Keys
    that a reload takes away and another one brings back go on, too.
    """
    gateway = make_gateway()
    file = guarded(gateway)
    gateway.settings["services"][0]["frontend"]["usage"] = {}
    day = add_key(file, "day", tokens_per_day="2")
    month = add_key(file, "month", tokens_per_month="1k")
    await serving(gateway, engine)
    assert (await post(gateway, day))[0] == 200
    await until_status(gateway, day, 429)
    _, first, _ = await post(gateway, month)
    before = (await gateway.status())["nginx"]["pid"]
    os.kill(before, signal.SIGKILL)
    await gateway.until(lambda it: it["nginx"]["pid"] not in (None, before))
    async with asyncio.timeout(60):
        while True:
            with suppress(aiohttp.ClientError):
                status, _, _ = await post(gateway, day)
                break
            await asyncio.sleep(0.05)
    assert status == 429, "it is the first request that the new one gets"
    await until_status(gateway, month, 200)
    _, _, headers = await post(gateway, month)
    said = {name.lower(): value for name, value in headers.items()}
    assert int(said["x-ratelimit-remaining-tokens"]) <= 1000 - 2 * first["usage"]["total_tokens"]
    await gateway.kill()
    await gateway.start()  # It looks at once, and then every five minutes: the metric that an alert is made of.
    used = 'gateway_sidecar_key_bound_used_ratio{bound="tokens_per_day",key="day",service="chat"} '
    page = ""
    async with asyncio.timeout(60), aiohttp.ClientSession() as client:
        while used not in page:
            async with client.get(f"http://127.0.0.1:{gateway.metrics_port}/metrics") as answer:
                page = await answer.text()
    assert float(page.partition(used)[2].split()[0]) >= 1
    near = (await gateway.status())["near_quota"]
    assert [(it["service"], it["key"], it["bound"]) for it in near] == [("chat", "day", "tokens_per_day")]
    frontend = gateway.settings["services"][0]["frontend"]
    for auth, told in ((None, 200), (frontend["auth"], 401)):  # Without any keys nginx keeps no counts of them.
        frontend["auth"] = auth
        gateway.configure()
        assert (await gateway.cli("reload"))[0] == 0
        await until_status(gateway, "no-key-of-anybodys", told)
    assert (await post(gateway, day))[0] == 429
