"""What is written to the store over the admin API: which revision is meant, and why it is not written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from gateway_sidecar.api.answers import DAEMON, Refused
from gateway_sidecar.api.models import CertificateToStore, KeyToStore
from gateway_sidecar.errors import StoreConflict, StoreError, StoreFull, StoreInDoubt

Body = TypeVar("Body", KeyToStore, CertificateToStore)

_MISTAKES = {
    "missing": "is missing",
    "string_type": "is neither a text nor null",
    "int_type": "is neither a whole number nor null",
    "greater_than_equal": "is negative",
}
"""Pydantic's names of what may be wrong with a value, in words."""

if TYPE_CHECKING:
    from gateway_sidecar.control.fleet.fleet import Fleet


def fleet_of(request: web.Request) -> Fleet:
    """Raises Refused."""
    fleet = request.app[DAEMON].shared.fleet
    if fleet is None:
        raise Refused(409, error="this gateway has no store; set `store` in the configuration")
    return fleet


def away(fleet: Fleet) -> str | None:
    """Why the store cannot be read, so that what is shown is what was known last; None if it can be."""
    return None if fleet.reflector.is_up else fleet.reflector.status.reason or "the store was not read yet"


def body_as(model: type[Body], body: object, what: str) -> Body:
    """The body, if it is as the model says. Raises Refused; no problem quotes a value, which may be a secret."""
    taken, problems = TypeAdapter(model), []
    try:
        said = taken.validate_python(body, strict=True)
        if any(value is not None for value in said.values()):
            return said
        problems.append("seen: null is for a new one, and nothing is to be removed then; send its revision")
    except ValidationError as error:
        fields = taken.json_schema()["properties"]
        problems += [_problem(str(it["loc"][0]), it["type"], fields) for it in error.errors()]
    raise Refused(422, error=f"the {what} was refused", problems=problems)


def _problem(field: str, mistake: str, fields: Mapping[str, Mapping[str, str]]) -> str:
    if field not in fields:
        return f"{field}: is not known; send {' and '.join(fields)}"
    meaning = fields[field]["description"].rstrip(".")
    return f"{field}: {_MISTAKES.get(mistake, 'cannot be used')}; send {meaning[0].lower()}{meaning[1:]}"


@contextmanager
def writing() -> Iterator[None]:
    """Translates what the store says. Raises Refused."""
    try:
        yield
    except StoreConflict as error:
        raise Refused(409, error=f"nothing was changed: {error}; look again") from error
    except StoreInDoubt as error:
        raise Refused(503, error=f"it is not known whether this was written; look again: {error}") from error
    except StoreError as error:
        raise Refused(507 if isinstance(error, StoreFull) else 503, error=f"nothing was changed: {error}") from error
