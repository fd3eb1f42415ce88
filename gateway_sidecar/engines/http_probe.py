"""Asking an HTTP engine what it is and whether it serves."""

from __future__ import annotations

from dataclasses import replace

from gateway_sidecar.domain.discovery import (
    ABSENT,
    HttpAnswer,
    ModelList,
    NoAnswer,
    is_absent,
    judge_http_health,
    read_models,
    unanswered,
)
from gateway_sidecar.domain.model import Access, EngineFacts, Foreign, Loading, ProbeResult, Ready, Unknown
from gateway_sidecar.engines import external, web
from gateway_sidecar.engines.dialect import HttpDialect
from gateway_sidecar.engines.unix_http import UnixHttp
from gateway_sidecar.kinds import ENGINES
from gateway_sidecar.supervision.awake import within

HEALTH, MODELS, INFO, METRICS = "/health", "/v1/models", "/info", "/metrics"
_METRICS_S = 1.0
"""A page that takes longer is done without: vLLM's has taken some milliseconds."""
IDENTIFYING = frozenset(path for engine in ENGINES if engine.http for paths in engine.http.questions for path in paths)
"""What an engine is asked that has named itself. A real vLLM's first answer about itself takes over 5 s."""


def first_page(access: Access) -> str:
    """What is asked first."""
    return access.at(MODELS) if access.engine is None else access.path or web.ROOT


async def identify(http: UnixHttp, access: Access) -> ProbeResult | NoAnswer:
    """Name the engine, read its facts, judge its health; NoAnswer where the first question got none.

    Health comes last: SGLang takes a second or more for it, as it generates a token.
    """
    listing = await http.get(first_page(access))
    if isinstance(listing, NoAnswer):
        return listing
    if access.engine == web.NAME:
        return web.judge(web.facts_of(access), listing, access)
    models = read_models(listing, access.at(MODELS))
    if isinstance(models, Foreign) and (listing.status in ABSENT or access.model is not None):
        return await _identify_unlisted(http, access, models)
    if not isinstance(models, ModelList):
        return models
    if not models.ids and access.model is None:
        return await _identify_bare(http, access)
    known = (engine.http for engine in ENGINES if engine.http is not None)
    dialect = next((dialect for dialect in known if models.owned_by in dialect.owned_by), external.HTTP)
    facts = await _facts(http, dialect, models)
    if not isinstance(facts, EngineFacts):
        return facts
    verdict = await _first_health(http, facts.listing(facts.model, models.ids), access, dialect)
    return await _with_connector(http, verdict, dialect)


async def check_health(http: UnixHttp, facts: EngineFacts, access: Access, *, relist: bool) -> ProbeResult:
    """Ask a known engine for its health and, with `relist`, which names it has, where it has any."""
    asks_names = relist and access.engine is None and access.at(MODELS) not in facts.health
    pages = (access.at(MODELS), *facts.health) if asks_names else facts.health
    for page in pages:
        answer = await http.get(page, last=page == pages[-1])
        models = read_models(answer, page) if page == access.at(MODELS) and isinstance(answer, HttpAnswer) else None
        if isinstance(models, ModelList) and models.ids:
            facts = facts.listing(facts.model, models.ids)
        result = _judge(facts, access, page, answer)
        if page in facts.health and not isinstance(result, Ready):
            return result
    return Ready(facts)


async def _first_health(http: UnixHttp, facts: EngineFacts, access: Access, dialect: HttpDialect) -> ProbeResult:
    """Ask an engine for its health by those pages that it has; where it has none, that it lists its models counts."""
    pages, verdict = [], None
    for page in (*dialect.health, access.path or HEALTH):
        answer = await http.get(page)
        if isinstance(answer, HttpAnswer) and page != access.path and is_absent(answer):
            continue
        pages.append(page)
        result = _judge(facts, access, page, answer)
        if isinstance(answer, NoAnswer):
            return result
        verdict = verdict if isinstance(result, Ready) else verdict or result
    if not pages or pages[-1] in dialect.health:
        pages.append(access.at(MODELS))
    facts = replace(facts, health=tuple(pages))
    if isinstance(verdict, Loading):
        return replace(verdict, facts=facts)
    return verdict or Ready(facts)


