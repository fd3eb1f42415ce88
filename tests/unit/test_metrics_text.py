"""Other people's metrics pages: what is wanted is found, and what is odd does no harm."""

from __future__ import annotations

import math
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.domain.metrics_text import LONGEST_LINE, MOST_LABELS, MOST_SAMPLES, histogram, samples
from gateway_sidecar.domain.model import ConnectionMode, EngineFacts
from gateway_sidecar.engines.engine_metrics import EngineMetrics, says_latency, why_no_metrics
from gateway_sidecar.kinds import ENGINES
from gateway_sidecar.routers.smg.metrics import read_metrics

RECORDED = Path(__file__).parents[1] / "fixtures" / "routers"


def recorded(kind: str) -> bytes:
    """What SMG 1.13 showed while three streams ran."""
    return (RECORDED / f"smg-1.13-metrics-{kind}.txt").read_bytes()


def test_samples_of_the_wanted_names_only() -> None:
    """A name that only begins like it is another."""
    text = b'# TYPE a counter\na{x="1",y="}"} 3\na_b{x="2"} 4\na 5\nab 6\na{x="q\\"uote"} 7 1700000000\na{x="n"} NaN\n'
    assert list(samples(text, ("a",))) == [
        ("a", {"x": "1", "y": "}"}, 3.0),
        ("a", {}, 5.0),
        ("a", {"x": 'q\\"uote'}, 7.0),
    ]


def test_a_histogram_is_the_sum_of_its_series() -> None:
    """Of all models and endpoints."""
    text = b'h_bucket{m="a",le="0.1"} 1\nh_bucket{m="a",le="+Inf"} 3\n'
    text += b'h_bucket{m="b",le="0.1"} 2\nh_bucket{m="b",le="+Inf"} 2\n'
    assert histogram(text, "h") == {0.1: 3, math.inf: 5}
    assert histogram(text, "other") == {}


@given(st.binary(max_size=300))
def test_rubbish_is_no_sample(text: bytes) -> None:
    """An engine may say anything."""
    list(samples(b"a" + text, ("a",)))
    histogram(b'a_bucket{le="' + text, "a")


MIB = 1024 * 1024
NAME = b"h_bucket"
LINE = NAME + b'{m="a",le="0.1"} 3\n'
EVIL_PAGES = {
    "a line of 8 MiB": NAME + b"a" * 8 * MIB,
    "a label of 8 MiB": NAME + b'{le="' + b"x" * 8 * MIB,
    "a label of escapes": NAME + b'{le="' + b'\\"' * 4 * MIB,
    "quotes without an end": NAME + b"{" + b'a="' * 3 * MIB,
    "braces": NAME + b"{" * 8 * MIB,
    "long lines": (NAME + b"{" + b'a="b",' * 2600 + b"} 3\n") * 500,
    "long values": (NAME + b'{le="' + b'\\"' * 8000 + b"\n") * 500,
    "lines without anything": b"\n" * 8 * MIB,
    "nothing but names": b"\nh_bucke" * MIB,
    "samples without end": LINE * (8 * MIB // len(LINE)),
    "samples of another name that begins like it": b"h_bucketx 1\n" * 700_000,
}


@pytest.mark.parametrize("name", EVIL_PAGES)
def test_any_page_is_read_in_linear_time_and_little_memory(name: str) -> None:
    """CPU time, so that others do not count. It was 106 s for a line of 100 KiB, and 2.5 GB for a label of 15 MiB."""
    page = EVIL_PAGES[name]
    began = time.thread_time()
    histogram(page, "h")
    assert time.thread_time() - began < 1
    start = page[: 2 * MIB]
    tracemalloc.start()
    try:
        histogram(start, "h")
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_what_is_beyond_the_bounds_is_left_out() -> None:
    """A line too long, a label too many, a sample too many; the lines around are read."""
    long = b'a{x="%s"} 1\n' % (b"x" * LONGEST_LINE)
    many = b"a{%s} 2\n" % b",".join(b'l%d="x"' % number for number in range(MOST_LABELS + 1))
    text = b"a 3\n" + long + many + b'a{x="y",} 4\n' + b"a{} 5\n" + b"a{x=y} 6\n" + b"a{x} 7"
    assert [value for _, _, value in samples(text, ("a",))] == [3, 4, 5]
    assert len(list(samples(b"a 1\n" * (MOST_SAMPLES + 9), ("a",)))) == MOST_SAMPLES


def test_smg_tells_of_http_workers_what_is_in_flight_and_no_latency() -> None:
    """Recorded: SMG 1.13, one SGLang over HTTP, three streams under way, six requests before."""
    reading = read_metrics(recorded("http"))
    assert reading.in_flight == 3
    assert list(reading.active.values()) == [3]
    assert list(reading.requests.values()) == [6]
    assert reading.itl == {}


def test_smg_tells_of_grpc_workers_the_pause_between_tokens_when_a_stream_has_ended() -> None:
    """Recorded: two streams had ended, three were under way."""
    reading = read_metrics(recorded("grpc"))
    assert (reading.in_flight, list(reading.active.values())) == (3, [3])
    assert reading.itl[math.inf] == 2


def test_smg_counts_a_pair_twice_by_worker_and_once_by_request() -> None:
    """Recorded: each of the three requests is on a prefill and on a decode worker."""
    reading = read_metrics(recorded("pd"))
    assert reading.in_flight == 3
    assert list(reading.active.values()) == [3, 3]


def test_a_router_that_has_routed_nothing_has_nothing_in_flight() -> None:
    """SMG's gauge appears with the first request. One that has routed and does not say is not known."""
    fresh = b'# TYPE smg_worker_health gauge\nsmg_worker_health{worker="http://a:1"} 1\n'
    assert read_metrics(fresh).in_flight == 0
    assert read_metrics(fresh + b'smg_router_requests_total{model="m"} 1\n').in_flight is None
    assert read_metrics(b"").in_flight is None


def test_failures_are_counted_by_role() -> None:
    """Of all kinds of errors together."""
    text = b'smg_worker_errors_total{worker_type="decode",error_type="a"} 2\n'
    text += b'smg_worker_errors_total{worker_type="decode",error_type="b"} 3\n'
    assert read_metrics(text).errors == {"decode": 5}


def test_ranks_of_one_worker_are_one_worker() -> None:
    """Data-parallel ranks have one URL."""
    text = b'smg_worker_requests_active{worker="http://a:1@0"} 2\nsmg_worker_requests_active{worker="http://a:1@1"} 3\n'
    assert read_metrics(text).active == {"http://a:1": 5}


def test_the_newer_name_of_two_is_read() -> None:
    """vLLM has had both for a while."""
    text = b'vllm:time_per_output_token_seconds_bucket{le="+Inf"} 9\n'
    facts = EngineFacts("vllm", ConnectionMode.HTTP)
    assert EngineMetrics().read(text, facts).itl == {math.inf: 9}
    text += b'vllm:inter_token_latency_seconds_bucket{le="+Inf"} 8\n'
    assert EngineMetrics().read(text, facts).itl == {math.inf: 8}
    assert EngineMetrics().read(text, facts).ttft == {}


@pytest.mark.parametrize("runtime", ENGINES.by_name)
def test_grpc_engines_have_no_page(runtime: str) -> None:
    """And it is said in words."""
    facts = EngineFacts(runtime, ConnectionMode.GRPC)
    assert runtime in str(why_no_metrics(facts))
    assert not says_latency(facts)
    assert why_no_metrics(EngineFacts(runtime, ConnectionMode.HTTP)) is None
