"""Starts Dynamo's frontend: `python frontend.py DIRECTORY METRICS_PORT OPTION...`; `--check` for DIRECTORY only looks.

Run by Dynamo's own interpreter. A thread keeps the copies in DIRECTORY fresh (`files/dynamo_entries.py`), so that its
workers stay known while no daemon runs. When the frontend ends by itself, or is asked to, its workers' records go, and
with them their shims. Its metrics page gets a port of its own: at the frontend's, whoever keeps a connection to read it
would count as a client who is not answered yet.

With `--check` nothing is started: the version of ai-dynamo is printed, and the options are parsed. Exit codes: 0 they
can be used, 2 they cannot (the reason is the last line on standard error), 3 there is no ai-dynamo here.
"""

import fcntl
import http.server
import importlib.metadata
import os
import runpy
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

CHECK = "--check"
NO_DYNAMO, USAGE = 3, 2  # 2 is what `argparse` ends with, and 1 an error of Python's.
_EVERY_S = 1.0  # A tenth of what Dynamo lets an entry be (`FRESH_S`, 10 s).


def _keep_up(keep_up: Callable[[Path], None], directory: Path) -> None:
    while True:
        try:
            keep_up(directory)
        except OSError as error:
            print(f"the workers' entries in {directory} cannot be kept fresh: {error}", file=sys.stderr)
        time.sleep(_EVERY_S)


def _serve_metrics(port: int, of: str) -> None:
    """Passes the page on from the frontend's port."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{of}/metrics", timeout=5) as answer:
                    status, page = answer.status, answer.read()
            except OSError as error:
                status, page = 502, str(error).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def _check() -> None:
    try:
        version = importlib.metadata.version("ai-dynamo")
        from dynamo.frontend import main  # type: ignore[import-not-found]
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(NO_DYNAMO)
    print(version, flush=True)
    try:
        main.parse_args()
    except SystemExit as ended:
        sys.exit(USAGE if ended.code else 0)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(USAGE)


def main() -> None:
    """Runs the frontend until it ends."""
    here = Path(__file__)
    sys.path[:] = [str(here.parents[4]), *(path for path in sys.path if path != str(here.parent))]
    from gateway_sidecar.files import dynamo_entries as entries

    del sys.path[0]  # What lies beside this package is none of Dynamo's.
    first, metrics_port, *options = sys.argv[1:]
    sys.argv = ["dynamo.frontend", *options]
    os.environ["DYN_SKIP_SGLANG_LOG_FORMATTING"] = "1"  # It would write that into a new temporary file at each start.
    if first == CHECK:
        _check()
        return
    directory = Path(first)
    entries.keep_up(directory)
    alive = entries.alive_path(directory).open("wb")
    fcntl.flock(alive, fcntl.LOCK_EX)  # For as long as this process lives, however it ends.
    threading.Thread(target=_keep_up, args=(entries.keep_up, directory), daemon=True).start()
    _serve_metrics(int(metrics_port), options[options.index("--http-port") + 1])
    os.environ["DYN_FILE_KV"] = str(entries.store_of(directory))
    try:
        runpy.run_module("dynamo.frontend", run_name="__main__", alter_sys=True)
    finally:
        for worker_id in entries.records(directory):
            entries.forget(directory, worker_id)


if __name__ == "__main__":
    main()
