"""Imports point down, adapters do not know each other, and what decides knows nothing of the world."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import gateway_sidecar
from gateway_sidecar.kinds import ENGINES, SOURCES, Registry

PACKAGE = Path(gateway_sidecar.__file__).parent
LAYERS: tuple[frozenset[str], ...] = tuple(
    frozenset(layer.split())
    for layer in (
        "__main__",
        "cli",
        "commands",
        "app check dry_run install",
        "api",
        "control",
        "engines frontend nginx routers sources stores tunnels",
        "config supervision",
        "kinds",
        "telemetry",
        "files",
        "domain",
        "errors",
    )
)
"""Highest first. A module imports from lower layers and from its own package, and from no neighbour in its layer."""

PURE = {
    *(
        "__future__",
        "array",
        "collections",
        "dataclasses",
        "difflib",
        "enum",
        "functools",
        "hashlib",
        "ipaddress",
        "itertools",
        "json",
        "math",
        "re",
        "typing",
    )
}
"""What the domain may take from outside: nothing that reads a clock, draws a number or touches the world."""

DATED = (PACKAGE / "frontend" / "certificate.py", PACKAGE / "telemetry" / "dates.py")
"""Certificates are valid from and to a date, which only the wall clock knows; people ask for events by date."""

ROOMS = (
    "process",
    "autoscaling",
    "service",
    "ports",
    "hold",
    "fleet",
    "state",
    "replicas",
    "routers",
    "edge",
    "workqueue",
)
"""The rooms of `control/`, highest first. A room imports from those below it."""

FOREIGN = "inside"
"""The folder of a kind for what runs in another program's interpreter, and so has none of the daemon's modules."""

Import = tuple[Path, int, str]


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """All nodes of a module's syntax tree."""
    return list(ast.walk(ast.parse(path.read_bytes())))


def function_of(path: Path, node: ast.expr) -> str:
    """The function or method, with its class, in which an expression of a module stands."""
    scopes = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    around = [it for it in nodes(path) if isinstance(it, scopes) and it.lineno <= node.lineno <= (it.end_lineno or 0)]
    return ".".join(it.name for it in sorted(around, key=lambda it: it.lineno))


def of_the_daemon() -> list[Path]:
    """All modules but those that run in other programs' interpreters."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != FOREIGN]


@functools.cache
def for_types(path: Path) -> list[ast.stmt]:
    """What a module imports for type checkers alone. `kinds.py` may: a registry says of what type its kinds are, and
    finds them by name, so it knows nothing above it when it runs."""
    return [
        it
        for node in nodes(path)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for it in node.body
    ]


@functools.cache
def imports() -> tuple[Import, ...]:
    """(file, line, full name of what is imported) for every import in the package, wherever in a file it stands."""
    return tuple(_imports())


def _imports() -> Iterator[Import]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in nodes(path):
            if path.name == "kinds.py" and node in for_types(path):
                continue
            if isinstance(node, ast.Import):
                yield from ((path, node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = "." * node.level + (node.module or "")
                yield from ((path, node.lineno, f"{base}.{alias.name}") for alias in node.names)


def unit_of(path: Path) -> str:
    """The package or module directly below gateway_sidecar that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def shown(import_: Import) -> str:
    path, line, name = import_
    return f"{path.relative_to(PACKAGE.parent)}:{line} imports {name}"


def rank(unit: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if unit in layer)


