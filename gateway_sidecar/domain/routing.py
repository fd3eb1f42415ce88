"""What a kind of router says of its paths and headers, for nginx before it and behind it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

VERSIONED = "/v[0-9]{1,3}(?:(?:alpha|beta)[0-9]{0,3})?"
"""What the paths of an API for clients begin with. Routes that control a router, or an engine, mostly have no version:
so `all` leaves out most of those that a later router may bring, whose names are not on the list yet."""


def each(paths: str) -> tuple[str, ...]:
    """The paths of a text, which stand between blanks."""
    return tuple(paths.split())


@dataclass(frozen=True, slots=True)
class RouterPaths:
    """Which paths are for whom. Whatever is not named does not pass.

    inference: what clients may ask a router for, and a router its engines; `*` is one id, `**` one with slashes in it.
    repeatable: those of them at which a POST keeps nothing: it may be sent again when its router has died.
    control: where a router is controlled, or tells of its workers' addresses: no frontend passes these, nor what is
        below them, whatever `frontend.paths` says.
    fleet: what tells of the fleet: it passes where `frontend.paths` names it, and not with `all`.
    asked: what the router itself asks an engine beside inference.
    loses: whether it answers 503 to requests whose worker left before it began to answer: nginx asks it once more.
    versioned: the pattern of what `frontend.paths: all` passes the rest of.
    anything: every path is for clients, and what headers they and the application send is theirs to say.
    """

    inference: tuple[str, ...]
    control: tuple[str, ...] = ()
    fleet: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    versioned: str = VERSIONED
    repeatable: tuple[str, ...] = ()
    loses: bool = False
    anything: bool = False

    @classmethod
    def of_all(cls, kinds: Iterable[Self]) -> Self:
        """For routers of several kinds behind one address: what one serves passes, and what controls one does not."""
        known = list(kinds)
        named = ("inference", "control", "fleet", "asked", "repeatable")
        joined: dict[str, Any] = {name: tuple(_each(getattr(paths, name) for paths in known)) for name in named}
        versioned = _each([paths.versioned] for paths in known)
        return cls(
            **joined,
            versioned=f"(?:{'|'.join(versioned)})",
            loses=any(paths.loses for paths in known),
            anything=all(paths.anything for paths in known),
        )


def _each(names: Iterable[Iterable[str]]) -> list[str]:
    return sorted({name for some in names for name in some})


@dataclass(frozen=True, slots=True)
class RouterHeaders:
    """Which headers a router heeds, or passes on.

    bridge_key: a request header that the router passes on to HTTP engines, in all its modes. nginx shows the bridges
        there that a request came through the router. Empty where nginx is the router.
    tenant: the request header by which the router keeps clients' stored conversations apart; nginx alone says it.
        Empty if there is none.
    passed: request headers of its own that clients may send.
    steering: request header in lower case -> what it does that is not for clients.
    worker: the header of its answers that names the worker by its URL. Empty if there is none. Engines cannot say it.
    hidden: headers of its answers that are not for clients; `worker` never is.
    passes_answers: whether it passes on what a bridge says in an answer. Else bridges note which request they answered.
    """

    bridge_key: str
    tenant: str = ""
    passed: tuple[str, ...] = ()
    steering: Mapping[str, str] = field(default_factory=dict, hash=False)
    worker: str = ""
    hidden: tuple[str, ...] = ()
    passes_answers: bool = True


@dataclass(frozen=True, slots=True)
class BridgeRules:
    """What the bridges of HTTP engines pass, whatever kinds of routers ask.

    inference, asked: the paths of `RouterPaths`; prefixes: `bridges.paths`. key_headers: where a router may show that a
    request comes through it. worker_headers: what a router, and no engine, says in answers. shared_key: what routers
    show that somebody else runs.
    """

    inference: tuple[str, ...]
    asked: tuple[str, ...]
    prefixes: tuple[str, ...]
    key_headers: tuple[str, ...]
    worker_headers: tuple[str, ...] = ()
    shared_key: str | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        kinds: Iterable[tuple[RouterPaths, RouterHeaders]],
        prefixes: tuple[str, ...],
        shared_key: str | None = None,
    ) -> BridgeRules:
        """The rules for all of these kinds together."""
        known = list(kinds)
        return cls(
            tuple(sorted({path for paths, _ in known for path in paths.inference})),
            tuple(sorted({path for paths, _ in known for path in paths.asked})),
            prefixes,
            tuple(sorted({headers.bridge_key for _, headers in known if headers.bridge_key})),
            tuple(sorted({headers.worker for _, headers in known if headers.worker})),
            shared_key,
        )
