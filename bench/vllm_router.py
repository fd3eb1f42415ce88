"""Figures: vllm-router as the router of a service; `bench/another_router.py` says what is measured."""

from __future__ import annotations

from bench.another_router import measure
from bench.report import Row, Scale

NAME = "vllm-router"


async def run(scale: Scale) -> list[Row]:
    """Of this kind."""
    return await measure(NAME, scale)
