"""Which of several services gets a request: what nginx knows of a shared address. Pure.

`share/models.lua` reads the model that a request names, and decides by these values. A request that has its service is
led to the same upstreams, gate and hold as one that came to the service's own address.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from gateway_sidecar.config import AddressSettings


@dataclass(frozen=True, slots=True)
class Way:
    """How requests are sent on to a router. nginx says that for a location, not for a request, so each has its own.

    balances: nginx chooses the engine itself. loses: a router that answers 503 is asked once more.
    """

    balances: bool = False
    loses: bool = False

    @property
    def location(self) -> str:
        """The name of the location that does it."""
        return "@router_balanced" if self.balances else "@router_losing" if self.loses else "@router"


@dataclass(frozen=True, slots=True)
class Target:
    """A service, its part of the requests, and what the model is called there; empty for as it was sent."""

    service: str
    model: str = ""
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Model:
    """Where the requests for one model go; `fallback` has an empty service where there is none."""

    name: str
    targets: tuple[Target, ...]
    fallback: Target = Target("")


@dataclass(frozen=True, slots=True)
class Behind:
    """A service behind a shared address.

    slots: those of its two router slots that a router, and not nginx, is in.
    inference: the paths that its router takes, where these are not all of those that the address passes.
    """

    service: str
    way: Way
    slots: tuple[str, ...] = ()
    inference: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dispatch:
    """All models of a shared address, the services behind it, and the one of requests that name no model."""

    models: tuple[Model, ...]
    services: tuple[Behind, ...]
    default: str = ""

    @property
    def ways(self) -> Sequence[Way]:
        """Each way that one of the services needs; the first is the one of most of them."""
        ways = [it.way for it in self.services]
        return sorted(set(ways), key=lambda way: (-ways.count(way), way.location))

    @property
    def path_sets(self) -> Sequence[tuple[str, ...]]:
        """The `inference` of its services, each once."""
        return sorted({it.inference for it in self.services if it.inference})

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Self:
        """Reads back what `asdict` made of it."""
        models = [
            Model(it["name"], tuple(Target(**each) for each in it["targets"]), Target(**it["fallback"]))
            for it in said["models"]
        ]
        services = [
            Behind(it["service"], Way(**it["way"]), tuple(it["slots"]), tuple(it["inference"]))
            for it in said["services"]
        ]
        return cls(tuple(models), tuple(services), said["default"])


def models_of(address: AddressSettings) -> tuple[Model, ...]:
    """The models of a shared address as they are configured, by name."""
    return tuple(
        Model(
            name,
            tuple(Target(it.service, it.model or "", it.weight) for it in model.targets),
            Target(model.fallback.service, model.fallback.model or "") if model.fallback is not None else Target(""),
        )
        for name, model in sorted(address.models.items())
    )
