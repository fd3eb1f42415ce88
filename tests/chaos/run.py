"""What the long runs share: their options, the play, and the report with its verdict."""

from __future__ import annotations

import argparse
import asyncio
import pickle
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tests.chaos.check import Violation, failures, story, summary
from tests.chaos.events import Schedule
from tests.chaos.history import History
from tests.chaos.stage import Stage, Tell

_SHOWN = 5
_LONGEST = 700

H = TypeVar("H")
H_co = TypeVar("H_co", covariant=True)


def parser_of(program: str, about: str | None) -> argparse.ArgumentParser:
    """The options that every long run has."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=about)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--print", action="store_true", help="print the schedule and do nothing")
    parser.add_argument("--keep", action="store_true", help="keep the directory")
    return parser


def play(
    schedule: Schedule,
    options: argparse.Namespace,
    check: Callable[[History], list[Violation]],
    *,
    muster_every: int = 4,
    say: Callable[[History], Iterable[str]] = lambda _history: (),
) -> int:
    """Plays the schedule of one gateway, and reports as `run` does.

    say: further lines of the report.
    """
    if options.print:
        print(schedule)
        return 0
    judge = Judge(check, story, failures, lambda history: [*summary(history), *say(history)])
    return run(
        lambda tell: Stage(schedule, clients=options.clients, muster_every=muster_every, tell=tell),
        schedule, options, judge,
    )  # fmt: skip


class Plays(Protocol[H_co]):
    """A stage: plays its schedule once. What it writes is in `directory`."""

    @property
    def directory(self) -> Path: ...

    async def play(self) -> H_co: ...


@dataclass(frozen=True, slots=True)
class Judge(Generic[H]):
    """What is made of a history: violations, each with its story; all requests that failed; and the report."""

    check: Callable[[H], list[Violation]]
    story: Callable[[H, Violation], str]
    failures: Callable[[H], list[str]]
    summary: Callable[[H], Iterable[str]]


def run(make_stage: Callable[[Tell], Plays[H]], schedule: object, options: argparse.Namespace, judge: Judge[H]) -> int:
    """Plays, prints what broke and how it went, and returns the exit code: 1 if a law was broken."""
    began = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    for number in (signal.SIGINT, signal.SIGTERM):  # Also in the background, where a shell has it ignored.
        signal.signal(number, signal.default_int_handler)
    stage = make_stage(tell)
    history = asyncio.run(stage.play())
    violations = judge.check(history)
    for law, count in Counter(violation.law for violation in violations).items():
        print(f"BROKEN {count} times: {law}")
        for violation in [one for one in violations if one.law == law][:_SHOWN]:
            print(f"    at {violation.at - began:.2f} s: {violation.what[:_LONGEST]}")
    for line in judge.summary(history):
        print(line)
    if options.keep or violations:
        stories = stage.directory / "violations.txt"
        (stage.directory / "history.pickle").write_bytes(pickle.dumps(history))
        told = [judge.story(history, violation) for violation in violations]
        stories.write_text("\n\n".join([str(schedule), *told, "ALL THAT FAILED", *judge.failures(history)]))
        print(f"stories          {stories}")
    else:
        shutil.rmtree(stage.directory)
    print(f"verdict          {f'{len(violations)} violations' if violations else 'clean'}, seed {options.seed}")
    return 1 if violations else 0
