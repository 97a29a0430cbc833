"""A routed pool as a model of lm-evaluation-harness, for any of its tasks.

    glider lm-eval --model glider --model_args pool=demo,router=glider --tasks arc_easy --limit 100

The harness (0.4.13) finds models in its own table only and has no plug-in hook, so `main` puts ours in and hands over
to the harness's own command line.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import StoppingCriteria

from glider.errors import ConfigError, MissingDependency, QueryError
from glider.evaluation.cells import versions
from glider.evaluation.run_plan import pool_hash, read_descriptions
from glider.experts.prompt_format import PromptFormat, render_chat
from glider.experts.token_ids import token_ids
from glider.inference.likelihood import Likelihood, likelihoods
from glider.inference.model import RoutedModel
from glider.inference.queries import Query
from glider.inference.spec import load

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ModuleNotFoundError:
    raise MissingDependency("lm-eval", "run its tasks", "pip install 'glider-moe[eval]'") from None

DEFAULT_LENGTH = 2048  # tokens of a window where neither model nor tokenizer names a limit, as the harness has it
DEFAULT_NEW_TOKENS = 256
_AUTO_BATCH = 8
_UNLIMITED = 10**12  # a tokenizer without a limit names a larger one
_NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class ScoringRequest:
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
    `batch_size` counts contexts. Other keyword arguments are those of `glider.load`: `dtype`, `device`,
    `expert_memory`, settings of the router (`top_k`, `p`, ...).
    """

    def __init__(
        self,
        base: str | None = None,
        pool: str = "demo",
        router: str = "glider",
        prompt: Literal["raw", "pool"] = "raw",
        descriptions: str | None = None,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        device: str | None = None,
        **settings: Any,
    ):
        super().__init__()
        if prompt not in ("raw", "pool"):
            raise ConfigError("prompt=raw or prompt=pool", f"prompt={prompt}", "Mend --model_args.")
        self.raw, self._router = prompt == "raw", router
        self.routed = load(
            base,
            pool,
            router=router,
            prompt=PromptFormat(kind="raw") if self.raw else None,
            strict=True,  # a query whose embedding fails must not become a number
            device=_present(device),
            **{name: value for name, value in settings.items() if value is not None},
        )
        self.tokenizer = self.routed.tokenizer
        self.batch_size = _AUTO_BATCH if isinstance(batch_size, str) and "auto" in batch_size else int(batch_size or 1)
        self.routed.encoder.context = self.max_length = max_length or _limit(self.routed)
        self.encoder_decoder: bool = self.routed.model.config.is_encoder_decoder
        self._descriptions: dict[str, str] = {} if descriptions is None else read_descriptions(Path(descriptions))
        self._device = self.routed.model.device

    def get_model_info(self) -> dict[str, Any]:
        """What decides the numbers, for the harness's results: hashes, settings as resolved, versions."""
        routed = self.routed
        term = routed.attached.prepared.global_term
        constants = {} if term is None else {name: getattr(term, name) for name in ("p", "gamma", "beta", "signal")}
        return {
            "glider": {
                "router": {"router": self._router, "settings": repr(routed.router), **constants},
                "experts": routed.experts,
                "prompt": "raw" if self.raw else "pool",
                "max_length": self.max_length,
                "dtype": str(routed.model.dtype).removeprefix("torch."),
                "hashes": {"pool": pool_hash(routed.pool), "base": routed.base.identity.hash},
                "versions": versions(),
            }
        }

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's template, where one is asked for."""
        return self.tokenizer.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render few-shot history by the tokenizer's own chat template, without a system turn that it refuses."""
        return render_chat(
            self.tokenizer,
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of each continuation; contexts that several requests share run once."""
        results: dict[int, tuple[float, bool]] = {}

        def done(i: int, value: Likelihood) -> None:
            results[i] = value.total, value.greedy
            self.cache_hook.add_partial("loglikelihood", requests[i].args, results[i])

        self._score([self._scoring_of(request) for request in requests], disable_tqdm, done)
        return [results[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of `max_length`; the text is the query of all its windows."""
        scorings: list[ScoringRequest] = []
        owner: list[int] = []
        for i, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(self._encode(text), self._prefix, self.max_length, context_len=1)
            for context, continuation in map(make_disjoint_window, windows):
                scorings.append(ScoringRequest(self._query(request, text), tuple(context), tuple(continuation)))
                owner.append(i)
        totals, left = [0.0] * len(requests), Counter(owner)

        def done(window: int, value: Likelihood) -> None:
            i = owner[window]
            totals[i] += value.total
            left[i] -= 1
            if not left[i]:
                self.cache_hook.add_partial("loglikelihood_rolling", requests[i].args, totals[i])

        self._score(scorings, disable_tqdm, done)
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
        stops, new_tokens, settings = _settings_of(_pair_of(requests[0])[1])
        if stops:
            settings["stopping_criteria"] = [_Stops(self.tokenizer, stops)]
        queries = [self._query(request, _pair_of(request)[0]) for request in requests]
        queries = [query if query.text.strip() else replace(query, text=self._prefix_text) for query in queries]
        answers = self.routed.generate(queries, max_new_tokens=new_tokens, truncate=True, **settings)
        texts = [self.tokenizer.decode(answer.token_ids, skip_special_tokens=True) for answer in answers]
        return [_before(text, stops) for text in texts]

    def _score(
        self, scorings: Sequence[ScoringRequest], disable_tqdm: bool, done: Callable[[int, Likelihood], None]
    ) -> None:
        """Requests of one context and query are scored together, contexts of like length in one batch; `done` is called
        with the place of each and its result as they come."""
        groups: dict[tuple[Query, tuple[int, ...]], list[int]] = defaultdict(list)
        for i, one in enumerate(scorings):
            groups[one.query, self._fitted(one)].append(i)
        ordered = sorted(groups.items(), key=lambda group: -len(group[0][1]))
        with tqdm(total=len(scorings), desc="glider: log-likelihood", disable=disable_tqdm) as bar:
            for start in range(0, len(ordered), self.batch_size):
                batch = ordered[start : start + self.batch_size]
                queries, contexts = zip(*(key for key, _ in batch), strict=True)
                continuations = [[scorings[i].continuation for i in members] for _, members in batch]
                inputs = self.routed.encoder.batch([list(context) for context in contexts])
                condition = self.routed.condition_of(queries, inputs)
                scored = likelihoods(
                    self.routed.model, self.routed.attached, inputs, continuations, condition, forced=not self.raw
                )
                for (_, members), row in zip(batch, scored, strict=True):
                    for i, value in zip(members, row, strict=True):
                        done(i, value)
                    bar.update(len(members))

    def _scoring_of(self, request: "Instance") -> ScoringRequest:
        context, continuation = _pair_of(request)
        query = self._query(request, context or continuation)
        if not self.raw:
            prompt = self.routed.prompt
            ids = prompt.prompt_ids(self.tokenizer, context), prompt.target_ids(self.tokenizer, continuation.strip())
        else:
            ids = self._pair(context, continuation) if context else ([], [])
            if not ids[0]:
                ids = self._begun(context + continuation)
        if not ids[1]:
            got = f"none in that of {request.task_name or 'a request'} after {context[-40:]!r}"
            raise QueryError("a continuation with tokens", got, "Leave the request out.")
        return ScoringRequest(query, tuple(ids[0]), tuple(ids[1]))

    def _begun(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of a text without a context, and what stands before it."""
        ids = token_ids(self.tokenizer, text, special=False)
        return (ids[:1], ids[1:]) if ids[:1] == [self._prefix] and len(ids) > 1 else ([self._prefix], ids)

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of both; spaces at the context's end belong to the continuation's first word.

        The continuation's tokens are those of both texts together after as many as the context has, as the harness has
        it. Where the two merge at the join and leave none, it is encoded by itself.
        """
        bare = context.rstrip()
        context, continuation = bare, context[len(bare) :] + continuation
        ids = self._encode(context)
        if self.encoder_decoder:
            return ids, token_ids(self.tokenizer, continuation, special=False)
        alone = token_ids(self.tokenizer, continuation, special=False)
        return ids, self._encode(context + continuation)[len(ids) :] or alone

    def _fitted(self, one: ScoringRequest) -> tuple[int, ...]:
        """The end of the context that leaves room for the continuation (its last token is not fed).

        Raises `QueryError` for a continuation that leaves none.
        """
        room = self.max_length if self.encoder_decoder else self.max_length - len(one.continuation) + 1
        if room < 1:
            expected = f"continuations of at most {self.max_length} tokens"
            raise QueryError(expected, str(len(one.continuation)), "Give a larger max_length, or leave the task out.")
        return one.context[-room:]

    def _encode(self, text: str) -> list[int]:
        """A text that begins with the token that stands before texts is given no other, as the harness has it."""
        known = self.tokenizer.bos_token_id is not None or self.tokenizer.eos_token_id is not None
        begun = known and text.startswith(self._prefix_text)
        return token_ids(self.tokenizer, text, special=not begun)

    def _query(self, request: "Instance", text: str) -> Query:
        return Query(text, description=self._descriptions.get(request.task_name or ""))

    @property
    def _prefix(self) -> int:
        """What stands before the first token of a text; raises `QueryError` for a tokenizer that has nothing."""
        tokenizer = self.tokenizer
        prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if prefix is None:
            expected = "a tokenizer with a token of begin or end, which stands before a text without a context"
            raise QueryError(expected, "neither", "Set bos_token or eos_token in the base's tokenizer_config.json.")
        return prefix

    @property
    def _prefix_text(self) -> str:
        return self.tokenizer.decode([self._prefix])


def _pair_of(request: "Instance") -> tuple[str, Any]:
    """The context, and the continuation or the settings of generation."""
    context, second = cast("tuple[str, Any]", request.args)
    return context, second


def _settings_of(arguments: Mapping[str, Any]) -> tuple[list[str], int, dict[str, Any]]:
    """Stop strings, the number of new tokens, and other settings of generation; what is null is as if absent."""
    settings = {name: value for name, value in arguments.items() if value is not None}
    stops = settings.pop("until", [])
    stops = [stops] if isinstance(stops, str) else stops
    # the harness's own model ends at an empty text after one token, other servers never
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) and stop for stop in stops):
        raise QueryError("`until` as a text or a list of texts, none empty", repr(stops)[:80], "Mend the task.")
    if "max_length" in settings:  # of the prompt and its padding too, so an answer's length would be its batch's
        got = f"max_length {settings['max_length']}"
        raise QueryError("a number of new tokens (`max_gen_toks`)", got, "Name max_gen_toks in the task.")
    limits = {name: settings.pop(name) for name in _NEW_TOKENS if name in settings}
    try:
        new_tokens = int(next(iter(limits.values()), DEFAULT_NEW_TOKENS))
        if "temperature" in settings:
            settings["temperature"] = float(settings["temperature"])
    except (TypeError, ValueError, OverflowError):
        got = str({**limits, **{name: value for name, value in settings.items() if name == "temperature"}})[:80]
        raise QueryError("numbers of new tokens and as temperature", got, "Mend the task.") from None
    if not settings.setdefault("do_sample", bool(settings.get("temperature"))):
        settings.pop("temperature", None)
    return list(stops), new_tokens, settings


