"""A short run of `tests/fuzz/client_headers.py`, and its judge held against what must not pass."""

from __future__ import annotations

import pytest

from tests.fuzz import client_headers


async def test_whatever_clients_send() -> None:
    """Requests of a fixed seed for some seconds: nothing that steers, no control path, no forged line."""
    await client_headers.run(seed=12, seconds=8)


@pytest.mark.parametrize(
    "path",
    ["/workers", "/Workers/x", "/loads", "/v1/rl/workers", "/v1/models/../workers", "/v1//x", "/metrics", "/v1/%2e"],
)
def test_the_judge_knows_what_may_not_pass(path: str) -> None:
    """A judge that lets everything through finds nothing."""
    assert not client_headers.Stub._may_pass(path)
    assert client_headers.Stub._may_pass("/v1/chat/completions")
