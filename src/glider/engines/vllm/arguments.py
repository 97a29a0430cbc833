"""The arguments of `vllm serve` that serve a pool: what `glider vllm-args POOL` prints."""

from pathlib import Path
from typing import Any

from glider.config import repeated
from glider.engines.vllm.front import Front
from glider.engines.vllm.replies import MIDDLEWARE
from glider.engines.vllm.settings import KEY, LOAD_FORMAT, Mode, PluginSettings, Unsure, one_word, pool_digest
from glider.errors import ConfigError, EngineError
from glider.inference.spec import ModelSpec, open_pool

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has kernels for
LOADED = 8  # adapters in one batch; vLLM holds further requests back
_CARRIED = (
    *("pool", "router", "settings", "signal", "abstain", "top_k", "top_p", "describer", "base_url", "strict"),
    *("kernel", "require_key"),
)


def plugin_settings(spec: ModelSpec, mode: Mode, unsure: Unsure = "nearest", name: str | None = None) -> PluginSettings:
    """The settings of an engine for a pool. Raises `GliderError` for what cannot be served inside vLLM."""
    for field in ("expert_memory", "expert_dtype", "prompt"):
        if getattr(spec, field) is not None:
            raise ConfigError("a pool that vLLM holds as it is", field, "Leave it out, or use `glider serve`.")
    if not isinstance(spec.router, str) or not isinstance(spec.describer, str | None):
        raise ConfigError("a router and a describer by name", "objects", "Name them: other processes make them anew.")
    pool = open_pool(spec.pool, spec.require_key)
    model = spec.model_dump(include=set(_CARRIED), exclude_defaults=True, mode="json")
    if spec.pool != "demo":
        model["pool"] = str(Path(spec.pool).resolve())
    if spec.require_key is not None:
        model["require_key"] = str(Path(spec.require_key).resolve())
    name = name or ("demo" if spec.pool == "demo" else Path(spec.pool).resolve().name)
    base = pool.index.base.model_id
    settings = PluginSettings.parse(
        mode=mode, digest=pool_digest(pool.path), name=name, base=base, unsure=unsure, spec=model
    )
    front = Front(settings)  # refuses what cannot be served
    if twice := repeated(front.models):
        raise ConfigError("models of unlike names", f"{', '.join(sorted(twice))} twice", "Give --name.")
    return settings


def engine_arguments(settings: PluginSettings) -> dict[str, Any]:
    """The same as keyword arguments of vLLM's `LLM` or `AsyncEngineArgs`."""
    arguments: dict[str, Any] = {
        "load_format": LOAD_FORMAT,
        "additional_config": {KEY: settings.model_dump(mode="json", exclude_defaults=True)},
    }
    if settings.mode == "select":
        pool = settings.open_pool()
        rank = max(expert.sites[site].rank for expert in pool for site in expert.sites)
        if rank > RANKS[-1]:
            raise EngineError(f"experts of rank {RANKS[-1]} at most", str(rank), "Serve it by --mode route.")
        arguments |= {
            "enable_lora": True,
            "max_lora_rank": next(known for known in RANKS if known >= rank),
            "max_loras": min(len(pool), LOADED),
            "max_cpu_loras": len(pool),
        }
    return arguments


def command_line(settings: PluginSettings, routers: tuple[str, ...] = ()) -> list[str]:
    """The words that follow `vllm serve BASE`; none has a character that a shell would change.

    `routers` are further methods that differ from the served one in their global term alone, served as POOL:ROUTER.
    Raises `ConfigError` for a name that a shell would split, or `vllm serve` take for an option: a pool's author writes
    the base's.
    """
    front = Front(settings)
    for router in routers:
        front.require_router(router)
    words = []
    for name, value in engine_arguments(settings).items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        else:
            words += [flag, one_word(value) if isinstance(value, dict) else str(value)]
    words += ["--middleware", MIDDLEWARE]
    names = [*front.models, *(f"{settings.name}:{router}" for router in routers)]
    if odd := next((name for name in names if not is_word(name)), None):
        remedy = "Give --name." if odd.startswith(settings.name) else "Serve the pool by `glider serve`."
        raise ConfigError("served names that are one word for a shell, and no option", repr(odd)[:200], remedy)
    return [*words, "--served-model-name", *names]


def is_word(text: str) -> bool:
    """Whether a shell hands a text over as it is, unquoted, and no command takes it for an option."""
    plain = all(letter.isprintable() and not letter.isspace() and letter not in "*?[\\" for letter in text)
    return plain and text != "" and not text.startswith("-")
