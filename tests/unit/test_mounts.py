"""Directories that systemd hides from the daemon's unit, as /proc/self/mountinfo shows them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from gateway_sidecar.config.values import PathPattern
from gateway_sidecar.files import mounts
from gateway_sidecar.files.mounts import why_hidden
from gateway_sidecar.sources import socket_pattern
from gateway_sidecar.sources.placed import OwnSockets
from gateway_sidecar.sources.socket_pattern import SOURCE, SocketPattern

ROWS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 22 254:0 /tmp/systemd-private-1f-gateway-sidecar.service-Xy/tmp /tmp rw,relatime shared:9 - ext4 /dev/vda rw
32 22 0:25 /systemd/inaccessible/dir /home rw,nosuid - tmpfs tmpfs rw,mode=755
33 31 0:44 / /tmp/shared rw - tmpfs tmpfs rw
"""


@pytest.fixture
def mountinfo(tmp_path: Path) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(ROWS)
    return path


@pytest.mark.parametrize(
    ("directory", "setting"),
    [
        ("/tmp", "PrivateTmp"),
        ("/tmp/engines/chat", "PrivateTmp"),
        ("/home/ops/sockets", "ProtectHome"),
        ("/tmp/shared/chat", None),
        ("/tmpfoo", None),
        ("/run/replicas", None),
    ],
)
def test_what_a_unit_hides_is_said_with_the_cure(mountinfo: Path, directory: str, setting: str | None) -> None:
    """A mount over the hidden one shows what is there."""
    reason = why_hidden(Path(directory), mountinfo)
    assert (reason is None) is (setting is None)
    if reason is not None and setting is not None:
        assert setting in reason
        assert "place them below /run, or change that setting" in reason


def test_pattern_in_a_hidden_directory_lists_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the directory is there in the unit's own /tmp or not."""
    monkeypatch.setattr(socket_pattern, "why_hidden", lambda directory: f"{directory} is hidden")
    (tmp_path / "there").mkdir()
    for directory in (tmp_path / "there", tmp_path / "not-there"):
        listing = SocketPattern(f"{directory}/{{replica}}.sock", OwnSockets()).look_now()
        assert (listing.present, listing.refused) == ({}, {str(directory): f"{directory} is hidden"})


def test_check_says_it_where_the_unit_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `check` of an operator's sees everybody's /tmp; the daemon of the unit will not."""
    unit, directory = tmp_path / "unit", Path(tempfile.gettempdir())
    monkeypatch.setattr(socket_pattern, "UNIT", unit)
    monkeypatch.setattr(socket_pattern, "HIDDEN_BY_UNIT", (str(directory),))
    pattern = PathPattern(f"{directory}/{{replica}}.sock")
    assert not [text for text in SOURCE.advise(pattern) if "hides" in text]
    unit.touch()
    assert [text for text in SOURCE.advise(pattern) if f"{unit} hides {directory} from the daemon" in text]


def test_machine_without_mountinfo_hides_nothing(tmp_path: Path) -> None:
    assert mounts.why_hidden(Path("/tmp"), tmp_path / "none") is None
