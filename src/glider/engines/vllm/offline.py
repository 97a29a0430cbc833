"""A routed pool by vLLM without a server: prompts in, the same answers and scores out as of `RoutedModel`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from glider.engines.vllm import contract
from glider.engines.vllm.arguments import engine_arguments, plugin_settings
from glider.engines.vllm.front import Front
from glider.engines.vllm.requests import FRONT, Preset
from glider.engines.vllm.rows import ARGUMENT, Row
from glider.engines.vllm.settings import Mode, Unsure
from glider.errors import BaseModelError, ConfigError, QueryError
from glider.experts.prompt_format import PromptFormat
from glider.inference.answers import Answer, ChoiceScore
from glider.inference.base_model import NO_FOREIGN_CODE, require_buildable, tokenizer_beside
from glider.inference.generation import merged, new_tokens
from glider.inference.prompts import PromptEncoder
from glider.inference.queries import Prompt, Query, require_text
from glider.inference.spec import ModelSpec, base_of
from glider.inference.streaming import decoded
from glider.routing.condition import Condition

_CACHE = 1 << 30
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as an engine is asked them: tokens, keyword arguments of `SamplingParams`, and what they came from."""

    requests: "Requests"
    rows: list[list[int]]
    settings: list[dict[str, Any]]
    condition: Condition
    limit: int
    stop: tuple[str, ...]

    def answer(self, row: int, ids: Sequence[int]) -> Answer:
        """The answer to one of them, from the tokens that the engine wrote."""
        text, ids, reason = self.requests.written(ids, self.limit, self.stop)
        return Answer.of(text, ids, reason, self.condition.rows([row]), self.requests.front.generation)


class Requests:
    """What an engine is asked, and what its tokens come to; holds no base model.

    Arguments:
        front: What decides of queries.
        tokenizer: The base's.
        config: The base's configuration.
        source: Where the base lies, or its id.
        longest: Tokens of a request that the engine takes; None where that is the base's own context.
    """

    def __init__(self, front: Front, tokenizer: Any, config: Any, source: str, longest: int | None = None):
        self.front, self.tokenizer = front, tokenizer
        model: Any = SimpleNamespace(config=config, generation_config=_generation_config(source))
        self.encoder = PromptEncoder(front.prompt, tokenizer, model)
        if longest is not None:
            self.encoder.context = min(self.encoder.context or longest, longest)

    @classmethod
    def of_spec(cls, spec: ModelSpec, mode: Mode = "route", unsure: Unsure = "nearest") -> "Requests":
        """Those of an engine that another process runs. Raises the `GliderError` of whatever does not fit."""
        from transformers import AutoConfig

        require_no_device(spec)
        source = source_of(spec)
        require_buildable(Path(source))
        try:
            config = AutoConfig.from_pretrained(source, **NO_FOREIGN_CODE)
        except Exception as fault:  # of transformers, anything
            got = " ".join(str(fault).split())[:300]
            raise BaseModelError(f"the base model {source}", got, "Check --base.") from fault
        tokenizer = tokenizer_beside(source, source)
        return cls(Front(plugin_settings(spec, mode, unsure)), tokenizer, config, source)

    def condition(self, queries: Sequence[Prompt]) -> Condition:
        """The condition of a batch of queries, as `RoutedModel.condition`."""
        prompts = [Query.of(query) for query in queries]
        return self.front.reader.condition(prompts, self.front.generation.router, self.front.generation.prepared)

    def of(
        self, prompts: Sequence[Prompt], max_new_tokens: int | None, truncate: bool, generation: dict[str, Any]
    ) -> PromptBatch:
        """Prompts of any number and mix. Raises `QueryError` as `VllmModel.generate`."""
        limit, settings = _sampling(max_new_tokens, generation)
        stop, seed = settings.pop("stop"), settings.pop("seed")
        rows = self.encoder.rows(prompts, truncate, limit)
        condition = self.condition(prompts)
        settings |= {"max_tokens": limit, "stop_token_ids": sorted(self.encoder.ends()), "stop": list(stop) or None}
        each = [
            self.settings(
                Query.of(prompts[i]), condition.rows([i]), seed=None if seed is None else seed + i, **settings
            )
            for i in range(len(rows))
        ]
        return PromptBatch(self, rows, each, condition, limit, stop)

    def settings(self, query: Query, condition: Condition, **settings: Any) -> dict[str, Any]:
        """Keyword arguments of `SamplingParams` for one request, with its row or its expert."""
        verdict = condition.verdicts[0] or None if condition.verdicts else None
        if self.front.settings.mode == "select":
            free = query.verdict is None
            expert = self.front.nearest(condition, free and self.front.settings.unsure == "base")
            preset = Preset(None, verdict, expert=expert)
        else:
            preset = Preset(Row.of(condition), verdict)
        return {"extra_args": {ARGUMENT: preset}, **settings}

    def written(self, ids: Sequence[int], limit: int, stop: Sequence[str] = ()) -> tuple[str, list[int], str]:
        """Text, tokens, and why they end, of what an engine wrote."""
        ends = self.encoder.ends()
        written = decoded(self.tokenizer, list(ids), ends, stop)
        ended = written.stopped or (written.ids[-1:] and written.ids[-1] in ends)
        return written.text, written.ids, "stop" if ended or len(written.ids) < limit else "length"


