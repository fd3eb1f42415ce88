"""The access log's file: made, renamed, bounded, and what goes wrong with it. Real files, and no nginx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway_sidecar.config.access_log import AccessLogSettings
from gateway_sidecar.nginx.access_log import AccessLog

MIB = 1024 * 1024


class Site:
    """One log, how often its writer was told to open it anew, and its files."""

    def __init__(self, state_dir: Path, **settings: Any) -> None:
        self.reopened = 0
        self.file = state_dir / "log" / "access.log"
        self._settings, self._state_dir = settings, state_dir
        self.log = self.next_daemons()

    def next_daemons(self) -> AccessLog:
        settings = AccessLogSettings.model_validate({"max_mb": 1, "keep": 2, **self._settings})
        return AccessLog(settings, self._state_dir, self._reopen)

    def _reopen(self) -> None:
        self.reopened += 1

    def write(self, text: str, size: int = 0) -> None:
        self.file.write_text(text.ljust(size))

    @property
    def texts(self) -> dict[str, str]:
        return {it.name.removeprefix("access.log"): it.read_text().strip() for it in self.file.parent.iterdir()}


async def test_nothing_is_made_where_no_service_logs(tmp_path: Path) -> None:
    site = Site(tmp_path)
    await site.log.look()
    assert (site.log.target, site.log.trouble, list(tmp_path.iterdir())) == (None, "", [])
    await site.log.switch(on=True)
    assert site.log.target == str(site.file)
    assert site.file.stat().st_mode & 0o777 == 0o640
    await site.log.switch(on=False)
    assert site.log.target is None


async def test_files_are_renamed_in_order_and_the_oldest_removed(tmp_path: Path) -> None:
    """Below its bound nothing happens; nginx is told of each new file, and of no other look."""
    site = Site(tmp_path)
    await site.log.switch(on=True)
    assert site.reopened == 1
    for number in range(1, 5):
        site.write(f"{number}", MIB)
        await site.log.look()
        site.write(f"{number}", MIB + 1)
        await site.log.look()
        assert site.reopened == number + 1
        assert site.log.trouble == ""
    assert site.texts == {"": "", ".1": "4", ".2": "3"}


async def test_without_earlier_files_the_log_begins_anew(tmp_path: Path) -> None:
    site = Site(tmp_path, keep=0)
    await site.log.switch(on=True)
    site.write("1", MIB + 1)
    await site.log.look()
    assert site.texts == {"": ""}
    assert site.reopened == 2


async def test_a_rotation_that_was_cut_off_is_finished(tmp_path: Path) -> None:
    """The daemon died when the file was renamed and no other made; or made, and nginx not told."""
    site = Site(tmp_path)
    await site.log.switch(on=True)
    site.file.rename(site.file.with_name("access.log.1"))
    await site.log.look()
    assert site.file.exists()
    assert site.reopened == 2
    await site.next_daemons().switch(on=True)
    assert site.reopened == 3


async def test_a_file_that_cannot_be_renamed_is_bounded_all_the_same(tmp_path: Path) -> None:
    """A directory stands where the first renamed file belongs: the lines are thrown away, and that is told."""
    site = Site(tmp_path)
    await site.log.switch(on=True)
    blocked = site.file.with_name("access.log.1")
    blocked.mkdir()
    (blocked / "x").touch()
    (site.file.with_name("access.log.2")).touch()
    site.write("1", MIB + 1)
    await site.log.look()
    assert site.file.stat().st_size == 0
    assert site.log.trouble.startswith(f"cannot rotate {site.file}: ")
    assert site.log.target == str(site.file)


async def test_a_place_that_cannot_be_used_is_told_and_taken_when_it_can(tmp_path: Path) -> None:
    """A link in the file's place, or a directory that others may write to, would lead lines elsewhere."""
    site = Site(tmp_path)
    site.file.parent.mkdir()
    site.file.symlink_to(tmp_path / "elsewhere")
    await site.log.switch(on=True)
    assert site.log.target is None
    assert site.log.trouble.startswith(f"cannot write {site.file}: ")
    site.file.unlink()
    site.file.parent.chmod(0o777)
    await site.log.look()
    assert site.log.target is None
    site.file.parent.chmod(0o750)
    await site.log.look()
    assert [site.log.target, site.log.trouble] == [str(site.file), ""]
    assert not (tmp_path / "elsewhere").exists()


async def test_syslog_needs_no_file(tmp_path: Path) -> None:
    site = Site(tmp_path, syslog="unix:/dev/log")
    await site.log.switch(on=True)
    assert site.log.target == "syslog:server=unix:/dev/log,nohostname,tag=gateway_sidecar,severity=info"
    assert list(tmp_path.iterdir()) == []
