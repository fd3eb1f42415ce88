"""Where kinds are found: routers, engines, sources and stores, ours by their names, others' by entry points.

A kind is one module or folder with one value in it (`ROUTER`, `ENGINE`, `SOURCE` or `STORE`), which brings its
settings, its checks and its rules. Ours are listed here, in the order in which they are asked. Another package brings
its own with an entry point that leads to such a value:

    [project.entry-points."gateway_sidecar.routers"]
    toy = "my_package.toy:ROUTER"

Kinds are imported by name when the first of them is asked for, so that a layer may know a registry without knowing
what is above it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from gateway_sidecar.errors import KindError

if TYPE_CHECKING:
    from gateway_sidecar.engines.dialect import Engine
    from gateway_sidecar.routers.base import RouterKind
    from gateway_sidecar.sources.base import SourceKind
    from gateway_sidecar.stores.base import StoreKind


class Named(Protocol):
    """What all kinds have: the word by which the configuration knows them."""

    @property
    def name(self) -> str: ...


K = TypeVar("K", bound=Named)


class Registry(Generic[K]):
    """All kinds of one sort, ours first.

    group: the package that ours are in, and the group of entry points that others use.
    """

    def __init__(self, group: str, value: str, *modules: str) -> None:
        self.group = group
        self._value = value
        self._modules = modules

    @cached_property
    def by_name(self) -> dict[str, K]:
        """Name -> kind. Raises KindError for a package's kind that cannot be imported, or has a name that is taken."""
        found: dict[str, K] = {}
        for module in self._modules:
            kind: K = getattr(import_module(f"{self.group}.{module}"), self._value)
            found[kind.name] = kind
        for point in entry_points(group=self.group):
            origin = f"entry point {point.name} = {point.value} in {self.group}"
            try:
                kind = point.load()
            except (ImportError, AttributeError) as error:
                raise KindError(f"{origin}: {error}; fix or remove its package") from error
            if kind.name in found:
                raise KindError(f"{origin}: there is a kind named '{kind.name}' already; give yours another name")
            found[kind.name] = kind
        return found

    def named_in(self, settings: object) -> K | None:
        """The kind that settings are of: they name it by `type`, or are of the first; None if there is none of it."""
        name = settings.get("type") if isinstance(settings, dict) else None
        return self.by_name.get(name) if isinstance(name, str) else next(iter(self))

    def __iter__(self) -> Iterator[K]:
        return iter(self.by_name.values())

    def __getitem__(self, name: str) -> K:
        return self.by_name[name]


ROUTERS: Registry[RouterKind[Any]] = Registry(
    "gateway_sidecar.routers", "ROUTER", "smg", "none", "vllm_router", "sglang_router", "dynamo"
)
ENGINES: Registry[Engine] = Registry(
    "gateway_sidecar.engines", "ENGINE", "sglang", "vllm", "mlx", "trtllm", "tokenspeed", "dynamo", "external", "web"
)
SOURCES: Registry[SourceKind[Any]] = Registry(
    "gateway_sidecar.sources", "SOURCE", "socket_pattern", "ssh", "inventory", "api"
)
STORES: Registry[StoreKind] = Registry("gateway_sidecar.stores", "STORE", "etcd")
