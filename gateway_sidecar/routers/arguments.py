"""Which options of a router are the daemon's own, so that `router.args` may not have them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

ADDRESS = "the daemon gives the router its private address; clients use `listen`"
METRICS = "the daemon gives the router's metrics a private address; `status --json` has it as metrics_url"
WORKERS = "the daemon registers the workers; replicas come from `replicas.sockets`"
FOREIGN = "it brings workers that the daemon does not know and would remove"
BREAKER = "the daemon always sets it, and decides by evidence when a worker goes"
HELP = "the router would print its help and exit"

EVERYWHERE: Mapping[str, str] = {
    "--host": ADDRESS,
    "--port": ADDRESS,
    "--prometheus-host": METRICS,
    "--prometheus-port": METRICS,
    "--policy": "use `router.policy`",
    "--log-level": "use `router.log_level`",
    "--worker-urls": WORKERS,
    "--prefill": WORKERS,
    "--decode": WORKERS,
    "--service-discovery": FOREIGN,
    "--disable-circuit-breaker": BREAKER,
    "--": "it would end the options, and the daemon's own come after",
    "--help": HELP,
    "-h": HELP,
}
"""What SMG has in common with the routers that it comes from, and that come from it."""


def not_reserved(argument: str, reserved: Mapping[str, str], families: Mapping[str, str] = MappingProxyType({})) -> str:
    """The argument itself, if the router may be given it; `ValueError` says whose it is otherwise.

    These routers take any unambiguous beginning for the whole option, so beginnings are refused too. Of `families` all
    options are reserved that begin so.
    """
    name = argument.partition("=")[0]
    family = next((family for family in families if name.startswith(family)), None)
    whole = name if family or name in reserved else _whole_option(name, reserved)
    if whole is not None:
        short = "" if name == whole else f" (short for {whole})"
        why = families[family] if family else reserved[whole]
        raise ValueError(f"{name!r}{short} is the daemon's own; leave it out: {why}")
    if "\0" in argument:
        raise ValueError(f"{argument!r} holds a NUL character; leave it out")
    return argument


def _whole_option(name: str, reserved: Mapping[str, str]) -> str | None:
    if not name.startswith("--"):
        return None
    return next((option for option in reserved if option.startswith(name)), None)
