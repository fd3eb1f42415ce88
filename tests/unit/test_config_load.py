from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from gateway_sidecar.config import Endpoint, PortRange, load_config, load_usable, parse_config
from gateway_sidecar.config.places import Places, find_places
from gateway_sidecar.errors import ConfigError
from tests.smg import smg_of
from tests.users import DAEMON

MINIMAL = """\
services:
  - name: chat
    listen: 127.0.0.1:30000
    replicas:
      sockets: /run/replicas/chat/{replica}.sock
"""

TEN_MISTAKES = """\
state_dir: var/lib
rescan_interval_s: -1
bridges:
  ports: 24001-99999
services:
  - name: Chat
    listen: 127.0.0.1:30000
    replica:
      sockets: /run/replicas/chat/{replica}.sock
    router:
      policy: cache-aware
      args: [--port, "1"]
  - name: embed
    name: embed
    listen: localhost:30000
    replicas: {sockets: "/run/replicas/embed/{replica}.sock"}
    drain: {timeout_s: soon}
"""


def problems(text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "c.yaml")
    return caught.value.problems


def test_five_lines_make_a_whole_configuration() -> None:
    """Every setting but the service's own has a sane default."""
    settings = parse_config(MINIMAL)
    assert settings.state_dir == Path("/var/lib/gateway-sidecar")
    assert settings.run_dir == Path("/run/gateway-sidecar")
    assert settings.bridges.ports == PortRange(24001, 24999)
    assert settings.metrics.listen == Endpoint("127.0.0.1", 9464)
    (chat,) = settings.services
    assert (chat.name, chat.listen) == ("chat", Endpoint("127.0.0.1", 30000))
    assert smg_of(chat).policy == "cache_aware"
    assert smg_of(chat).args == ()
    assert chat.replicas.model_dump()["sockets"] == "/run/replicas/chat/{replica}.sock"


