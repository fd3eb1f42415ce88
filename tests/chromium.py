"""Drives the real Chromium over its debugging protocol: one tab without a window, what it asks for and complains of."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE_S = 60.0
"""What comes at all comes within this on a busy machine."""

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--no-default-browser-check", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-extensions", "--disable-default-apps", "--metrics-recording-only", "--mute-audio"),
    *("--password-store=basic", "--disable-lcd-text", "--remote-debugging-port=0", "--force-color-profile=srgb"),
)


class Tab:
    """One tab. requests: URLs that it asked for; complaints: faults of scripts, and what the browser refused to do."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []

    async def open(self) -> None:
        """Before anything else."""
        target = await self.ask("Target.createTarget", url="about:blank")
        attached = await self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.ask(f"{domain}.enable")

    async def hear(self) -> None:
        """Takes in what the browser says, for as long as the tab is used."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Network.requestWillBeSent":
                self.requests.append(said["params"]["request"]["url"])
            elif said["method"] == "Runtime.exceptionThrown":
                self.complaints.append(str(said["params"]["exceptionDetails"]))
            elif said["method"] == "Log.entryAdded":
                self.complaints.append(str(said["params"]["entry"]["text"]))

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol. Raises RuntimeError."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        session = {} if self._session is None else {"sessionId": self._session}
        await self._socket.send_json({"id": number, "method": method, "params": parameters, **session})
        async with asyncio.timeout(PATIENCE_S):
            said = await answer
        if "error" in said:
            raise RuntimeError(f"{method}: {said['error']}")
        result: dict[str, Any] = said["result"]
        return result

    async def go(self, url: str) -> None:
        """Loads a page."""
        await self.ask("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """The value of an expression of JavaScript. Raises RuntimeError."""
        answer = await self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def until(self, script: str) -> Any:
        """Waits until an expression is true; its value. An expression that fails is not true yet."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    value = await self.run(f"(() => {{ try {{ return {script} }} catch (_) {{ return false }} }})()")
                    if value:
                        return value
                    await asyncio.sleep(0.02)
        except TimeoutError:
            text = await self.run("document.body.innerText")
            raise AssertionError(f"not within {PATIENCE_S:g} s: {script}; the page says:\n{text}") from None

    async def show(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        """The size of the window, and the reader's colours."""
        await self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.ask("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode((await self.ask("Page.captureScreenshot", format="png"))["data"])


@asynccontextmanager
async def chromium() -> AsyncIterator[Tab]:
    """A browser without a past, and its one tab."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        # Its reports of crashes, and what its libraries keep, go there as well.
        homes = dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), profile)
        process = await asyncio.create_subprocess_exec(
            PROGRAM, *_FLAGS, f"--user-data-dir={profile}", "about:blank", env={**os.environ, **homes},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port, path = await _address(process, Path(profile) / "DevToolsActivePort")
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket,
            ):
                tab = Tab(socket)
                hearing = asyncio.create_task(tab.hear())
                await tab.open()
                try:
                    yield tab
                finally:
                    hearing.cancel()
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _address(process: asyncio.subprocess.Process, file: Path) -> tuple[str, str]:
    """Where its protocol is: Chromium writes it down."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if process.returncode is not None:
                raise RuntimeError(f"chromium ended with {process.returncode}")
            lines = file.read_text().splitlines() if file.exists() else []
            if len(lines) == 2:
                return lines[0], lines[1]
            await asyncio.sleep(0.05)
