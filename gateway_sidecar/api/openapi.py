"""The admin API as OpenAPI describes it; served at `/v1/openapi.json`.

A description, not a generator: `tests/unit/test_openapi.py` holds it against the routes, and
`tests/system/test_api_description.py` against a daemon.
"""

from __future__ import annotations

from typing import Any

from gateway_sidecar import __version__
from gateway_sidecar.api.answers import LONGEST_S
from gateway_sidecar.api.replicas import MOST_BYTES
from gateway_sidecar.config.tunnels import MOST_ID_BYTES
from gateway_sidecar.domain.model import ConnectionMode, ReplicaState, WorkerType
from gateway_sidecar.domain.planning import Missing
from gateway_sidecar.domain.tunnels import PathState
from gateway_sidecar.sources.api import raw_schema

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_MAYBE_TEXT: Json = {"type": ["string", "null"]}
_COUNT: Json = {"type": "integer", "minimum": 0}
_MAYBE_COUNT: Json = {"type": ["integer", "null"], "minimum": 0}
_SECONDS: Json = {"type": "number", "minimum": 0}
_YES: Json = {"type": "boolean"}
_TEXTS: Json = {"type": "array", "items": _TEXT}
_TEXT_BY_NAME: Json = {"type": "object", "additionalProperties": _TEXT}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**fields: Json) -> Json:
    """An object that has all of these; later versions may add some."""
    return {"type": "object", "properties": fields, "required": list(fields)}


def _list(of: Json) -> Json:
    return {"type": "array", "items": of}


def _one_of(*values: str | None) -> Json:
    return {"enum": list(values)}