def test_ten_mistakes_get_ten_lines_in_one_go() -> None:
    """Every problem at once, each with its line, in the file's order; between settings as well."""
    assert problems(TEN_MISTAKES) == [
        "c.yaml:1: state_dir: 'var/lib' is relative, and a daemon has no current directory to begin from;"
        " use an absolute path such as /var/lib/gateway-sidecar",
        "c.yaml:2: rescan_interval_s: -1 is too small; use 0.2 to 60 seconds",
        "c.yaml:4: bridges.ports: '24001-99999' leaves the port range; use 1-65535",
        "c.yaml:6: services[0].name: 'Chat' is not a service name; use a-z, 0-9 and -, beginning and ending"
        " with a letter or digit, 63 characters at most",
        "c.yaml:6: services[0].replicas: is missing; add it",
        "c.yaml:8: services[0].replica: unknown setting; did you mean 'replicas'?",
        "c.yaml:11: services[0].router.policy: 'cache-aware' is not one of the choices (did you mean"
        " 'cache_aware'?); use random, round_robin, passthrough, cache_aware, power_of_two, least_load,"
        " manual,"
        " consistent_hashing or prefix_hash",
        "c.yaml:12: services[0].router.args[0]: '--port' is the daemon's own; leave it out: the daemon"
        " gives the"
        " router its private address; clients use `listen`",
        "c.yaml:14: services[1].name: is given twice, first in line 13; keep one of them",
        "c.yaml:15: services[1].listen: 127.0.0.1:30000 is taken by services[0].listen (line 7); give each"
        " its"
        " own address or port",
        "c.yaml:17: services[1].drain.timeout_s: 'soon' is not a number; use 0 to 86400 seconds",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("log: {level: warn}", "log.level: 'warn' is not one of the choices (did you mean 'warning'?); use "),
        ("log:", "log: is empty; give it a value, or leave the line out for the default"),
        ("log: json", "log: 'json' is not a mapping; write `key: value` lines below it"),
        ("loog: {}", "loog: unknown setting; did you mean 'log'?"),
        ("policy: random", "policy: unknown setting here; it belongs under services[].router"),
        ("colour: red", "colour: unknown setting; use one of state_dir, run_dir, log, access_log"),
        ("bridges: {ports: []}", "bridges.ports: a list cannot stand here; use FIRST-LAST"),
        (
            "nginx: {command: true}",
            "nginx.command: true is true or false to YAML, not a text; quote it: 'true'",
        ),
        ("nginx: {command: bin/nginx}", "nginx.command: 'bin/nginx' is a relative path"),
        ("nginx: {command: nginx -g x}", "nginx.command: 'nginx -g x' is not one program's name"),
        (
            "nginx: {workers: 0}",
            "nginx.workers: 0 is not a number of processes; use auto, or",
        ),
        ("bridges: {nginx_workers: 1}", "bridges.nginx_workers: unknown setting; use one of host, grpc_host, paths"),
        ("bridges: {max_bodies_mb: 64}", "bridges.max_bodies_mb: unknown setting here; it belongs under nginx"),
        ("bridges: {nginx: nginx}", "bridges.nginx: unknown setting here; it belongs at the top of the file"),
        ("bridges: {host: 0.0.0.0}", "bridges.host: '0.0.0.0' stands for every address, and the router needs one"),
        ("metrics: {listen: gateway1:9464}", "metrics.listen: 'gateway1:9464': host 'gateway1' is not an IP"),
        ("rescan_interval_s: .nan", "rescan_interval_s: .nan is not a finite number; use 0.2 to 60 seconds"),
        ("rescan_interval_s: '2'", "rescan_interval_s: '2' is not a number; use 0.2 to 60 seconds"),
        ("rescan_interval_s: 3600", "rescan_interval_s: 3600 is too large; use 0.2 to 60 seconds"),
        ("rescan_interval_s: yes", "rescan_interval_s: yes is not a number; use 0.2 to 60 seconds"),
        ("router_ports: 23001", "router_ports: 23001 is too small for 1 services; use at least 4 ports"),
        (
            "run_dir: /run/with space",
            "run_dir: '/run/with space' holds ' ', which nginx's configuration cannot",
        ),
        ("run_dir: ~/run", "run_dir: '~/run' begins with ~, which only a shell replaces"),
        ("state_dir: /", "state_dir: '/' cannot belong to the daemon alone"),
        ("state_dir: /var/../x", "state_dir: '/var/../x' holds '..'; write the path that it leads to"),
        ("state_dir: ''", "state_dir: is an empty text"),
    ],
)
def test_each_mistake_says_what_is_wrong_and_the_cure(line: str, expected: str) -> None:
    """A person understands the line without the documentation."""
    (found,) = problems(f"{line}\n{MINIMAL}")
    assert found.startswith(f"c.yaml:1: {expected}")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("name: no", "name: no is true or false to YAML, not a text; quote it: 'no'"),
        ("name: 42", "name: 42 is a number to YAML, not a text; quote it: '42'"),
        ("router: {env: {PORT: 8080}}", "router.env.PORT: 8080 is a number to YAML, not a text; quote it"),
        ("router: {env: {A=B: x}}", "router.env: 'A=B' is not a variable's name"),
        ("router: {args: --log-dir}", "router.args: '--log-dir' is not a list; write a list, one `- item`"),
        ("router: {args: [7]}", "router.args[0]: 7 is a number to YAML, not a text; quote it: '7'"),
        ("router: {args: [--host=0.0.0.0]}", "router.args[0]: '--host' is the daemon's own; leave it out:"),
        ("router: {args: [--pol, x]}", "router.args[0]: '--pol' (short for --policy) is the daemon's own"),
        ("router: {args: [--worker-urls]}", "router.args[0]: '--worker-urls' is the daemon's own"),
        (
            "router: {args: [--pd-disaggregation]}",
            "router.args[0]: '--pd-disaggregation' is the daemon's own",
        ),
        ("router: {models: many}", "router.models: unknown setting"),
        ("router: {type: vllm}", "router.type: 'vllm' is not one of the choices; use smg"),
        ("health: {failures: 0}", "health.failures: 0 is too small; use 1 to 100"),
        ("health: {failures: 2.5}", "health.failures: 2.5 is not a whole number; use 1 to 100"),
        ("health: {failures: true}", "health.failures: true is not a whole number; use 1 to 100"),
        ("refused: {over_s: 61}", "refused.over_s: 61 is too large; use 0 to 60 seconds"),
        ("policy: random", "policy: unknown setting here; it belongs under services[0].router"),
        (
            "listen: 30000",
            "listen: 30000 has no host; use 127.0.0.1:30000, or 0.0.0.0:30000 for all interfaces",
        ),
    ],
)
def test_a_services_mistake_names_the_service_and_the_line(line: str, expected: str) -> None:
    """The path leads to the setting, with the service's index."""
    kept = [kept for kept in MINIMAL.splitlines() if line.split(":")[0] not in kept]
    kept = [part.replace("  - listen", "    listen") for part in kept if part != "services:"]
    body = "\n".join(part.replace("  - ", "    ") for part in kept)
    (found,) = problems(f"services:\n  - {line}\n{body}\n")
    assert found.startswith(f"c.yaml:2: services[0].{expected}")