def test_every_part_has_its_layer() -> None:
    """Whoever adds a part decides where it stands; whoever removes one says so here."""
    parts = {unit_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert parts == frozenset().union(*LAYERS)


def test_imports_point_down() -> None:
    """A layer knows those below it, and adapters do not know each other."""
    upward = []
    for path, line, name in imports():
        own, other = unit_of(path), name.split(".")[1:2]
        if name.startswith("gateway_sidecar.") and other != ["__version__"]:
            assert own != "__init__", "the package itself imports none of its parts"
            if other != [own] and rank(other[0]) <= rank(own):
                upward.append(shown((path, line, name)))
    assert upward == []


def test_the_rooms_of_the_core_have_their_order() -> None:
    """A reader who knows a room and those below it knows all that the room knows of."""
    core = PACKAGE / "control"
    upward, rooms = [], {path.relative_to(core).parts[0].removesuffix(".py") for path in core.rglob("*.py")}
    for path, line, name in imports():
        if path.is_relative_to(core) and name.startswith("gateway_sidecar.control."):
            own, other = path.relative_to(core).parts[0].removesuffix(".py"), name.split(".")[2]
            if other != own and ROOMS.index(other) <= ROOMS.index(own):
                upward.append(shown((path, line, name)))
    assert upward == []
    assert rooms - {"__init__"} == set(ROOMS)


def test_imports_are_absolute_and_stay_inside() -> None:
    """Relative imports would slip past this test; what is shipped does not need what is not."""
    outside = ("examples", "tests", "bench")
    found = [each for each in imports() if each[2].startswith(".") or each[2].split(".")[0] in outside]
    assert [shown(each) for each in found] == []


WALL_CLOCKS = {"time", "time_ns", "localtime", "gmtime", "ctime", "now", "utcnow", "today", "CLOCK_REALTIME"}


def test_nobody_looks_at_the_wall_clock() -> None:
    """A clock that jumps changes nothing: whatever is decided is decided by the monotonic one."""
    found = []
    for path in of_the_daemon():
        if path in DATED:
            continue
        for node in nodes(path):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in WALL_CLOCKS
                and isinstance(node.value, ast.Name)
                and node.value.id in {"time", "datetime", "date"}
            ):
                found.append(f"{path.relative_to(PACKAGE.parent)}:{node.lineno} {node.value.id}.{node.attr}")
            if isinstance(node, ast.ImportFrom) and node.module in {"time", "datetime"}:
                found.append(f"{path.relative_to(PACKAGE.parent)}:{node.lineno} from {node.module} import ...")
    assert found == []


def test_time_outs_do_not_count_stalls() -> None:
    """`asyncio.timeout` is for pauses that an event of ours may end; what others owe us is bounded by `within`."""
    found = []
    for path in of_the_daemon():
        for node in nodes(path):
            if isinstance(node, ast.AsyncWith) and ast.unparse(node.items[0].context_expr).startswith(
                "asyncio.timeout"
            ):
                first = node.body[0]
                if not (isinstance(first, ast.Expr) and ast.unparse(first).endswith(".wait()")):
                    found.append(f"{path.relative_to(PACKAGE.parent)}:{node.lineno}")
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "asyncio.wait_for":
                found.append(f"{path.relative_to(PACKAGE.parent)}:{node.lineno}")
    assert found == []


def test_nobody_waits_until_an_instant_that_a_stall_may_skip() -> None:
    """Whoever looks again and again until it is too late reckons that by `awake.now`."""
    found = [
        f"{path.relative_to(PACKAGE.parent)}:{node.lineno}"
        for path in of_the_daemon()
        for node in nodes(path)
        if isinstance(node, ast.While) and "monotonic()" in ast.unparse(node.test)
    ]
    assert found == []


def test_no_grpc_library_is_in_the_daemon() -> None:
    """Its threads read whatever an engine sends, write to standard error and may never end (`engines/h2_unary.py`)."""
    assert [shown(each) for each in imports() if each[2].split(".")[0] == "grpc"] == []


def test_the_domain_is_pure() -> None:
    """No clock, no randomness, no I/O: they are passed in."""
    allowed = PURE | {"gateway_sidecar"}
    impure = [each for each in imports() if unit_of(each[0]) == "domain" and each[2].split(".")[0] not in allowed]
    assert [shown(each) for each in impure] == []


def test_the_core_tells_the_time_by_one_clock() -> None:
    """`supervision.awake`, which tests move: nothing in `control/` reads the system's own."""
    found = [
        f"{path.relative_to(PACKAGE.parent)}:{node.lineno}"
        for path in sorted((PACKAGE / "control").rglob("*.py"))
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"time.monotonic", "time.perf_counter"}
    ]
    assert found == []


KNOWN = {
    "gateway_sidecar.engines.external": "what no other engine claims is external",
    "gateway_sidecar.engines.web": "an application is not asked what it is",
    "gateway_sidecar.sources.api": "the API puts what this source shows",
    "gateway_sidecar.sources.inventory": "`schema` prints that of its files",
}
"""Kinds of ours that others than `kinds.py` know, and why. A new kind needs no line here."""