async def _with_connector(http: UnixHttp, verdict: ProbeResult, dialect: HttpDialect) -> ProbeResult:
    """Look for a KV connector that the engine has not told of. A page that is not to be had spoils nothing."""
    if not isinstance(verdict, Ready | Loading) or verdict.facts is None:
        return verdict
    if not dialect.connectors or verdict.facts.kv_connector is not None:
        return verdict
    try:
        async with within(_METRICS_S):
            page = await http.get(METRICS, last=True)
    except TimeoutError:
        return verdict
    if isinstance(page, NoAnswer):
        return verdict
    body = b"\n" + page.body if page.status == 200 else b""
    for start, connector in dialect.connectors.items():
        if any(before + start.encode() in body for before in (b"\n", b"\n# TYPE ")):
            return replace(verdict, facts=replace(verdict.facts, kv_connector=connector))
    return verdict


def _judge(facts: EngineFacts, access: Access, page: str, answer: HttpAnswer | NoAnswer) -> ProbeResult:
    if isinstance(answer, NoAnswer):
        return unanswered(answer, page)
    if facts.runtime_type == web.NAME:
        return web.judge(facts, answer, access)
    if page == access.at(MODELS):
        models = read_models(answer, page)
        return Ready(facts) if isinstance(models, ModelList) else _proves_little(models)
    return judge_http_health(facts, answer, page, access.expect if page in (access.path, HEALTH) else None)


def _proves_little(result: ProbeResult) -> ProbeResult:
    """What makes an unknown occupant Foreign proves nothing about an engine that was one a moment ago."""
    return Unknown(result.reason) if isinstance(result, Foreign) else result


async def _identify_unlisted(http: UnixHttp, access: Access, unlisted: Foreign) -> ProbeResult:
    """A server whose models cannot be listed: its model is known from `/info` (TEI, older TGI) or from the operator."""
    info = await http.get(INFO)
    if isinstance(info, NoAnswer):
        return unanswered(info, INFO)
    facts = external.read_info(info, access.model)
    if facts is None:
        return unlisted
    page = access.path or HEALTH
    health = await http.get(page, last=True)
    if isinstance(health, HttpAnswer) and is_absent(health):
        return Foreign(
            f"HTTP, but it has neither {access.at(MODELS)} nor {page}; set health.path to a page that it has"
        )
    result = _judge(facts, access, page, health)
    return Ready(replace(facts, health=(page,))) if isinstance(result, Ready) else result


async def _facts(http: UnixHttp, dialect: HttpDialect, models: ModelList) -> EngineFacts | ProbeResult:
    answers = []
    for paths in dialect.questions:
        answer = await _first_found(http, paths)
        if isinstance(answer, NoAnswer):
            return unanswered(answer, paths[0])
        answers.append(answer)
    return dialect.read(models, tuple(answers))


async def _first_found(http: UnixHttp, paths: tuple[str, ...]) -> HttpAnswer | NoAnswer:
    """Ask a question by its newest name, then by the older ones while the answer is 404."""
    answer: HttpAnswer | NoAnswer = HttpAnswer(404)
    for path in paths:
        answer = await http.get(path)
        if isinstance(answer, NoAnswer) or answer.status != 404:
            break
    return answer


async def _identify_bare(http: UnixHttp, access: Access) -> ProbeResult:
    elsewhere = await http.get(external.ELSEWHERE)
    if isinstance(elsewhere, NoAnswer):
        return unanswered(elsewhere, external.ELSEWHERE)
    health = await http.get(HEALTH, last=True)
    if isinstance(health, NoAnswer):
        return unanswered(health, HEALTH)
    facts = external.read_bare(elsewhere, health)
    return _judge(facts, access, HEALTH, health) if isinstance(facts, EngineFacts) else facts