def test_missing_services_are_asked_for() -> None:
    """A daemon with nothing to do is a mistake."""
    assert problems("log: {}\n") == ["c.yaml:1: services: is missing; add it"]
    assert problems("services: []\n") == ["c.yaml:1: services: is empty; list at least one service"]
    (found,) = problems("services: {name: chat}\n")
    assert found == "c.yaml:1: services: a mapping cannot stand here; write a list, one `- item` to a line"


def test_metrics_can_be_turned_off() -> None:
    """null means off, wherever an operator would write it; silence means the default."""
    for line in ("metrics: null", "metrics:", "metrics: off", "metrics: {listen: null}"):
        assert parse_config(f"{line}\n{MINIMAL}").metrics.listen is None
    assert parse_config(f"metrics: {{}}\n{MINIMAL}").metrics.listen == Endpoint("127.0.0.1", 9464)


def test_equal_files_give_equal_settings() -> None:
    """A reload compares settings: the spelling of a value does not count, the value does."""
    one = parse_config(MINIMAL)
    same = parse_config(MINIMAL.replace("127.0.0.1:", "localhost:") + "    drain: {timeout_s: 600}\n")
    other = parse_config(MINIMAL + "    drain: {timeout_s: 601}\n")
    assert one == same
    assert one != other
    assert one.model_copy(update={"services": ()}) == other.model_copy(update={"services": ()})