@pytest.mark.parametrize("registry", [ENGINES, SOURCES], ids=lambda registry: registry.group)
def test_a_new_kind_touches_one_file_that_is_there(registry: Registry[Any]) -> None:
    """Its own file is new, and `kinds.py` names it. Another package's needs not even that."""
    ours = {f"{registry.group}.{module}" for module in registry._modules}
    known = {name for name in ours for _, _, imported in imports() if f"{imported}.".startswith(f"{name}.")}
    assert known == {name for name in KNOWN if name.startswith(f"{registry.group}.")}


def test_what_holds_of_every_router_names_no_kind() -> None:
    """What is true of SMG alone stands in `routers/smg`, where it is changed with that."""
    general = [path for room in ("config", "domain") for path in (PACKAGE / room).rglob("*.py")]
    assert [path.name for path in general if "SMG" in path.read_text("utf-8")] == []


def test_every_task_is_guarded() -> None:
    """A task that nobody awaits is made by `supervision.loops`; where one is made by hand, its maker awaits it."""
    awaited_by_their_makers = {
        "api/replicas.py: _drained",
        "control/autoscaling/collector.py: Signals.run",
        "control/autoscaling/shared_reads.py: SharedReads.read",
        "control/edge/frontends.py: Frontends.look",
        "control/edge/frontends.py: Frontends.run",
        "control/edge/nginx_supervisor.py: NginxSupervisor._ask",
        "control/edge/nginx_supervisor.py: NginxSupervisor._watch",
        "control/process/daemon.py: Daemon._until_ending",
        "control/process/services.py: Services.start",
        "control/replicas/reflector.py: Reflector.follow_hints",
        "control/routers/process.py: RouterProcess._start",
        "control/routers/process.py: RouterProcess._until_lost",
        "control/routers/unit.py: RouterUnit._run",
        "control/service.py: Service.run",
        "engines/probe.py: _FirstSight._at_once",
        "sources/listing.py: MergedSources._look_at_each",
        "sources/listing.py: MergedSources.hints",
        "supervision/loops.py: Tasks._keep",
        "supervision/loops.py: beating",
        "tunnels/asyncssh_process.py: _serve",
        "tunnels/connection.py: SshConnection._keep",
    }
    makers = {
        f"{path.relative_to(PACKAGE)}: {function_of(path, node)}"
        for path in of_the_daemon()
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and node.attr in {"create_task", "ensure_future"}
    }
    assert makers == awaited_by_their_makers


def test_what_the_event_loop_calls_in_the_core_is_guarded() -> None:
    """Law 15, for callbacks. Some do nothing that can fail, or are called again whatever happens; why is said here."""
    known = {
        "autoscaling/hook.py: self._read": "reads a pipe, and is called for what it left there",
        "autoscaling/shared_reads.py: partial(self._done, key)": "forgets a task that ended",
        "edge/frontends.py: self._look_now.set": "sets an event",
        "replicas/asking.py: end": "wakes who waits",
        "replicas/asking.py: self._read_all": "each answer is read under a guard of its own",
        "routers/replacement.py: self._retired": "releases a lock, and enqueues a key",
        "routers/workers.py: self._on_silence": "enqueues a key",
    }
    callback_at = {"call_later": 1, "call_at": 1, "call_soon": 0, "add_reader": 1, "add_done_callback": 0}
    callback_at["connect_liveness"] = 1
    core = PACKAGE / "control"
    found = {
        f"{path.relative_to(core)}: {ast.unparse(node.args[place])}"
        for path in sorted(core.rglob("*.py"))
        for node in nodes(path)
        if isinstance(node, ast.Call)
        and (place := callback_at.get(ast.unparse(node.func).rpartition(".")[2])) is not None
    }
    assert {it for it in found if ": self._tasks.guarded(" not in it} == known.keys()


