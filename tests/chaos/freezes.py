"""Freezes under load: `python -m tests.chaos.freezes --minutes 10 [--seed N]`. Ends with 1 if a law was broken.

Any of daemon, routers, nginx and engines are stopped for half a second to half a minute, all of them at once as a
paused virtual machine is, or starved. What is judged, besides the laws of `check.py`: nobody is killed or taken out who
was not silent for as long as the documentation says *while the daemon ran*, and no source is called blind.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterable, Iterator

from examples.simulated import EngineKind, Role
from tests.chaos.check import Violation, check
from tests.chaos.events import (
    CALM,
    DAEMON,
    EVERYTHING,
    NGINX,
    WILD,
    Appear,
    Engine,
    Event,
    Freeze,
    Round,
    Schedule,
    Starve,
    Stopped,
    engines_in,
    router_of,
)
from tests.chaos.history import Frozen, History, LogLine
from tests.chaos.run import parser_of, play
from tests.chaos.schedule import CHAT, PAIRS, SERVICES
from tests.chaos.stage import API_TIMEOUT_S, HEALTH_FAILURES, HEALTH_TIMEOUT_S

LEAST_S, MOST_S = 0.5, 30.0
_STARVED_S = 10.0
_LOAD = 20
_REST_S = 5.0
_PARTS = (DAEMON, NGINX, *map(router_of, SERVICES), *map(engines_in, (0, 1, 2)))
_SLACK_S = 0.3
"""What is measured from outside begins a little before a part really stops."""
_LATE_S = 3.0
"""What it was judged for may be told a little after it ran again."""
_NGINX_SILENT_S = 4 * 2.0 + 3 * 4.0
"""Four silences of two seconds, four seconds apart: docs/failure-modes.md."""
_ENGINE_SILENT_S = HEALTH_FAILURES * HEALTH_TIMEOUT_S


# -- the schedule


def make_freezes(seed: int, minutes: float) -> Schedule:
    """The schedule of a seed: one freeze a round, and rest after each."""
    draw = random.Random(seed)
    rounds: list[Round] = []
    left_s = minutes * 60
    while left_s > 0:
        event = _draw(draw)
        rounds.append(Round(0.0, (event,)))
        left_s -= _length_s(event) + _REST_S
    return Schedule(seed, engines(seed), tuple(rounds))


def _draw(draw: random.Random) -> Event:
    what = draw.choices(("some", "everything", "starved"), weights=(6, 3, 1))[0]
    if what == "starved":
        return Starve(at=0.5, load=_LOAD, for_s=_STARVED_S)
    if what == "everything":
        return Freeze(at=0.5, parts=(Stopped(who=EVERYTHING, for_s=_seconds(draw)),))
    some = draw.sample(_PARTS, draw.choice((1, 2, 3, 4, len(_PARTS))))
    together = draw.random() < 0.5
    for_s = _seconds(draw)
    parts = (
        Stopped(who=who, after_s=0.0 if together else round(draw.uniform(0, 3), 2), for_s=_seconds(draw, for_s))
        for who in some
    )
    return Freeze(at=0.5, parts=tuple(parts))


def _seconds(draw: random.Random, about_s: float | None = None) -> float:
    """Short ones as often as long ones; or something like `about_s`."""
    if about_s is None:
        return round(LEAST_S * math.pow(MOST_S / LEAST_S, draw.random()), 2)
    return round(min(MOST_S, max(LEAST_S, about_s * draw.uniform(0.6, 1.4))), 2)


def _length_s(event: Event) -> float:
    if isinstance(event, Starve):
        return event.for_s
    assert isinstance(event, Freeze)
    return max(part.after_s + part.for_s for part in event.parts)


def engines(seed: int) -> tuple[Appear, ...]:
    """Those that are there all the time: of each model one over HTTP and one over gRPC, in processes of their own."""
    pair = random.Random(seed).choice((EngineKind.VLLM_GRPC, EngineKind.SGLANG_HTTP))
    rows = (
        (CHAT, "c0", EngineKind.SGLANG_HTTP, CALM, Role.REGULAR, 0),
        (CHAT, "c1", EngineKind.VLLM_GRPC, CALM, Role.REGULAR, 1),
        (CHAT, "w0", EngineKind.VLLM_HTTP, WILD, Role.REGULAR, 1),
        (CHAT, "v0", EngineKind.SGLANG_GRPC, WILD, Role.REGULAR, 2),
        (PAIRS, "p0", pair, WILD, Role.PREFILL, 0),
        (PAIRS, "d0", pair, WILD, Role.DECODE, 2),
    )
    return tuple(
        Appear(
            at=0.0, service=service, replica=name,
            engine=Engine(name=f"{name}-0", kind=kind, model=model, role=role, host=host, token_interval_s=0.02),
        )
        for service, name, kind, model, role, host in rows
    )  # fmt: skip


# -- the judge


def check_freezes(history: History) -> list[Violation]:
    """What must not have happened, in the order of time."""
    found = [*check(history), *_killed(history), *_ejected(history), *_blind(history)]
    return sorted(found, key=lambda violation: violation.at)


def silent_s(frozen: Iterable[Frozen], who: str, until: float) -> float:
    """For how long a part had been silent before `until`, while the daemon ran and could hear that."""
    frozen = list(frozen)
    longest = 0.0
    for one in frozen:
        if one.who == who and one.began < until < one.ended + _LATE_S:
            began, ended = one.began, min(one.ended, until)
            deaf = [(max(began, d.began), min(ended, d.ended)) for d in frozen if d.who == DAEMON]
            longest = max(longest, ended - began - sum(max(0.0, high - low) for low, high in deaf))
    return longest


def _killed(history: History) -> Iterator[Violation]:
    for line in _events(history, "router.exited"):
        who = next((router_of(service) for service in SERVICES if f'"service":"{service}"' in line.text), "nobody")
        yield from _too_soon(history, line, who, API_TIMEOUT_S, "no healthy router is killed")
    for line in _events(history, "nginx.hung"):
        yield from _too_soon(history, line, NGINX, _NGINX_SILENT_S, "no healthy nginx is killed")


def _ejected(history: History) -> Iterator[Violation]:
    hosts = {f'"replica":"{it.replica}"': engines_in(it.engine.host) for it in engines(history.seed)}
    for line in _events(history, "replica.ejected"):
        who = next((host for named, host in hosts.items() if named in line.text), "nobody")
        yield from _too_soon(history, line, who, _ENGINE_SILENT_S, "nobody is taken out who answers")


def _too_soon(history: History, line: LogLine, who: str, bound_s: float, law: str) -> Iterator[Violation]:
    silent = silent_s(history.frozen, who, line.at)
    if silent < bound_s - _SLACK_S:
        yield Violation(law, line.at, f"{who} was silent for {silent:.2f} s of {bound_s:g} s: {line.text}")


def _blind(history: History) -> Iterator[Violation]:
    for line in _events(history, "source.blind"):
        yield Violation("no source is blind", line.at, line.text)


def _events(history: History, name: str) -> Iterator[LogLine]:
    return (line for line in history.log if line.event == name)


# -- the run


def main() -> int:
    options = parser_of("tests.chaos.freezes", __doc__).parse_args()
    schedule = make_freezes(options.seed, options.minutes)
    print(f"freezes: seed {options.seed}, {len(schedule.rounds)} rounds", flush=True)
    return play(schedule, options, check_freezes, muster_every=8, say=_frozen)


def _frozen(history: History) -> Iterator[str]:
    seconds, lost = sum(one.ended - one.began for one in history.frozen), sum(one.lost for one in history.frozen)
    yield f"frozen           {seconds:.0f} s in all, {lost} lost"


if __name__ == "__main__":
    sys.exit(main())
