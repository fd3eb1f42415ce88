"""What the commands do, each named by `cli` and imported when it is the one that was asked for.

So `status` waits for no module that only `run` needs; `tests/unit/test_cli_imports.py` holds what stays out.
"""
