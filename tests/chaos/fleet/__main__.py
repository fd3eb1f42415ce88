"""`python -m tests.chaos.fleet --minutes 10 [--seed N]`. Ends with 1 if a law was broken."""

from __future__ import annotations

import sys

from tests.chaos.fleet.check import check
from tests.chaos.fleet.report import failures, story, summary
from tests.chaos.fleet.schedule import Mix, make_schedule
from tests.chaos.fleet.stage import FleetStage
from tests.chaos.run import Judge, parser_of, run

_RESTING_S = 30.0


def main() -> int:
    parser = parser_of("tests.chaos.fleet", __doc__)
    parser.add_argument("--gateways", type=int, default=3, help="from 2 to 5")
    parser.add_argument("--only", default=None, help="these faults of gateways only, with commas between")
    options = parser.parse_args()
    if not 2 <= options.gateways <= 5:
        parser.error(f"--gateways: {options.gateways} is no fleet; use 2 to 5")
    mix = Mix() if options.only is None else Mix(of_gateways=tuple(options.only.split(",")))
    rounds = max(1, round(options.minutes * 60 / (mix.round_s + _RESTING_S)))
    schedule = make_schedule(options.seed, options.gateways, rounds, mix)
    print(
        f"chaos of {options.gateways} gateways: seed {options.seed}, {rounds} rounds of {mix.round_s:g} s", flush=True
    )
    if options.print:
        print(schedule)
        return 0
    return run(lambda tell: FleetStage(schedule, tell=tell), schedule, options, Judge(check, story, failures, summary))


if __name__ == "__main__":
    sys.exit(main())
