"""Starts a router's Python entry point with what is secret taken from the environment.

Routers take their keys on the command line only, where every user of the machine could read them (`ps`). This file is
run by the router's own interpreter: `python with_key.py SCRIPT ARG...`. It puts the words of SECRET_VARIABLE, one a
line, into `sys.argv`, which is this process's private memory, and hands over to SCRIPT. Only the standard library may
be imported here.
"""

import os
import runpy
import sys

SECRET_VARIABLE = "GATEWAY_SIDECAR_ROUTER_SECRET"


def main() -> None:
    """Runs SCRIPT as `__main__` with the secret words appended to its arguments."""
    secret = os.environ.pop(SECRET_VARIABLE)
    script, *arguments = sys.argv[1:]
    sys.argv = [script, *arguments, *secret.split("\n")]
    sys.path[0] = os.path.dirname(script)  # noqa: PTH120 - as the interpreter itself would have set it
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