def _limit(routed: RoutedModel) -> int:
    """Tokens that the model was made for, by what the harness's own model reads."""
    config = routed.model.config.get_text_config()
    names = ("n_positions", "max_position_embeddings", "n_ctx")
    named = next((value for name in names if (value := getattr(config, name, None)) is not None), None)
    length = routed.tokenizer.model_max_length
    return int(named or (length if length < _UNLIMITED else DEFAULT_LENGTH))


class _Stops(StoppingCriteria):
    """Ends a row whose answer holds a stop string. For transformers' `stop_strings` the prompt's end counts too."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]):
        self.tokenizer, self.stops = tokenizer, stops
        self.begin: int | None = None  # of the answers

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        if self.begin is None:
            self.begin = input_ids.shape[1] - 1
        texts = self.tokenizer.batch_decode(input_ids[:, self.begin :])
        ended = [any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


def _before(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0]
    return text


def _present(name: str | None) -> str:
    """A device that is there: the harness names a GPU where its user names nothing, and its own models look for one."""
    if name is None or (name.startswith("cuda") and not torch.cuda.is_available()):
        return "cpu"
    return name


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
    except ValueError as fault:
        if not str(fault).startswith("Tasks not found"):
            raise
        remedy = "Check --tasks and --include_path; `glider lm-eval ls tasks` lists those there are."
        raise ConfigError("tasks of the harness", str(fault), remedy) from fault
    finally:
        sys.argv = before
