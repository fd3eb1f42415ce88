"""`python -m tests.fuzz`: random input at every edge, for minutes. A fault names its edge and number."""

from __future__ import annotations

import argparse
import secrets
import sys

from tests.fuzz.frame import edges, run


def main() -> int:
    """The exit code: 1 if anything was held up, filled or forged."""
    known = edges()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument(
        "--edge", action="append", choices=sorted(known), help="this one alone; more than once for more"
    )
    parser.add_argument("--only", type=int, metavar="N", help="one trial, by the number that a fault names")
    arguments = parser.parse_args()
    print(f"--seed {arguments.seed}", flush=True)
    chosen = [known[name] for name in arguments.edge or sorted(known)]
    report = run(chosen, arguments.seed, arguments.minutes * 60, arguments.only)
    print(report.render())
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
