"""One inventory file: which replicas there are, where, and what is noted of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from gateway_sidecar.config.explain import explain
from gateway_sidecar.config.load import FileText, read_file
from gateway_sidecar.config.overrides import OverridesFile, read_key, with_key
from gateway_sidecar.config.tunnels import PlainPathValue, SshDefaults, SshReplica, parse_id, tunnel_to
from gateway_sidecar.config.yamltree import Location, Problem, Tree, read_tree
from gateway_sidecar.domain.model import Overrides, ReplicaId
from gateway_sidecar.domain.tunnels import Tunnel
from gateway_sidecar.errors import ConfigError

_MOST_BYTES = 8 * 1024 * 1024


class InventoryEntry(OverridesFile):
    """One replica of an inventory: `socket` or `ssh`, and the notes that a `<replica>.yaml` may carry."""

    socket: PlainPathValue | None = Field(
        default=None, description="Path of its Unix socket on this machine.", examples=["/run/replicas/r1.sock"]
    )
    ssh: SshReplica | None = Field(default=None, description="Where it is, for the daemon to open a tunnel.")


@dataclass(frozen=True, slots=True)
class Described:
    """One replica as a source describes it: a socket of somebody's, or a tunnel of ours."""

    place: Path | Tunnel
    overrides: Overrides


def read_inventory(
    path: Path, service: str, defaults: SshDefaults, warn: Callable[[str], object] = lambda _line: None
) -> Mapping[ReplicaId, Described]:
    """Reads one file. An empty one lists nobody. Raises ConfigError with a line for each mistake. Blocks."""
    file = read_file(path, _MOST_BYTES)
    # JSON is YAML, but for tabs between its tokens; in its texts it has none.
    tree = read_tree(file.content.replace(b"\t", b" ") if path.suffix == ".json" else file.content)
    problems = list(tree.problems)
    if tree.data is not None and not isinstance(tree.data, dict) and not problems:
        problems.append(Problem(tree.line(()), "", "is not a mapping at the top; write `id: {socket: /path}` lines"))
    found: dict[ReplicaId, Described] = {}
    if isinstance(tree.data, dict):
        for replica, entry in _entries(tree):
            further: list[Problem] = []
            described = describe(path, file, f"{service}/{replica}", entry, defaults, further, warn)
            where = re.sub(r"\n.*", "", replica)
            problems += [Problem(p.line, f"{where}.{p.where}" if p.where else where, p.text) for p in further]
            if described is not None:
                found[ReplicaId(replica)] = described
    if problems:
        unique = dict.fromkeys(sorted(problems, key=lambda problem: problem.line or 0))
        raise ConfigError([problem.render(str(path)) for problem in unique])
    return found


def _entries(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """Each entry as a tree of its own."""
    assert isinstance(tree.data, dict)
    trees = {replica: Tree(data=entry) for replica, entry in tree.data.items()}

    def below(location: Location) -> Tree | None:
        return trees.get(str(location[0])) if location else None

    for location, place in tree.places.items():
        if (part := below(location)) is not None:
            part.places[location[1:]] = place
    for location, line in tree.key_lines.items():
        if (part := below(location)) is not None:
            part.key_lines[location[1:]] = line
    for location in tree.unread:
        if (part := below(location)) is not None:
            part.unread.add(location[1:])
    yield from trees.items()


def describe(
    path: Path,
    file: FileText,
    owner: str,
    tree: Tree,
    defaults: SshDefaults,
    problems: list[Problem],
    warn: Callable[[str], object],
) -> Described | None:
    """What one entry says, if it can be used; else `problems` tell. `owner` is SERVICE/REPLICA. Blocks."""
    line = tree.line(())
    key = read_key(path, file, tree, problems, warn)
    try:
        parse_id(owner.partition("/")[2])
        said = InventoryEntry.model_validate({} if tree.data is None else tree.data)
        place = _place(said, owner, defaults)
    except ValidationError as error:
        found = [detail for detail in error.errors() if tuple(detail["loc"]) not in tree.unread]
        problems += [explain(detail, InventoryEntry, tree) for detail in found]
        return None
    except ValueError as error:
        problems.append(Problem(line, "", str(error)))
        return None
    return Described(place, with_key(said, key))


def _place(said: InventoryEntry, owner: str, defaults: SshDefaults) -> Path | Tunnel:
    if said.direct and said.advertise is None:
        raise ValueError("has `direct: true`, but not where this machine reaches the replica; add advertise: HOST:PORT")
    if said.ssh is not None and said.socket is None:
        return tunnel_to(owner, said.ssh, defaults)
    if said.socket is not None and said.ssh is None:
        return Path(said.socket)
    raise ValueError("needs one place; give it either `socket` or `ssh`")
