"""The long run: `python -m tests.chaos --minutes 10 [--seed N]`. Ends with 1 if a law was broken."""

from __future__ import annotations

import argparse
import asyncio
import pickle
import random
import shutil
import sys
import time
from collections import Counter

from tests.chaos.check import check, failures, story, summary
from tests.chaos.schedule import Mix, make_schedule
from tests.chaos.stage import Stage

_SHOWN = 5
_LONGEST = 700
_RESTING_S = 6.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--only", default=None, help="these shared faults only, with commas between")
    parser.add_argument("--print", action="store_true", help="print the schedule and do nothing")
    parser.add_argument("--keep", action="store_true", help="keep the directory")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    mix = Mix() if options.only is None else Mix(shared=tuple(options.only.split(",")))
    rounds = max(1, round(options.minutes * 60 / (mix.round_s + _RESTING_S)))
    schedule = make_schedule(seed, rounds, mix)
    if options.print:
        print(schedule)
        return 0
    print(f"chaos: seed {seed}, {rounds} rounds of {mix.round_s:g} s", flush=True)
    began = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    stage = Stage(schedule, clients=options.clients, tell=tell)
    history = asyncio.run(stage.play())
    violations = check(history)
    laws = Counter(violation.law for violation in violations)
    for law, count in laws.items():
        print(f"BROKEN {count} times: {law}")
        for violation in [one for one in violations if one.law == law][:_SHOWN]:
            print(f"    at {violation.at - began:.2f} s: {violation.what[:_LONGEST]}")
    for line in summary(history):
        print(line)
    if options.keep or violations:
        stories = stage.gateway.directory / "violations.txt"
        (stage.gateway.directory / "history.pickle").write_bytes(pickle.dumps(history))
        told = [story(history, violation) for violation in violations]
        stories.write_text("\n\n".join([str(schedule), *told, "ALL THAT FAILED", *failures(history)]))
        print(f"stories          {stories}")
    else:
        shutil.rmtree(stage.gateway.directory)
    print(f"verdict          {f'{len(violations)} violations' if violations else 'clean'}, seed {seed}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
