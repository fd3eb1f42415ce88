"""Asking an HTTP engine what it is and whether it serves."""

from __future__ import annotations

from gateway_sidecar.domain.discovery import (
    HttpAnswer,
    ModelList,
    NoAnswer,
    judge_http_health,
    read_models,
    unanswered,
)
from gateway_sidecar.domain.model import EngineFacts, ProbeResult
from gateway_sidecar.engines import external
from gateway_sidecar.engines.dialect import HttpDialect
from gateway_sidecar.engines.unix_http import UnixHttp
from gateway_sidecar.kinds import ENGINES

FIRST = "/v1/models"
"""The first question: it is quick, and names the engine."""
HEALTH = "/health"


async def identify(http: UnixHttp) -> ProbeResult | NoAnswer:
    """Name the engine, read its facts, judge its health; NoAnswer where the first question got none.

    Health comes last: SGLang takes a second or more for it, as it generates a token.
    """
    listing = await http.get(FIRST)
    if isinstance(listing, NoAnswer):
        return listing
    models = read_models(listing)
    if not isinstance(models, ModelList):
        return models
    if not models.ids:
        return await _identify_bare(http)
    known = (engine.http for engine in ENGINES if engine.http is not None)
    dialect = next((dialect for dialect in known if models.owned_by in dialect.owned_by), external.HTTP)
    facts = await _facts(http, dialect, models)
    return await check_health(http, facts) if isinstance(facts, EngineFacts) else facts


async def check_health(http: UnixHttp, facts: EngineFacts) -> ProbeResult:
    """Ask a known engine for its health alone."""
    answer = await http.get(HEALTH, last=True)
    return unanswered(answer, HEALTH) if isinstance(answer, NoAnswer) else judge_http_health(facts, answer)


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


async def _identify_bare(http: UnixHttp) -> ProbeResult:
    elsewhere = await http.get(external.ELSEWHERE)
    if isinstance(elsewhere, NoAnswer):
        return unanswered(elsewhere, external.ELSEWHERE)
    health = await http.get(HEALTH, last=True)
    if isinstance(health, NoAnswer):
        return unanswered(health, HEALTH)
    facts = external.read_bare(elsewhere, health)
    return judge_http_health(facts, health) if isinstance(facts, EngineFacts) else facts
