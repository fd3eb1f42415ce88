"""Dynamo as a kind of router and as an engine: settings, what of its files is believed and copied, log, metrics."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from gateway_sidecar.domain.model import ConnectionMode, Foreign, Loading, Ready, WorkerSpec, WorkerType
from gateway_sidecar.engines.dynamo import read_entries
from gateway_sidecar.files import dynamo_entries as entries
from gateway_sidecar.routers.dynamo.check import trouble_with
from gateway_sidecar.routers.dynamo.client import objection_to
from gateway_sidecar.routers.dynamo.inside import shim
from gateway_sidecar.routers.dynamo.log import read_log_line
from gateway_sidecar.routers.dynamo.metrics import read_metrics
from gateway_sidecar.routers.dynamo.paths import PATHS
from gateway_sidecar.routers.dynamo.settings import DynamoSettings
from gateway_sidecar.routers.dynamo.setup import options
from tests.smg import smg_address
from tests.unit.test_nginx_config import config as nginx_config

NAME = "dynamo%2Fbackend%2Fgenerate%2F7b"


def write_worker(directory: Path, *, instance: int = 123, role: str = "aggregated", name: str = NAME) -> Path:
    """What a worker of ai-dynamo 1.6.1 writes of itself, as far as it is read."""
    instance_entry = {"instance_id": instance, "transport": {"tcp": f"127.0.0.1:40095/{instance:x}/dynamo/generate"}}
    source = {"metadata": {"recovery_target": {"transport": {"tcp": "127.0.0.1:40095/x"}}}}
    card = {"instance_id": instance, "card_json": {"display_name": "tiny", "worker_type": role, "tcp_like": "a/b"}}
    for bucket, entry in (("instances", instance_entry), ("event_sources", source), ("mdc", card)):
        path = directory / "v1" / bucket / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entry))
    return directory


def copies_in(frontend: Path) -> dict[str, object]:
    """Bucket/name -> entry, of all that the frontend would see."""
    store = entries.store_of(frontend) / "v1"
    return {
        f"{path.parent.name}/{path.name}": json.loads(path.read_text()) for path in store.rglob("*") if path.is_file()
    }


def record(source: Path, *, address: str | None = None, leaves: bool = False) -> entries.Entry:
    return {"url": "x", "source": str(source), "address": address, "leaves": leaves}


def age(worker: Path) -> None:
    """As if the worker had not touched its entries for eleven seconds."""
    then = entries.now_of_files() - entries.FRESH_S - 1
    for path in worker.rglob("*"):
        os.utime(path, (then, then))


def test_entries_lead_to_the_bridge_and_go_with_their_record(tmp_path: Path) -> None:
    """Every address of the request plane is replaced, and nothing else; a frontend's own entries stay."""
    frontend, worker = tmp_path / "frontend", write_worker(tmp_path / "worker")
    entries.write_record(frontend, "w", record(worker, address="127.0.0.2:24001"))
    entries.keep_up(frontend)
    own = entries.store_of(frontend) / "v1" / "instances" / "own"
    own.write_text("{}")
    copies = copies_in(frontend)
    assert copies[f"instances/{NAME}"] == {
        "instance_id": 123,
        "transport": {"tcp": "127.0.0.2:24001/7b/dynamo/generate"},
    }
    assert "127.0.0.2:24001/x" in json.dumps(copies[f"event_sources/{NAME}"])
    assert copies[f"mdc/{NAME}"] == json.loads((worker / "v1" / "mdc" / NAME).read_text())
    entries.write_record(frontend, "w", record(worker, leaves=True))
    entries.keep_up(frontend)
    assert copies_in(frontend).keys() == {"instances/own"}


