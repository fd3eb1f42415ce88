"""SMG, the Shepherd Model Gateway: its command line, its REST dialect, its log.

What is relied on was measured on smg 1.13: a POST is accepted (202) long before the worker is ready, `GET
/workers/{id}` shows one that the list does not, a DELETE makes it `draining` at once, and `failed` is final.

Three things are put right here, so that nobody else has to know of them:

* a gRPC worker is `ready` before SMG has its model's tokenizer, and requests get 503 until then: not ready yet;
* `external` means a hosted provider to SMG; a plain OpenAI-compatible server is `generic`;
* a TensorRT-LLM gRPC worker gets a tokenizer only if its labels name one, whatever they name.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from gateway_sidecar.domain.model import (
    ConnectionMode,
    Registered,
    WorkerSpec,
    WorkerStatus,
    WorkerType,
)
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.errors import ProcessError, RouterRefused, RouterUnavailable, WorkerExists
from gateway_sidecar.routers import parse_only, with_key
from gateway_sidecar.routers.answers import body_within
from gateway_sidecar.routers.base import LaunchCommand, LogLine, RouterPorts, RouterReading
from gateway_sidecar.routers.smg_metrics import read_metrics
from gateway_sidecar.routers.smg_ranks import Rank, RankBook
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within

_MOST_ANSWER_BYTES = 5 * 1024 * 1024
"""SMG says some 1.5 KiB of each worker, and of each data-parallel rank: 3,400 of them. To read so much JSON takes less
than 50 ms, in which nothing else is done."""
_ROWS_AT_ONCE = 500
"""A list of thousands is read in parts of 5 ms, so that others have their turn."""
_CONNECTION_ATTEMPTS = 3
_CONNECTION_GAP_S = 1
"""Between those attempts: SMG's own 30 s keep an engine that was away for a moment out for half a minute."""
_SHUT_OUT_S = 5
"""SMG gives a worker nothing after ten failures. Its own 60 s would be a minute of 503 for engines that are well."""
_ENGINES = frozenset({"sglang", "vllm", "trtllm", "mlx", "tokenspeed"})
"""The engines that SMG has a name for."""
_GENERIC = "generic"
"""SMG's name for all others."""
_NAMELESS = "unknown"
"""The model of a worker that names none. No request for a model reaches it."""
_PARSE_S = 30
"""SMG takes a second to be imported on a machine that is at leisure."""
_USAGE_EXIT = 2
_OWN_TOKENIZER = frozenset(("--tokenizer-path", "--model-path", "--disable-tokenizer-autoload"))
_ID_IN_TEXT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def find_smg(command: str) -> Path:
    """The `smg` to run: a path as it is, else the one beside this interpreter, else on PATH. Raises ProcessError."""
    if "/" in command:
        path = Path(command)
        if not os.access(path, os.X_OK):
            raise ProcessError(f"router.command: {command} is not an executable file")
        return path
    beside = Path(sys.executable).parent / command
    found = beside if os.access(beside, os.X_OK) else shutil.which(command)
    if found is None:
        raise ProcessError(
            f"router.command: '{command}' is neither beside {sys.executable} nor on PATH; "
            "pip install 'gateway-sidecar[smg]' into the daemon's environment, or give its path"
        )
    return Path(found)


def launch_command(
    program: Path,
    ports: RouterPorts,
    *,
    key: str,
    policy: str,
    log_level: str,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> LaunchCommand:
    """The command that starts SMG on private loopback ports, its key kept off the command line."""
    options = [
        "launch",
        *("--host", "127.0.0.1", "--port", str(ports.api)),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(ports.metrics)),
        "--enable-igw",  # without it a gRPC worker that is registered at run time gets no traffic
        *("--worker-startup-check-interval", str(_CONNECTION_GAP_S)),
        *("--cb-timeout-duration-secs", str(_SHUT_OUT_S)),
        "--trust-tenant-header",  # nginx names the tenant, so that one key does not see what another stored
        *("--policy", policy),
        *("--log-json", "--log-level", log_level),
        *args,
    ]
    interpreter = python_of(program)
    if interpreter is None:
        # Not a Python entry point: the key can go nowhere but on the command line.
        keys = ["--control-plane-api-keys", f"gateway-sidecar:gateway-sidecar:admin:{key}"]
        return LaunchCommand([str(program), *options, *keys], dict(env or {}), shows_key=True)
    argv = [*interpreter, with_key.__file__, str(program), *options]
    return LaunchCommand(argv, {**(env or {}), with_key.KEY_VARIABLE: key})


