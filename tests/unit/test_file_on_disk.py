"""Whether the file on disk is what is in force: by what it means, and only when something changed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from gateway_sidecar.config.differences import Change, differences
from gateway_sidecar.config.load import load_config, parse_config
from gateway_sidecar.control.process import file_on_disk
from gateway_sidecar.control.process.file_on_disk import FileOnDisk
from tests.unit.fake_time import in_fake_time
from tests.unit.services import CHAT, CODE, configured


def test_differences_are_in_the_words_of_reload() -> None:
    """What needs a restart says so; the order of services and settings does not count."""
    before = parse_config(configured(CHAT, CODE))
    assert differences(before, parse_config(f"# a comment\n{configured(CODE, CHAT)}")) == []
    head = "log: {level: error}\nrescan_interval_s: 5\n"
    assert [str(it) for it in differences(before, parse_config(configured(CHAT, head=head)))] == [
        "rescan_interval_s: needs a restart of the daemon",
        "log",
        "code: removed",
    ]
    assert differences(parse_config(configured(CHAT)), before) == [Change("code", "added")]


def test_a_change_says_what_it_interrupts() -> None:
    """Most cost clients nothing; a router that is replaced, an address that closes and a frontend do."""
    service = yaml.safe_load(configured(CHAT))["services"][0]
    before = parse_config(yaml.safe_dump({"services": [service]}))

    def change(**settings: object) -> Change:
        (found,) = differences(before, parse_config(yaml.safe_dump({"services": [service | settings]})))
        return found

    assert change(hold={"timeout_s": 7}) == Change("chat", "hold")
    moved = change(listen="127.0.0.1:39999")
    assert (moved.what, "the old address closes" in str(moved.interrupts)) == ("listen", True)
    assert "the router is replaced" in str(change(router={"api_timeout_s": 7}).interrupts)
    (gone,) = differences(parse_config(configured(CHAT, CODE)), parse_config(configured(CHAT)))
    assert (str(gone), "refused from then on" in str(gone.interrupts)) == ("code: removed", True)


@in_fake_time
async def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look every two seconds costs a `stat`."""
    path = tmp_path / "gateway-sidecar.yaml"
    path.write_text(configured(CHAT))
    loaded = SimpleNamespace(settings=load_config(path))
    file = FileOnDisk(path, loaded)

    async def state() -> str:
        await file.look()
        return file.found.state

    assert await state() == "in force"
    monkeypatch.setattr(file_on_disk, "load_config", None)
    await file.look()
    monkeypatch.setattr(file_on_disk, "load_config", load_config)
    path.write_text(configured(CODE))
    await file.look()
    assert (file.found.state, file.found.lines) == ("differs", ("chat: removed", "code: added"))
    loaded.settings = load_config(path)
    assert await state() == "in force"
    path.write_text("services: 7\n")
    assert await state() == "invalid"
    path.unlink()
    await file.look()
    assert (file.found.state, file.found.lines) == ("unreadable", (f"{path}: No such file or directory",))
