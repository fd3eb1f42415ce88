"""Many who ask for one page at the same time."""

from __future__ import annotations

import asyncio

import pytest

from gateway_sidecar.control.autoscaling.shared_reads import SharedReads
from gateway_sidecar.errors import MetricsError


class Engine:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked = self.at_once = self.most_at_once = 0
        self.answers = asyncio.Event()
        self.fails = False

    async def page(self) -> bytes:
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.answers.wait()
        finally:
            self.at_once -= 1
        if self.fails:
            raise MetricsError("no page")
        return b"page %d" % self.asked


async def test_one_reading_for_all_who_ask_meanwhile() -> None:
    """The same bytes for everybody; who asks afterwards has it read again."""
    reads, engine = SharedReads(), Engine()
    asking = [asyncio.create_task(reads.read("r1", engine.page)) for _ in range(60)]
    await asyncio.sleep(0)
    asking[0].cancel()  # The one for whom it was begun goes; the others get theirs.
    await asyncio.sleep(0)
    engine.answers.set()
    pages = await asyncio.gather(*asking[1:])
    assert {id(page) for page in pages} == {id(pages[0])}
    assert await reads.read("r1", engine.page) == b"page 2"
    assert reads.tasks == ()


async def test_an_error_is_everybodys() -> None:
    """And nobody's where all have gone."""
    reads, engine = SharedReads(), Engine()
    engine.fails = True
    asking = [asyncio.create_task(reads.read("r1", engine.page)) for _ in range(3)]
    await asyncio.sleep(0)
    engine.answers.set()
    for one in asking:
        with pytest.raises(MetricsError, match="no page"):
            await one
    gone = asyncio.create_task(reads.read("r1", engine.page))
    await asyncio.sleep(0)
    gone.cancel()
    while reads.tasks:
        await asyncio.sleep(0)


async def test_few_are_read_at_once() -> None:
    """However many replicas are asked for."""
    reads, engine = SharedReads(), Engine()
    asking = [asyncio.create_task(reads.read(number, engine.page)) for number in range(100)]
    for _ in range(100):  # Whoever may ask has asked by then.
        await asyncio.sleep(0)
    engine.answers.set()
    await asyncio.gather(*asking)
    assert (engine.asked, engine.most_at_once) == (100, 32)
