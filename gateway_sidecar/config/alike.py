"""What of the configuration the gateways of one fleet should have alike: `domain/fleet_alike.py` compares it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gateway_sidecar.config.frontend import FrontendSettings
from gateway_sidecar.config.models import Settings
from gateway_sidecar.config.places import stored_keys_in
from gateway_sidecar.config.scaling import ScalingSettings


def alike_of(settings: Settings) -> dict[str, str]:
    """SETTING, or SERVICE: SETTING -> its value, in words. Nothing of it is secret."""
    ports = settings.bridges.ports
    found = {"bridges.ports": f"{ports.first}-{ports.last}"}
    for service in settings.services:
        found[f"{service.name}: scaling"] = "on" if service.scaling is not None else "off"
        if service.scaling is not None:
            found |= {f"{service.name}: scaling.{name}": value for name, value in _scaling(service.scaling)}
    stored = stored_keys_in(settings.state_dir)
    return found | {f"{it.name}: frontend.auth": _auth(it.frontend, stored) for it in settings.all_addresses}


def _auth(frontend: FrontendSettings, stored: Path) -> str:
    auth = frontend.auth
    if auth is None:
        return "off"
    if auth.keys_file is None:
        return "url"
    return "store" if auth.keys_file == stored else "keys_file"


def _scaling(scaling: ScalingSettings) -> Iterator[tuple[str, str]]:
    """The hook may be another one at each gateway."""
    for name, value in scaling.model_dump(mode="json", exclude={"hook"}, exclude_none=True).items():
        yield name, f"{value:g}" if isinstance(value, float) else str(value)