def python_of(program: Path) -> list[str] | None:
    """The interpreter named in a script's first line, if it is a Python; None for any other program."""
    with program.open("rb") as file:
        first = file.readline(512)
    if not first.startswith(b"#!"):
        return None
    words = first[2:].decode("utf-8", "replace").split()
    return words if any(Path(word).name.startswith("python") for word in words) else None


class SmgClient:
    """The REST API of one SMG process."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout_s: float,
        health: Mapping[str, int],
        loads_tokenizers: bool = True,
        bridge_key: str = "",
    ) -> None:
        self._url = url
        self._bridge_key = bridge_key
        self._health = dict(health)
        self._loads_tokenizers = loads_tokenizers
        self._tokenizers: set[str] = set()
        self._ranks = RankBook()
        self._list_raw = b""
        self._list: Mapping[str, Registered] = {}
        self._list_settled = False
        self._timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {key}"}
        self._session: aiohttp.ClientSession | None = None

    async def list_workers(self) -> Mapping[str, Registered]:
        """Worker URL -> worker; the data-parallel ranks of an engine are one, as ready as the least ready of them."""
        raw = await self._ask_raw("GET", "/workers")
        if raw == self._list_raw and self._list_settled:
            return self._list  # At rest nothing changes: do not read the same list again and again.
        answer = _as_object(raw, f"{self._url}/workers")
        rows = answer.get("workers")
        if not isinstance(rows, list):
            raise RouterUnavailable(f"{self._url}/workers: no list of workers in the answer")
        by_url: dict[str, list[Rank]] = {}
        settled = True
        for number, row in enumerate(rows, 1):
            if number % _ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
            listed = _read_worker(row)
            worker = await self._with_tokenizer(listed)
            settled = settled and worker is listed
            by_url.setdefault(worker.url, []).append(_as_rank(worker, row))
        found: dict[str, Registered] = {}
        now = awake.now()
        for url, ranks in by_url.items():
            found[url], rests = self._ranks.join(url, ranks, now)
            settled = settled and rests
        self._list_raw, self._list, self._list_settled = raw, found, settled
        return found

    async def register(self, spec: WorkerSpec) -> str:
        """Asks for a worker; its id. Accepted is not done. Raises WorkerExists if the URL is taken."""
        body: dict[str, object] = {
            "url": spec.url,
            "worker_type": spec.worker_type.value,
            "connection_mode": spec.connection_mode.value,
            "runtime_type": spec.runtime_type if spec.runtime_type in _ENGINES else _GENERIC,
            "labels": _labels(spec),
            "max_connection_attempts": _CONNECTION_ATTEMPTS,
            "health": self._health,
        }
        optional = {
            "model_id": spec.model_id,
            "bootstrap_port": spec.bootstrap_port,
            "kv_connector": spec.kv_connector,
            "kv_role": spec.kv_role,
            "kv_engine_id": spec.kv_engine_id,
            "api_key": self._key_of(spec),
            "priority": spec.priority,
            "cost": spec.cost,
            "models": [{"id": spec.named}] if spec.named else None,  # It heeds model_id for some engines only.
        }
        body |= {name: value for name, value in optional.items() if value is not None}
        try:
            answer = await self._ask("POST", "/workers", body)
        except RouterRefused as refusal:
            if refusal.status == 409:
                named = _ID_IN_TEXT.search(str(refusal))
                raise WorkerExists(spec.url, named[0] if named else None) from refusal
            raise
        worker_id = answer.get("worker_id")
        if not isinstance(worker_id, str):
            raise RouterUnavailable(f"{self._url}/workers: accepted {spec.url} without a worker_id")
        self._ranks.submitted(spec.url, worker_id)
        return worker_id

    def _key_of(self, spec: WorkerSpec) -> str | None:
        """What SMG shows the worker: a bridge wants its own key, and shows the engine's itself."""
        if not spec.bridged:
            return spec.api_key
        return self._bridge_key if spec.connection_mode is ConnectionMode.HTTP else None

    async def find(self, worker_id: str) -> Registered | None:
        """One worker, even one that is not listed yet; None if the router does not know it."""
        try:
            return await self._with_tokenizer(_read_worker(await self._ask("GET", f"/workers/{worker_id}")))
        except RouterRefused as refusal:
            if refusal.status != 404:
                raise
        url = self._ranks.url_of(worker_id)
        return None if url is None else (await self.list_workers()).get(url)

    async def deregister(self, worker_id: str) -> None:
        """Asks for a worker's removal: no new requests from now on. One that is not there is no error."""
        for each in self._ranks.ids_of(worker_id):
            try:
                await self._ask("DELETE", f"/workers/{each}")
            except RouterRefused as refusal:
                if refusal.status != 404:
                    raise

    async def close(self) -> None:
        """Closes the client's connections; the next question opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _with_tokenizer(self, worker: Registered) -> Registered:
        """A gRPC worker whose model has no tokenizer yet is not ready, whatever the list says."""
        if (
            not self._loads_tokenizers
            or worker.connection_mode is not ConnectionMode.GRPC
            or worker.status is not WorkerStatus.READY
            or (worker.model_id or _NAMELESS) in self._tokenizers
        ):
            return worker
        rows = (await self._ask("GET", "/v1/tokenizers")).get("tokenizers")
        if isinstance(rows, list):
            self._tokenizers = {str(row.get("name")) for row in rows if isinstance(row, dict)}
        if (worker.model_id or _NAMELESS) in self._tokenizers:
            return worker
        return replace(worker, status=WorkerStatus.NOT_READY, note="the router has not loaded its tokenizer yet")

    async def _ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        return _as_object(await self._ask_raw(method, path, body), f"{method} {self._url}{path}")

    async def _ask_raw(self, method: str, path: str, body: Mapping[str, object] | None = None) -> bytes:
        """The body of a good answer. Raises RouterRefused for a 4xx, RouterUnavailable for anything else."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(),  # `within` is the one.
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=64),
                json_serialize=lambda body: orjson.dumps(body).decode(),
            )
        what = f"{method} {self._url}{path}"
        try:
            async with (
                within(self._timeout_s),
                self._session.request(method, self._url + path, json=body) as response,
            ):
                raw, status = await body_within(response, _MOST_ANSWER_BYTES), response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RouterUnavailable(f"{what}: {printable(str(error)) or type(error).__name__}") from error
        if raw is None:
            raise RouterUnavailable(f"{what}: the answer is larger than {_MOST_ANSWER_BYTES} bytes")
        if status in (401, 403):
            raise RouterUnavailable(f"{what}: {status}, this is not the router with our key")
        if status >= 500:
            raise RouterUnavailable(f"{what}: {status}: {_error_text(raw)}")
        if status >= 400:
            raise RouterRefused(f"{method} {path}: {status}: {_error_text(raw)}", status)
        return raw


