"""Pools that change while they are served: experts are added and removed, pools are reloaded from disk."""

import asyncio
import os
import re
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from glider.errors import GliderError, RouterError
from glider.experts.base_identity import require_same_base
from glider.experts.card import CARD_FILE, NAME
from glider.experts.expert import Expert, ExpertLike
from glider.experts.pool import Pool
from glider.routing.base import Router
from glider.routing.preparation import prepare
from glider.routing.static import Static
from glider.serve import bodies
from glider.serve.change_log import ChangeLine
from glider.serve.errors import ApiError
from glider.serve.hidden import without_directories
from glider.serve.pools import ServedPool
from glider.serve.replies import Loaded, Reloaded, Unloaded, described
from glider.serve.schemas import LoadRequest, ReloadRequest, UnloadRequest
from glider.serve.service import Service

if TYPE_CHECKING:
    from glider.layers.attach import Generation

Change = Callable[[ServedPool], Awaitable[dict[str, Any]]]


def routes(service: Service) -> APIRouter:
    """The routes, over a service."""
    router = bodies.router()

    async def changed(request: Request, body: ReloadRequest | LoadRequest | UnloadRequest, change: Change) -> Any:
        """Make one change at a time, where changes are allowed and the pool is what the caller thinks it is."""
        key = service.keys.of(request.headers.get("authorization"))
        line = ChangeLine(request.url.path, request.state.request_id, key.name, getattr(body, "lora_name", None))
        with line.written():
            return await checked(request, body, change, line)

    async def checked(
        request: Request, body: ReloadRequest | LoadRequest | UnloadRequest, change: Change, line: ChangeLine
    ) -> Any:
        key = service.key(request, "change")
        if not service.settings.allow_changes:
            message = "this server's pools do not change; start it with --allow-changes"
            raise ApiError(403, message, code="changes_not_allowed")
        pool = service.pools.pool_of(body.model, key.pools)
        line.pool, line.before = pool.name, pool.number(pool.generation)
        if pool.changing.locked():
            raise ApiError(429, "another change is on its way", code="change_in_progress", retry=1)
        async with pool.changing:
            line.before = number = pool.number(pool.generation)
            if body.expected_generation not in (None, number):
                message = f"the pool is at generation {number}, not {body.expected_generation}"
                raise ApiError(409, message, param="expected_generation", code="generation_mismatch")
            try:
                reply = await change(pool)
            except (GliderError, OSError) as fault:
                raise ApiError(400, without_directories(service, str(fault)), code="change_failed") from fault
            line.after, line.routed = reply["generation"], reply.get("routed")
            return reply

    @router.post("/v1/pool/reload", **described(Reloaded))
    async def reload(request: Request, body: ReloadRequest) -> dict[str, Any]:
        async def change(pool: ServedPool) -> dict[str, Any]:
            fresh = await asyncio.to_thread(pool.model.pool.reload)
            await _serve(service, pool, fresh)
            number = pool.number(pool.generation)
            return {"object": "pool", "id": pool.name, "generation": number, "experts": pool.names}

        return await changed(request, body, change)

    @router.post("/v1/load_lora_adapter", **described(Loaded))
    async def load(request: Request, body: LoadRequest) -> dict[str, Any]:
        return await changed(request, body, lambda pool: _load(service, pool, body))

    @router.post("/v1/unload_lora_adapter", **described(Unloaded))
    async def unload(request: Request, body: UnloadRequest) -> dict[str, Any]:
        return await changed(request, body, lambda pool: _unload(service, pool, body.lora_name))

    return router


@dataclass(frozen=True)
class Alone(Static):
    """A router for one adapter that is no expert of the pool: every token uses it."""

    adapter: Expert
    home: "tempfile.TemporaryDirectory[str] | None" = None  # of its files, as long as it is served

    def expert(self, pool: Pool) -> ExpertLike:
        return self.adapter


