"""Engines that ask for an API key: one for each, shown by the probe and by the router."""

from __future__ import annotations

import pytest

from examples.simulated import EngineKind
from tests.system.clients import ask
from tests.system.conftest import StartEngine
from tests.system.gateway import Gateway


def give_key(gateway: Gateway, replica: str, key: str) -> None:
    """Writes `<replica>.yaml` and the key beside the socket."""
    path = gateway.socket(replica).with_suffix(".key")
    path.write_text(key)
    path.chmod(0o600)
    gateway.socket(replica).with_suffix(".yaml").write_text(f"api_key_file: {path.name}\n")


@pytest.mark.parametrize("guard_all", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        EngineKind.SGLANG_HTTP,
        EngineKind.VLLM_HTTP,
        EngineKind.TRTLLM_HTTP,
        EngineKind.OPENAI_HTTP,
        EngineKind.SGLANG_GRPC,
        EngineKind.VLLM_GRPC,
    ],
)
async def test_an_engine_with_a_key_is_served(
    gateway: Gateway, engine: StartEngine, kind: EngineKind, guard_all: bool
) -> None:
    """Identified, judged healthy again and again, registered and asked: all with its own key."""
    give_key(gateway, "r1", "sekrit")
    one = await engine(gateway.socket("r1"), kind, require_key="sekrit", guard_all=guard_all)
    await gateway.until_states({"r1": "serving"})
    assert "r1" in await ask(gateway, "tiny", stream=False)
    assert "r1" in await ask(gateway, "tiny", stream=True)
    assert one.ledger.failed == 0
