from __future__ import annotations

import time

import pytest

from gateway_sidecar.config import parse_config
from gateway_sidecar.config.yamltree import read_tree
from gateway_sidecar.errors import ConfigError
from tests.smg import smg_of

SERVICE = "services:\n  - {name: a, listen: '127.0.0.1:1', replicas: {sockets: '/run/a/{replica}'}}\n"


def problems(text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "c.yaml")
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "c.yaml:1: is empty; begin with `services:`"),
        (b"# nothing\n---\n", "c.yaml:"),
        (b"- a\n", "c.yaml:1: is not a mapping at the top; begin with `services:`"),
        (b"hello\n", "c.yaml:1: is not a mapping at the top; begin with `services:`"),
        (b"a: 1\n\tb: 2\n", "c.yaml:2: a tab stands where YAML wants spaces; indent with spaces"),
        (b"a:\n  - 1\n  b: 2\n", "c.yaml:3: is not YAML: "),
        (b"a: 'x\n", "c.yaml:2: is not YAML: found unexpected end of stream"),
        (b"a: b: c\n", "c.yaml:1: is not YAML: mapping values are not allowed here"),
        (b"\n# \xff\n", "c.yaml:2: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"a: 1\nb: \x07\n", "c.yaml:2: character U+0007 is not allowed in YAML; remove it"),
        (b"a: 1\n---\nb: 2\n", "c.yaml:2: a second document begins here; keep one and remove '---'"),
        (b"a: *nowhere\n", "c.yaml:1: found undefined alias 'nowhere'; define it above with &name"),
        (
            b"replicas: {sockets: /run/{replica}.sock}\n",
            "c.yaml:1: is not YAML: expected ',' or '}', but got '{'; inside { } quote texts that hold braces",
        ),
        (b"[" * 5000, "c.yaml: is nested too deeply"),
    ],
)
def test_what_is_not_a_configuration_says_so(text: bytes, expected: str) -> None:
    """A file that YAML cannot read gets one line that says where and what to do."""
    (found,) = problems(text)
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no: 1\n", "c.yaml:1: key no is a boolean to YAML; quote it: 'no'"),
        ("8080: 1\n", "c.yaml:1: key 8080 is a number to YAML; quote it: '8080'"),
        ("? [a]\n: 1\n", "c.yaml:1: a list or mapping stands as a key; use a text (is a quote missing?)"),
        ("x-a: !!python/name:os.system x\n", "c.yaml:1: x-a: tag !!python/name:os.system is not supported"),
        ("x-a: !!int x\n", "c.yaml:1: x-a: 'x' cannot be read as number; quote it"),
        ("x-a: &a [*a]\n", "c.yaml:1: x-a[0]: contains itself through an alias; write the value out"),
        ("x-a: {<<: 7}\n", "c.yaml:1: x-a: << needs a mapping to take keys from; use <<: *name"),
        (
            "x-a: &a {b: {<<: *a}}\n",
            "c.yaml:1: x-a.b: << takes keys from around itself; name another mapping",
        ),
        ("x-a: {b: 1, b: 2}\n", "c.yaml:1: x-a.b: is given twice, first in line 1; keep one of them"),
    ],
)
def test_yaml_traps_are_reported_beside_other_mistakes(text: str, expected: str) -> None:
    """What YAML would take without a word is a mistake here, and does not hide the others."""
    found = problems(text + SERVICE.replace("name: a", "name: A"))
    assert len(found) == 2
    assert found[0].startswith(expected)
    assert "'A' is not a service name" in found[1]


def test_aliases_that_multiply_are_stopped() -> None:
    """A kilobyte of text must not become a gigabyte of values."""
    lines = ["x-0: &x0 [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]"]
    lines += [f"x-{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 9)]
    found = problems("\n".join(lines) + "\n" + SERVICE)
    assert "c.yaml: stands for more than 100000 values; use fewer aliases (*name)" in found


def test_anchors_and_merge_keys_work() -> None:
    """What services have in common is written once; own keys win over merged ones."""
    settings = parse_config(
        """\
x-common: &common
  router: {policy: random}
  drain: {timeout_s: 5}
services:
  - <<: *common
    name: a
    listen: 127.0.0.1:30000
    replicas: {sockets: "/run/a/{replica}.sock"}
  - <<: [{drain: {timeout_s: 7}}, *common]
    name: b
    listen: 127.0.0.1:30001
    replicas: {sockets: "/run/b/{replica}.sock"}
    router: {policy: manual}
"""
    )
    a, b = settings.services
    assert (smg_of(a).policy, a.drain.timeout_s) == ("random", 5)
    assert (smg_of(b).policy, b.drain.timeout_s) == ("manual", 7)


def test_a_merged_mistake_is_reported_where_it_is_written() -> None:
    """The line to change is the anchor's."""
    found = problems("x-c: &c\n  drain: {timeout_s: -1}\n" + SERVICE.replace("{name", "{<<: *c, name"))
    assert found == ["c.yaml:2: services[0].drain.timeout_s: -1 is too small; use 0 to 86400 seconds"]


def test_a_byte_order_mark_is_no_mistake() -> None:
    """Some editors begin every file with one."""
    assert parse_config(b"\xef\xbb\xbf" + SERVICE.encode()).services[0].name == "a"


def test_dates_and_words_stay_texts_where_a_text_is_meant() -> None:
    """YAML's dates are texts here: a label or a variable is never converted behind the operator's back."""
    env = "router: {env: {DATE: 2026-01-01, TILDE: '~'}}"
    settings = parse_config(SERVICE.replace("{name", "{" + env + ", name"))
    assert settings.services[0].router.env == {"DATE": "2026-01-01", "TILDE": "~"}


ODD_FILES = [
    b"%YAML 1." + b"1" * 60_000,
    b'a: "\\U00110000"',
    b'a: "\\UFFFFFFFF"',
    b"a: " + b"9" * 5000,
    b"a: 0b" + b"1" * 60_000,
    b"a: {b: 0b" + b"1" * 60_000 + b"}",
    b"a: 1" + b":1" * 20_000,
    *(b"a: !!%s %s" % (kind, text) for kind in (b"bool", b"int", b"float") for text in (b'"x"', b'""', b'"-"', b'"_"')),
    '? "\\x1b[2J\\n\\u202e"\n: !\u202e x'.encode(),
]


@pytest.mark.parametrize("content", ODD_FILES, ids=lambda content: content[:16].decode("ascii", "replace"))
def test_any_file_gets_problems_that_can_be_shown_and_raises_nothing(content: bytes) -> None:
    """Whoever may place a `<replica>.yaml` must not end the loop that reads it, or write into the log."""
    tree = read_tree(content)
    assert tree.problems
    for problem in tree.problems:
        line = problem.render("\x1b[2J.yaml")
        assert line.isprintable()
        assert len(line) <= 1000 + 100


@pytest.mark.parametrize("piece", [b"[", b"{a: ", b"[{a: ["])
def test_lists_within_lists_cost_no_time(piece: bytes) -> None:
    """As many as notes may hold: PyYAML alone takes a second of CPU for them, with every other note waiting."""
    began = time.thread_time()
    tree = read_tree(piece * (64 * 1024 // len(piece)))
    assert time.thread_time() - began < 0.2
    assert [problem.text for problem in tree.problems] == ["is nested too deeply; a configuration has five levels"]
