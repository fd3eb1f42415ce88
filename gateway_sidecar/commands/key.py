"""`key`: makes, changes, pauses, rotates and revokes keys, makes plans, and lists all of them."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway_sidecar.config.places import find_places, stored_keys_in
from gateway_sidecar.errors import ConfigError, FrontendError, KindError
from gateway_sidecar.frontend.certificate import today
from gateway_sidecar.frontend.edit_keys import add_key, change_key, change_plan, remove_plan, revoke_key, rotate_key
from gateway_sidecar.frontend.keys import Key, read_keys, shown_date
from gateway_sidecar.frontend.words import BOUNDS, NONE, PAUSED, written

if TYPE_CHECKING:
    from gateway_sidecar.commands.stored_keys import StoreOfKeys

_OPTIONS = ("plan", *BOUNDS, "expires", "note")
_AS_PLAN = "plan"
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_HEADINGS = ("key", "state", "bounds", "last used", "note")


def add(arguments: argparse.Namespace) -> int:
    """Makes a key."""
    key = add_key(_place(arguments), arguments.name, _given(arguments), **_changes(arguments))
    if not arguments.stdin:
        print(key)
    return 0


def change(arguments: argparse.Namespace) -> int:
    """Changes a key."""
    changes = _changes(arguments)
    if not changes:
        raise FrontendError(["nothing is to be changed; give an option such as --plan or --tokens-per-day"])
    key = change_key(_place(arguments), arguments.name, changes)
    print(f"{key.name}:{written({word: it for word, it in key.words.items() if word != 'old'}) or ' no bounds'}")
    return 0


def pause(arguments: argparse.Namespace) -> int:
    """Pauses a key."""
    change_key(_place(arguments), arguments.name, {PAUSED: ""})
    print(f"{arguments.name} is paused")
    return 0


def resume(arguments: argparse.Namespace) -> int:
    """Ends a key's pause."""
    change_key(_place(arguments), arguments.name, {PAUSED: None})
    print(f"{arguments.name} is no longer paused")
    return 0


def rotate(arguments: argparse.Namespace) -> int:
    """Gives a key another secret."""
    keep_old_s = _seconds(arguments.keep_old)
    secret, ended = rotate_key(
        _place(arguments), arguments.name, keep_old_s=keep_old_s, now=today(), secret=_given(arguments)
    )
    if not arguments.stdin:
        print(secret)
    if ended:
        print("a still older secret, of the rotation before, is no longer good", file=sys.stderr)
    return 0


def plan(arguments: argparse.Namespace) -> int:
    """Makes, changes or removes a plan."""
    changes = {word: value for word in BOUNDS if (value := getattr(arguments, word)) is not None}
    if arguments.remove:
        if changes:
            raise FrontendError(["--remove takes no bounds; leave them out"])
        remove_plan(_place(arguments), arguments.name)
        print(f"plan {arguments.name} is removed")
        return 0
    words = change_plan(
        _place(arguments), arguments.name, {word: None if it == NONE else it for word, it in changes.items()}
    )
    print(f"plan {arguments.name}:{written(words) or ' no bounds'}")
    return 0


def revoke(arguments: argparse.Namespace) -> int:
    """Removes a key."""
    place = _place(arguments)
    if isinstance(place, Path):
        revoke_key(place, arguments.name)
    else:
        place.revoke(arguments.name)
    print(f"{arguments.name} is revoked")
    return 0


def list_all(arguments: argparse.Namespace) -> int:
    """Prints all keys and plans."""
    place = _place(arguments)
    if isinstance(place, Path):
        file = read_keys(place)
        used, trouble = _last_used(arguments.config, place)
    else:
        file = place.read()
        used, trouble = _last_used(arguments.config, stored_keys_in(find_places(arguments.config).state_dir))
        for note in place.notes():
            print(note, file=sys.stderr)
    now = today()
    rows = [_row(key, used.get(key.name), now) for _, key in sorted(file.keys.items())]
    if arguments.json:
        print(json.dumps({"keys": rows, "plans": {name: dict(it) for name, it in file.plans.items()}}, indent=2))
        return 0
    _print_table([_HEADINGS, *map(_shown, rows)])
    users = Counter(key.words.get("plan", "") for key in file.keys.values())
    for name, words in sorted(file.plans.items()):
        print(f"plan {name}:{written(words) or ' no bounds'} ({users[name]} key{'s' * (users[name] != 1)})")
    if trouble:
        print(f"when keys were last used is not known: {trouble}", file=sys.stderr)
    return 0


