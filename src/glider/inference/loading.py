"""From names and paths to a routed model."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import ByteSize, TypeAdapter

from glider.config import EMBEDDED_BASE
from glider.errors import ConfigError, PoolError, RouterError
from glider.experts.base_identity import require_same_base
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptFormat
from glider.inference.base_model import BaseModel, load_base
from glider.inference.model import RoutedModel
from glider.instructions.describers import Describer, load_describer
from glider.layers.attach import attach
from glider.routing.base import Prepared, Router, routers

MEMORY_VARIABLE = "GLIDER_EXPERT_MEMORY"


def load(
    base: str | None = None,
    pool: str | Path = "demo",
    *,
    router: str | Router = "glider",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    expert_dtype: torch.dtype | None = None,
    prompt: PromptFormat | None = None,
    describer: str | Describer | None = None,
    strict: bool = False,
    kernel: str | None = None,
    expert_memory: str | int | None = None,
    **settings: Any,
) -> RoutedModel:
    """Load a base model, open and verify a pool, and attach it.

    `base` is a hub id, a path or "smollm2-135m"; by default the model the pool was made for. `pool` is a directory, or
    "demo" for the embedded one. `router` is a registry name (with its `settings`) or a router. `dtype` stores the base,
    `expert_dtype` the experts; `kernel` (native, triton, torch, reference) computes them, by default the best that can
    run each call. `describer` (a registry name such as "openai:MODEL", or a describer)
    writes the descriptions of queries that come without; a query that it fails goes on with the local term, unless
    `strict`. `expert_memory` (bytes, or "2GB"; default `$GLIDER_EXPERT_MEMORY`, else no limit) holds the experts used
    last in so much memory and reads the others from their files when a token asks; their LoRA pairs are verified then.
    Raises the `GliderError` of whatever does not fit, before anything is attached.
    """
    limit = wanted_memory(expert_memory)
    opened = open_pool(pool)
    chosen = routers.create(router, **settings) if isinstance(router, str) else router
    if not isinstance(router, str) and settings:
        raise RouterError("settings within the router", f"{', '.join(settings)} beside it", "Put them into the router.")
    writer = load_describer(describer) if isinstance(describer, str) else describer
    prepared = chosen.prepare(opened)  # what the pool cannot serve shows before the base model is loaded
    opened.verify(adapters=limit is None)
    loaded = load_base(base or base_of(opened), dtype=dtype, device=device)
    made = over(
        *(loaded, opened, chosen),
        expert_dtype=expert_dtype,
        prompt=prompt,
        prepared=prepared,
        kernel=kernel,
        expert_memory=limit,
    )
    made.describer, made.strict = writer, strict
    return made


def over(
    base: BaseModel,
    pool: Pool,
    router: Router,
    *,
    expert_dtype: torch.dtype | None = None,
    prompt: PromptFormat | None = None,
    prepared: Prepared | None = None,
    kernel: str | None = None,
    expert_memory: str | int | None = None,
) -> RoutedModel:
    """A routed model over a base that is loaded already; after `detach()` the base serves for the next."""
    require_same_base(pool.index.base, base.identity, f"the pool {pool.path}")
    prompt = prompt or _prompt_of(pool, base)
    attached = attach(
        *(base.model, pool, router),
        expert_dtype=expert_dtype,
        prepared=prepared,
        kernel=kernel,
        expert_memory=wanted_memory(expert_memory),
    )
    return RoutedModel(base, pool, attached, prompt)


def wanted_memory(limit: str | int | None) -> int | None:
    """A limit of expert memory in bytes, from a number or a text such as "2GB"; None for no limit."""
    wanted = os.environ.get(MEMORY_VARIABLE) or None if limit is None else limit
    if wanted is None:
        return None
    try:
        if isinstance(wanted, str) and not re.fullmatch(r"\s*\d*\.?\d+\s*[A-Za-z]*\s*", wanted):
            raise ValueError  # pydantic reads the beginning, and 2 bytes of "2,5GB"
        size = int(TypeAdapter(ByteSize).validate_python(wanted))
    except ValueError:
        size = -1
    if size < 0:
        place = f"the variable {MEMORY_VARIABLE}" if limit is None else "expert memory"
        raise ConfigError(f"{place} in bytes, as 2GB or 500MiB", repr(wanted), "Mend the number.")
    return size


def open_pool(pool: str | Path) -> Pool:
    """Open a pool by path, or the embedded one by the name "demo"."""
    if pool == "demo":
        from glider.demo.pool import DEMO_POOL

        pool = DEMO_POOL
    return Pool.open(pool)


def base_of(pool: Pool) -> str:
    """What to give `load_base` for the model a pool was made for."""
    from glider.demo.base import BASE_ID

    return EMBEDDED_BASE if pool.index.base.model_id == BASE_ID else pool.index.base.model_id


def _prompt_of(pool: Pool, base: BaseModel) -> PromptFormat:
    formats = list(dict.fromkeys(expert.card.prompt for expert in pool))
    if len(formats) > 1:
        raise PoolError(
            "experts trained with one prompt format",
            f"{len(formats)}: {'; '.join(str(form) for form in formats)}",
            "Say which by load(..., prompt=PromptFormat(...)).",
        )
    return formats[0] if formats else PromptFormat.of(base.model, base.tokenizer)
