"""A routed pool as a model of lm-evaluation-harness, for any of its tasks.

    glider lm-eval --model glider --model_args pool=demo,router=glider --tasks arc_easy --limit 100

The harness (0.4.13) finds models in its own table only and has no plug-in hook, so `main` puts ours in and hands over
to the harness's own command line.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from glider.errors import ConfigError, MissingDependency
from glider.experts.prompt_format import PromptFormat
from glider.likelihood import Likelihood, likelihoods
from glider.loading import load
from glider.model import Query
from glider.routing.specification import router_from

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ModuleNotFoundError:
    raise MissingDependency("lm-eval", "run its tasks", "pip install 'glider-moe[eval]'") from None

DEFAULT_LENGTH = 512  # tokens of a window where the model names no limit (T5, as it was trained)
DEFAULT_NEW_TOKENS = 256
_AUTO_BATCH = 8
_NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class Asked:
    """A request in tokens: the continuation is scored after the context, under the query's global term."""

    query: Query
    context: tuple[int, ...]
    continuation: tuple[int, ...]


class GliderLM(LM):
    """Requests of lm-evaluation-harness on a routed model. Each request's context is its own query.

    `prompt="raw"`: contexts and continuations are taken as they stand, tokenised as the harness's own `hf` model does.
    `prompt="pool"`: the context becomes one prompt in the form the experts were trained with, the continuation
    (stripped) an answer with its end token; leave the harness's `--apply_chat_template` out then.

    `descriptions`: a JSON file of task name -> sentence, embedded in place of the context for requests of that task.
    `batch_size` counts contexts; `expert_memory` is that of `glider.load` ("2GB"). Other keyword arguments are settings
    of the router (`top_k`, `p`, ...).
    """

    def __init__(
        self,
        base: str | None = None,
        pool: str = "demo",
        router: str = "glider",
        prompt: Literal["raw", "pool"] = "raw",
        descriptions: str | None = None,
        dtype: str = "float32",
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        max_length: int | None = None,
        expert_memory: str | int | None = None,
        **settings: Any,
    ):
        super().__init__()
        if prompt not in ("raw", "pool"):
            raise ConfigError("prompt=raw or prompt=pool", f"prompt={prompt}", "Mend --model_args.")
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ConfigError("a dtype such as float32 or bfloat16", dtype, "Mend --model_args.")
        self.raw = prompt == "raw"
        self.routed = load(
            base,
            pool,
            router=router_from(router, settings),
            dtype=getattr(torch, dtype),
            device=device or "cpu",
            prompt=PromptFormat(kind="raw") if self.raw else None,
            expert_memory=expert_memory,
            strict=True,  # a query whose embedding fails must not become a number
        )
        self.tokenizer = self.routed.tokenizer
        self.batch_size = _AUTO_BATCH if isinstance(batch_size, str) and "auto" in batch_size else int(batch_size or 1)
        config = self.routed.model.config
        limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        self.max_length = max_length or limit or DEFAULT_LENGTH
        self.routed.context = self.max_length
        self.encoder_decoder: bool = config.is_encoder_decoder
        self._descriptions: dict[str, str] = {} if descriptions is None else json.loads(Path(descriptions).read_text())
        self._device = self.routed.model.device

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's template, where one is asked for."""
        return self.tokenizer.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render few-shot history by the tokenizer's own chat template."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of each continuation; contexts that several requests share run once."""
        asked = [self._asked(request) for request in requests]
        results = [(value.total, value.greedy) for value in self._score(asked, disable_tqdm)]
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return results

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of `max_length`; the text is the query of all its windows."""
        asked: list[Asked] = []
        owner: list[int] = []
        for i, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(self._encode(text), self._prefix, self.max_length, context_len=1)
            for context, continuation in map(make_disjoint_window, windows):
                asked.append(Asked(self._query(request, text), tuple(context), tuple(continuation)))
                owner.append(i)
        totals = [0.0] * len(requests)
        for i, value in zip(owner, self._score(asked, disable_tqdm), strict=True):
            totals[i] += value.total
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Greedy text after each context (unless the task says `do_sample`), cut before its stop strings."""
        groups: dict[str, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            groups[json.dumps(_pair_of(request)[1], sort_keys=True, default=str)].append(i)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="glider: generate", disable=disable_tqdm) as bar:
            for members in groups.values():
                members.sort(key=lambda i: len(requests[i].args[0]))
                for start in range(0, len(members), self.batch_size):
                    batch = members[start : start + self.batch_size]
                    answers = self._generate([requests[i] for i in batch])
                    for i, text in zip(batch, answers, strict=True):
                        texts[i] = text
                        self.cache_hook.add_partial("generate_until", requests[i].args, text)
                    bar.update(len(batch))
        return texts

    def _generate(self, requests: "Sequence[Instance]") -> list[str]:
        settings = dict(_pair_of(requests[0])[1])
        stops = settings.pop("until", None) or []
        stops = [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop]
        limits = [settings.pop(name) for name in _NEW_TOKENS if name in settings]
        if not settings.setdefault("do_sample", bool(settings.get("temperature"))):
            settings.pop("temperature", None)
        if stops:
            settings |= {"stop_strings": stops, "tokenizer": self.tokenizer}
        queries = [self._query(request, _pair_of(request)[0]) for request in requests]
        queries = [query if query.text.strip() else replace(query, text=self._prefix_text) for query in queries]
        new_tokens = limits[0] if limits else DEFAULT_NEW_TOKENS
        answers = self.routed.generate(queries, max_new_tokens=new_tokens, truncate=True, **settings)
        texts = [self.tokenizer.decode(answer.token_ids, skip_special_tokens=True) for answer in answers]
        return [_before(text, stops) for text in texts]

    def _score(self, asked: Sequence[Asked], disable_tqdm: bool) -> list[Likelihood]:
        """Requests of one context and query are scored together, contexts of like length in one batch."""
        groups: dict[tuple[Query, tuple[int, ...]], list[int]] = defaultdict(list)
        for i, one in enumerate(asked):
            groups[one.query, self._fitted(one)].append(i)
        ordered = sorted(groups.items(), key=lambda group: -len(group[0][1]))
        results: dict[int, Likelihood] = {}
        with tqdm(total=len(asked), desc="glider: log-likelihood", disable=disable_tqdm) as bar:
            for start in range(0, len(ordered), self.batch_size):
                batch = ordered[start : start + self.batch_size]
                queries, contexts = zip(*(key for key, _ in batch), strict=True)
                continuations = [[asked[i].continuation for i in members] for _, members in batch]
                inputs = self.routed.padded([list(context) for context in contexts])
                condition = self.routed.condition_of(queries, inputs)
                scored = likelihoods(self.routed.model, self.routed.attached, inputs, continuations, condition)
                for (_, members), row in zip(batch, scored, strict=True):
                    results |= dict(zip(members, row, strict=True))
                    bar.update(len(members))
        return [results[i] for i in range(len(asked))]

    def _asked(self, request: "Instance") -> Asked:
        context, continuation = _pair_of(request)
        query = self._query(request, context or continuation)
        if not self.raw:
            prompt = self.routed.prompt
            ids = prompt.prompt_ids(self.tokenizer, context), prompt.target_ids(self.tokenizer, continuation.strip())
        elif not context.strip():
            continuation = context + continuation
            ids = [self._prefix], self.tokenizer(continuation, add_special_tokens=False)["input_ids"]
            if ids[1][0] == self._prefix:
                ids = ids[1][:1], ids[1][1:]
        else:
            ids = self._pair(context, continuation)
        return Asked(query, tuple(ids[0]), tuple(ids[1]))

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of both; spaces at the context's end belong to the continuation's first word."""
        bare = context.rstrip()
        context, continuation = bare, context[len(bare) :] + continuation
        ids = self._encode(context)
        if self.encoder_decoder:
            return ids, self.tokenizer(continuation, add_special_tokens=False)["input_ids"]
        return ids, self._encode(context + continuation)[len(ids) :]

    def _fitted(self, one: Asked) -> tuple[int, ...]:
        """The end of the context that leaves room for the continuation (its last token is not fed)."""
        room = self.max_length if self.encoder_decoder else self.max_length - len(one.continuation) + 1
        return one.context[-max(1, room) :]

    def _encode(self, text: str) -> list[int]:
        return PromptFormat(kind="raw").prompt_ids(self.tokenizer, text)

    def _query(self, request: "Instance", text: str) -> Query:
        return Query(text, description=self._descriptions.get(request.task_name or ""))

    @property
    def _prefix(self) -> int:
        """What stands before the first token of a text."""
        tokenizer = self.tokenizer
        return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id

    @property
    def _prefix_text(self) -> str:
        return self.tokenizer.decode([self._prefix])


def _pair_of(request: "Instance") -> tuple[str, Any]:
    """The context, and the continuation or the settings of generation."""
    context, second = cast("tuple[str, Any]", request.args)
    return context, second


def _before(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0]
    return text


def register() -> None:
    """Put `glider` among the harness's models."""
    import lm_eval.models  # noqa: F401  (its own come first: a table that is not empty is never filled)
    from lm_eval.api.registry import model_registry

    if "glider" not in model_registry:
        model_registry.register("glider", target="glider.evaluation.lm_eval_model:GliderLM")


def main(arguments: Sequence[str]) -> None:
    """The harness's command line with `glider` among its models."""
    import sys

    register()
    from lm_eval.__main__ import cli_evaluate

    before, sys.argv = sys.argv, ["lm_eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
