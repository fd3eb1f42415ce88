"""nginx as the router: what it is told, what it is not, and what becomes of the others' words."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from gateway_sidecar.config import parse_config
from gateway_sidecar.control.routers.balanced import Balancer, NginxClient, NginxRouter
from gateway_sidecar.domain.model import ConnectionMode, WorkerSpec, WorkerStatus, WorkerType
from gateway_sidecar.errors import ConfigError, RouterRefused, RouterUnavailable
from gateway_sidecar.nginx.balance import Endpoints
from gateway_sidecar.routers.none import NoRouter

URL = "http://127.0.0.1:24001"


class Counts:
    """What nginx has counted."""

    def __init__(self) -> None:
        self.changes = 0

    def note_change(self) -> None:
        self.changes += 1

    def count(self, ports: Iterable[int]) -> Mapping[int, int]:
        return Counter(dict.fromkeys(ports, 2))

    def requests(self, ports: Iterable[int]) -> Mapping[int, float]:
        return dict.fromkeys(ports, 7.0)


@pytest.fixture
def nginx(tmp_path: Path) -> Balancer:
    counts = Counts()
    return Balancer(Endpoints(tmp_path / "endpoints", counts.note_change), counts, "127.0.0.1")


def spec(url: str = URL, **more: Any) -> WorkerSpec:
    return WorkerSpec(url, "vllm", ConnectionMode.HTTP, model_id="tiny", **more)


def ports_of(nginx: Balancer, slot: str = "chat") -> list[str]:
    """What nginx reads: the first word of each line."""
    directory = cast("Endpoints", nginx.endpoints).directory
    return [line.split()[0] for line in (directory / (directory / slot).readlink()).read_text().splitlines()]


async def test_what_is_registered_is_ready_and_what_is_removed_is_gone(nginx: Balancer) -> None:
    """At once, and for the next daemon too: the file says all of it."""
    client = NginxClient("chat", NoRouter(), nginx)
    assert await client.list_workers() == {}
    worker_id = await client.register(spec())
    (worker,) = (await NginxClient("chat", NoRouter(), nginx).list_workers()).values()
    assert (worker.worker_id, worker.status, worker.model_id) == (worker_id, WorkerStatus.READY, "tiny")
    assert await client.find(worker_id) == worker
    assert ports_of(nginx) == ["24001"]
    await client.deregister(worker_id)
    assert await client.list_workers() == {}
    assert ports_of(nginx) == []
    assert len(list(cast("Endpoints", nginx.endpoints).directory.iterdir())) == 2, "no older file stays"


async def test_a_list_that_cannot_be_written_fails_all_whom_it_was_for(nginx: Balancer) -> None:
    """One of them writes for all: nobody is told that nginx has what it has not."""
    directory = cast("Endpoints", nginx.endpoints).directory
    directory.touch()
    client = NginxClient("chat", NoRouter(), nginx)
    registered = (client.register(spec(f"http://127.0.0.1:{24001 + it}")) for it in range(3))
    outcomes = await asyncio.gather(*registered, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [RouterUnavailable] * 3
    directory.unlink()
    await client.register(spec())
    assert ports_of(nginx) == ["24001"], "what failed is not done later"


async def test_a_crowd_is_one_file(nginx: Balancer) -> None:
    """A thousand that come together do not make nginx read a thousand lists."""
    client = NginxClient("chat", NoRouter(), nginx)
    await asyncio.gather(*(client.register(spec(f"http://127.0.0.1:{24001 + it}")) for it in range(100)))
    assert len(await client.list_workers()) == 100
    assert cast("Counts", nginx.counts).changes == 1


async def test_names_of_one_engine_are_one_place(nginx: Balancer) -> None:
    """Each name is a worker, and all have the port of their bridge."""
    client = NginxClient("chat", NoRouter(), nginx)
    await client.register(spec())
    await client.register(spec(f"{URL}/=other"))
    assert set(ports_of(nginx)) == {"24001"}
    await client.deregister(URL)
    assert list(await client.list_workers()) == [f"{URL}/=other"]


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (WorkerSpec("grpc://127.0.0.2:24001", "vllm", ConnectionMode.GRPC), "use a router for gRPC, such as smg"),
        (spec(worker_type=WorkerType.PREFILL), "does not pair prefill with decode, and this is prefill"),
        (spec("http://10.0.0.7:8000"), "remove `advertise`"),
        (spec(bridged=False), "remove `advertise`"),
    ],
)
async def test_what_nginx_cannot_balance_is_refused_with_the_cure(
    nginx: Balancer, refused: WorkerSpec, why: str
) -> None:
    """And nothing of it is told to nginx."""
    client = NginxClient("chat", NoRouter(), nginx)
    with pytest.raises(RouterRefused, match=why):
        await client.register(refused)
    assert await client.list_workers() == {}


async def test_what_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    """A disk that fails is no answer of a router."""
    (tmp_path / "file").write_text("")
    counts = Counts()
    client = NginxClient("chat", NoRouter(), Balancer(Endpoints(tmp_path / "file", counts.note_change), counts, "::1"))
    with pytest.raises(RouterUnavailable):
        await client.register(WorkerSpec("http://[::1]:24001", "vllm", ConnectionMode.HTTP))


async def test_it_is_up_at_once_and_says_what_it_counts(nginx: Balancer) -> None:
    """There is no process: nothing to adopt, and nothing to write down."""
    settings = parse_config(
        "services: [{name: chat, listen: '127.0.0.1:1', replicas: {}, router: {type: none}}]"
    ).services[0]
    states: list[str] = []
    router = NginxRouter(settings, "chat", NoRouter(), nginx, lambda: states.append(router.state.value))
    running = asyncio.create_task(router.run())
    while not router.up:
        await asyncio.sleep(0)
    assert (router.kind, router.pid, router.saved(), router.ports, router.is_nginx) == ("none", None, None, None, True)
    assert ports_of(nginx) == [], "what the slot had before is not to be known any more"
    client = NginxClient("chat", NoRouter(), nginx)
    await client.register(spec())
    reading = router.reading()
    assert reading is not None
    assert (reading.in_flight, reading.active, reading.requests) == (2.0, {URL: 2.0}, {URL: 7.0})
    running.cancel()
    await router.stop(grace_s=0)
    assert states == ["up", "stopped"]
    assert await client.list_workers() == {}


def test_slots_of_others_are_forgotten(nginx: Balancer) -> None:
    """What a killed daemon left of a slot that is not in service is found by nobody later."""
    endpoints = cast("Endpoints", nginx.endpoints)
    for slot in ("chat", "chat.next"):
        endpoints.write(slot, {})
    endpoints.keep_only({"chat.next"})
    assert {it.name for it in endpoints.directory.iterdir() if it.is_symlink()} == {"chat.next"}
    assert len(list(endpoints.directory.iterdir())) == 2


async def test_models_that_only_some_have_are_told(nginx: Balancer) -> None:
    """nginx does not read which one a request is for."""
    client = NginxClient("chat", NoRouter(), nginx)
    await client.register(spec())
    await client.register(WorkerSpec("http://127.0.0.1:24002", "vllm", ConnectionMode.HTTP, model_id="other"))
    await client.register(WorkerSpec("http://127.0.0.1:24003", "http", ConnectionMode.HTTP))
    told = NoRouter().unanswered((await client.list_workers()).values())
    assert set(told) == {"tiny", "other"}
    assert told["tiny"].startswith("1 of 2 replicas have it")
    await client.deregister("http://127.0.0.1:24002")
    assert NoRouter().unanswered((await client.list_workers()).values()) == {}


@pytest.mark.parametrize(
    ("service", "problem"),
    [
        ("router: {type: none, command: nginx}", "c.yaml:4: services[0].router: 'command' says how a router's process"),
        ("engine: http", "c.yaml:4: services[0].engine: 'http' is any HTTP application, and a router of kind smg"),
    ],
)
def test_settings_that_do_not_fit_are_told_with_their_line(service: str, problem: str) -> None:
    """And with the cure."""
    text = f"services:\n- name: chat\n  listen: 127.0.0.1:1\n  {service}\n  replicas: {{}}\n"
    with pytest.raises(ConfigError) as raised:
        parse_config(text, "c.yaml")
    assert problem in str(raised.value)


async def test_a_list_that_somebody_removed_is_empty_and_so_is_written_again(nginx: Balancer) -> None:
    """The daemon registers anew what no list has; nginx goes on with what it knows."""
    client = NginxClient("chat", NoRouter(), nginx)
    await client.register(spec())
    endpoints = cast("Endpoints", nginx.endpoints)
    (endpoints.directory / (endpoints.directory / "chat").readlink()).unlink()
    assert await client.list_workers() == {}
    await client.register(spec())
    assert list(await client.list_workers()) == [URL]