class VllmModel:
    """A base model in vLLM with a pool in it. `llm` is vLLM's own `LLM`, `front` what decides of queries."""

    def __init__(self, llm: Any):
        self.llm = llm
        self.front: Front = getattr(llm.llm_engine.input_processor, FRONT)
        self.tokenizer = llm.get_tokenizer()
        config = llm.llm_engine.vllm_config.model_config
        self.requests = Requests(self.front, self.tokenizer, config.hf_config, str(config.model), config.max_model_len)

    @property
    def encoder(self) -> PromptEncoder:
        """How prompts become tokens, within the engine's context."""
        return self.requests.encoder

    @property
    def prompt(self) -> PromptFormat:
        """How prompts and answers are written."""
        return self.front.prompt

    @property
    def experts(self) -> list[str]:
        """Names of the experts that can be chosen."""
        return self.front.names

    def condition(self, queries: Sequence[Prompt]) -> Condition:
        """The condition of a batch of queries, as `RoutedModel.condition`."""
        return self.requests.condition(queries)

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int | None = None, truncate: bool = False, **generation: Any
    ) -> list[Answer]:
        """Answer prompts of any number and mix, as `RoutedModel.generate`, greedily unless `do_sample=True`.

        `generation` may have temperature, top_p, top_k, min_p, repetition_penalty, `stop_strings` and `seed` (of the
        first prompt; the next has the next number). Raises `QueryError` for other settings.
        """
        batch = self.requests.of(prompts, max_new_tokens, truncate, generation)
        outputs = self._run(batch.rows, batch.settings)
        return [batch.answer(row, output.token_ids) for row, output in enumerate(outputs)]

    generate_batch = generate  # vLLM batches by itself

    def score_many(
        self, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]], *, truncate: bool = False
    ) -> tuple[list[list[ChoiceScore]], Condition]:
        """Log-likelihood of each choice as the answer to its prompt, as `RoutedModel.score_many`."""
        if any(isinstance(texts, str) for texts in choices) or not all(choices):
            raise QueryError("a list of choices for each prompt", "none, or one string", "Write [choice, ...].")
        for choice in (choice for texts in choices for choice in texts):
            require_text(choice, "a choice")
        targets = [[self.prompt.target_ids(self.tokenizer, choice) for choice in texts] for texts in choices]
        rows = self.requests.encoder.rows(prompts, truncate, [max(map(len, row)) + 1 for row in targets])
        condition = self.condition(prompts)
        wholes, settings = [], []
        for i, (ids, row) in enumerate(zip(rows, targets, strict=True)):
            wholes += [ids + target for target in row]
            query, one = Query.of(prompts[i]), condition.rows([i])
            each = self.requests.settings(query, one, max_tokens=1, temperature=0.0, prompt_logprobs=0)
            settings += [each for _ in row]
        outputs = iter(self._run(wholes, settings, whole=True))
        scores = []
        for ids, texts, row in zip(rows, choices, targets, strict=True):
            scores.append(
                [
                    ChoiceScore(text, _likelihood(next(outputs).prompt_logprobs, len(ids), target), len(target))
                    for text, target in zip(texts, row, strict=True)
                ]
            )
        return scores, condition

    def close(self) -> None:
        """Stop the engine."""
        self.llm.llm_engine.engine_core.shutdown()

    def _run(self, rows: Sequence[list[int]], settings: Sequence[dict[str, Any]], whole: bool = False) -> list[Any]:
        """What came of prompts in tokens, in their order: the answer, or all that vLLM tells."""
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        prompts = [{"prompt_token_ids": ids} for ids in rows]
        outputs = self.llm.generate(prompts, [SamplingParams(**each) for each in settings], use_tqdm=False)
        return outputs if whole else [output.outputs[0] for output in outputs]


