"""What each command does. `cli` imports a command's module only when that command is called.

So `status` waits for no module that only `run` needs; `tests/unit/test_cli_imports.py` holds what stays out.
"""
