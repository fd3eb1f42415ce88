"""The long run: `python -m tests.chaos --minutes 10 [--seed N]`. Ends with 1 if a law was broken."""

from __future__ import annotations

import sys

from tests.chaos.check import check
from tests.chaos.run import parser_of, play
from tests.chaos.schedule import Mix, make_schedule

_RESTING_S = 6.0


def main() -> int:
    parser = parser_of("tests.chaos", __doc__)
    parser.add_argument("--only", default=None, help="these shared faults only, with commas between")
    options = parser.parse_args()
    mix = Mix() if options.only is None else Mix(shared=tuple(options.only.split(",")))
    rounds = max(1, round(options.minutes * 60 / (mix.round_s + _RESTING_S)))
    print(f"chaos: seed {options.seed}, {rounds} rounds of {mix.round_s:g} s", flush=True)
    return play(make_schedule(options.seed, rounds, mix), options, check)


if __name__ == "__main__":
    sys.exit(main())