WRITERS = {
    "notes": "notes.py",
    "probe": "prober.py",
    "liveness": "liveness.py",
    "bridge": "bridging.py",
    "drain": "drain.py",
    "status": "reporting.py",
}
"""Which module of `control/replicas/` writes which record of a tenure, once the tenure has begun."""
OF_THE_TENURE = {"sighting", "handle", "presence", "gone_because"}
"""Its own fields, which change and are no record: the registry writes them."""
CHANGES = {"set", "clear", "cancel", "abort"}
"""Methods of what stands in a record that change it."""


def _assigned(path: Path) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """(target, value) of each assignment in a module, those in a row one by one."""
    for node in nodes(path):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                targets = getattr(target, "elts", [target])
                yield from zip(targets, getattr(node.value, "elts", [node.value] * len(targets)), strict=False)
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            yield node.target, node.value


def _record_in(expression: ast.expr, names: Mapping[str, str]) -> str | None:
    """The record that something stands in: `tenure.drain.done`, or `drain.done` where `drain = tenure.drain`."""
    while isinstance(expression, ast.Attribute):
        expression = expression.value
        if isinstance(expression, ast.Attribute) and expression.attr in WRITERS:
            return expression.attr
    return names.get(ast.unparse(expression))


def test_each_record_of_a_tenure_has_one_writer() -> None:
    """Who wants to know what made a value what it is has one module to read. A name for a record is that record."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        names = {
            target.id: value.attr
            for target, value in _assigned(path)
            if isinstance(target, ast.Name) and isinstance(value, ast.Attribute) and value.attr in WRITERS
        }
        changed = [target for target, _ in _assigned(path)] + [
            node.func.value
            for node in nodes(path)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES
        ]
        for what in changed:
            if isinstance(what, ast.Attribute) and not ast.unparse(what).startswith("self."):
                record = _record_in(what, names)
                is_its_own = what.attr in OF_THE_TENURE and record is None
                writer = "registry.py" if is_its_own else WRITERS.get(record or "")
                if writer is not None and path.name != writer:
                    found.append(f"{path.relative_to(PACKAGE.parent)}:{what.lineno} {ast.unparse(what)}")
    assert found == []


def test_files_are_replaced_in_one_place() -> None:
    """Half a file is never seen: `files/replace.py` alone writes files, moves them into place and makes links."""
    others = {
        "api/unix_server.py": "a socket, which is bound and not written",
        "control/state/api_replicas.py": "put aside, under a name that nothing has",
        "control/state/usage_store.py": "put aside, under a name that nothing has",
    }
    writes = {
        "write_text",
        "write_bytes",
        "rename",
        "symlink_to",
        "hardlink_to",
        "os.replace",
        "os.rename",
        "os.symlink",
    }
    found = {
        str(path.relative_to(PACKAGE))
        for path in of_the_daemon()
        for node in nodes(path)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (
            {node.func.attr, ast.unparse(node.func)} & writes
            or (node.func.attr == "replace" and len(node.args) == 1 and not node.keywords)
        )
    }
    assert found <= {"files/replace.py", *others}, found


_OF_THE_CORE = re.compile(r"(?m)^from gateway_sidecar\.(control[.\w]*) import (?:\(([^)]*)\)|(.*))$")


def test_every_module_of_the_core_has_unit_tests() -> None:
    """They import it, or are named after it: `replicas/drain.py` is tested by `test_drain.py`, in the played world."""
    tests = sorted(Path(__file__).parent.glob("test_*.py"))
    named, imported = {path.stem for path in tests}, set()
    for path in tests:
        for module, several, one in _OF_THE_CORE.findall(path.read_text()):
            imported |= {module, *(f"{module}.{name}" for name in re.findall(r"\w+", several or one))}
    untested = [
        path.relative_to(PACKAGE).as_posix()
        for path in sorted((PACKAGE / "control").rglob("*.py"))
        if _does_something(path)
        and not named & {f"test_{path.stem}", f"test_{path.parent.name}_{path.stem}"}
        and ".".join(path.relative_to(PACKAGE).with_suffix("").parts) not in imported
    ]
    assert untested == []


def _does_something(path: Path) -> bool:
    """Whether it is more than values and protocols: some function of it has a body."""
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and ast.unparse(node.body[-1]) != "..."
        for node in nodes(path)
    )
