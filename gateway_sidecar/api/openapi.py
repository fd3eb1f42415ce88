"""The admin API as OpenAPI describes it; served at `/v1/openapi.json`.

The paths are written here, and the schemas of answers and bodies come from `models`. `tests/unit/test_openapi.py`
holds the paths against the routes, and `tests/system/test_api_description.py` all of it against a daemon.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from gateway_sidecar import __version__
from gateway_sidecar.api import models
from gateway_sidecar.api.answers import LONGEST_S
from gateway_sidecar.api.events import BACK, DATE, MOST_FOLLOWERS
from gateway_sidecar.api.replicas import MOST_BYTES
from gateway_sidecar.api.signal_models import Signals
from gateway_sidecar.config.tunnels import MOST_ID_BYTES
from gateway_sidecar.sources.api import raw_schema

Json = dict[str, Any]

_REF = "#/components/schemas/{model}"


def _ref(model: str) -> Json:
    return {"$ref": _REF.format(model=model)}


def _answer(description: str, model: type) -> Json:
    return {"description": description, "content": {"application/json": {"schema": _ref(model.__name__)}}}


def _no(description: str) -> Json:
    return _answer(description, models.Error)


_TEXT: Json = {"type": "string", "minLength": 1}
_SERVICE: Json = {
    "name": "service",
    "in": "path",
    "required": True,
    "description": "The service's name.",
    "schema": _TEXT,
}
_REPLICA: Json = {
    "name": "replica",
    "in": "path",
    "required": True,
    "description": f"The replica's id: printable characters without `/`, {MOST_ID_BYTES} bytes at most.",
    "schema": _TEXT,
}
_KEY: Json = {
    "name": "key",
    "in": "path",
    "required": True,
    "description": "The key's name; `@` and the plan's name for a plan.",
    "schema": _TEXT,
}
_CERTIFICATE: Json = {
    "name": "certificate",
    "in": "path",
    "required": True,
    "description": "The certificate's name in the store: letters, digits and `. _ -`, 64 at most.",
    "schema": _TEXT,
}
_SAME = {"service": "$request.path.service", "replica": "$request.path.replica"}
_LINKS: Json = {
    "links": {
        name: {"operationId": name, "parameters": _SAME}
        for name in ("getReplica", "deleteReplica", "drainReplica", "resumeReplica")
    }
}


def _query(name: str, description: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _seconds(name: str, description: str, default: float | None) -> Json:
    said = {} if default is None else {"default": default}
    return _query(name, description, {"type": "number", "minimum": 0, "maximum": LONGEST_S, **said})


def _operation(name: str, summary: str, answers: Json, *parameters: Json, **further: Any) -> Json:
    return {"operationId": name, "summary": summary, "parameters": list(parameters), "responses": answers, **further}


_UNKNOWN_SERVICE = _no("There is no such service; the message lists those that there are.")
_UNKNOWN = _no("There is no such service or replica; the message lists those that there are.")
_BAD_QUERY = _no("A query parameter cannot be used.")
_NO_STORE = _no("This gateway has no store.")
_NOT_WRITTEN = {
    "503": _no("Nothing was changed: it could not be written down, or the service has not read its sources yet."),
    "507": _no("Nothing was changed: `state_dir` has no room left to write it down."),
}

_WHEN = "A time ago (`24h`, `7d`), a day or a time (`2026-11-01`, `2026-11-01T12:00Z`); its hour counts as a whole."
_OF_SERVICE, _OF_REPLICA = "/v1/services/{service}", "/v1/services/{service}/replicas/{replica}"
_OPERATIONS: dict[tuple[str, str], Json] = {
    ("get", "/v1/openapi.json"): _operation(
        "getDescription",
        "Show this description",
        {"200": {"description": "OpenAPI 3.1.", "content": {"application/json": {"schema": {"type": "object"}}}}},
    ),
    ("get", "/v1/status"): _operation(
        "getStatus",
        "Show services, routers and replicas",
        {"200": _answer("The state of the whole gateway.", models.Status)},
    ),
    ("get", "/v1/plan"): _operation(
        "getPlan",
        "Show what a reload would change and what the daemon would do next",
        {"200": _answer("The plan. At rest `actions` is empty.", models.Plan)},
    ),
    ("get", "/v1/events"): _operation(
        "getEvents",
        "Show the last events, and follow them",
        {
            "200": _answer("The events; with `follow` a line of JSON for each event, without end.", models.Events),
            "400": _BAD_QUERY,
            "404": _UNKNOWN_SERVICE,
            "503": _no(f"With `follow`: {MOST_FOLLOWERS} requests follow events already."),
        },
        _query("service", "Only events about this service and its replicas.", _TEXT),
        _query("replica", "Only events about this replica of the service.", _TEXT),
        _query(
            "since",
            "Only events of the last seconds, minutes, hours or days (`10m`), or since a date and time (RFC 3339).",
            {"type": "string", "pattern": f"^({BACK}|{DATE})$"},
        ),
        _query(
            "after",
            "Only events after the one with this `seq`; `follow` begins there.",
            {"type": "integer", "minimum": 0},
        ),
        _query(
            "last",
            "At most this many events, the latest ones; by default all that are kept.",
            {"type": "integer", "minimum": 0},
        ),
        _query(
            "said",
            "`0` leaves out lines that routers, nginx and libraries printed.",
            {"enum": ["0", "1"], "default": "1"},
        ),
        _query(
            "follow",
            "`1`: go on with each event as it is logged, as lines of JSON; as server-sent events where "
            "`Accept` has `text/event-stream`. `Last-Event-ID` counts as `after`.",
            {"enum": ["0", "1"], "default": "0"},
        ),
    ),
    ("get", "/v1/usage"): _operation(
        "getUsage",
        "Show what clients have used, by key and model",
        {
            "200": _answer("The usage until now, by the hour; older than eight days by the day (UTC).", models.Usage),
            "400": _BAD_QUERY,
            "503": _no("The usage on disk cannot be read."),
        },
        _query("since", f"{_WHEN} By default 24h.", _TEXT),
        _query("until", f"{_WHEN} By default now.", _TEXT),
        _query("service", "Only this service, or this shared address.", _TEXT),
        _query("key", "Only this key; an empty text for requests without one.", {"type": "string"}),
        _query("model", "Only this model; an empty text for requests without one.", {"type": "string"}),
    ),
    ("get", "/v1/fleet"): _operation(
        "getFleet",
        "Show all gateways, and what each of them sees of each replica",
        {
            "200": _answer("As it stands in the store.", models.FleetStatus),
            "409": _NO_STORE,
            "503": _no("The store cannot be read."),
        },
    ),
    ("get", "/v1/fleet/usage"): _operation(
        "getFleetUsage",
        "Show what keys of the store have used of this day and month, at all gateways",
        {
            "200": _answer("As it stands in the store, some seconds old.", models.FleetUsage),
            "409": _NO_STORE,
            "503": _no("The store cannot be read."),
        },
    ),
    ("post", "/v1/reload"): _operation(
        "reload",
        "Read the configuration again",
        {
            "200": _answer("The configuration is in force.", models.Reloaded),
            "422": _no("The configuration is invalid. Nothing changed; `problems` has a line for each mistake."),
            "503": _no("Not all of the changes (`changes`) are in force (`problems`); the daemon tries again."),
        },
    ),
    ("post", "/v1/stop"): _operation(
        "stop",
        "Stop the daemon",
        {"202": _answer("The daemon is about to end.", models.Stopped), "400": _BAD_QUERY},
        _query("all", "Also stop nginx and the routers.", {"enum": ["true", "false"], "default": "false"}),
        _seconds("timeout_s", "With `all`: wait up to this many seconds until nothing is in flight.", 30.0),
    ),
    ("post", "/v1/store/accept"): _operation(
        "acceptStore",
        "Believe the store as it is from now on, at every gateway",
        {
            "200": _answer("Every gateway believes the store.", models.Accepted),
            "400": _BAD_QUERY,
            "409": _no("There is no store, or the gateways already believe it."),
            "503": _no("The store cannot be written."),
        },
        _query(
            "refill",
            "First put back into the store what this gateway knows.",
            {"enum": ["true", "false"], "default": "false"},
        ),
    ),
    ("get", "/v1/store/keys"): _operation(
        "listStoredKeys",
        "List the keys of the store",
        {
            "200": _answer("The hashes and bounds of all keys and plans.", models.StoredKeys),
            "409": _NO_STORE,
        },
    ),
    ("put", "/v1/store/keys/{key}"): _operation(
        "putStoredKey",
        "Write or remove one key or plan of the store",
        {
            "200": _answer("It is written; every gateway learns of it.", models.KeyStored),
            "400": _no("The body is not JSON."),
            "409": _no("There is no store, or somebody else changed the key meanwhile."),
            "413": _no(f"The body is larger than {MOST_BYTES} bytes."),
            "415": _no("The body is not `application/json`."),
            "422": _no("The line is no valid key or plan; `problems` says why."),
            "503": _no("The store cannot be written. The message says whether it is known that nothing was changed."),
            "507": _no("Nothing was changed: the store has no room left."),
        },
        requestBody={"required": True, "content": {"application/json": {"schema": _ref("KeyToStore")}}},
    ),
    ("get", "/v1/store/certificates"): _operation(
        "listStoredCertificates",
        "List the certificates of the store",
        {
            "200": _answer("All certificates, without their keys.", models.StoredCertificates),
            "409": _NO_STORE,
        },
    ),
    ("put", "/v1/store/certificates/{certificate}"): _operation(
        "putStoredCertificate",
        "Write or remove one certificate of the store",
        {
            "200": _answer("It is written; every gateway learns of it.", models.CertificateStored),
            "400": _no("The body is not JSON."),
            "409": _no("There is no store, or somebody else changed the certificate meanwhile."),
            "413": _no(f"The body is larger than {MOST_BYTES} bytes."),
            "415": _no("The body is not `application/json`."),
            "422": _no("The certificate cannot be served, or removed while a service has it; `problems` says why."),
            "503": _no("The store cannot be written. The message says whether it is known that nothing was changed."),
            "507": _no("Nothing was changed: the store has no room left."),
        },
        requestBody={"required": True, "content": {"application/json": {"schema": _ref("CertificateToStore")}}},
    ),
    ("get", "/v1/leave"): _operation(
        "showLeave",
        "Show how the gateway leaves",
        {"200": _answer("How it leaves. The phase is null while the gateway stays.", models.Leave)},
    ),
    ("post", "/v1/leave"): _operation(
        "leave",
        "Stop the whole gateway without failing a request",
        {
            "202": _answer("The gateway is leaving; a second request follows the first.", models.Leave),
            "400": _BAD_QUERY,
            "503": _no("Nothing was changed: load balancers cannot be told."),
        },
        _seconds(
            "timeout_s", "Cut what is in flight after this many seconds; by default after `leave.timeout_s`.", None
        ),
    ),
    ("post", "/v1/join"): _operation(
        "join",
        "Take back a gateway that is leaving",
        {
            "200": _answer("All addresses are served again.", models.Joined),
            "409": _no("It is too late, or load balancers cannot be told."),
        },
    ),
    ("get", f"{_OF_SERVICE}/signals"): _operation(
        "getSignals",
        "Show what an autoscaler needs to know of a service",
        {
            "200": _answer("The signals. Null: not known.", Signals),
            "503": _no("Nothing has been measured yet; ask again in a second."),
        },
    ),
    ("post", f"{_OF_SERVICE}/router/restart"): _operation(
        "restartRouter",
        "Replace a service's router without failing a request",
        {
            "200": _answer("The new router serves.", models.Restarted),
            "409": _no("The router cannot be replaced now; the message says why."),
        },
    ),
    ("get", f"{_OF_SERVICE}/replicas"): _operation(
        "listReplicas",
        "List a service's replicas",
        {"200": _answer("The replicas, as `status` shows them.", models.Replicas)},
    ),
    ("get", _OF_REPLICA): _operation(
        "getReplica", "Show a replica", {"200": _answer("The replica, as `status` shows it.", models.Replica)}
    ),
    ("get", f"{_OF_REPLICA}/explain"): _operation(
        "explainReplica",
        "Show why a replica is in its state",
        {"200": _answer("Each step, with the evidence, and what would change it.", models.Explained)},
    ),
    ("put", _OF_REPLICA): _operation(
        "putReplica",
        "Add or change a replica",
        {
            "200": _answer("The API had the replica already; `changed` says whether it differs now.", models.Put)
            | _LINKS,
            "201": _answer("The replica is new.", models.Put) | _LINKS,
            "400": _no("The body is not JSON, or a query parameter cannot be used."),
            "404": _UNKNOWN_SERVICE,
            "409": _no("Another source (`source`) owns the replica, or another request changed it meanwhile."),
            "413": _no(f"The body is larger than {MOST_BYTES} bytes."),
            "415": _no("The body is not `application/json`."),
            "422": _no("The body is not a valid replica; `problems` has a line for each mistake."),
            "504": _no("With `wait`: the replica does not serve in time, and stays as it was put (`replica`)."),
            **_NOT_WRITTEN,
        },
        _query("wait", "Answer when the replica serves.", {"enum": ["serving"]}),
        _seconds("timeout_s", "With `wait`: answer after this many seconds at the latest.", 60.0),
        requestBody={"required": True, "content": {"application/json": {"schema": _ref("Entry")}}},
    ),
    ("delete", _OF_REPLICA): _operation(
        "deleteReplica",
        "Remove a replica",
        {
            "200": _answer("The replica is gone, and nothing is in flight on it, at any gateway.", models.Drained),
            "202": _answer("The replica is gone; what it has in flight goes on (`reason`).", models.Drained),
            "400": _BAD_QUERY,
            "409": _no("Another source (`source`) owns the replica, or it was put again while it drained."),
            **_NOT_WRITTEN,
        },
        _seconds("drain_s", "Wait up to this many seconds until nothing is in flight; then remove the replica.", 0.0),
    ),
    ("get", f"{_OF_REPLICA}/drain"): _operation(
        "previewDrain",
        "Show what no replica could answer without this one",
        {"200": _answer("Nothing was changed.", models.Unanswered)},
    ),
    ("post", f"{_OF_REPLICA}/drain"): _operation(
        "drainReplica",
        "Take a replica out of rotation and wait until nothing is in flight",
        {
            "200": _answer("The replica's engine can be stopped: every gateway that is alive says so.", models.Drained),
            "400": _BAD_QUERY,
            "504": _answer("It is not safe yet (`reason`). The replica stays out of rotation.", models.Drained),
        },
        _seconds("timeout_s", "Wait this many seconds at most; by default the service's `drain.timeout_s`.", None),
    ),
    ("post", f"{_OF_REPLICA}/resume"): _operation(
        "resumeReplica",
        "Take a drained replica back into rotation",
        {
            "200": _answer("The replica serves again once its engine answers, at every gateway.", models.Resumed),
            "503": _no("Nothing was changed: the other gateways cannot be told."),
        },
    ),
}


def _paths() -> Json:
    """Each path with its operations, and in each of these what the path says: parameters, and what may be unknown."""
    paths: Json = {}
    for (method, path), operation in _OPERATIONS.items():
        named = [it for it in (_SERVICE, _REPLICA, _KEY, _CERTIFICATE) if f"{{{it['name']}}}" in path]
        unknown = {"404": _UNKNOWN if _REPLICA in named else _UNKNOWN_SERVICE} if _SERVICE in named else {}
        paths.setdefault(path, {})[method] = operation | {
            "parameters": named + operation["parameters"],
            "responses": unknown | operation["responses"],
        }
    return paths


class _Generator(GenerateJsonSchema):
    """No titles that only repeat a field's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


