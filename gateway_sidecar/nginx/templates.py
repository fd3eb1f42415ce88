"""nginx's configuration from the templates in `share/nginx`. Pure, once they are read.

A value gets in only as what cannot end its directive: a plain word as it stands, and any other by a filter that makes
it safe (`quoted`, `verbatim`, those for paths). What does not fit raises NginxError. So templates need no care, and no
value is trusted to have been checked before.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from typing import TYPE_CHECKING

from markupsafe import Markup

from gateway_sidecar.errors import NginxError

if TYPE_CHECKING:
    from jinja2 import Environment

ID = "[A-Za-z0-9_][A-Za-z0-9_.:~-]*"
_NAMED = "[A-Za-z0-9_](?:[A-Za-z0-9_.:~@+=,-]|%(?:3[AaDd]|40|2[BbCc]))*"
SEGMENTS = "(?:/[A-Za-z0-9_~:@!$&'()*+,=-][A-Za-z0-9._~:@!$&'()*+,=-]*)"
END = r"(?:\?|\z)"

_NO_WORD = re.compile(r"""[\s"'$;{}\\#\x00-\x1f\x7f]|\A~|\A\Z""")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TO_ESCAPE = re.compile(r"""\"|\\(?=[\\"'trn]|\Z)""")
"""nginx reads a backslash as itself unless one of these follows. What is left alone is easier to read."""


def render(template: str, values: Mapping[str, object]) -> str:
    """The text of a template. Raises NginxError for a value that nginx's configuration cannot carry."""
    return _environment().get_template(template).render(values)


def word(value: object) -> Markup:
    """A value that is one word, or text that was made safe before, without the end of its last line."""
    if isinstance(value, Markup):
        return Markup(value[:-1]) if value.endswith("\n") else value
    text = str(value)
    if _NO_WORD.search(text):
        raise NginxError(f"nginx's configuration cannot carry {text!r}; use letters, digits and - _ . / : only")
    return Markup(text)


def words(values: Iterable[object]) -> Markup:
    """Several words."""
    return Markup(" ").join(map(word, values))


def quoted(value: object) -> Markup:
    """Any text without `$`, which nginx would look for variables in."""
    if "$" in str(value):
        raise NginxError(f"nginx's configuration cannot carry {str(value)!r}, as '$' begins a variable; leave it out")
    return verbatim(value)


def verbatim(value: object) -> Markup:
    """Any text, quoted, for a place where nginx looks for no variables. It may be a secret."""
    return Markup(f'"{regex(value)}"')


def regex(value: object) -> Markup:
    """Any text, for a place within double quotes where nginx looks for no variables, such as the pattern of a map."""
    text = str(value)
    if _CONTROL.search(text):
        raise NginxError("nginx's configuration cannot carry a control character; leave it out")
    return Markup(_TO_ESCAPE.sub(r"\\\g<0>", text))


@functools.lru_cache(maxsize=1024)
def any_of(paths: tuple[str, ...]) -> Markup:
    """The pattern of any of these paths, in which `*` stands for one id, and `**` for a model's name: with slashes in
    it, and what else clients escape in such a name, as they are or escaped."""
    some = f"{_NAMED}(?:(?:/|%2[Ff]){_NAMED})*"
    return regex("|".join(re.escape(path).replace(r"\*\*", some).replace(r"\*", ID) for path in paths))


@functools.lru_cache(maxsize=1024)
def below(path: str) -> Markup:
    """The pattern of a path and all below it."""
    return regex(f"{re.escape(path)}{SEGMENTS}*/?{END}")


def bracketed(host: str) -> str:
    """A host as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def _variable(name: str) -> Markup:
    """A service's or a header's name as part of a variable's."""
    return word(name.lower().replace("-", "_"))


def _name(text: str) -> Markup:
    """A name, or nothing."""
    return word(text) if text else Markup("")


def _lua_list(values: Iterable[object]) -> Markup:
    """A table of Lua's."""
    return Markup("{%s}") % Markup(", ").join(Markup('"%s"') % word(value) for value in values)


def _rate(rps: float) -> Markup:
    return word(f"{int(rps)}r/s" if rps == int(rps) else f"{round(rps * 60)}r/m")


_FILTERS: Mapping[str, Callable[..., object]] = {
    **{it.__name__: it for it in (words, quoted, verbatim, regex, any_of, below, bracketed)},
    "variable": _variable,
    "name": _name,
    "lua_list": _lua_list,
    "rate": _rate,
}


@functools.cache
def _environment() -> Environment:
    """All templates as they are now: the package may be replaced while it runs."""
    from jinja2 import DictLoader, Environment, StrictUndefined  # Late: 60 ms that `check` and `plan` need not spend.

    share = resources.files("gateway_sidecar") / "share" / "nginx"
    environment = Environment(
        loader=DictLoader({it.name: it.read_text("utf-8") for it in share.iterdir()}),
        undefined=StrictUndefined,
        autoescape=True,  # By `finalize` alone: all that it lets through is marked as safe.
        finalize=word,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        keep_trailing_newline=True,
    )
    environment.filters.update(_FILTERS)
    return environment
