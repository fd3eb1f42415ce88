"""Many simulated engines in one process, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from examples.simulated.engine import SimulatedEngine, start_engine
from examples.simulated.options import engine_from


class Fleet:
    """The engines that run now. A stopped one is forgotten, and its name is free again."""

    def __init__(self) -> None:
        self._engines: dict[str, SimulatedEngine] = {}

    def __iter__(self) -> Iterator[SimulatedEngine]:
        return iter(self._engines.values())

    def __getitem__(self, name: str) -> SimulatedEngine:
        return self._engines[name]

    async def start(self, settings: Mapping[str, object]) -> SimulatedEngine:
        """Start an engine with these settings (`EngineSpec`'s and `Behaviour`'s fields).

        Raises:
            ValueError: a setting is wrong, or an engine of that name runs.
            OSError: the socket cannot be bound.
        """
        spec, behaviour = engine_from(settings)
        if spec.name in self._engines:
            raise ValueError(f"an engine named {spec.name!r} runs already")
        engine = self._engines[spec.name] = await start_engine(spec, behaviour)
        return engine

    async def stop(self, name: str, *, grace_s: float | None = None, unlink: bool | None = None) -> None:
        """Stop an engine gracefully.

        Raises:
            KeyError: there is no engine of that name.
        """
        await self._engines.pop(name).stop(grace_s=grace_s, unlink=unlink)

    async def kill(self, name: str) -> None:
        """End an engine as SIGKILL would.

        Raises:
            KeyError: there is no engine of that name.
        """
        await self._engines.pop(name).kill()

    async def stop_all(self) -> None:
        """Stop every engine gracefully, all at the same time."""
        await asyncio.gather(*[self.stop(name) for name in list(self._engines)])


def expanded(settings: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """One engine's settings, or with `count` that many: `{n}` in any text becomes 1, 2, 3 ..."""
    template = dict(settings)
    count = template.pop("count", None)
    if count is None:
        yield template
        return
    for number in range(1, int(str(count)) + 1):
        yield {
            name: value.replace("{n}", str(number)) if isinstance(value, str) else value
            for name, value in template.items()
        }
