"""An hour on call: five faults, each found with `status`, `explain` and `events` alone (docs/guides/on-call.md)."""

from __future__ import annotations

import pytest

from examples.simulated import Lie
from tests.system.conftest import StartEngine
from tests.system.gateway import Gateway

FAULTS = {
    "r2": ("unreachable", "FAILED  probe   connection refused", "an engine that listens at"),
    "r3": ("dead", "FAILED  probe   /health answers 503", "restart the engine"),
    "r4": ("seen", "FAILED  socket  its notes do not count", "did you mean 'worker_type'?"),
    "r5": ("foreign", "FAILED  probe   HTTP, but", "an inference engine at"),
}


@pytest.mark.timeout(240)
async def test_five_faults_are_found_by_status_explain_and_events(gateway: Gateway, engine: StartEngine) -> None:
    """One killed, one whose core died, one with a mistake in its notes, one that is no engine, and a file refused."""
    engines = {name: await engine(gateway.socket(name)) for name in ("r1", "r2", "r3")}
    await gateway.until_states(dict.fromkeys(engines, "serving"))
    await engines["r2"].kill()
    engines["r3"].behave(dead_core=True)
    gateway.socket("r4").with_suffix(".yaml").write_text("worker_tpye: decode\n")
    await engine(gateway.socket("r4"))
    await engine(gateway.socket("r5"), lie=Lie.NOT_AN_ENGINE)
    gateway.config_path.write_text(gateway.config_path.read_text().replace("services:", "servces:"))
    assert (await gateway.cli("reload"))[0] == 78
    wanted = {name: state for name, (state, *_) in FAULTS.items()}
    await gateway.until_states({"r1": "serving", **wanted}, within_s=90)
    await gateway.until(lambda it: it["daemon"]["configuration"]["on_disk"] == "invalid")

    code, problems, _ = await gateway.cli("status", "--problems")
    assert code == 1
    assert "servces: unknown setting; did you mean 'services'?" in problems
    for name, (state, failed, change) in FAULTS.items():
        assert f"chat/{name}  {state} for " in problems
        _, text, _ = await gateway.cli("explain", "chat", name)
        assert failed in text, text
        assert change in text, text
    assert "chat/r1" not in problems
    _, events, _ = await gateway.cli("events", "--since", "10m")
    assert "config.refused" in events
    assert "chat/r2  replica.ejected" in events
