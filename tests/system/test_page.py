"""The live page in the real Chromium, of the real daemon with its engines."""

from __future__ import annotations

import pytest

from gateway_sidecar.api.page_feed import MOST_VIEWERS, Feed
from scripts.page_shots import Site, many
from tests.chromium import PROGRAM, Tab, chromium
from tests.system.clients import ask
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed; `make test` installs it")

HOSTILE = "<img src=x onerror=alert(1)>"
ROWS = "Object.fromEntries([...document.querySelectorAll('tbody tr')].map((it) => [it.cells[0].textContent, it]))"
EVENTS = "[...document.querySelectorAll('#log li')].map((it) => it.textContent)"


def state_of(replica: str) -> str:
    """What its row says."""
    return f"({ROWS})['{replica}'].cells[1].textContent"


@pytest.mark.own_users
async def test_the_page_is_live_safe_and_bears_a_phone(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Replicas, reasons and events come and go without a reload; what an engine says is text; nobody else is asked."""
    gateway = make_gateway()
    await gateway.start()
    origin = f"http://127.0.0.1:{gateway.metrics_port}/"
    await engine(gateway.socket("r1"))
    async with chromium() as tab:
        await tab.show(1280, 800)
        await tab.go(origin)
        await tab.until(f"{state_of('r1')} === 'serving'")
        await tab.run("window.isTheSame = true")
        second = await engine(gateway.socket("r2"), load_s=3600)
        await engine(gateway.socket("evil"), model=HOSTILE)
        await tab.until(f"{state_of('r2')} === 'loading'")
        assert "health" in await tab.until(f"({ROWS})['r2'].cells[7].textContent")
        await tab.until(f"{state_of('evil')} === 'serving' && ({ROWS})['evil'].cells[6].textContent === '{HOSTILE}'")
        await tab.until(f"{EVENTS}.some((it) => it.includes('replica.seen') && it.includes('chat/r2'))")
        await tab.until("document.title.startsWith('(1) ')")
        await ask(gateway, "tiny", stream=True)
        await tab.until("Number(document.querySelector('.plot figcaption .main').textContent) > 0")
        await tab.run("document.querySelector('#log summary').click()")
        await tab.until("document.querySelector('#log details p').textContent.length > 10")
        await filtered(tab)
        await second.stop(grace_s=0)
        await tab.until(f"!('r2' in {ROWS})")
        await narrow(tab)
        assert await tab.run("window.isTheSame") is True
        assert await tab.run("document.querySelectorAll('img, script:not([src])').length") == 0
        assert tab.complaints == []
        assert {url for url in tab.requests if not url.startswith((origin, "data:"))} == set()
        await comes_back(gateway, tab)
    assert gateway.events("loop.failed") == gateway.events("daemon.request_failed") == []


async def test_200_replicas_and_an_hour_are_shown() -> None:
    """Those that are not well first, the others when they are asked for, and plots that are read by pointing there."""
    site = Site(many())
    async with chromium() as tab, site as url:
        await tab.show(1280, 800)
        await waits_for_a_place(site.feed, tab, url)
        await tab.until("document.querySelectorAll('.plot path.main[d^=M]').length === 4")
        states = "[...document.querySelectorAll('tbody tr')].map((it) => it.className)"
        assert (await tab.run(states))[:5] == ["dead", "loading", "unreachable", "loading", "serving"]
        await tab.run("document.querySelector('.more').click()")
        await tab.until("document.querySelectorAll('tbody tr').length === 200")
        assert await tab.run("document.querySelector('.plot svg').getAttribute('aria-label')") == (
            "requests/s of the last hour: 412, errors 0.3"
        )
        at = await tab.run(
            "(({x, y, width}) => [x + width / 2, y + 5])(document.querySelector('.plot svg').getClientRects()[0])"
        )
        await tab.ask("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1])
        await tab.until("/^[0-9:]{8}$/.test(document.querySelector('.when').textContent)")
        await narrow(tab)
        assert tab.complaints == []


async def waits_for_a_place(feed: Feed, tab: Tab, url: str) -> None:
    """A page for which there is no room says why, and is live once another one is closed."""
    others = [feed.begin(None, lambda: False)[0] for _ in range(MOST_VIEWERS)]
    await tab.go(url)
    await tab.until("document.querySelector('#connection').textContent.includes('16 pages are open already')")
    for each in others:
        await feed.end(each)
    await tab.until("document.querySelector('#connection').textContent === 'live'")
    tab.complaints.clear()  # That it was refused.


async def filtered(tab: Tab) -> None:
    """By words and by problems, in the browser alone."""
    await tab.run("document.querySelector('#only').click()")
    await tab.until(f"Object.keys({ROWS}).join() === 'r2'")
    await tab.run("document.querySelector('#only').click()")
    for words, names in (("onerror", "evil"), ("tiny serving", "r1"), ("", "r2,evil,r1")):
        await tab.run(f"document.querySelector('#words').value = '{words}'; refilter()")
        await tab.until(f"Object.keys({ROWS}).sort().join() === '{','.join(sorted(names.split(',')))}'")


async def narrow(tab: Tab) -> None:
    """On a phone of 360 px, and on the narrowest, nothing is wider than the window."""
    for width in (360, 320):
        await tab.show(width, 700, phone=True, dark=True)
        assert await tab.until("document.documentElement.clientWidth < 400")
        assert await tab.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


async def comes_back(gateway: Gateway, tab: Tab) -> None:
    """A page whose daemon is away says so, and goes on by itself when it is back, with the events that it missed."""
    await gateway.kill()
    await tab.until("document.querySelector('#connection').textContent.startsWith('disconnected, trying again')")
    await gateway.start()
    await tab.until("document.querySelector('#connection').textContent === 'live'")
    await tab.until(f"{EVENTS}.filter((it) => it.includes('daemon.started')).length === 2")
    await tab.until(f"{state_of('evil')} === 'serving'")
