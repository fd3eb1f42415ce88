"""`files`: every file for other programs is there, and its path outlives an upgrade of Python."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import yaml

from gateway_sidecar.cli import main
from gateway_sidecar.commands.files import STABLE, copy_all, path_of
from gateway_sidecar.commands.shipped import IN_PACKAGE, NAMES, SCHEMAS


def test_each_file_of_the_package_is_on_disk(tmp_path: Path) -> None:
    """Prometheus and Grafana read them as they are. No schema is, before somebody writes it."""
    for name in IN_PACKAGE:
        path = path_of(name, tmp_path)
        assert path is not None
        assert path.is_file()
    assert [path_of(name, tmp_path) for name in SCHEMAS] == [None] * len(SCHEMAS)


def test_copies_are_complete_and_found_where_they_outlive_an_upgrade(tmp_path: Path) -> None:
    """What installs writes them once, and `files` says these paths from then on: no version of Python is in them."""
    written = list(copy_all(tmp_path / STABLE))
    assert [path_of(name, tmp_path) for name in NAMES] == written
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o644}
    for path in written:
        text = path.read_text("utf-8")
        assert json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    assert "properties" in json.loads((tmp_path / STABLE / "schema.json").read_text("utf-8"))


def test_one_path_alone_is_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    """`cp $(gateway-sidecar files alerts) ...`"""
    with pytest.raises(SystemExit) as ended:
        main(["files", "alerts"])
    assert ended.value.code == 0
    assert Path(capsys.readouterr().out.removesuffix("\n")).is_file()


def test_each_is_listed_with_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each name."""
    with pytest.raises(SystemExit):
        main(["files"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)


def test_a_schema_that_is_not_on_disk_is_an_error_with_the_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script never takes a sentence for a path."""
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["files", "schema"])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (1, "")
    assert said.err == "gateway-sidecar: schema is not on disk; gateway-sidecar files --copy DIR writes it\n"
