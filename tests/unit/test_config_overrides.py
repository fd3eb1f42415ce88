from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway_sidecar.config import HealthSettings, load_overrides
from gateway_sidecar.config.values import show
from gateway_sidecar.domain.model import Access, Overrides, PeerAddress, WorkerType
from gateway_sidecar.errors import ConfigError


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    return tmp_path / "r1.yaml"


def problems(path: Path, socket_owner: int | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_overrides(path, os.geteuid() if socket_owner is None else socket_owner)
    return [line.replace(str(path), "r1.yaml") for line in caught.value.problems]


def write_key(beside: Path, content: bytes = b"sk-123\n", mode: int = 0o600) -> Path:
    key = beside.parent / "r1.key"
    key.write_bytes(content)
    key.chmod(mode)
    return key


def test_everything_that_can_be_said(beside: Path) -> None:
    """Labels, the engine's key, its part, priority and cost; the key is stripped and never printed."""
    write_key(beside)
    beside.write_text(
        "labels: {rack: b7, zone: '1'}\napi_key_file: r1.key\nworker_type: decode\npriority: 10\ncost: 2\n"
    )
    overrides = load_overrides(beside, os.geteuid())
    assert overrides == Overrides({"rack": "b7", "zone": "1"}, "sk-123", WorkerType.DECODE, 10, 2.0)
    assert "sk-123" not in repr(overrides)


def test_how_an_engine_is_reached_and_asked(beside: Path) -> None:
    """A prefix with a version stands for `/v1`, another one before it; what is not said is as for the service."""
    beside.write_text("health: {path: /ping, expect: ok, prefix: /openai}\nmodel: m\n")
    said = load_overrides(beside, os.geteuid())
    assert said.health == Access("/ping", "ok", "/openai/v1")
    beside.write_text("health: {prefix: /v3}\n")
    assert load_overrides(beside, os.geteuid()).health.at("/v1/models") == "/v3/models"
    usual = HealthSettings.model_validate({"prefix": "/v2", "tls": True}).access()
    assert said.access(usual) == Access("/ping", "ok", "/openai/v1", True, None, "m")


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}\n"])
def test_a_file_that_says_nothing_changes_nothing(beside: Path, text: str) -> None:
    """An empty file is a file about to be written."""
    beside.write_text(text)
    assert load_overrides(beside, os.geteuid()) == Overrides()


def test_every_mistake_at_once(beside: Path) -> None:
    """The same style as the configuration's: line, path, value, cure."""
    beside.write_text(
        "labels: {rack: 7, 'a b': x}\napi_key_file: missing.key\nworker_typ: decode\npriority: -1\ncost: 0\n"
        "worker_type: Decode\n"
    )
    key = beside.parent.resolve() / "missing.key"
    assert problems(beside) == [
        "r1.yaml:1: labels.rack: 7 is a number to YAML, not a text; quote it: '7'",
        f"r1.yaml:2: api_key_file: {show(str(key))} no such file; create it",
        "r1.yaml:3: worker_typ: unknown setting; did you mean 'worker_type'?",
        "r1.yaml:4: priority: -1 is too small; use 0 to 4294967295",
        "r1.yaml:5: cost: 0 is too small; use more than 0 and at most 1000000",
        "r1.yaml:6: worker_type: 'Decode' is not one of the choices (did you mean 'decode'?); use regular,"
        " prefill, decode or encode",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n", "r1.yaml:1: is not a mapping at the top; write lines such as `priority: 10`"),
        ("labels: {'a b': x}\n", "r1.yaml:1: labels: 'a b' is not a label's name; use letters"),
        ('labels: {a: "\\ud800"}\n', "r1.yaml:1: labels: '\\ud800' is not a label's value; use characters"),
        ('labels: {a: "\\e[2J"}\n', "r1.yaml:1: labels: '\\x1b[2J' is not a label's value; use characters"),
        ("health: {path: ping}\n", "r1.yaml:1: health.path: 'ping' is not a path that can be asked for; use one"),
        ("health: {prefix: /v3/}\n", "r1.yaml:1: health.prefix: '/v3/' is not a path that can be matched; use"),
        ("health: {tls: 'yes'}\n", "r1.yaml:1: health.tls: 'yes' is neither true nor false; use true or false"),
        ("health: {expect: ''}\n", "r1.yaml:1: health.expect: '' is empty; use a text"),
        (
            'kv_connector: "a\\nb"\n',
            "r1.yaml:1: kv_connector: 'a\\nb' cannot be passed on; use ASCII that can be printed",
        ),
        ("model: 7\n", "r1.yaml:1: model: 7 is a number to YAML, not a text; quote it: '7'"),
        ("model: []\n", "r1.yaml:1: model: has 0 names; use a name, or a list of"),
        ("model: [a, [b]]\n", "r1.yaml:1: model: ['b'] is no name; use a name, or a list of"),
        ("model: [a, ' b']\n", "r1.yaml:1: model: ' b' is not a name that can be passed on; use a name"),
        ("health: {interval_s: 3}\n", "r1.yaml:1: health.interval_s: unknown setting"),
        ("direct: true\nadvertise: 10.0.0.5:80\nhealth: {tls: true}\n", "r1.yaml:1: has `direct: true`, and without"),
        ("labels: x\n", "r1.yaml:1: labels: 'x' is not a mapping; write `key: value` lines below it"),
        (
            "priority: 1\npriority: 2\n",
            "r1.yaml:2: priority: is given twice, first in line 1; keep one of them",
        ),
        ("a: [\n", "r1.yaml:2: is not YAML: "),
        ("#" * 65537, "r1.yaml: is larger than 64 KiB"),
        (
            "labels: {" + ", ".join(f"l{n}: x" for n in range(65)) + "}\n",
            "r1.yaml:1: labels: 65 labels are too",
        ),
    ],
)
def test_a_file_that_cannot_be_used_says_why(beside: Path, text: str, expected: str) -> None:
    """Whoever placed the socket wrote it, not the gateway's operator: say it well."""
    beside.write_text(text)
    (found,) = problems(beside)
    assert found.startswith(expected)


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"one\ntwo", b"caf\xc3\xa9", b"x" * 8193])
def test_a_key_that_no_header_can_carry_is_refused(beside: Path, content: bytes) -> None:
    """The key becomes an HTTP header as it stands; it is not shown in the message."""
    write_key(beside, content)
    beside.write_text("\napi_key_file: r1.key\n")
    (found,) = problems(beside)
    assert found.startswith("r1.yaml:2: api_key_file: ")
    assert "two" not in found


