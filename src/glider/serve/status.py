"""The server's state: health, models, metrics, the pool, and the experts that a prompt would use."""

from typing import Any

import torch
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from glider import __version__
from glider.layers.trace import Trace
from glider.serve import bodies, replies
from glider.serve.errors import ApiError, require_one
from glider.serve.exchange import Prompt
from glider.serve.keys import Key
from glider.serve.pools import ServedPool, Target
from glider.serve.prompts import chat_prompt, plain_prompts, require_room
from glider.serve.schemas import RouteRequest
from glider.serve.service import Service
from glider.serve.steering import guided, other_router
from glider.serve.token_trace import TokenWeights

_LEAST = 5e-5  # smaller weights are left out


def routes(service: Service) -> APIRouter:
    """The routes, over a service."""
    router = bodies.router()

    @router.get("/health", **replies.described(replies.Status))
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready", **replies.described(replies.Status, s503=replies.Status))
    async def ready() -> JSONResponse:
        up = service.ready and not service.places.closed
        return JSONResponse({"status": "ready" if up else "not ready"}, 200 if up else 503)

    @router.get("/version", **replies.described(replies.Version))
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @router.get("/load", **replies.described(replies.Load))
    async def load() -> dict[str, int]:
        return {"server_load": service.places.running + service.places.waiting}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        pools, places = service.key(request, "metrics").pools, service.places
        names = service.pools.names_of(pools)
        text = service.metrics.text(places.running, places.waiting, service.runner.engine.prefix_cache, names)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/v1/models", **replies.described(replies.Models))
    async def models(request: Request) -> dict[str, Any]:
        return {"object": "list", "data": service.pools.cards(service.key(request, "ask").pools)}

    @router.get("/v1/models/{name:path}", **replies.described(replies.ModelCard))
    async def model(request: Request, name: str) -> dict[str, Any]:
        cards = service.pools.cards(service.key(request, "ask").pools)
        match = next((card for card in cards if card["id"] == name), None)
        return match or await _other_router(service, request, name)

    @router.get("/v1/pool", **replies.described(replies.PoolCards))
    async def pool(request: Request) -> dict[str, Any]:
        key = service.key(request, "ask")
        return {"object": "list", "data": [_pool(service, one, key) for one in service.pools.visible(key.pools)]}

    @router.post("/v1/route", **replies.described(replies.Route))
    async def route(request: Request, body: RouteRequest) -> dict[str, Any]:
        key, target = service.target(request, body.model)
        if body.glider.trace:
            key.require("trace")
        service.places.check(key.name, key.max_streams)
        return await service.runner.prepare(_route, service, target, body)

    return router


async def _other_router(service: Service, request: Request, name: str) -> dict[str, Any]:
    """The card of a pool under another router, which is in no list; raises `ApiError` where that does not answer."""
    _, target = service.target(request, name)
    if target.way.router is None:  # it came since the list was made
        raise ApiError(404, f"no model {name[:200]!r} here; see /v1/models", param="model", code="model_not_found")
    pool = target.pool
    await service.runner.prepare(other_router, pool.model.pool, pool.generation, target.way.router)
    return service.pools.router_card(pool, name)


def _pool(service: Service, pool: ServedPool, key: Key) -> dict[str, Any]:
    """A pool with its experts, and whether this key may change it."""
    index, router = pool.model.pool.index, pool.generation.router
    names = {expert: model for model, expert in service.pools.expert_names(pool).items()}
    term = pool.generation.prepared.global_term
    return {
        "id": pool.name,
        "base": index.base.model_id,
        "generation": pool.number(pool.generation),
        "router": type(router).__name__,
        "signal": None if term is None else term.signal,
        "threshold": None if term is None else term.p,
        "allow_changes": service.settings.allow_changes and "change" in key.rights,
        "experts": [_expert(pool, name, names.get(name)) for name in pool.names],
        "adapters": [{"name": name, "model": model} for model, name in service.pools.adapter_names(pool).items()],
    }


def _expert(pool: ServedPool, name: str, model: str | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "model": model}
    if name in pool.model.pool.names:
        card = pool.model.pool[name].card
        entry |= {"task": card.task, "description": card.description, "licence": card.licence, "metrics": card.metrics}
    if name in pool.gains:
        entry["gain"] = pool.gains[name].model_dump(include={"metric", "rows", "base", "alone"})
    return entry


def _route(service: Service, target: Target, body: RouteRequest) -> dict[str, Any]:
    """What a prompt would use: its condition, and the experts by a pass over the prompt."""
    require_one(prompt=body.prompt, messages=body.messages)
    model, way, steering = target.pool.model, target.way, body.glider
    prompt: Prompt
    if body.messages is not None:
        prompt = chat_prompt(model, body.messages)
    else:
        (prompt,) = plain_prompts(model, [body.prompt])
    require_room(model, service.settings, prompt, "prompt" if body.messages is None else "messages")
    generation = target.take()
    try:
        query = service.query(prompt.text, steering)
        guide = guided(model, generation, way, query, prompt.ids, steering, prompt.turns)
        trace = Trace(generation.names, guide.condition, torch.ones(1, len(prompt.ids), dtype=torch.bool))
        inputs = model.encoder.forward_inputs(model.encoder.batch([prompt.ids]))
        with torch.inference_mode(), model.attached.routing(guide.condition, recorder=trace, generation=generation):
            model.model(**inputs)
        reply: dict[str, Any] = {
            "object": "route",
            "model": body.model,
            "verdict": guide.verdict,
            "alpha": guide.alpha,
            "experts": {name: round(weight, 4) for name, weight in trace.usage().items() if abs(weight) >= _LEAST},
            "scores": guide.scores,
            "generation": target.pool.number(generation),
            "description": guide.description,
            "fault": guide.fault,
            "tokens": len(prompt.ids),
        }
        if steering.trace:
            reply["trace"] = _traced(service, prompt, trace)
        return reply
    finally:
        model.attached.give_back(generation)


def _traced(service: Service, prompt: Prompt, trace: Trace) -> dict[str, Any]:
    """Weights by token and layer, of the sites that see the prompt's tokens."""
    weights = TokenWeights(list(trace.experts))
    calls = [call for call in trace.calls if len(call.decision.experts) == len(prompt.ids)]
    dense = [trace.weights(call)[0] for call in calls]  # S of (T, E)
    for number, token in enumerate(prompt.ids):
        step = torch.stack([one[number] for one in dense]) if dense else torch.zeros(0, len(trace.experts))
        weights.add(service.texts.shown(token), [call.site for call in calls], step)
    return weights.content
