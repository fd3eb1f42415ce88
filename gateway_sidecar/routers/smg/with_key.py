"""Starts a router's Python entry point with the control-plane key taken from the environment.

SMG takes its key on the command line only, where every user of the machine could read it (`ps`). This file is run by
the router's own interpreter: `python with_key.py SCRIPT ARG...`. It puts the key into `sys.argv`, which is this
process's private memory, and hands over to SCRIPT. Only the standard library may be imported here.
"""

import os
import runpy
import sys

KEY_VARIABLE = "GATEWAY_SIDECAR_ROUTER_KEY"


def main() -> None:
    """Runs SCRIPT as `__main__` with the key appended to its arguments."""
    key = os.environ.pop(KEY_VARIABLE)
    script, *arguments = sys.argv[1:]
    sys.argv = [
        script,
        *arguments,
        "--control-plane-api-keys",
        f"gateway-sidecar:gateway-sidecar:admin:{key}",
    ]
    sys.path[0] = os.path.dirname(script)  # noqa: PTH120 - as the interpreter itself would have set it
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
