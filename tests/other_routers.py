"""Where vllm-router and sglang-router are, which `make routers` installs, and what a service says to have one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

KINDS = ("vllm-router", "sglang-router")
PACKAGES = {kind: kind.replace("-", "_") for kind in KINDS}
_REPOSITORY = Path(__file__).parents[1]


def program_of(kind: str) -> Path | None:
    """Its program, as the environment (VLLM_ROUTER, SGLANG_ROUTER) or `make routers` has it; None if there is none."""
    named = os.environ.get(PACKAGES[kind].upper())
    program = Path(named) if named else _REPOSITORY / f".venv-{kind}" / "bin" / kind
    return program if os.access(program, os.X_OK) else None


def router_of(kind: str, **more: Any) -> dict[str, Any]:
    """`router` of a service with this kind; skips the test where it is not installed."""
    program = program_of(kind)
    if program is None:
        pytest.skip(f"{kind} is not installed; `make routers` installs it")
    return {"type": kind, "command": str(program), **more}
