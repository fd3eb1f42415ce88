"""The random frontends of the tests are all that a configuration can describe."""

from __future__ import annotations

import typing
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, seed, settings

from gateway_sidecar.config import FrontendSettings, Settings
from gateway_sidecar.config.load import parse_config
from gateway_sidecar.config.models import HoldSettings
from gateway_sidecar.config.section import Section
from tests.frontends import DRAWN, Ground, services

GROUND = Ground(Path("/etc/frontends"), 20000, 19999)


def sections_of(model: type[Section]) -> set[type[Section]]:
    """A mapping and all mappings in it."""
    found = {model}

    def look(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            found.update(sections_of(annotation))
        for inner in typing.get_args(annotation):
            look(inner)

    for field in model.model_fields.values():
        look(field.annotation)
    return found


@pytest.mark.parametrize("model", sorted(sections_of(FrontendSettings) | {HoldSettings}, key=str))
def test_every_setting_of_a_frontend_is_drawn(model: type[Section]) -> None:
    """A new setting is, too: add it to `tests/frontends.py`, and what a client sees of it to the property test."""
    assert DRAWN[model](GROUND, "chat").keys() == model.model_fields.keys()


def test_every_draw_is_a_configuration_and_every_setting_varies() -> None:
    """As many draws as it takes, and a round at the least; the same ones each time."""
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)

    @settings(database=None, phases=[Phase.generate])
    @given(services(GROUND))
    def draw(drawn: list[dict[str, Any]]) -> None:
        for parsed in parsed_with_replicas(drawn).services:
            said = parsed.frontend.model_dump(mode="json")
            assert FrontendSettings.model_validate(said) == parsed.frontend, "what is written down can be read again"
            note(parsed.frontend)
            note(parsed.hold)

    def note(section: Section) -> None:
        for name in type(section).model_fields:
            value = getattr(section, name)
            seen[type(section).__name__, name].add(repr(value))
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, Section):
                    note(inner)

    files = {("TlsSettings", name) for name in ("certificate", "key", "store", "acme")} | {("AuthSettings", "store")}
    every = {(model.__name__, name) for model in DRAWN for name in model.model_fields}
    for number in range(20):
        seed(number)(draw)()
        alike = [it for it in every - files if len(seen[it]) < 2]
        if not alike:
            break
    assert seen.keys() == every
    assert alike == []


def parsed_with_replicas(drawn: list[dict[str, Any]]) -> Settings:
    sockets = [{"replicas": {"sockets": f"/run/{it['name']}/{{replica}}.sock"}} for it in drawn]
    return parse_config(yaml.safe_dump({"services": [it | where for it, where in zip(drawn, sockets, strict=True)]}))
