"""`services[].scaling`: the rules of a recommendation, and the hook that receives it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator

from gateway_sidecar.config.section import Section, number
from gateway_sidecar.config.values import show
from gateway_sidecar.config.yamltree import Problem, Tree, path_text

MetricName = Literal["rps", "concurrency", "ttft", "itl"]
Target = Annotated[float, Field(gt=0, le=1_000_000)]
Count = Annotated[int, Field(ge=0, le=10_000)]
_URL = re.compile(r"^https?://[^\s/]+(/\S*)?$")


def _check_url(value: str) -> str:
    if not _URL.match(value):
        raise ValueError(f"{show(value)} is not an http:// or https:// address; use one such as http://127.0.0.1:8080/")
    return value


UrlValue = Annotated[str, AfterValidator(_check_url), Field(json_schema_extra={"pattern": _URL.pattern})]


class HookSettings(Section):
    """The hook that receives a changed recommendation. Only the newest one is sent."""

    command: Annotated[tuple[str, ...], Field(strict=False)] | None = Field(
        default=None,
        description="A program and its arguments, run without a shell. The program gets the recommendation as JSON on"
        " standard input, and as `GATEWAY_SIDECAR_SERVICE`, `_ROLE`, `_DESIRED` and `_CURRENT` in its environment.",
        examples=[["/usr/local/bin/scale"]],
    )
    webhook: UrlValue | None = Field(
        default=None,
        description="An address that receives the recommendation as JSON, with POST. Any 2xx counts as received."
        " Redirections are not followed. Logs and status show only its host.",
        examples=["http://127.0.0.1:8080/scale"],
    )
    timeout_s: float = number(10.0, 0.1, 600, "After this time the command is ended, or the request is given up.")

    @property
    def who(self) -> str:
        """The hook's name for logs: of an address only the host, since the rest is often a secret."""
        if self.command is not None:
            return self.command[0]
        parts = urlsplit(self.webhook or "")
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    @field_validator("command")
    @classmethod
    def _command(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (not value or not value[0].startswith("/")):
            raise ValueError("does not begin with a program's absolute path; use one such as /usr/local/bin/scale")
        if value is not None and any("\0" in word for word in value):
            raise ValueError("holds a NUL character, which ends a text to the kernel; leave it out")
        return value


class RoleScaling(Section):
    """What differs for one role of a prefill/decode pair; what is left out is as for the service."""

    metric: MetricName | None = Field(default=None, description="As `scaling.metric`, for this role.")
    target: Target | None = Field(default=None, description="As `scaling.target`, for this role.")
    min: Count | None = Field(default=None, description="As `scaling.min`, for this role.")
    max: Count | None = Field(default=None, description="As `scaling.max`, for this role.")


class ScalingSettings(Section):
    """How many replicas there should be. The daemon starts none: it says so, and tells a hook."""

    metric: MetricName = Field(
        description="What is held at `target`. `rps` and `concurrency` are shared by the replicas. `ttft` is the p90"
        " of the time to first token, as clients saw it; `itl` is the p90 of the pause between tokens.",
        examples=["rps"],
    )
    target: Target = Field(
        description="Requests per second (`rps`) or at once (`concurrency`) for each replica; seconds (`ttft`, `itl`)."
        " Within a tenth of the target nothing changes.",
        examples=[5],
    )
    min: Count = Field(
        default=1,
        description="There are at least this many replicas. With 0 the last replica goes after `idle_after_s`.",
    )
    max: Count = Field(default=10, description="There are at most this many replicas.")
    window_s: Literal[30, 60, 300] = Field(default=60, description="The metric covers this many seconds.")
    up_after_s: float = number(
        0.0, 0, 3600, "More replicas are recommended only after they have been needed for this long."
    )
    down_after_s: float = number(
        300.0, 0, 3600, "Fewer replicas are recommended only after they have been enough for this long."
    )
    idle_after_s: float = number(
        600.0, 0, 86400, "With `min` 0: the last replica goes after this time without a request."
    )
    prefill: RoleScaling | None = Field(default=None, description="Other values for prefill replicas.")
    decode: RoleScaling | None = Field(default=None, description="Other values for decode replicas.")
    hook: HookSettings | None = Field(default=None, description="The hook that receives changes.")


def scaling_problems(tree: Tree) -> Iterator[Problem]:
    """Settings of `scaling` that contradict each other."""
    services = tree.data.get("services") if isinstance(tree.data, dict) else None
    for index, service in enumerate(services if isinstance(services, list) else []):
        scaling = service.get("scaling") if isinstance(service, dict) else None
        if isinstance(scaling, dict):
            yield from _of_service(tree, ("services", index, "scaling"), scaling)


def _of_service(tree: Tree, at: tuple[str | int, ...], scaling: dict[str, Any]) -> Iterator[Problem]:
    bounds = {"min": 1, "max": 10} | {key: scaling[key] for key in ("min", "max") if _is_count(scaling.get(key))}
    for role in (None, "prefill", "decode"):
        own = scaling if role is None else scaling.get(role)
        if not isinstance(own, dict):
            continue
        said = {key: own[key] for key in ("min", "max") if _is_count(own.get(key))}
        mine = bounds | said
        if mine["min"] > mine["max"] and (said or role is None):
            where = (*at, *([role] if role else []), "min" if "min" in said else "max")
            text = f"min is {mine['min']} and max is {mine['max']}; let min be max at the most"
            yield Problem(tree.line(where), path_text(where), text)
        metric = own.get("metric")
        if role and metric in get_args(MetricName) and "target" not in own and metric != scaling.get("metric"):
            where = (*at, role, "metric")
            yield Problem(tree.line(where), path_text(where), f"{metric} needs a target of its own; add `target`")
    hook = scaling.get("hook")
    if isinstance(hook, dict) and (hook.get("command") is None) == (hook.get("webhook") is None):
        where = (*at, "hook")
        yield Problem(tree.line(where), path_text(where), "needs a command or a webhook, and not both; give one")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