def test_a_key_that_others_can_read_is_used_with_a_warning(beside: Path) -> None:
    """It is unwise, and it is not ours to break the service for it."""
    write_key(beside, mode=0o644)
    beside.write_text("api_key_file: r1.key\n")
    warnings: list[str] = []
    assert load_overrides(beside, os.geteuid(), warnings.append).api_key == "sk-123"
    assert len(warnings) == 1
    assert "may be read by others (mode 0644); use chmod 0600" in warnings[0]


def test_an_absolute_key_path_is_taken_as_it_is(beside: Path, tmp_path: Path) -> None:
    """Keys may be kept elsewhere."""
    key = write_key(beside)
    beside = tmp_path / "sub" / "r2.yaml"
    beside.parent.mkdir()
    beside.write_text(f"api_key_file: {key}\n")
    assert load_overrides(beside, os.geteuid()).api_key == "sk-123"


def test_a_link_is_read_as_if_it_stood_where_it_leads(beside: Path, tmp_path: Path) -> None:
    """A link must not choose which key another user's file names."""
    real = tmp_path / "real" / "r1.yaml"
    real.parent.mkdir()
    real.write_text("api_key_file: r1.key\n")
    write_key(beside, b"of-the-link")
    write_key(real, b"of-the-file")
    beside.symlink_to(real)
    assert load_overrides(beside, os.geteuid()).api_key == "of-the-file"


def test_a_key_file_that_blocks_or_is_missing_is_one_problem(beside: Path) -> None:
    """A FIFO would hold the daemon for ever."""
    os.mkfifo(beside.parent / "r1.key")
    beside.write_text("api_key_file: r1.key\n")
    (found,) = problems(beside)
    assert "is not a regular file" in found


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
def test_nobody_lends_himself_another_users_secret(beside: Path) -> None:
    """The daemon may read more than the user who places sockets; it must not hand that to his engine."""
    key = write_key(beside)
    beside.write_text("api_key_file: r1.key\n")
    os.chown(beside, 4711, 4711)
    (found,) = problems(beside, 4711)
    assert found.endswith("belongs to user 0, this file to 4711; give both one owner")
    os.chown(key, 4711, 4711)
    assert load_overrides(beside, 4711).api_key == "sk-123"


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
def test_notes_count_for_a_socket_of_their_owner(beside: Path) -> None:
    """Whoever binds r1.sock while r1 is away does not get what r1's user wrote; nor by a link of his."""
    key = write_key(beside)
    beside.write_text("api_key_file: r1.key\n")
    beside.chmod(0o600)
    for path in (beside, key):
        os.chown(path, 4711, 4711)
    (found,) = problems(beside, 4712)
    assert "belongs to user 4711, and the socket beside it to user 4712" in found
    evil = beside.with_name("evil.yaml")
    evil.symlink_to(beside.name)
    os.chown(evil, 4712, 4712, follow_symlinks=False)
    (found,) = problems(evil, 4712)
    assert "belongs to user 4711, and the socket beside it to user 4712" in found
    assert load_overrides(beside, 4711).api_key == "sk-123"


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
def test_roots_notes_name_a_key_where_nobody_else_can_place_the_socket(beside: Path) -> None:
    """Without a key they count anywhere; nobody leads to them by a link of his own."""
    write_key(beside)
    beside.write_text("api_key_file: r1.key\n")
    beside.chmod(0o640)
    beside.parent.chmod(0o755)
    assert load_overrides(beside, 4711).api_key == "sk-123"
    beside.parent.chmod(0o3775)
    (found,) = problems(beside, 4711)
    assert "users other than its owner may write in" in found
    assert "anyone who places that socket would be sent its key; give the file and its key to user 4711" in found
    evil = beside.with_name("evil.yaml")
    evil.symlink_to(beside.name)
    os.chown(evil, 4711, 4711, follow_symlinks=False)
    assert "is a link of user 4711 that leads to" in problems(evil, 4711)[0]
    beside.write_text("priority: 3\n")
    assert load_overrides(beside, 4711).priority == 3