def _answer(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _no(description: str) -> Json:
    return _answer(description, _ref("Error"))


_SERVICE: Json = {"name": "service", "in": "path", "required": True, "schema": {**_TEXT, "minLength": 1}}
_REPLICA: Json = {
    "name": "replica",
    "in": "path",
    "required": True,
    "description": f"Printable characters without `/`, {MOST_ID_BYTES} bytes at most.",
    "schema": {**_TEXT, "minLength": 1},
}


_SAME = {"service": "$request.path.service", "replica": "$request.path.replica"}
_LINKS: Json = {
    name: {"operationId": name, "parameters": _SAME}
    for name in ("getReplica", "deleteReplica", "drainReplica", "resumeReplica")
}


def _seconds(name: str, description: str, default: float | None) -> Json:
    said = {} if default is None else {"default": default}
    schema = {"type": "number", "minimum": 0, "maximum": LONGEST_S, **said}
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _operation(name: str, summary: str, answers: Json, *parameters: Json, **further: Any) -> Json:
    return {"operationId": name, "summary": summary, "parameters": list(parameters), "responses": answers, **further}


_UNKNOWN_SERVICE = _no("No such service; the message names those that there are.")
_UNKNOWN = _no("No such service, or no such replica; the message names those that there are.")
_BAD_QUERY = _no("A query parameter cannot be used.")
_NOT_WRITTEN = {
    "503": _no("It could not be written down, or nothing was seen yet of whose replica this is. Nothing was changed."),
    "507": _no("No room left in `state_dir` to write it down. Nothing was changed."),
}


def _paths() -> Json:
    put = _operation(
        "putReplica",
        "There is such a replica from now on",
        {
            "200": {**_answer("It was there: unchanged, or as the body says now.", _ref("Put")), "links": _LINKS},
            "201": {**_answer("It is new.", _ref("Put")), "links": _LINKS},
            "400": _no("The body is not JSON, or a query parameter cannot be used."),
            "404": _UNKNOWN_SERVICE,
            "409": _no("Another source has a replica of this id (`source`), or somebody changed it while this waited."),
            "413": _no(f"The body is larger than {MOST_BYTES} bytes."),
            "415": _no("The body is not `application/json`."),
            "422": _no("The replica was refused; `problems` has a line for each mistake."),
            "504": _no("With `wait`: it does not serve in time; `replica` tells why. It stays as it was put."),
            **_NOT_WRITTEN,
        },
        _SERVICE,
        _REPLICA,
        {"name": "wait", "in": "query", "description": "Answer when the replica serves.", "schema": _one_of("serving")},
        _seconds("timeout_s", "With `wait`: for how long.", 60.0),
        requestBody={"required": True, "content": {"application/json": {"schema": _ref("Entry")}}},
    )
    delete = _operation(
        "deleteReplica",
        "There is no such replica any more",
        {
            "200": _answer("It is gone, and nothing of it was in flight any more.", _ref("Removed")),
            "202": _answer("It is gone; what it has in flight goes on.", _ref("Removed")),
            "400": _BAD_QUERY,
            "404": _UNKNOWN,
            "409": _no("Another source has it (`source`), or somebody put it again while it drained."),
            **_NOT_WRITTEN,
        },
        _SERVICE,
        _REPLICA,
        _seconds("drain_s", "Wait so long for what is in flight before it is forgotten.", 0.0),
    )
    one = _operation(
        "getReplica", "One replica", {"200": _answer("As in `status`.", _ref("Replica")), "404": _UNKNOWN},
        _SERVICE, _REPLICA,
    )  # fmt: skip
    missed = _answer("What nobody could answer without it: one line for each model.", _object(missed=_TEXTS))
    before_drain = _operation(
        "whatADrainMeans", "What a drain would mean", {"200": missed, "404": _UNKNOWN}, _SERVICE, _REPLICA
    )
    drain = _operation(
        "drainReplica",
        "Out of rotation, until nothing is in flight",
        {
            "200": _answer("It is safe to stop its engine.", _ref("Drained")),
            "400": _BAD_QUERY,
            "404": _UNKNOWN,
            "504": _answer("Something is still in flight; it stays out of rotation.", _ref("Drained")),
        },
        _SERVICE,
        _REPLICA,
        _seconds("timeout_s", "For how long; `drain.timeout_s` of the service by default.", None),
    )
    resumed = _answer("It goes back once it answers.", _object(resumed=_YES))
    resume = _operation("resumeReplica", "Back into rotation", {"200": resumed, "404": _UNKNOWN}, _SERVICE, _REPLICA)
    replicas = _answer("By id; of one id the present occupant first.", _object(replicas=_list(_ref("Replica"))))
    restarted = _answer("The new one serves.", _object(pid={"type": ["integer", "null"]}, took_s=_SECONDS))
    restart = _operation(
        "restartRouter",
        "A new router, without failing a request",
        {"200": restarted, "404": _UNKNOWN_SERVICE, "409": _no("It cannot be replaced now; the message says why.")},
        _SERVICE,
    )
    stop = _operation(
        "stop",
        "The daemon ends",
        {"202": _answer("It has begun to.", _object(pid=_COUNT)), "400": _BAD_QUERY},
        {
            "name": "all",
            "in": "query",
            "description": "nginx and the routers as well.",
            "schema": {**_one_of("true", "false"), "default": "false"},
        },
        _seconds("timeout_s", "With `all`: for what is in flight.", 30.0),
    )
    reload = _operation(
        "reload",
        "The configuration is read again",
        {
            "200": _answer("What changed.", _object(changes=_TEXTS)),
            "422": _no("It was refused, and nothing changed; `problems` has a line for each mistake."),
            "503": _no(
                "Something of it is not in force (`problems`), and is tried again; `changes` says what changed."
            ),
        },
    )
    action = _object(service=_TEXT, replica=_TEXT, action=_TEXT)
    planned = _answer("At rest nothing.", _object(actions=_list(action)))
    service, replica = "/v1/services/{service}", "/v1/services/{service}/replicas/{replica}"
    return {
        "/v1/openapi.json": {
            "get": _operation("getDescription", "This description", {"200": _answer("It.", {"type": "object"})})
        },
        "/v1/status": {"get": _operation("getStatus", "All services", {"200": _answer("They.", _ref("Status"))})},
        "/v1/plan": {"get": _operation("getPlan", "What would be done next", {"200": planned})},
        "/v1/reload": {"post": reload},
        "/v1/stop": {"post": stop},
        f"{service}/signals": {
            "get": _operation(
                "getSignals",
                "What an autoscaler has to know of a service",
                {
                    "200": _answer("Unknown is null.", _ref("Signals")),
                    "404": _UNKNOWN_SERVICE,
                    "503": _no("Nothing has been measured yet; ask again in a second."),
                },
                _SERVICE,
            )
        },
        f"{service}/router/restart": {"post": restart},
        f"{service}/replicas": {
            "get": _operation("listReplicas", "All of a service", {"200": replicas, "404": _UNKNOWN_SERVICE}, _SERVICE)
        },
        replica: {"get": one, "put": put, "delete": delete},
        f"{replica}/drain": {"get": before_drain, "post": drain},
        f"{replica}/resume": {"post": resume},
    }


def _signals() -> Json:
    rate: Json = {"type": ["number", "null"], "minimum": 0}
    quantiles = {"p50": rate, "p90": rate, "p99": rate, "samples": rate}
    latency = {"anyOf": [_object(**quantiles), {"type": "null"}]}
    told = {"anyOf": [_object(source=_TEXT), {"type": "null"}]}
    outcomes = {"type": ["object", "null"], "additionalProperties": _COUNT}
    window = _object(
        covered_s=_SECONDS, requests_per_s=rate, errors_per_s=rate, outcomes=outcomes, e2e_s=latency,
        ttft_s=told, itl_s=told,
    )  # fmt: skip
    of_role = _object(requests_per_s=rate, errors_per_s=rate, ttft_s=told, itl_s=told)
    role = _object(
        serving=_COUNT, coming=_COUNT, in_flight=rate, waiting=rate,
        windows={"type": "object", "additionalProperties": of_role},
    )  # fmt: skip
    recommended = _object(
        desired=_COUNT, current=_COUNT, reason=_TEXT, metric=_TEXT, target={"type": "number"}, min=_COUNT, max=_COUNT
    )
    sources = _object(
        events=_object(problem=_MAYBE_TEXT),
        router=_object(age_s=rate, problem=_MAYBE_TEXT),
        engines=_object(read=_COUNT, problems=_TEXT_BY_NAME),
    )
    return {
        "Scaling": _object(roles={"type": "object", "additionalProperties": recommended}, hook_problem=_MAYBE_TEXT),
        "Signals": _object(
            service=_TEXT,
            in_flight=rate,
            waiting=_COUNT,
            missing=_one_of(*Missing, None),
            windows={"type": "object", "additionalProperties": window},
            roles={"type": "object", "additionalProperties": role},
            scaling={"anyOf": [_ref("Scaling"), {"type": "null"}]},
            sources=sources,
        ),
    }


def _schemas() -> Json:
    entry, further = raw_schema("#/components/schemas/{model}")
    tunnel = _object(to=_TEXT, state=_one_of(*PathState), reason=_MAYBE_TEXT)
    replica = _object(
        id=_TEXT,
        state={
            **_one_of(*ReplicaState, "absent"),
            "description": "`absent`: it was put over the API, and its socket is not there.",
        },
        state_age_s=_SECONDS,
        socket=_MAYBE_TEXT,
        bridge=_MAYBE_TEXT,
        advertise=_MAYBE_TEXT,
        direct=_YES,
        worker_id=_MAYBE_TEXT,
        worker_type=_one_of(*WorkerType, None),
        connection_mode=_one_of(*ConnectionMode, None),
        runtime_type={**_MAYBE_TEXT, "description": "The engine, such as vllm; external is any other OpenAI API."},
        model=_MAYBE_TEXT,
        reason=_MAYBE_TEXT,
        source={**_TEXT, "description": "The source that has it, such as sockets or api."},
        tunnel={"anyOf": [tunnel, {"type": "null"}]},
    )
    router = _object(
        type=_TEXT,
        state=_TEXT,
        url=_MAYBE_TEXT,
        pid={"type": ["integer", "null"]},
        restarts=_COUNT,
        metrics_url=_MAYBE_TEXT,
        reason=_MAYBE_TEXT,
    )
    service = _object(
        name=_TEXT,
        listen=_TEXT,
        public=_TEXTS,
        not_in_force={**_MAYBE_TEXT, "description": "Why `listen` and `frontend` are not served as they are set."},
        source=_object(
            settings={**_TEXT_BY_NAME, "description": "Where the settings have replicas looked for, by kind."},
            blind=_MAYBE_TEXT,
            refused=_TEXT_BY_NAME,
        ),
        router=router,
        waiting=_COUNT,
        missing=_one_of(*Missing, None),
        reason=_MAYBE_TEXT,
        unanswered=_TEXT_BY_NAME,
        bridge_ports=_COUNT,
        replicas=_list(_ref("Replica")),
        scaling={"anyOf": [_ref("Scaling"), {"type": "null"}]},
    )
    nginx = _object(
        state=_one_of("up", "down"),
        pid={"type": ["integer", "null"]},
        reason=_MAYBE_TEXT,
        ports=_COUNT,
        leased=_COUNT,
        quarantined=_COUNT,
        share=_COUNT,
        reloads=_COUNT,
    )
    drained = {"drained": _YES, "in_flight": _MAYBE_COUNT, "took_s": _SECONDS, "missed": _TEXTS}
    return {
        **further,
        **_signals(),
        "Entry": entry,
        "Error": {
            "type": "object",
            "properties": {
                "error": _TEXT,
                "problems": _TEXTS,
                "changes": _TEXTS,
                "source": _TEXT,
                "replica": _ref("Replica"),
            },
            "required": ["error"],
            "additionalProperties": False,
        },
        "Replica": replica,
        "Put": _object(created=_YES, changed=_YES, replica=_ref("Replica")),
        "Removed": _object(removed=_YES, **drained),
        "Drained": _object(**drained),
        "Status": _object(services=_list(service), nginx=nginx, problems=_TEXTS, ready=_YES),
    }


def describe_api() -> Json:
    """The whole description."""
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