def load(
    pool: str | Path = "demo",
    base: str | None = None,
    *,
    mode: Mode = "route",
    unsure: Unsure = "nearest",
    engine: dict[str, Any] | None = None,
    **settings: Any,
) -> VllmModel:
    """Start vLLM in this process with a pool in it.

    Arguments:
        pool: Directory of the pool, or "demo" for the embedded one.
        base: Hub id or path of the base, or "smollm2-135m"; by default the model the pool was made for.
        mode: "route": experts by token; "select": one expert or the base answers a query.
        unsure: Of "select": who answers what the pool is unsure of.
        engine: Further arguments of vLLM's `LLM` (`max_model_len`, `enforce_eager`, `kv_cache_memory_bytes`, ...).
        settings: Further fields of `ModelSpec`, and settings of the router.

    Raises: `MissingDependency` without vLLM, and the `GliderError` of whatever does not fit.
    """
    fields = {name: value for name, value in settings.items() if name in ModelSpec.model_fields}
    rest = {name: value for name, value in settings.items() if name not in fields}
    spec = ModelSpec.parse(base=base, pool=pool, settings={**fields.pop("settings", {}), **rest}, **fields)
    return of_spec(spec, mode=mode, unsure=unsure, engine=engine)


def of_spec(
    spec: ModelSpec, *, mode: Mode = "route", unsure: Unsure = "nearest", engine: dict[str, Any] | None = None
) -> VllmModel:
    """The same of a spec. Device and further arguments are vLLM's to choose."""
    contract.require_vllm()
    require_no_device(spec)
    arguments = {**arguments_of(spec, mode, unsure), **(engine or {})}
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    return VllmModel(LLM(source_of(spec), **arguments))


def require_no_device(spec: ModelSpec) -> None:
    """Raise `ConfigError` for a device, or arguments of transformers."""
    if spec.device != "cpu" or spec.arguments:
        raise ConfigError("vLLM's own choice of the device", "device or arguments", "Give engine={...} instead.")


def arguments_of(spec: ModelSpec, mode: Mode = "route", unsure: Unsure = "nearest") -> dict[str, Any]:
    """Keyword arguments of an engine for a spec."""
    return {"dtype": spec.dtype, **_memory(), **engine_arguments(plugin_settings(spec, mode, unsure))}


def source_of(spec: ModelSpec) -> str:
    """Where the base of a spec lies, or its id."""
    from glider.inference.base_model import located

    return located(spec.base or base_of(spec.open_pool()))


def _sampling(max_new_tokens: int | None, generation: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The longest answer, and vLLM's settings for transformers' words."""
    rest = merged(generation)
    limit = new_tokens(rest.pop("max_new_tokens", None) if max_new_tokens is None else max_new_tokens)
    sample, seed = bool(rest.pop("do_sample", False)), rest.pop("seed", None)
    stop = rest.pop("stop_strings", None) or ()
    settings = {name: rest.pop(name) for name in _SAMPLING if rest.get(name) is not None}
    if refused := [name for name, value in rest.items() if value is not None]:
        expected = f"settings of {', '.join(('do_sample', *_SAMPLING, 'stop_strings', 'seed'))}"
        raise QueryError(expected, ", ".join(refused), "Leave them out, or use glider.load().")
    if not sample:
        settings = {name: value for name, value in settings.items() if name == "repetition_penalty"}
        settings["temperature"] = 0.0
    return limit, {**settings, "stop": (stop,) if isinstance(stop, str) else tuple(stop), "seed": seed}


def _memory() -> dict[str, Any]:
    """On vLLM's CPU build a cache of keys and values of a fixed size: vLLM would take most of the machine's memory."""
    return {"kv_cache_memory_bytes": _CACHE} if "cpu" in (contract.installed() or "") else {}


def _likelihood(logprobs: Sequence[Any], start: int, target: Sequence[int]) -> float:
    """The log-likelihood of the tokens from `start` on, of what vLLM tells of a prompt's tokens."""
    return sum(logprobs[start + place][token].logprob for place, token in enumerate(target))


def _generation_config(source: str) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(source)
    except OSError:  # a model without one
        return GenerationConfig()
