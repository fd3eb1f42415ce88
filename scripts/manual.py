"""Writes the man pages and the completions of bash, zsh and fish into a directory: python scripts/manual.py DIRECTORY

All of it comes from the parser and from docs/, so nothing is said twice: gateway-sidecar(8) from the parser by
argparse-manpage, with the exit codes; gateway-sidecar.yaml(5) from docs/configuration.md by lowdown; the completions by
shtab. SOURCE_DATE_EPOCH dates the pages.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway_sidecar.commands.exit_codes import Exit, Meaning

ROOT = Path(__file__).parents[1]
NAME = "gateway-sidecar"
COMPLETIONS = {"bash": NAME, "zsh": f"_{NAME}", "fish": f"{NAME}.fish"}
PAGES = (f"{NAME}.8", f"{NAME}.yaml.5")

_ONE_LINE = "10000"  # man breaks lines itself; argparse would break names at their hyphens.
_LINK = re.compile(r"\[([^\]]+)\]\([^)\s]+\)")
_CELL_END = re.compile(r" *(?<!\\)\| *")
_MARK = re.compile(r"^<!-- .* -->\n", re.MULTILINE)
_SETTINGS = re.compile(r"^\| (setting \|.*) \|\n\|[ :|-]+\n((?:\|.*\n?)+)", re.MULTILINE)
_END = """[FILES]
.TP
.I /etc/gateway-sidecar/gateway-sidecar.yaml
The configuration, see gateway-sidecar.yaml(5).
.TP
.I /etc/default/gateway-sidecar
The environment of the daemon, nginx and the routers under systemd.
.TP
.I /var/lib/gateway-sidecar
The state: port leases, certificates by ACME, logs of the routers.
.TP
.I /run/gateway-sidecar
admin.sock, bridges and nginx's files.
.TP
.I /run/replicas
Where sockets of replicas are placed, by members of the group gateway-replicas.

[SEE ALSO]
gateway-sidecar.yaml(5), nginx(8), systemctl(1)
"""


def main() -> None:
    """Writes everything."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for shell, name in COMPLETIONS.items():
        (directory / name).write_text(completion(shell), encoding="utf-8")
    (directory / PAGES[0]).write_text(page_of_commands(), encoding="utf-8")
    (directory / PAGES[1]).write_text(page_of_settings(), encoding="utf-8")


def completion(shell: str) -> str:
    """The script that completes the command line in this shell, with paths where the parser wants one."""
    import shtab

    parser = _parser()
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def page_of_commands() -> str:
    """gateway-sidecar(8)."""
    from argparse_manpage.manpage import Manpage

    os.environ["COLUMNS"] = _ONE_LINE
    parser = _parser()
    description = (parser.description or "").rstrip(".")
    parser.epilog = None  # The exit codes have a section of their own.
    page = Manpage(
        parser,
        format="single-commands-section",
        _data={
            "manual_section": 8,
            "manual_title": "System administration",
            "project_name": NAME,
            "version": _version(),
            "description": description[0].lower() + description[1:],
            "date": f"{_date():%Y-%m-%d}",
        },
    )
    status = "\n".join(f".TP\n.B {code:d}\n{_plain(meaning.text)}" for code, meaning in _exit_codes().items())
    return f"{page}\n" + re.sub(r"^\[(.*)\]$", r".SH \1", f"[EXIT STATUS]\n{status}\n{_END}", flags=re.MULTILINE)


def page_of_settings() -> str:
    """gateway-sidecar.yaml(5). Raises CalledProcessError, FileNotFoundError without lowdown."""
    text = (ROOT / "docs/configuration.md").read_text("utf-8")
    text = text.replace(
        "# Configuration\n", f"# NAME\n\n{NAME}.yaml - configuration of {NAME}(8)\n\n# DESCRIPTION\n", 1
    )
    text = _SETTINGS.sub(lambda table: "\n".join(_as_list(table[1], table[2])), _without_links(_MARK.sub("", text)))
    about = {"title": f"{NAME}.yaml", "section": "5", "date": f"{_date():%Y-%m-%d}", "source": f"{NAME} {_version()}"}
    command = ["lowdown", "-s", "-Tman", *(f"-M{key}={value}" for key, value in about.items())]
    page = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return re.sub(r"^(\.S[HS])\n", r"\1 ", page, flags=re.MULTILINE)  # apropos reads no heading on a line of its own.


def _as_list(head: str, rows: str) -> Iterator[str]:
    """A table of settings as a list, which a terminal of any width shows."""
    names = _CELL_END.split(head)
    for row in rows.splitlines():
        said = dict(zip(names, (cell.replace("\\|", "|") for cell in _CELL_END.split(row)[1:-1]), strict=True))
        default = "required" if said["default"] == "required" else f"default: {said['default']}"
        change = f"; a change needs a {said['change']}" if "change" in said else ""
        yield f"**{said['setting']}** ({said['value']}; {default}{change})\n: {said['meaning']}\n"


def _without_links(text: str) -> str:
    """A page of man links nowhere."""
    return _LINK.sub(r"\1", text)


def _plain(text: str) -> str:
    return text.replace("`", "").replace("\\", "\\e")


def _parser() -> argparse.ArgumentParser:
    sys.path.insert(0, str(ROOT))
    from gateway_sidecar.cli import _parser as made

    return made()


def _exit_codes() -> Mapping[Exit, Meaning]:
    from gateway_sidecar.commands.exit_codes import MEANINGS

    return MEANINGS


def _version() -> str:
    from gateway_sidecar import __version__

    return __version__


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All of it and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action


def _date() -> datetime:
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(seconds), UTC) if seconds else datetime.now(UTC)


if __name__ == "__main__":
    main()