def test_settings_are_frozen() -> None:
    """Nobody changes the configuration behind the loop's back."""
    settings = parse_config(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        settings.rescan_interval_s = 5.0


def test_secrets_in_the_environment_stay_out_of_logs() -> None:
    """A settings value may be printed."""
    settings = parse_config(MINIMAL + "    router: {env: {HF_TOKEN: s3cret}}\n")
    assert settings.services[0].router.env == {"HF_TOKEN": "s3cret"}
    assert "s3cret" not in repr(settings)


def test_a_file_is_loaded_and_named_in_its_problems(tmp_path: Path) -> None:
    """Each line begins with the path as it was given, so that an editor can jump there."""
    path = tmp_path / "gateway.yaml"
    path.write_text(MINIMAL)
    assert load_config(path) == parse_config(MINIMAL)
    path.write_text("x: 1\n" + MINIMAL)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.problems[0].startswith(f"{path}:1: x: unknown setting")


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    """Missing, a directory, a FIFO without a writer, too large: one line each, and no waiting."""

    def problem(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        (line,) = caught.value.problems
        return line.removeprefix(f"{path}: ")

    assert problem(tmp_path / "no") == "no such file; create it, or name another with --config"
    assert problem(tmp_path) == "is a directory; name the file in it"
    os.mkfifo(tmp_path / "fifo")
    assert problem(tmp_path / "fifo") == "is not a regular file; copy it into one"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert problem(tmp_path / "loop").startswith("cannot be opened: ")
    (tmp_path / "large").write_bytes(b"#" * (1024 * 1024 + 1))
    assert problem(tmp_path / "large").startswith("is larger than 1024 KiB")


def test_an_unreadable_file_names_the_user(tmp_path: Path) -> None:
    """The cure for a wrong mode depends on who is asking."""
    path = tmp_path / "c.yaml"
    path.write_text(MINIMAL)
    path.chmod(0)
    with DAEMON.here(), pytest.raises(ConfigError, match=f"may not be read by user {os.geteuid()}"):
        load_config(path)


SETTINGS = [
    *(
        "state_dir",
        "run_dir",
        "log",
        "log.format",
        "metrics",
        "metrics.listen",
        "rescan_interval_s",
        "router_ports",
    ),
    *("bridges", "bridges.host", "bridges.ports", "nginx", "nginx.command", "nginx.workers"),
    *("services", "services.0", "services.0.name", "services.0.listen", "services.0.replicas"),
    *(
        "services.0.replicas.sockets",
        "services.0.router",
        "services.0.router.type",
        "services.0.router.policy",
    ),
    *(
        "services.0.router.args",
        "services.0.router.args.0",
        "services.0.router.env",
        "services.0.router.env.A",
    ),
    *("services.0.router.api_timeout_s", "services.0.health.failures", "services.0.drain.settle_s"),
    *(f"services.0.health.{name}" for name in ("path", "expect", "prefix", "tls")),
    *("services.0.hold.retry_in_flight", "services.0.scaling.metric", "services.0.scaling.prefill.metric"),
]
ODD_VALUES: list[object] = [
    None,
    True,
    -1,
    10**400,
    1.5,
    1e300,
    "",
    "\0",
    "é" * 200,
    "a\nb",
    [],
    {},
    [1],
    {"a": 1},
    {"é ": []},
]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: repr(value)[:12])
def test_no_value_is_too_odd_for_a_clear_line(setting: str, value: object) -> None:
    """It works, or one line or more say where, what and the cure. Never a traceback."""
    data = yaml.safe_load(MINIMAL)
    data["services"][0] |= {"router": {"args": ["x"], "env": {"A": "x"}}, "scaling": {"metric": "rps", "target": 1}}
    at = data
    *path, last = [int(part) if part.isdigit() else part for part in setting.split(".")]
    for part in path:
        at = at.setdefault(part, {}) if isinstance(part, str) else at[part]
    at[last] = value
    shown = setting.replace(".0", "[0]")
    lines = problems_if_any(yaml.safe_dump(data, allow_unicode=True))
    for line in lines:
        assert re.match(r"c\.yaml:\d+: ", line)
        assert "; " in line
        assert "None to None" not in line
        assert len(line) < 300
        assert line.isprintable()
    assert not lines or any(f": {shown}" in line for line in lines)


def problems_if_any(text: str) -> list[str]:
    try:
        parse_config(text, "c.yaml")
    except ConfigError as error:
        return error.problems
    return []


def test_the_bounds_of_what_may_be_null_are_named_too() -> None:
    """A cure that says `use None to None` cures nothing."""
    text = MINIMAL + "    router: {memory_limit_mb: 1}\n"
    cure = "use 16 to 1048576, auto, or null for none"
    assert problems(text) == [f"c.yaml:6: services[0].router.memory_limit_mb: 1 is not a limit in MiB; {cure}"]


@pytest.mark.parametrize(
    "mistakes",
    [
        "services: nothing\nsrvices: []\n",
        "services: [\n",
        "x: 'open\n",
        "services:\n\t- a tab\n",
        "a: *nowhere\n",
        "\xff: in another encoding\n",
    ],
)
def test_where_a_daemon_is_can_be_read_from_an_invalid_file(tmp_path: Path, mistakes: str) -> None:
    """For commands that ask or end one: what is valid counts, whatever stands before or after it."""
    path, good = tmp_path / "c.yaml", "run_dir: /run/x\n# more\nbridges:\n  ports: 100-200\npeers: {interface: '?'}\n"
    for text in (good + mistakes, mistakes + good):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError):
            load_config(path)
        found = load_usable(path)
        assert (found.run_dir, found.state_dir) == (Path("/run/x"), Path("/var/lib/gateway-sidecar"))
        assert found.bridges.ports == PortRange(100, 200)
        assert found.peers.interface == "gwsc0"
        assert find_places(path) == Places(found.run_dir, found.state_dir)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "run_dir: [1]\n",
        "run_dir /run/x\nservices: []\n",
        "'run_dir': /x: y\n",
        "state_dir: relative\n",
        "run_dir:\t/x\n",
    ],
)
def test_a_run_dir_that_cannot_be_read_is_not_guessed(tmp_path: Path, text: str) -> None:
    """The default would be another daemon's."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as of_all:
        load_usable(path)
    with pytest.raises(ConfigError) as of_places:
        find_places(path)
    assert of_places.value.problems == of_all.value.problems


SERVICE = "{name: a, listen: '127.0.0.1:8000', replicas: {sockets: '/run/x/{replica}.sock'}}"


@pytest.mark.parametrize(
    ("top", "run_dir"),
    [
        ("", "/run/gateway-sidecar"),
        ("run_dir: /run/y", "/run/y"),
        ("'run_dir': '/run//y'", "/run/y"),
        ("x-top: &top {run_dir: /run/y}\n<<: *top", "/run/y"),
        ("x-top: &top {run_dir: /run/y}\n<<: *top\nrun_dir: /run/z", "/run/z"),
        ("x-note: >\n  run_dir: /run/y", "/run/gateway-sidecar"),
        ("# run_dir: /run/y", "/run/gateway-sidecar"),
        ("run_dir: /run/y\nrun_dir: /run/z", "/run/y"),
        ("x-runs: &run /run/y\nrun_dir: *run", "/run/y"),
        ("run_dir: !!str /run/y", "/run/y"),
        ("run_dir: &here /run/y", "/run/y"),
        ('"run\\u005fdir": /run/y', "/run/y"),
        ("run_dir: >-\n  /run/y", "/run/y"),
    ],
)
def test_a_daemon_is_found_where_its_settings_say(tmp_path: Path, top: str, run_dir: str) -> None:
    """However they are written."""
    path = tmp_path / "c.yaml"
    path.write_text(f"{top}\nservices: [{SERVICE}]\n")
    assert find_places(path) == Places(load_usable(path).run_dir, Path("/var/lib/gateway-sidecar"))
    assert find_places(path).run_dir == Path(run_dir)
