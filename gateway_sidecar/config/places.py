"""Where a daemon keeps what it has: all that a command needs of the configuration to ask a daemon that runs.

It is read without the models (`Settings`), which take longer to import than such a command takes otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from gateway_sidecar.config.text_file import read_file
from gateway_sidecar.config.values import parse_directory, parse_run_dir
from gateway_sidecar.config.yamltree import read_tree

MOST_BYTES = 1024 * 1024  # A choice: 1,000 services of a KB each.
RUN_DIR = Path("/run/gateway-sidecar")
STATE_DIR = Path("/var/lib/gateway-sidecar")

_QUICK = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # Where PyYAML was built without libyaml, it is as slow as ever.
_TEXT = "tag:yaml.org,2002:str"


@dataclass(frozen=True, slots=True)
class Places:
    """The daemon's two directories."""

    run_dir: Path = RUN_DIR
    state_dir: Path = STATE_DIR


_PARSERS = {"run_dir": parse_run_dir, "state_dir": parse_directory}


def find_places(path: Path) -> Places:
    """The places, even if other settings in the file are wrong. Raises `ConfigError` as `load_usable` does."""
    content = read_file(path, MOST_BYTES).content
    places = places_in(_plain(content) or readable(content), content)
    if places is not None:
        return places
    # Most likely a file with mistakes, each of which is to be told: only the models know them all.
    from gateway_sidecar.config.load import load_usable

    settings = load_usable(path)
    return Places(settings.run_dir, settings.state_dir)


def places_in(data: dict[str, object], content: bytes) -> Places | None:
    """The places that a file's `readable` settings name; None if they are unclear. A place whose setting cannot be read
    is unclear: the default would be another daemon's.
    """
    begins = (re.compile(rb"(?m)^['\" ]*" + name.encode()) for name in _PARSERS if name not in data)
    if not data or any(pattern.search(content) for pattern in begins):
        return None
    try:
        return Places(**{name: parse(data[name]) for name, parse in _PARSERS.items() if name in data})
    except ValueError:
        return None


def readable(content: bytes) -> dict[str, object]:
    """The file's top-level settings; where it is no YAML, of each what stands below it if that alone is."""
    whole = read_tree(content).data
    if isinstance(whole, dict):
        return whole
    parts = (read_tree(part).data for part in re.split(rb"(?m)^(?=[A-Za-z_])", content))
    return {name: value for part in parts if isinstance(part, dict) for name, value in part.items()}


def _plain(content: bytes) -> dict[str, object]:
    """The same by libyaml, which takes a tenth of the time: 2 instead of 20 ms for 50 services.

    Empty where it takes `read_tree` to tell: for all that is not a mapping with plain places, and for tabs, which
    libyaml lets stand after a colon.
    """
    if b"\t" in content:
        return {}
    try:
        node = yaml.compose(content.decode("utf-8-sig"), Loader=_QUICK)
    except (UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    if not isinstance(node, yaml.MappingNode) or not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
        return {}
    data: dict[str, object] = {key.value: value.value for key, value in node.value if key.tag == _TEXT}
    places = (value for key, value in node.value if key.value in _PARSERS)
    plain = len(data) == len(node.value) and all(place.tag == _TEXT for place in places)
    return data if plain else {}


def used_elsewhere_in(state_dir: Path) -> Path:
    """What keys of the store have used at other gateways, for nginx."""
    return stored_keys_in(state_dir).with_name("used-elsewhere")


def acme_in(state_dir: Path) -> Path:
    """The directory of what is kept of certificates by ACME."""
    return state_dir / "acme"


def stored_certificates_in(state_dir: Path) -> Path:
    """The directory in which a gateway has the certificates of its store, with their keys: `NAME.pem`."""
    return state_dir / "store-certificates"


def stored_keys_in(state_dir: Path) -> Path:
    """The file in which a gateway has the keys of its store, with its share of their limits."""
    return state_dir / "store-keys" / "keys"