def _as_object(raw: bytes, what: str) -> dict[str, Any]:
    try:
        answer = orjson.loads(raw) if raw else {}
    except ValueError as error:
        raise RouterUnavailable(f"{what}: no JSON: {raw[:200]!r}") from error
    if not isinstance(answer, dict):
        raise RouterUnavailable(f"{what}: not a JSON object: {raw[:200]!r}")
    return answer


def _labels(spec: WorkerSpec) -> dict[str, str]:
    if spec.runtime_type == "trtllm" and spec.connection_mode is ConnectionMode.GRPC:
        return {"tokenizer_path": spec.model_id or "engine", **spec.labels}
    return dict(spec.labels)


def _error_text(raw: bytes) -> str:
    """What an error answer says: `{"error": TEXT}` on the admin routes, `{"error": {"message": TEXT}}` elsewhere."""
    try:
        answer = orjson.loads(raw)
    except ValueError:
        return printable(raw[:200].decode("utf-8", "replace"))
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return printable(str(error.get("message", error) if isinstance(error, dict) else error), 500)


def _read_worker(row: object) -> Registered:
    """One row of SMG's list. Raises RouterUnavailable where it has not the form that SMG 1.13 gives it."""
    if not isinstance(row, dict):
        raise RouterUnavailable(f"a worker that is no object: {row!r:.200}")
    try:
        job = row.get("job_status")
        failed = isinstance(job, dict) and job.get("status") == "failed"
        status = WorkerStatus.FAILED if failed and row["status"] == "pending" else WorkerStatus(row["status"])
        runtime, mode = row.get("runtime_type"), row["connection_mode"]
        return Registered(
            worker_id=str(row["id"]),
            url=_base_url(str(row["url"])),
            status=status,
            worker_type=WorkerType(row["worker_type"]),
            # One that somebody else registered may speak what we do not; it is an orphan all the same.
            connection_mode=ConnectionMode(mode) if mode in set(ConnectionMode) else ConnectionMode.HTTP,
            # A worker that is still being added has not got its runtime_type yet.
            runtime_type=runtime if runtime in _ENGINES else None,
            model_id=None if row.get("model_id") == _NAMELESS else _text(row.get("model_id")),
            bootstrap_port=row.get("bootstrap_port") if isinstance(row.get("bootstrap_port"), int) else None,
            kv_connector=_text(row.get("kv_connector")),
            kv_role=_text(row.get("kv_role")),
            kv_engine_id=_text(row.get("kv_engine_id")),
            note=printable(_text(job.get("message")) or "") or None if isinstance(job, dict) else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RouterUnavailable(
            f"a worker in a form that is not known: {printable(str(error))}: {row!r:.300}"
        ) from error


def _as_rank(worker: Registered, row: Mapping[str, object]) -> Rank:
    number, of = row.get("dp_rank"), row.get("dp_size")
    return Rank(worker, number, of) if isinstance(number, int) and isinstance(of, int) else Rank(worker)


def _base_url(url: str) -> str:
    """`URL@rank` of a data-parallel worker -> URL."""
    base, at, rank = url.rpartition("@")
    return base if at and rank.isdigit() else url


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


_EVERY_START = ("SECURITY POSTURE", "libturbojpeg not found")
"""Warnings that SMG gives at every start, and that the daemon has an answer to, or nobody needs."""

_LEVELS = {"ERROR": "error", "WARN": "warning", "INFO": "info", "DEBUG": "debug", "TRACE": "debug"}


_NOT_PASSED_ON = frozenset(
    ("timestamp", "level", "message", "filename", "line_number", "target", "threadName", "threadId", "span", "spans")
) | frozenset(("event", "service", "text", "exc_info", "stack_info", "exception", "stack"))
"""What says nothing new, and what our own events say under the same name."""
_LONGEST_MESSAGE = 2000
_MOST_FIELDS = 20


def _shown(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return printable(value if isinstance(value, str) else orjson.dumps(value).decode())


def read_log_line(line: str) -> LogLine | None:
    """One line of `--log-json` output; None for what is not worth passing on (the banner)."""
    try:
        row = orjson.loads(line)
    except ValueError:
        # The banner, a Python traceback, a Rust panic. The banner is drawn in Braille.
        text = printable(line.strip(), _LONGEST_MESSAGE)
        return LogLine("warning", text) if line.isascii() and not line.startswith(" ") else None
    if not isinstance(row, dict):
        return LogLine("warning", printable(line.strip(), _LONGEST_MESSAGE))
    told = [name for name in row if name not in _NOT_PASSED_ON and name.isidentifier()][:_MOST_FIELDS]
    fields = {name: _shown(row[name]) for name in told}
    message = printable(str(row.get("message", "")), _LONGEST_MESSAGE)
    level = "debug" if message.startswith(_EVERY_START) else _LEVELS.get(str(row.get("level")), "info")
    return LogLine(level, message, fields)


async def version_of(program: Path) -> str:
    """What `smg --version` says. Raises ProcessError."""
    try:
        process = await asyncio.create_subprocess_exec(
            str(program),
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with within(30):
            output, _ = await process.communicate()
    except (OSError, TimeoutError) as error:
        raise ProcessError(f"{program} --version: {error or 'no answer within 30 s'}") from error
    if process.returncode != 0:
        raise ProcessError(
            f"{program} --version ended with {process.returncode}: {output[-200:].decode('utf-8', 'replace')}"
        )
    return output.decode("utf-8", "replace").strip()


async def objection_to(argv: Sequence[str], program: Path, env: Mapping[str, str]) -> str | None:
    """Why SMG would refuse to start with this command line, by its own parser; None if it would not.

    Starts no router. Raises ProcessError if its parser cannot be asked.
    """
    interpreter = python_of(program)
    if interpreter is None:
        raise ProcessError(f"{program} is no Python script")
    options = argv[argv.index("launch") + 1 :]
    try:
        process = await asyncio.create_subprocess_exec(
            *interpreter, parse_only.__file__, *options,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **env},
        )  # fmt: skip
    except OSError as error:
        raise ProcessError(f"cannot start {interpreter[0]}: {error.strerror}") from error
    try:
        async with within(_PARSE_S):
            _, said = await process.communicate()
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise ProcessError(f"{program}: no answer within {_PARSE_S} s") from error
    last = printable(said.decode("utf-8", "replace").strip().rpartition("\n")[2], _LONGEST_MESSAGE)
    if process.returncode == 0:
        return None
    if process.returncode == _USAGE_EXIT:
        return last
    raise ProcessError(f"{program}: exit code {process.returncode}: {last}")


@dataclass(frozen=True, slots=True)
class Smg:
    """SMG as one service has it configured (a `RouterKind`).

    health: SMG's own per-worker settings; its checks matter only while the daemon is away.
    bridge_key: what it shows the bridges of HTTP engines.
    """

    program: str
    policy: str
    log_level: str
    args: tuple[str, ...]
    env: Mapping[str, str]
    api_timeout_s: float
    health: Mapping[str, int]
    bridge_key: str = field(default="", repr=False)
    name: str = "smg"

    def command(self, ports: RouterPorts, key: str) -> LaunchCommand:
        """How to start it. Raises ProcessError if its program cannot be found."""
        return launch_command(
            find_smg(self.program),
            ports,
            key=key,
            policy=self.policy,
            log_level=self.log_level,
            args=self.args,
            env=self.env,
        )

    def digest(self) -> str:
        """The same as long as it would be started from the same program with the same arguments and environment.

        A package that is installed anew writes its entry point anew. Raises ProcessError if the program is not found.
        """
        command = self.command(RouterPorts(0, 0), "")
        try:
            stat = find_smg(self.program).stat()
        except OSError as error:
            raise ProcessError(f"router.command: {error}") from error
        parts = [*command.argv, stat.st_size, stat.st_mtime_ns, *sorted(self.env.items())]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def client(self, ports: RouterPorts, key: str) -> SmgClient:
        """A client for its API."""
        return SmgClient(
            ports.url,
            key,
            timeout_s=self.api_timeout_s,
            health=self.health,
            bridge_key=self.bridge_key,
            loads_tokenizers=not any(word.partition("=")[0] in _OWN_TOKENIZER for word in self.args),
        )

    def read_log_line(self, line: str) -> LogLine | None:
        """One line of its output; None for what is not worth passing on."""
        return read_log_line(line)

    def read_metrics(self, text: bytes) -> RouterReading:
        """What its metrics page says."""
        return read_metrics(text)
