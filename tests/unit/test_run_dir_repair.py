"""What somebody removed from `run_dir` is put back, in fake time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.control.process.run_dir_repair import RunDirRepair
from gateway_sidecar.errors import NginxError, ProcessError, StateError
from gateway_sidecar.telemetry.problems import Problem
from tests.unit.fake_time import in_fake_time


class Site:
    """Its `removed` parts are missing until they are put back; `fault` is why they cannot be."""

    def __init__(self) -> None:
        self.removed: set[str] = set()
        self.fault: Exception | None = None
        self.problem = Problem()
        self.linked: set[int] = {24001}
        self.looked_for: list[object] = []
        self.asked_of: list[object] = []
        nginx = SimpleNamespace(
            prepare=self._prepare, linked_ports=lambda: self.linked, pointed=lambda name: f"{name}.next",
            repair_files=self._repair_files,
        )  # fmt: skip
        self.nginx = SimpleNamespace(nginx=nginx, applied=["chat"], up=True)
        service = SimpleNamespace(
            bridges=SimpleNamespace(repair=self._repair_bridges),
            hold=SimpleNamespace(repair=lambda: self._put_back("gate")),
            slots=SimpleNamespace(repair=self._repair_slots),
        )
        services = cast("Any", {"chat": service})
        self.repair = RunDirRepair(cast("Any", self.nginx), lambda: services, self.problem, interval_s=5.0)
        self.repair.keep("hold.sock", self._repair_other)

    def _put_back(self, part: str) -> bool:
        if self.fault is not None:
            raise self.fault
        was_removed = part in self.removed
        self.removed.discard(part)
        return was_removed

    def _prepare(self) -> None:
        self._put_back("directories")

    async def _repair_files(self, applied: object) -> bool:
        self.asked_of.append(applied)
        return self._put_back("configuration")

    def _repair_bridges(self, linked: object) -> bool:
        self.looked_for.append(linked)
        return self._put_back("links")

    def _repair_slots(self, pointed: str) -> bool:
        assert pointed == "chat.next"
        return self._put_back("switch")

    async def _repair_other(self) -> bool:
        return self._put_back("hold.sock")


@in_fake_time
async def test_where_nothing_was_removed_nothing_is_told() -> None:
    site = Site()
    with capture_logs() as log:
        await site.repair.look()
    assert log == []
    assert site.looked_for == [{24001}]


@in_fake_time
async def test_each_part_is_put_back_and_named_once() -> None:
    site = Site()
    site.removed = {"configuration", "links", "gate", "switch", "hold.sock", "directories"}
    with capture_logs() as log:
        await site.repair.look()
        await site.repair.look()
    assert site.removed == set()
    assert [each["removed"] for each in log] == [
        ["nginx's configuration", "chat: bridges", "chat: gate", "hold.sock"],
    ]


@in_fake_time
async def test_a_switch_is_put_back_though_the_gate_was_not_removed() -> None:
    """One answer must not keep the other from being asked for."""
    for part in ("gate", "switch"):
        site = Site()
        site.removed = {part}
        with capture_logs() as log:
            await site.repair.look()
        assert site.removed == set()
        assert [each["removed"] for each in log] == [["chat: gate"]]


@in_fake_time
async def test_the_configuration_of_an_nginx_that_is_down_or_not_known_is_not_made() -> None:
    """Its start writes it; and of an earlier daemon's nobody knows what it is."""
    site = Site()
    site.nginx.up = False
    await site.repair.look()
    site.nginx.up, site.nginx.applied = True, None
    await site.repair.look()
    assert site.asked_of == []


@in_fake_time
@pytest.mark.parametrize("fault", [OSError("disk full"), NginxError("b"), ProcessError("p"), StateError("s")])
async def test_what_cannot_be_put_back_is_told_once_and_tried_again(fault: Exception) -> None:
    site = Site()
    site.removed, site.fault = {"links"}, fault
    with capture_logs() as log:
        running = asyncio.create_task(site.repair.run())
        await asyncio.sleep(60)
        assert site.problem.text == f"something was removed from run_dir and cannot be put back: {fault}"
        assert [each["event"] for each in log] == ["run_dir.not_repaired"]
        site.fault = None
        await asyncio.sleep(6)
        assert site.problem.text == ""
        assert [each["event"] for each in log] == ["run_dir.not_repaired", "run_dir.repaired"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
