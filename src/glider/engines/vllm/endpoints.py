"""`/v1/pool` and `/v1/route` beside vLLM's own routes, for a server that is started with `VLLM_PLUGINS=glider`."""

from typing import Any

from pydantic import ValidationError

from glider.engines.vllm.front import Front, FrontRequest
from glider.engines.vllm.replies import experts_of
from glider.engines.vllm.requests import FRONT
from glider.errors import GliderError
from glider.inference.conversation import question_text
from glider.serve.errors import ApiError, invalid, require_one
from glider.serve.schemas import RouteRequest


class GliderEndpoints:
    """What vLLM asks of an endpoint plug-in. Without a pool in the engine both routes are a 404."""

    name = "glider"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self.front: Front | None = None

    def attach_router(self, app: Any) -> None:
        """Put the routes on the server."""
        app.add_api_route("/v1/pool", self._pool, methods=["GET"])
        app.add_api_route("/v1/route", self._route, methods=["POST"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Find the pool."""
        self.front = getattr(getattr(engine_client, "input_processor", None), FRONT, None)

    async def _pool(self) -> Any:
        from fastapi.responses import JSONResponse

        if self.front is None:
            return ApiError(404, "this engine serves no pool", code="not_found").response
        return JSONResponse({"object": "list", "data": [pool_card(self.front)]})

    async def _route(self, body: dict[str, Any]) -> Any:
        from fastapi.responses import JSONResponse

        if self.front is None:
            return ApiError(404, "this engine serves no pool", code="not_found").response
        try:
            return JSONResponse(route_reply(self.front, RouteRequest.model_validate(body)))
        except ValidationError as fault:
            return invalid(fault.errors(), body).response
        except (ApiError, GliderError) as fault:
            return ApiError.of(fault).response


def pool_card(front: Front) -> dict[str, Any]:
    """What is served, in the fields of `glider serve`: names, mode, router, and the experts' cards."""
    settings, pool, term = front.settings, front.pool, front.generation.prepared.global_term
    return {
        "id": settings.name,
        "base": settings.base,
        "generation": front.generation.number,
        "router": type(front.generation.router).__name__,
        "signal": None if term is None else term.signal,
        "threshold": None if term is None else term.p,
        "allow_changes": False,
        "mode": settings.mode,
        "experts": [
            {
                "name": expert.name,
                "model": expert.name,
                "task": expert.card.task,
                "description": expert.card.description,
                "licence": expert.card.licence,
                "metrics": expert.card.metrics,
            }
            for expert in pool
        ],
    }


def route_reply(front: Front, request: RouteRequest) -> dict[str, Any]:
    """What a prompt would use, without an answer; raises `ApiError` for one that is none."""
    turns = tuple((one.role, one.text) for one in request.messages or ())
    require_one(prompt=request.prompt, messages=request.messages)
    text = request.prompt if request.prompt is not None else question_text(turns)
    steering = front.steering(request.glider.model_dump(exclude_defaults=True))
    resolution = front.choose(FrontRequest(front.way(request.model), text, (), turns, steering))
    guided = resolution.guided
    assert guided is not None
    return {
        "object": "route",
        "model": request.model,
        "verdict": resolution.verdict,
        "alpha": guided.alpha,
        "experts": experts_of(front, resolution.row, resolution.expert),
        "scores": guided.scores,
        "generation": front.generation.number,
        "description": guided.description,
        "fault": guided.fault,
    }