_Answers = (
    models.Accepted | models.CertificateStored | models.Drained | models.Error | models.Events | models.Explained
    | models.FleetStatus | models.FleetUsage | models.Joined | models.KeyStored | models.Leave | models.Plan
    | models.Put | models.Reloaded | models.Replicas | models.Restarted | models.Resumed | Signals | models.Status
    | models.Stopped
    | models.StoredCertificates | models.StoredKeys | models.Unanswered | models.Usage
)  # fmt: skip
"""All that is answered; pydantic describes it and what it is made of."""

_Bodies = models.CertificateToStore | models.KeyToStore
"""What is put in the store; `Entry` is what is put of a replica."""


def _schemas() -> Json:
    entry, parts = raw_schema(_REF)
    answers = TypeAdapter[Any](_Answers | _Bodies, config=ConfigDict(use_attribute_docstrings=True))
    described = answers.json_schema(mode="serialization", ref_template=_REF, schema_generator=_Generator)
    return {**parts, **described["$defs"], "Entry": entry}


@cache
def describe_api() -> Json:
    """The whole description. Made once, in 0.15 s of CPU."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gateway-sidecar admin API",
            "version": __version__,
            "description": "On `admin.sock` in `run_dir`; with `admin.listen` also over TCP, with mutual TLS.",
        },
        "paths": _paths(),
        "components": {"schemas": _schemas()},
    }