def test_copies_are_fresh_for_as_long_as_their_originals(tmp_path: Path) -> None:
    """A worker that dies takes its copies with it, whoever keeps them up; one that lives has them touched."""
    frontend, worker = tmp_path / "frontend", write_worker(tmp_path / "worker")
    entries.write_record(frontend, "w", record(worker))
    entries.keep_up(frontend)
    age(entries.store_of(frontend))
    entries.keep_up(frontend)
    copy = entries.store_of(frontend) / "v1" / "mdc" / NAME
    assert copy.stat().st_mtime > entries.now_of_files() - entries.FRESH_S
    age(worker)
    entries.keep_up(frontend)
    assert copies_in(frontend) == {}


def test_what_is_no_entry_is_not_read(tmp_path: Path) -> None:
    """A link, a pipe, a text that is no object, one that is too long: none of these is copied, or waited for."""
    frontend, worker = tmp_path / "frontend", write_worker(tmp_path / "worker")
    bucket = worker / "v1" / "mdc"
    (bucket / "link").symlink_to("/etc/passwd")
    os.mkfifo(bucket / "pipe")
    (bucket / "list").write_text("[1]")
    (bucket / "deep").write_text("[" * 100_000)
    (bucket / "nested").write_text('{"a": ' * 900 + "1" + "}" * 900)
    (bucket / "long").write_text('{"a": "' + "x" * 2**20 + '"}')
    entries.write_record(frontend, "w", record(worker, address="127.0.0.2:24001"))
    entries.keep_up(frontend)
    assert [name for name in copies_in(frontend) if name.startswith("mdc/")] == [f"mdc/{NAME}"]


@pytest.mark.parametrize(("role", "worker_type"), [("aggregated", WorkerType.REGULAR), ("prefill", WorkerType.PREFILL)])
def test_a_worker_is_what_its_card_says(tmp_path: Path, role: str, worker_type: WorkerType) -> None:
    """Its instance tells it from the next worker behind the same socket."""
    found = read_entries(write_worker(tmp_path / "w", role=role))
    assert isinstance(found, Ready)
    facts = found.facts
    assert (facts.runtime_type, facts.connection_mode, facts.model) == ("dynamo", ConnectionMode.TCP, "tiny")
    assert (facts.worker_type, facts.instance) == (worker_type, "7b")


def test_a_directory_that_says_nothing_or_too_much_is_told_with_the_cure(tmp_path: Path) -> None:
    """No fresh card: it loads. Two workers: nobody knows whose socket it is. Another form: another version."""
    nothing = read_entries(tmp_path / "w")
    assert isinstance(nothing, Loading)
    assert f"start the worker with DYN_FILE_KV={tmp_path / 'w'}" in nothing.reason
    unknown = read_entries(write_worker(tmp_path / "w", role="oracle"))
    assert isinstance(unknown, Foreign)
    assert "use that version" in unknown.reason
    write_worker(tmp_path / "w", instance=5, name="other")
    two = read_entries(tmp_path / "w")
    assert isinstance(two, Foreign)
    assert "give each a directory of its own" in two.reason


@pytest.mark.parametrize(
    ("spec", "cure"),
    [
        (WorkerSpec("grpc://b", "vllm", ConnectionMode.GRPC, model_id="m"), "serve HTTP"),
        (WorkerSpec("http://b", "vllm", ConnectionMode.HTTP, WorkerType.PREFILL, "m"), "`router: {type: smg}`"),
        (WorkerSpec("http://b", "external", ConnectionMode.HTTP), "write `model: NAME` in its notes"),
        (WorkerSpec("http://b", "vllm", ConnectionMode.HTTP, model_id="m"), None),
        (WorkerSpec("tcp://b", "dynamo", ConnectionMode.TCP, WorkerType.PREFILL, "m"), None),
    ],
)
def test_who_it_cannot_have_is_refused_with_the_cure(spec: WorkerSpec, cure: str | None) -> None:
    """Of plain engines the regular ones over HTTP; all Dynamo workers."""
    objection = objection_to(spec)
    assert (objection is None) if cure is None else cure in (objection or "")