async def _load(service: Service, pool: ServedPool, body: LoadRequest) -> dict[str, Any]:
    name, directory = body.lora_name, _confined(service, pool, body.lora_path)
    if re.fullmatch(NAME, name) is None:
        raise ApiError(400, "a name of letters, digits, '.', '_' and '-'", param="lora_name", code="invalid_value")
    taken = {card["id"] for card in service.pools.cards()}  # of other pools none begins with this one's name
    if name in {*pool.names, *pool.alone} or service.pools.name_in(pool, name) in taken:
        raise ApiError(400, f"{name} is the name of a model here", param="lora_name", code="name_taken")
    reason = "it has no card: a bare adapter"
    if (directory / CARD_FILE).is_file():
        try:
            await _serve(service, pool, await asyncio.to_thread(pool.model.pool.with_expert, directory, name))
            return _loaded(service, pool, name, pool.generation, "queries of its task are routed to it")
        except RouterError as fault:
            reason = without_directories(service, str(fault))
    router = await asyncio.to_thread(_alone, pool, directory, name)
    generation = await _attached(service, pool, router, pool.model.pool)
    pool.alone[name] = generation
    message = f"it is served by its name alone, and no query is sent to it: {reason}"
    return _loaded(service, pool, name, generation, message)


def _loaded(service: Service, pool: ServedPool, name: str, generation: "Generation", message: str) -> dict[str, Any]:
    model, number = service.pools.name_in(pool, name), pool.number(generation)
    routed = generation is pool.generation
    return {"object": "adapter", "id": model, "routed": routed, "generation": number, "message": message}


async def _unload(service: Service, pool: ServedPool, name: str) -> dict[str, Any]:
    if name in pool.alone:
        await service.runner.prepare(lambda: pool.model.attached.give_back(pool.alone.pop(name)))
    elif name in pool.names and name in pool.model.pool.names:
        await _serve(service, pool, pool.model.pool.without(name))
    else:
        raise ApiError(404, f"no expert or adapter {name[:200]!r} here", param="lora_name", code="expert_not_found")
    model, number = service.pools.name_in(pool, name), pool.number(pool.generation)
    return {"object": "adapter", "id": model, "generation": number}


async def _serve(service: Service, pool: ServedPool, fresh: Pool) -> None:
    """Serve another state of a pool from now on; whatever does not fit raises before anything changes."""
    await _attached(service, pool, pool.generation.router, fresh)


async def _attached(service: Service, pool: ServedPool, router: Router, fresh: Pool) -> "Generation":
    """A new generation of the model, held: by the pool's own router it serves the requests to come. The first pool's
    stays the one of passes outside any request."""
    model = pool.model
    prepared = await asyncio.to_thread(prepare, router, fresh)
    await asyncio.to_thread(fresh.verify, pool.storage.expert_memory is None)

    def attach() -> "Generation":
        number = model.attached.replace(router, prepared, pool.storage)
        held = model.attached.take(number)
        if router is pool.generation.router:
            pool.serve(fresh, held)
        current = service.pools.first.generation
        model.attached.context.serve(current.number, current.prepared.global_term is not None)
        return held

    return await service.runner.prepare(attach)


def _alone(pool: ServedPool, directory: Path, name: str) -> Alone:
    """The adapter in a directory, copied and checked, and made an expert without gates where it was none."""
    from glider.contribute.adopt import import_adapter

    pool.model.pool.refuse_unsigned(name)
    if (directory / CARD_FILE).is_file():
        expert = Expert.open(directory).renamed(name)
        require_same_base(expert.card.base, pool.model.base.identity, f"the expert {name}")
        expert.verify()
        return Alone(expert)
    home = tempfile.TemporaryDirectory(prefix="glider-adapter-")
    return Alone(import_adapter(directory, pool.model.base, Path(home.name) / name), home)


def _confined(service: Service, pool: ServedPool, path: str) -> Path:
    """The directory of a path, inside the one that adapters may be loaded from; whatever links say."""
    root = Path(os.path.realpath(service.settings.changes_from or pool.model.pool.path))
    place = Path(os.path.realpath(root / path)) if "\0" not in path else root
    if place == root or not place.is_relative_to(root):
        message = "a directory inside the one that adapters may be loaded from (--changes-from)"
        raise ApiError(400, message, param="lora_path", code="path_not_allowed")
    if not place.is_dir():
        message = f"no directory {path[:200]!r} in the one that adapters may be loaded from (--changes-from)"
        raise ApiError(400, message, param="lora_path", code="no_such_directory")
    return place
