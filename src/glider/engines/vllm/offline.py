"""A routed pool by vLLM without a server: prompts in, the same answers and scores out as of `RoutedModel`."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from glider.engines.vllm import contract
from glider.engines.vllm.arguments import engine_arguments, plugin_settings
from glider.engines.vllm.front import Front
from glider.engines.vllm.requests import FRONT, Preset
from glider.engines.vllm.rows import ARGUMENT, Row
from glider.engines.vllm.settings import Mode, Unsure
from glider.errors import ConfigError, QueryError
from glider.experts.prompt_format import PromptFormat
from glider.inference.answers import Answer, ChoiceScore
from glider.inference.generation import merged, new_tokens
from glider.inference.prompts import PromptEncoder
from glider.inference.queries import Prompt, Query, require_text
from glider.inference.spec import ModelSpec, base_of
from glider.inference.streaming import decoded
from glider.routing.condition import Condition

_CACHE = 1 << 30
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class VllmModel:
    """A base model in vLLM with a pool in it. `llm` is vLLM's own `LLM`, `front` what decides of queries."""

    def __init__(self, llm: Any):
        self.llm = llm
        self.front: Front = getattr(llm.llm_engine.input_processor, FRONT)
        self.tokenizer = llm.get_tokenizer()
        config = llm.llm_engine.vllm_config.model_config
        model: Any = SimpleNamespace(config=config.hf_config, generation_config=_generation_config(str(config.model)))
        self.encoder = PromptEncoder(self.front.prompt, self.tokenizer, model)
        self.encoder.context = min(self.encoder.context or config.max_model_len, config.max_model_len)

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
        prompts = [Query.of(query) for query in queries]
        return self.front.reader.condition(prompts, self.front.generation.router, self.front.generation.prepared)

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int | None = None, truncate: bool = False, **generation: Any
    ) -> list[Answer]:
        """Answer prompts of any number and mix, as `RoutedModel.generate`, greedily unless `do_sample=True`.

        `generation` may have temperature, top_p, top_k, min_p, repetition_penalty, `stop_strings` and `seed` (of the
        first prompt; the next has the next number). Raises `QueryError` for other settings.
        """
        limit, settings = _sampling(max_new_tokens, generation)
        stop, seed = settings.pop("stop"), settings.pop("seed")
        rows = self.encoder.rows(prompts, truncate, limit)
        condition = self.condition(prompts)
        ends = self.encoder.ends()
        params = [
            self._params(
                Query.of(prompts[i]), condition.rows([i]), max_tokens=limit, stop_token_ids=sorted(ends),
                stop=list(stop) or None, seed=None if seed is None else seed + i, **settings,
            )
            for i in range(len(rows))
        ]  # fmt: skip
        answers = []
        for row, output in enumerate(self._run(rows, params)):
            ids = list(output.token_ids)
            written = decoded(self.tokenizer, ids, ends, stop)
            ended = written.stopped or (written.ids[-1:] and written.ids[-1] in ends)
            reason = "stop" if ended or len(written.ids) < limit else "length"
            answers.append(Answer.of(written.text, written.ids, reason, condition.rows([row]), self.front.generation))
        return answers

    def score_many(
        self, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]], *, truncate: bool = False
    ) -> tuple[list[list[ChoiceScore]], Condition]:
        """Log-likelihood of each choice as the answer to its prompt, as `RoutedModel.score_many`."""
        if any(isinstance(texts, str) for texts in choices) or not all(choices):
            raise QueryError("a list of choices for each prompt", "none, or one string", "Write [choice, ...].")
        for choice in (choice for texts in choices for choice in texts):
            require_text(choice, "a choice")
        targets = [[self.prompt.target_ids(self.tokenizer, choice) for choice in texts] for texts in choices]
        rows = self.encoder.rows(prompts, truncate, [max(map(len, row)) + 1 for row in targets])
        condition = self.condition(prompts)
        wholes, params = [], []
        for i, (ids, row) in enumerate(zip(rows, targets, strict=True)):
            wholes += [ids + target for target in row]
            query, one = Query.of(prompts[i]), condition.rows([i])
            params += [self._params(query, one, max_tokens=1, temperature=0.0, prompt_logprobs=0) for _ in row]
        outputs = iter(self._run(wholes, params, whole=True))
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

    def _params(self, query: Query, condition: Condition, **settings: Any) -> Any:
        """vLLM's parameters of one request with its row, or its expert."""
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        verdict = condition.verdicts[0] or None if condition.verdicts else None
        if self.front.settings.mode == "select":
            free = query.verdict is None
            expert = self.front.nearest(condition, free and self.front.settings.unsure == "base")
            preset = Preset(None, verdict, expert=expert)
        else:
            preset = Preset(Row.of(condition), verdict)
        return SamplingParams(extra_args={ARGUMENT: preset}, **settings)

    def _run(self, rows: Sequence[list[int]], params: Sequence[Any], whole: bool = False) -> list[Any]:
        """What came of prompts in tokens, in their order: the answer, or all that vLLM tells."""
        prompts = [{"prompt_token_ids": ids} for ids in rows]
        outputs = self.llm.generate(prompts, list(params), use_tqdm=False)
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
    from glider.inference.base_model import located

    if spec.device != "cpu" or spec.arguments:
        raise ConfigError("vLLM's own choice of the device", "device or arguments", "Give engine={...} instead.")
    plugin = plugin_settings(spec, mode, unsure)
    place = located(spec.base or base_of(spec.open_pool()))
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    return VllmModel(LLM(place, **{"dtype": spec.dtype, **_memory(), **engine_arguments(plugin), **(engine or {})}))


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
