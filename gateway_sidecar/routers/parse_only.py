"""Reads a router's arguments as it does and starts nothing: `python parse_only.py PACKAGE ARG...`, by its interpreter.

PACKAGE is the router's Python package: SMG and the routers that it comes from, or that come from it, have their parser
in the same place. Its version goes to standard output, if it has one. Exit codes: 0 the arguments can be used, 2 they
cannot (the reason is the last line on standard error), 3 this package is not there, or has no parser where this file
looks for it. Only the standard library and the router may be imported here.
"""

import os
import sys
from importlib import import_module

NO_PARSER = 3  # Neither 0, nor Python's own 1, nor argparse's 2.


def main() -> None:
    """Parses what follows the package, and has it made what the router would start with."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    sys.path[:] = [path for path in sys.path if path != here]  # What lies beside this file is none of the router's.
    package, *arguments = sys.argv[1:]
    try:
        launch, router = import_module(f"{package}.launch_router"), import_module(f"{package}.router")
        parse, make = launch.parse_router_args, router.Router.from_args
        print(getattr(import_module(f"{package}.version"), "__version__", ""))
    except (ImportError, AttributeError) as error:
        print(error, file=sys.stderr)
        sys.exit(NO_PARSER)
    sys.argv[0] = name = package.replace("_", "-")
    try:
        parsed = parse(arguments)
        parsed._validate_router_args()
        make(parsed)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        print(f"{name}: error: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
