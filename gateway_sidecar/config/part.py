"""What every mapping of the file has in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """One mapping of the file: closed, frozen, and without conversions between YAML's types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def number(default: float, low: float, high: float, description: str) -> Any:
    """A field for a number with its bounds."""
    return Field(default=default, ge=low, le=high, description=description)