def test_notes_that_others_may_change_name_no_key(beside: Path) -> None:
    """They could name another address for it."""
    write_key(beside)
    beside.write_text("api_key_file: r1.key\n")
    beside.chmod(0o664)
    (found,) = problems(beside)
    assert found.startswith("r1.yaml:1: api_key_file: users other than its owner may change")
    beside.write_text("priority: 3\n")
    assert load_overrides(beside, os.geteuid()).priority == 3


def test_notes_that_are_no_file_hold_nobody_up(beside: Path) -> None:
    """A pipe without a writer is opened and told of."""
    os.mkfifo(beside)
    (found,) = problems(beside)
    assert "is not a regular file" in found


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("advertise: 10.0.0.5:8000", PeerAddress("10.0.0.5", 8000)),
        ("advertise: '[fd00:0::5]:8000'", PeerAddress("fd00::5", 8000)),
        ("advertise: 10.0.0.5:8000\ndirect: true", PeerAddress("10.0.0.5", 8000, direct=True)),
        ("advertise: 10.0.0.5:8000\ndirect: false", PeerAddress("10.0.0.5", 8000)),
        ("direct: false", None),
    ],
)
def test_where_peers_find_it(beside: Path, text: str, peer: PeerAddress | None) -> None:
    """An address of its own, in one spelling."""
    beside.write_text(text + "\n")
    assert load_overrides(beside, os.geteuid()).peer == peer


def test_mistakes_in_an_address(beside: Path) -> None:
    """A name is no address; `direct` alone does not say where."""
    beside.write_text("advertise: gpu7:8000\n")
    (said,) = problems(beside)
    assert said.startswith("r1.yaml:1: advertise: 'gpu7:8000': host 'gpu7' is not an IP address")
    beside.write_text("advertise: 0.0.0.0:8000\n")
    (said,) = problems(beside)
    assert "is not the address of a single machine" in said
    beside.write_text("priority: 1\ndirect: true\n")
    assert problems(beside) == [
        "r1.yaml:2: direct: true needs the address at which this machine reaches the replica; add advertise: HOST:PORT"
    ]


def test_where_the_bootstrap_server_is(beside: Path) -> None:
    """vLLM does not say it."""
    beside.write_text("bootstrap_port: 9001\n")
    assert load_overrides(beside, os.geteuid()).bootstrap_port == 9001
    beside.write_text("bootstrap_port: 0\n")
    assert problems(beside) == ["r1.yaml:1: bootstrap_port: 0 is too small; use 1 to 65535"]


@pytest.mark.parametrize(
    ("lines", "role", "worker_type"),
    [
        ("kv_role: kv_producer", "kv_producer", WorkerType.PREFILL),
        ("kv_role: kv_consumer", "kv_consumer", WorkerType.DECODE),
        ("kv_role: kv_producer\nworker_type: prefill", "kv_producer", WorkerType.PREFILL),
        ("kv_role: kv_both", "kv_both", None),
        ("kv_role: kv_both\nworker_type: decode", "kv_both", WorkerType.DECODE),
    ],
)
def test_a_kv_role_is_the_workers_role(beside: Path, lines: str, role: str, worker_type: WorkerType | None) -> None:
    """A producer prefills and a consumer decodes; one that is both may be either."""
    beside.write_text(f"kv_connector: NixlConnector\nkv_engine_id: e1\n{lines}\n")
    found = load_overrides(beside, os.geteuid())
    assert (found.kv_connector, found.kv_role, found.kv_engine_id) == ("NixlConnector", role, "e1")
    assert found.worker_type is worker_type


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "worker_type: decode\nkv_role: kv_producer",
            "r1.yaml:2: kv_role: 'kv_producer' is a prefill worker, but worker_type says decode; leave out the one that"
            " is wrong",
        ),
        (
            "kv_role: kv_consumer\nworker_type: regular",
            "r1.yaml:1: kv_role: 'kv_consumer' is a decode worker, but worker_type says regular; leave out the one that"
            " is wrong",
        ),
        (
            "kv_role: producer",
            "r1.yaml:1: kv_role: 'producer' is not one of the choices (did you mean 'kv_producer'?); use kv_producer,"
            " kv_consumer or kv_both",
        ),
        ("kv_connector: ''", "r1.yaml:1: kv_connector: "),
        ("kv_engine_id: 7", "r1.yaml:1: kv_engine_id: 7 is a number to YAML, not a text; quote it: '7'"),
    ],
)
def test_a_kv_role_that_cannot_be_is_told(beside: Path, lines: str, expected: str) -> None:
    beside.write_text(f"{lines}\n")
    (said,) = problems(beside)
    assert said.startswith(expected)