@pytest.mark.parametrize(
    ("version", "trouble"),
    [("1.6.1", None), ("1.6.0.post1", None), ("1.5.9", "too old"), ("2.0.0", "too new"), ("dev", "too old")],
)
def test_versions_that_were_not_measured_are_refused(version: str, trouble: str | None) -> None:
    """Its files are no public interface."""
    said = trouble_with(version)
    assert (said is None) if trouble is None else trouble in (said or "") and "install ai-dynamo 1.6" in (said or "")


@pytest.mark.parametrize(
    "option", ["--http-port", "--router-mode=kv", "--discovery", "-i", "--tls-cert", "--namespace"]
)
def test_options_of_the_daemons_own_are_refused(option: str) -> None:
    """Whole, or as argparse would complete them."""
    with pytest.raises(ValueError, match="is the daemon's own; leave it out"):
        DynamoSettings(type="dynamo", args=(option,))


def test_it_is_started_as_it_is_configured() -> None:
    """The operator's options come last."""
    settings = DynamoSettings(type="dynamo", policy="kv", migration_limit=0, args=("--router-temperature", "0.5"))
    assert options(settings, 7)[2:] == [
        *("--http-port", "7", "--router-mode", "kv", "--migration-limit", "0", "--router-temperature", "0.5")
    ]


def test_its_metrics_say_what_is_in_flight() -> None:
    """Of all models; a page of something else says nothing."""
    page = b'dynamo_frontend_inflight_requests{model="a"} 2\ndynamo_frontend_inflight_requests{model="b"} 1\n'
    assert read_metrics(page).in_flight == 3
    assert read_metrics(b"dynamo_frontend_model_ready 1\n").in_flight == 0
    assert read_metrics(b"other 1\n").in_flight is None


def test_its_log_is_passed_on_but_for_a_line_for_every_answer() -> None:
    """With what tells requests and workers apart."""
    line = read_log_line('{"level":"WARN","message":"Stream disconnected","model":"m","span_id":"1"}')
    assert line is not None
    assert (line.level, line.message, line.fields) == ("warning", "Stream disconnected", {"dynamo_model": "m"})
    assert read_log_line('{"level":"ERROR","message":"http response sent"}') is None
    plain = read_log_line("Traceback (most recent call last):\n")
    assert plain is not None
    assert plain.level == "warning"


def test_nginx_asks_once_more_where_its_worker_left() -> None:
    """The same router, which has another one; a kind that does not lose requests is asked once."""
    plain = smg_address("a", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
    assert "proxy_next_upstream off;" in nginx_config(services=[plain])
    text = nginx_config(services=[replace(plain, paths=PATHS)])
    assert "proxy_next_upstream http_503 non_idempotent;" in text
    assert text.count("server 127.0.0.1:2 max_fails=0;") == 2


async def test_an_answer_that_nobody_takes_any_more_is_not_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo leaves its handler where it stands when a frontend ends: a shim would wait for it for ever."""
    for name in ("CannotConnect", "HttpError"):  # Of Dynamo's own interpreter.
        monkeypatch.setattr(shim, name, type(name, (Exception,), {}), raising=False)
    gone, writer = asyncio.Event(), Mock()
    said = asyncio.StreamReader()
    said.feed_data(b'HTTP/1.0 200 OK\r\n\r\ndata: {"choices": []}\n')

    class Engaged(shim.Engine):
        async def open(self, *_: Any, **__: Any) -> tuple[asyncio.StreamReader, Any]:
            return said, writer

    context = Mock(async_killed_or_stopped=gone.wait, trace_headers=dict)
    engine = Engaged("http://127.0.0.1:7", "key")
    answer = engine.answer({"messages": []}, context)
    assert await anext(answer) == {"choices": []}
    assert (engine.in_flight, writer.close.called) == (1, False)
    gone.set()
    async with asyncio.timeout(60):
        while engine.in_flight:
            await asyncio.sleep(0)
    assert writer.close.called, "so the engine may stop"
    await answer.aclose()  # type: ignore[attr-defined]
    assert engine.in_flight == 0