def _place(arguments: argparse.Namespace) -> Path | StoreOfKeys:
    """Where the keys are. Raises AdminError, ConfigError if that is the store."""
    if arguments.file is not None:
        return Path(arguments.file)
    from gateway_sidecar.api.client import Client  # Late: only the store is asked for.
    from gateway_sidecar.commands.stored_keys import StoreOfKeys

    return StoreOfKeys(Client(find_places(arguments.config).run_dir / "admin.sock"))


def _row(key: Key, used: float | None, now: float) -> dict[str, Any]:
    is_over = key.expires is not None and key.expires <= now
    old_until = key.old_until
    return {
        "name": key.name,
        "state": "expired" if is_over else "paused" if PAUSED in key.words else "active",
        "expires": _date(key.expires),
        "old_secret_until": _date(old_until if old_until is not None and old_until > now else None),
        "plan": key.words.get("plan"),
        "bounds": {word: key.words[word] for word in BOUNDS if word in key.words},
        "last_used": _date(used),
        "note": key.words.get("note"),
    }


def _shown(row: Mapping[str, Any]) -> tuple[str, ...]:
    state = row["state"]
    if row["expires"]:
        state += f" {'since' if state == 'expired' else 'until'} {row['expires']}"
    if row["old_secret_until"]:
        state += f", old secret until {row['old_secret_until']}"
    words = {"plan": row["plan"], **row["bounds"]} if row["plan"] else row["bounds"]
    return row["name"], state, written(words).strip() or "-", row["last_used"] or "-", row["note"] or ""


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _date(seconds: float | None) -> str | None:
    return None if seconds is None else shown_date(seconds)


def _last_used(config: Path, file: Path) -> tuple[dict[str, float], str]:
    """When each key of a file was last used, at any address of this configuration; and why that is not known."""
    from gateway_sidecar.config import load_config  # Late: only this command reads the configuration.
    from gateway_sidecar.frontend.last_used import read_copy, read_links
    from gateway_sidecar.nginx.frontend_places import FrontendPlaces

    try:
        settings = load_config(config)
    except (ConfigError, KindError) as error:
        return {}, error.problems[0] if isinstance(error, ConfigError) else str(error)
    places = FrontendPlaces.of(settings.run_dir, settings.state_dir)
    used: dict[str, float] = {}
    trouble = f"{config}: no service has these keys; name another one with --config"
    for it in settings.all_addresses:
        auth = it.frontend.auth
        if auth is None or auth.keys_file is None or auth.keys_file.resolve() != file.resolve():
            continue
        trouble = ""
        for read, path in ((read_copy, places.last_used(it.name)), (read_links, places.keys(it.name))):
            try:
                for name, at in read(path).items() if path is not None else ():
                    used[name] = max(at, used.get(name, 0.0))
            except FileNotFoundError:
                continue  # No daemon has run since the machine's start.
            except OSError as error:
                return {}, f"{path}: {error.strerror}; run this as root, or as the daemon's user"
    return used, trouble


def _changes(arguments: argparse.Namespace) -> dict[str, str | None]:
    """What the options say. `none` is no bound, whatever the plan says; `plan` is what the plan says."""
    found: dict[str, str | None] = {}
    for word in _OPTIONS:
        value = getattr(arguments, word)
        if value is not None:
            found[word] = None if value == (_AS_PLAN if word in BOUNDS else NONE) else value
    return found


def _given(arguments: argparse.Namespace) -> str | None:
    return sys.stdin.readline().strip() if arguments.stdin else None


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,6})([smhd]?)", text)
    if match is None or (not match[2] and int(match[1]) != 0):
        raise FrontendError([f"--keep-old: '{text}' is not a time; use one such as 24h, 90m or 7d, or 0"])
    return float(int(match[1]) * _UNITS_S[match[2] or "s"])
