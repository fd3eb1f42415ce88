"""Reads SMG's arguments as SMG does and starts nothing: `python parse_only.py ARG...`, by SMG's own interpreter.

Exit codes: 0 they can be used, 2 they cannot (the reason is the last line on standard error), 3 this SMG has no parser
where this file looks for it. Only the standard library and SMG may be imported here.
"""

import os
import sys

NO_PARSER = 3


def main() -> None:
    """Parses what follows `smg launch`, and has it made what SMG would start with."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    sys.path[:] = [path for path in sys.path if path != here]  # What lies beside this file is none of SMG's.
    try:
        from smg.launch_router import parse_router_args  # type: ignore[import-untyped]
        from smg.router import Router  # type: ignore[import-untyped]
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(NO_PARSER)
    sys.argv[0] = "smg"
    try:
        Router.from_args(parse_router_args(sys.argv[1:]))
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        print(f"smg: error: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
