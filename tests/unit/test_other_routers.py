"""vllm-router and sglang-router: what is read of their logs and metrics, and what their kinds know without them."""

from __future__ import annotations

import pytest

from gateway_sidecar.domain.model import ConnectionMode, WorkerSpec, WorkerStatus
from gateway_sidecar.errors import RouterRefused, RouterUnavailable
from gateway_sidecar.routers.base import LogLine
from gateway_sidecar.routers.one_model import refuse_another_model
from gateway_sidecar.routers.program import Measured
from gateway_sidecar.routers.sglang_router import client as sglang
from gateway_sidecar.routers.sglang_router.metrics import read_metrics as read_sglang
from gateway_sidecar.routers.tracing_log import read_log_line
from gateway_sidecar.routers.vllm_router import client as vllm
from gateway_sidecar.routers.vllm_router.metrics import read_metrics as read_vllm

URL = "http://127.0.0.1:24001"
ROW = {"id": "8ec4", "url": URL, "model_id": "tiny", "worker_type": "regular", "is_healthy": True}


@pytest.mark.parametrize(
    ("line", "read"),
    [
        (
            "\x1b[2m2026-11-29 06:13:44\x1b[0m \x1b[32m INFO\x1b[0m \x1b[2mvllm_router_rs::server\x1b[0m\x1b[2m:\x1b[0m"
            " \x1b[2msrc/server.rs\x1b[0m\x1b[2m:\x1b[0m\x1b[2m1270:\x1b[0m Starting server on 127.0.0.1:41010",
            LogLine("info", "Starting server on 127.0.0.1:41010", {"target": "vllm_router_rs::server"}),
        ),
        (
            "\x1b[2m2026-11-29 06:20:04\x1b[0m \x1b[33m WARN\x1b[0m \x1b[1mhttp_request\x1b[0m\x1b[1m{\x1b[0m"
            "\x1b[3mmethod"
            "\x1b[0m\x1b[2m=\x1b[0mPOST\x1b[1m}\x1b[0m\x1b[2m:\x1b[0m \x1b[2msmg::response\x1b[0m"
            "\x1b[2m:\x1b[0m failed",
            LogLine("warning", "http_request{method=POST}: failed", {"target": "smg::response"}),
        ),
        ("DEBUG: Creating HTTP client", LogLine("debug", "DEBUG: Creating HTTP client")),
        ("RuntimeError: Address already in use", LogLine("warning", "RuntimeError: Address already in use")),
        ("  ", None),
    ],
)
def test_a_line_of_their_logs_is_read(line: str, read: LogLine | None) -> None:
    """Without its colours; what has another form is shown whole."""
    assert read_log_line(line) == read


def test_what_vllm_router_says_of_its_workers_is_read() -> None:
    """Requests and failed tries by worker; what is in flight only where it says so."""
    page = f"""
vllm_router_processed_requests_total{{worker="{URL}"}} 10
vllm_router_cb_outcomes_total{{worker="{URL}",outcome="failure"}} 5
vllm_router_cb_outcomes_total{{worker="{URL}",outcome="success"}} 4
vllm_router_running_requests{{worker="{URL}"}} 2
""".encode()
    reading = read_vllm(page)
    assert (reading.active, reading.requests, reading.failed) == ({URL: 2.0}, {URL: 10.0}, {URL: 5.0})
    assert reading.in_flight is None


def test_what_sglang_router_says_of_its_workers_is_read() -> None:
    """A client's mistake counts as a failure there: it is a request, and no evidence."""
    page = f"""
smg_worker_cb_outcomes_total{{worker="{URL}",outcome="failure"}} 15
smg_worker_cb_outcomes_total{{worker="{URL}",outcome="success"}} 12
smg_worker_requests_active{{worker="{URL}"}} 1
""".encode()
    reading = read_sglang(page)
    assert (reading.active, reading.requests, reading.failed) == ({URL: 1.0}, {URL: 27.0}, {})


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({}, WorkerStatus.READY),
        ({"is_healthy": False}, WorkerStatus.NOT_READY),
        ({"is_healthy": False, "job_status": {"job_type": "AddWorker", "status": "processing"}}, WorkerStatus.PENDING),
        ({"is_healthy": False, "job_status": {"job_type": "AddWorker", "status": "failed"}}, WorkerStatus.FAILED),
        ({"is_healthy": False, "job_status": {"job_type": "RemoveWorker", "status": "x"}}, WorkerStatus.DRAINING),
    ],
)
def test_a_worker_of_sglang_router_has_a_status_though_it_tells_none(
    more: dict[str, object], status: WorkerStatus
) -> None:
    """Of what it says of the worker's health, and of the job that adds or removes it."""
    assert sglang._read(ROW | {"connection_mode": "HTTP"} | more).status is status


def test_rows_of_another_form_are_no_answer() -> None:
    """A router that says something else is not believed."""
    for row in ({}, {**ROW, "worker_type": "new"}):
        for read in (sglang._read, vllm._read):
            with pytest.raises(RouterUnavailable):
                read(row)


@pytest.mark.parametrize(
    ("url", "model", "refusal"),
    [
        ("http://127.0.0.1:24002", "tiny", None),
        ("http://127.0.0.1:24002", None, None),
        ("http://127.0.0.1:24002", "other", "it serves 'other' and this router's other workers 'tiny'"),
        (f"{URL}/=adapter", "adapter", None),
        ("http://127.0.0.1:24002/=adapter", "adapter", "its engine is no worker of this router"),
    ],
)
def test_a_router_without_models_is_given_one_model(url: str, model: str | None, refusal: str | None) -> None:
    """An engine of another model would get requests for this one; a further name of an engine is no other engine."""
    spec = WorkerSpec(url, "vllm", ConnectionMode.HTTP, model_id=model)
    if refusal is None:
        refuse_another_model(spec, [URL], ["tiny"], "cure")
        return
    with pytest.raises(RouterRefused, match=refusal):
        refuse_another_model(spec, [URL], ["tiny"], "cure")


@pytest.mark.parametrize(
    ("version", "word"), [("0.1.16", "too old"), ("0.1.17", None), ("0.1.17.post2", None), ("0.1.99", None),
    ("0.2.0", "too new"), ("1", "too new"), ("", "too old")],
)  # fmt: skip
def test_versions_are_compared_as_numbers(version: str, word: str | None) -> None:
    """From the first that was measured to before the next that may differ."""
    said = Measured("0.1.17", "0.2").objection("vllm-router", version)
    assert (said is None) if word is None else (word in (said or ""))
