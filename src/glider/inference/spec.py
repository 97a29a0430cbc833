"""Everything needed to make a routed model, in one value. Imports no torch, so that the command line is instant."""

import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ByteSize, Field, TypeAdapter, field_validator

from glider.config import EMBEDDED_BASE, Config
from glider.errors import BaseModelError, ConfigError, GliderError, GliderWarning, PoolError, RouterError
from glider.experts.index import POOL_FILE
from glider.experts.prompt_format import PromptFormat

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch

    from glider.experts.pool import Pool
    from glider.inference.base_model import BaseModel
    from glider.inference.model import RoutedModel
    from glider.instructions.describers import Describer
    from glider.layers.attach import Storage
    from glider.routing.base import Router

FROM_PRETRAINED = (  # of transformers' arguments those that no router has
    *("device_map", "attn_implementation", "experts_implementation", "quantization_config", "max_memory", "revision"),
    *("offload_folder", "offload_state_dict", "low_cpu_mem_usage", "tp_plan", "cache_dir", "token", "subfolder"),
    *("local_files_only", "force_download", "variant", "use_safetensors", "trust_remote_code"),
)
MEMORY_VARIABLE = "GLIDER_EXPERT_MEMORY"


class BaseSpec(Config):
    """Which base model, in which arithmetic, where."""

    base: str | None = Field(default=None, min_length=1, description="Id or path of the base. Default: one that fits.")
    dtype: str = Field(default="float32", description="Storage and arithmetic of the base: float32, bfloat16, float16.")
    device: str = Field(default="cpu", description="Where the model runs: cpu, cuda, cuda:1, ...")

    arguments: dict[str, Any] = Field(default={}, description="Further arguments of transformers' from_pretrained.")

    @field_validator("dtype", "device", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return value if isinstance(value, str) else str(value).removeprefix("torch.")

    @classmethod
    def of(cls, base: "str | BaseSpec | None") -> "BaseSpec":
        """A base by its id or path alone, in float32 on the CPU, or the spec as it is."""
        return base if isinstance(base, BaseSpec) else BaseSpec.parse(base=base)

    def with_absolute_path(self) -> "BaseSpec":
        """The spec for a process that works elsewhere: a directory that is the base, by its whole path."""
        if self.base is None or not Path(self.base).exists():
            return self
        return self.model_copy(update={"base": str(Path(self.base).absolute())})

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The dtype; raises `ConfigError` for a name that is none."""
        return dtype_of(self.dtype)

    def load_base(self, default: str = EMBEDDED_BASE) -> "BaseModel":
        """The base model, by default the embedded one. Raises `BaseModelError` where there is no such model."""
        from glider.inference.base_model import load_base

        return load_base(self.base or default, dtype=self.torch_dtype, device=device_of(self.device), **self.arguments)

    def load_base_of(self, pool: "Pool") -> "BaseModel":
        """The base model, by default the one that a pool was made for; raises `BaseModelError` where there is none."""
        return self.load_base() if self.base is not None else self.load_base(base_of(pool))


class ModelSpec(BaseSpec):
    """A base model, a pool, and how tokens are routed among its experts.

    `pool` is a directory, or "demo" for the embedded one; the base is by default the model the pool was made for.
    `router` is a registry name, with settings in parentheses or in `settings`, or a router. `signal` names the global
    signal; without it a query is asked by the pool's, and one that brings a description by `instruction`. `describer`
    (a registry name such as "openai:MODEL", or a describer) writes the descriptions of queries that come without; a
    query that it fails goes on with the local term, unless `strict`.
    """

    pool: str = Field(default="demo", description="Directory of the pool, or demo for the embedded one.")
    router: Any = Field(
        default="glider", description="Method, one of `glider routers`; with settings: merge(method=ties)."
    )
    settings: dict[str, Any] = Field(default={}, description="Settings of the router.")
    signal: str | None = Field(
        default=None,
        min_length=1,
        description="Global signal: instruction, examples, ... Default: the pool's, or instruction for a description.",
    )
    abstain: bool | None = Field(
        default=None,
        description="The base alone answers what no expert suits. Default: for glider, where the pool is calibrated.",
    )
    top_k: int | None = Field(default=None, ge=1, description="Experts kept for each token (default 2).")
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="Keep the experts that reach this probability instead."
    )
    describer: Any = Field(
        default=None, description="Who describes a prompt that comes without: openai:MODEL, local:MODEL."
    )
    base_url: str | None = Field(default=None, description="Address of the describer's endpoint, up to /v1.")
    strict: bool = Field(
        default=False, description="Stop if a description fails, instead of routing by the local term."
    )
    kernel: str | None = Field(
        default=None, min_length=1, description="What computes: native, triton, torch, reference. Default: the best."
    )
    expert_memory: str | int | None = Field(
        default=None,
        description="Memory for experts, as 2GB: those used last stay, others are read when a token asks for them.",
    )
    expert_dtype: str | None = Field(
        default=None, description="Storage of the experts. Default: the base's, or their files'."
    )
    prompt: PromptFormat | None = Field(
        default=None, description="Form of a prompt. Default: the one the experts know."
    )

    require_key: str | None = Field(
        default=None,
        description="File of public keys (PEM), one of which must have signed the pool. Default: $GLIDER_TRUSTED_KEYS.",
    )

    @field_validator("pool", "expert_dtype", "require_key", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return (
            str(value).removeprefix("torch.") if isinstance(value, Path) or type(value).__name__ == "dtype" else value
        )

    @property
    def method(self) -> "Router":
        """The router; raises `RouterError` for an unknown one, or settings that do not fit it."""
        from glider.routing.specification import parsed, router_from

        if self.top_k is not None and self.top_p is not None:
            raise ConfigError("top_k (--top-k) or top_p (--top-p)", "both", "Give one of them.")
        options = {"top_k": self.top_k, "top_p": self.top_p, "global_": self.signal, "abstain": self.abstain}
        beside = {**self.settings, **{name: value for name, value in options.items() if value is not None}}
        if isinstance(self.router, str):
            name, written = parsed(self.router)
            return router_from(name, {**written, **beside})
        from glider.routing.preparation import Gated, require_router, ungated

        router: Any = require_router(self.router)
        if self.abstain is not None:
            del beside["abstain"]
            router = Gated(ungated(router), self.abstain)
        if beside:
            raise RouterError(
                "settings within the router", f"{', '.join(beside)} beside it", "Put them into the router."
            )
        return router

    @property
    def storage(self) -> "Storage":
        """How the experts are held and computed."""
        from glider.layers.attach import Storage

        dtype = None if self.expert_dtype is None else dtype_of(self.expert_dtype)
        return Storage(dtype, self.kernel, memory_limit(self.expert_memory))

    @property
    def writer(self) -> "Describer | None":
        """The describer, if there is one."""
        if self.describer is None:
            if self.base_url is not None:
                raise ConfigError("a describer for base_url, such as openai:MODEL", "none", "Give both or none.")
            return None
        if not isinstance(self.describer, str):
            return self.describer
        from glider.instructions.describers import load_describer

        return load_describer(self.describer, **({} if self.base_url is None else {"base_url": self.base_url}))

    def open_pool(self) -> "Pool":
        """The pool, as the owner of a required key signed it; raises `PoolError` where nobody of them did."""
        return open_pool(self.pool, self.require_key)

    def _verified_pool(self, method: "Router", adapters: bool) -> "Pool":
        """The pool, its files verified; of a router that names its experts they alone where others are broken."""
        names = getattr(method, "experts", None)
        try:
            pool = self.open_pool()
            pool.verify(adapters)
        except GliderError as fault:
            if names is None:
                raise
            pool = open_pool(self.pool, self.require_key, names)
            pool.verify(adapters)
            text = f"{', '.join(names)} alone of {self.pool}, which is broken: {fault}"
            warnings.warn(text, GliderWarning, stacklevel=3)
        return pool

    def load(self, base: "BaseModel | None" = None) -> "RoutedModel":
        """Load the base model, or take one that is loaded, open and verify the pool, and attach it.

        Raises the `GliderError` of whatever does not fit, before anything is attached.
        """
        from glider.routing.preparation import prepare

        storage, method, writer = self.storage, self.method, self.writer
        pool = self._verified_pool(method, adapters=storage.expert_memory is None)
        prepared = prepare(method, pool)  # what the pool cannot serve shows before the base model is loaded
        if self.abstain is not False and getattr(method, "abstains", False):
            _warn_uncalibrated(pool)
        base = self.load_base_of(pool) if base is None else base
        return self._attached(base, pool, method, prepared, writer)

    def over(self, base: "BaseModel", pool: "Pool | None" = None) -> "RoutedModel":
        """A routed model over a base that is loaded already; after `detach()` the base serves for the next.

        `pool` is the opened pool, where the caller has it; its files are not verified here.
        """
        from glider.routing.preparation import prepare

        pool = self.open_pool() if pool is None else pool
        method = self.method
        return self._attached(base, pool, method, prepare(method, pool), self.writer)

    def beside(self, model: "RoutedModel") -> "RoutedModel":
        """One more pool on a model that serves others already, as a further generation, which is the current one then.

        The pool's files are verified. Answer by passing the generation of each (`take` it) to the engine: what goes by
        the current one, as `generate` does, would be the last pool's for all.
        """
        from glider.experts.base_identity import require_same_base
        from glider.inference.model import RoutedModel
        from glider.routing.preparation import prepare

        storage, pool, method, writer = self.storage, self.open_pool(), self.method, self.writer
        prepared = prepare(method, pool)
        pool.verify(adapters=storage.expert_memory is None)
        require_same_base(pool.index.base, model.base.identity, f"the pool {pool.path}")
        prompt = self.prompt or _prompt_of(pool, model.base)
        model.attached.replace(method, prepared, storage)
        return RoutedModel(model.base, pool, model.attached, prompt, writer, self.strict, storage)

    def _attached(
        self, base: "BaseModel", pool: "Pool", method: "Router", prepared: Any, writer: "Describer | None"
    ) -> "RoutedModel":
        from glider.experts.base_identity import require_same_base
        from glider.inference.model import RoutedModel
        from glider.layers.attach import attach

        require_same_base(pool.index.base, base.identity, f"the pool {pool.path}")
        prompt = self.prompt or _prompt_of(pool, base)
        attached = attach(base.model, pool, method, self.storage, prepared)
        return RoutedModel(base, pool, attached, prompt, writer, self.strict, self.storage)


def load(base: Any = None, pool: str | Path = "demo", *, tokenizer: Any = None, **settings: Any) -> "RoutedModel":
    """Load a base model, open and verify a pool, and attach it.

    Arguments:
        base: Hub id, path or "smollm2-135m", or a transformers model that is loaded; by default the model the pool was
            made for.
        pool: Directory of the pool, or "demo" for the embedded one.
        tokenizer: Of a model that is loaded; by default the one beside its weights.
        settings: Further fields of `ModelSpec` (`router`, `signal`, `dtype`, `device`, ...) and arguments of
            transformers' `from_pretrained` (`device_map`, `attn_implementation`, `quantization_config`, ...); whatever
            is neither is a setting of the router, such as `p` or `gamma`.

    Returns: the routed model.

    Raises: `ConfigError` for settings that do not fit, and the `GliderError` of whatever else does not, all before.
    """
    fields = {name: value for name, value in settings.items() if name in ModelSpec.model_fields}
    rest = {name: value for name, value in settings.items() if name not in fields}
    arguments = {**fields.pop("arguments", {}), **{name: rest.pop(name) for name in FROM_PRETRAINED if name in rest}}
    router_settings = {**fields.pop("settings", {}), **rest}
    loaded = base is not None and not isinstance(base, str | Path)
    named = None if base is None or loaded else str(base)
    if named is not None and (named == "demo" or (Path(named) / POOL_FILE).is_file()):
        raise ConfigError("a base model, then a pool", f"the pool {named} alone", f"Write load(pool={named!r}).")
    spec = ModelSpec.parse(base=named, pool=pool, settings=router_settings, arguments=arguments, **fields)
    if tokenizer is not None and not loaded:
        raise ConfigError("a tokenizer beside a model that is loaded", "a base to load", "Leave tokenizer out.")
    if not loaded:
        return spec.load()
    if arguments or {"dtype", "device"} & fields.keys():
        got = ", ".join([*arguments, *({"dtype", "device"} & fields.keys())])
        raise ConfigError("a loaded model as it is", got, "Load it so, and leave these out.")
    from glider.inference.base_model import base_of_loaded

    return spec.load(base_of_loaded(base, tokenizer))


def _warn_uncalibrated(pool: "Pool") -> None:
    """Say that a pool without profiles, or one that is not calibrated, cannot tell what it is not for."""
    if not len(pool) or (pool.index.verdicts is not None and any(expert.profile is not None for expert in pool)):
        return
    from glider.calibration.automatic import has_queries

    if all(expert.profile is None for expert in pool):
        cause = f"no expert of the pool {pool.path} has a profile"
        remedy = (
            "Make profiles of training rows, `glider expert profile EXPERT ROWS`, then `glider pool add` and "
            "`glider pool calibrate`."
        )
    elif has_queries(pool):
        cause, remedy = f"the pool {pool.path} is not calibrated", f"Calibrate it: `glider pool calibrate {pool.path}`."
    else:
        return
    text = f"{cause}: it cannot tell what no expert suits, and answers that worse than the base alone. {remedy}"
    warnings.warn(text, GliderWarning, stacklevel=3)


def memory_limit(limit: str | int | None) -> int | None:
    """A limit of expert memory in bytes, from a number or a text such as "2GB"; None for no limit.

    Without one `$GLIDER_EXPERT_MEMORY` counts. Raises `ConfigError` for what is no size.
    """
    text = os.environ.get(MEMORY_VARIABLE) or None if limit is None else limit
    if text is None:
        return None
    try:
        if isinstance(text, str) and not re.fullmatch(r"\s*\d*\.?\d+\s*[A-Za-z]*\s*", text):
            raise ValueError  # pydantic reads the beginning, and 2 bytes of "2,5GB"
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValueError:
        size = -1
    if size < 0:
        place = f"the variable {MEMORY_VARIABLE}" if limit is None else "expert memory"
        raise ConfigError(f"{place} in bytes, as 2GB or 500MiB", repr(text), "Mend the number.")
    return size


def dtype_of(name: str) -> "torch.dtype":
    """A dtype by its name in PyTorch; raises `ConfigError` for another name."""
    import torch

    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError("a dtype such as float32 or bfloat16", name, "Check the spelling.")
    return dtype


def device_of(name: str) -> "torch.device":
    """A device by its name; raises `ConfigError` for a name that is none."""
    import torch

    try:
        return torch.device(name)
    except RuntimeError as fault:
        raise ConfigError("a device such as cpu or cuda", name, "Check the spelling.") from fault


def open_pool(pool: str | Path, require_key: str | Path | None = None, only: "Collection[str] | None" = None) -> "Pool":
    """Open a pool by path, or the embedded one by the name "demo", which came with the package and needs no signature.

    With `require_key`, a file of public keys (by default that of `$GLIDER_TRUSTED_KEYS`), the owner of one of them must
    have signed the pool. `only` as in `Pool.open`.
    """
    from glider.experts.pool import Pool

    if str(pool) == "demo":
        from glider.demo.pool import DEMO_POOL
        from glider.experts.trust import UNSIGNED

        return Pool.open(DEMO_POOL, UNSIGNED, only)
    return Pool.open(pool, None if require_key is None else Path(require_key), only)


def base_of(pool: "Pool") -> str:
    """What to give `load_base` for the model a pool was made for.

    Raises `BaseModelError` where that was a directory which is gone.
    """
    from glider.demo.base import BASE_ID

    identity = pool.index.base
    if identity.model_id == BASE_ID:
        return EMBEDDED_BASE
    if identity.path is None or Path(identity.path).exists():
        return identity.path or identity.model_id
    if Path(identity.model_id).exists():  # beside the pool's user now
        return identity.model_id
    raise BaseModelError(
        f"the base model {identity.model_id} of the pool {pool.path}, which was at {identity.path}",
        "no such directory",
        "Give --base the directory, or the hub id, where the same model is now.",
    )


def _prompt_of(pool: "Pool", base: "BaseModel") -> PromptFormat:
    formats = list(dict.fromkeys(expert.card.prompt for expert in pool))
    if len(formats) > 1:
        raise PoolError(
            "experts trained with one prompt format",
            f"{len(formats)}: {'; '.join(str(form) for form in formats)}",
            "Say which by load(..., prompt=PromptFormat(...)).",
        )
    return formats[0] if formats else PromptFormat.of(base.model, base.tokenizer)
