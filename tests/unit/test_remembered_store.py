"""What a gateway remembers of its store, where it cannot be read as a whole."""

from __future__ import annotations

from pathlib import Path

from gateway_sidecar.control.fleet.memory import RememberedStore, record_in
from gateway_sidecar.control.state.records import write_record
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problems
from tests.unit.fake_time import in_fake_time


@in_fake_time
async def test_a_gateway_stays_who_it_is_even_if_it_cannot_read_what_it_knew(tmp_path: Path) -> None:
    """As another one it would count a second time what its keys have used."""
    write_record(record_in(tmp_path), {"instance": "me", "cluster": "one", "entries": {"x": "garbage"}})
    remembered = RememberedStore(record_in(tmp_path), Problems(), Metrics())
    await remembered.load(3)
    assert (remembered.instance, remembered.memory.known, remembered.memory.expects) == ("me", None, 3)
