"""Decides which experts each request uses, from its text, in the process that takes requests. Holds no base model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import torch
from pydantic import ValidationError

from glider.engines.vllm.rows import Row, most_settled, salt
from glider.engines.vllm.settings import PluginSettings
from glider.errors import EngineError, PoolError
from glider.experts.prompt_format import PromptFormat
from glider.inference.conversation import Turn, question_text
from glider.inference.queries import Query, QueryReader
from glider.layers.attach import Generation
from glider.routing.base import Observer, support_of
from glider.routing.condition import Condition
from glider.routing.preparation import name_of, prepare, ungated
from glider.serve.errors import ApiError, invalid
from glider.serve.schemas import Steering
from glider.serve.steering import Guided, Way, guided

_MOST_ID = 1 << 32  # tokenizers read no larger token id


@dataclass(frozen=True)
class FrontRequest:
    """A request to the pool: the model's name, the text, the steering, and the client's own salt."""

    way: Way
    text: str
    ids: Sequence[int] = ()
    turns: tuple[Turn, ...] = ()
    steering: Steering = field(default_factory=Steering)
    salt: str | None = None


@dataclass(frozen=True)
class Resolution:
    """How a request is answered: by its row in the worker, or by one expert as an adapter; neither is the base."""

    verdict: str | None
    row: Row | None = None
    expert: str | None = None
    salt: str | None = None
    guided: Guided | None = None


class Front:
    """A pool as those processes know it that take requests."""

    def __init__(self, settings: PluginSettings, on_device: bool = False):
        self.settings, spec = settings, settings.model
        self.pool = settings.open_pool()
        method = spec.method
        prepared = prepare(method, self.pool)
        self.generation = Generation(1, ungated(method), prepared)
        self.reader = QueryReader(self.pool.index.embedder, spec.writer, None, spec.strict)
        self.prompt = prompt_of(self.pool)
        self.room = most_settled(prepared) if on_device else None
        require_servable(self.generation, settings)

    @property
    def names(self) -> list[str]:
        """Experts that can be chosen."""
        return self.generation.names

    @property
    def singles(self) -> list[str]:
        """Experts that are served by their own name."""
        return [name for name in self.names if name in self.pool.names]

    @property
    def models(self) -> list[str]:
        """Every name under which requests are answered, but those of other routers."""
        return [self.settings.name, self.settings.base, *self.singles]

    def require_names(self, model_config: Any) -> None:
        """Raise `EngineError` for a served name that the pool does not know."""
        served = model_config.served_model_name
        served = [served] if isinstance(served, str) else list(served or [])
        for name in served:
            known = name in self.models or name.startswith(f"{self.settings.name}:")
            if not known and name != str(model_config.model):  # vLLM's own, where none is given
                got = f"{name!r} among --served-model-name"
                raise EngineError(f"names of {', '.join(self.models)}", got, "Give names to `glider vllm-args`.")

    def way(self, name: str | None) -> Way:
        """How a model's name is answered; raises `ApiError` (404) for an unknown name."""
        if not name or name == self.settings.name:
            return Way("routed")
        if name == self.settings.base:
            return Way("base")
        if name in self.singles:
            return Way("single", expert=name)
        if name.startswith(f"{self.settings.name}:"):
            return Way("routed", router=name[len(self.settings.name) + 1 :])
        raise ApiError(404, f"no model {name[:200]!r} here", param="model", code="model_not_found")

    def require_router(self, text: str) -> None:
        """Raise `EngineError` for a router that cannot be served beside this one."""
        try:
            self.choose(FrontRequest(Way("routed", router=text), "A query."))
        except ApiError as fault:
            raise EngineError(
                "a router that scores tokens as the served one does", fault.message, "Leave it out."
            ) from fault

    def steering(self, value: Any) -> Steering:
        """The field `glider` of a request; raises `ApiError` for one that cannot be followed here."""
        if value is None:
            return Steering()
        try:
            steering = Steering.model_validate(value)
        except ValidationError as fault:
            errors = [{**one, "loc": ("glider", *one["loc"])} for one in fault.errors()]
            raise invalid(errors, {"glider": value}) from fault
        if steering.trace:
            message = "decisions are not traced inside vLLM; ask `glider serve`"
            raise ApiError(400, message, param="glider.trace", code="unsupported_parameter")
        if self.settings.mode == "select" and isinstance(steering.experts, dict):
            message = "one expert or the base answers here: weights of experts need --mode route"
            raise ApiError(400, message, param="glider.experts", code="unsupported_parameter")
        return steering

    def choose(self, request: FrontRequest) -> Resolution:
        """How a request is answered. Raises `ApiError` and `GliderError` for what cannot be done."""
        query = Query(request.text, request.steering.description, tuple(request.steering.examples))
        model: Any = SimpleNamespace(pool=self.pool, reader=self.reader)
        result = guided(
            cast(Any, model), self.generation, request.way, query, list(request.ids), request.steering, request.turns
        )
        if self.settings.mode == "select":
            steering = request.steering
            free = steering.verdict is None and steering.experts is None and not steering.exclude
            expert = self.nearest(result.condition, free and self.settings.unsure == "base")
            return Resolution(result.verdict, None, expert, request.salt, result)
        row = Row.of(result.condition)
        if row is not None and self.room is not None and len(row.experts) > self.room:
            message = f"at most {self.room} experts with weights of their own here, not {len(row.experts)}"
            raise ApiError(400, message, param="glider.experts", code="invalid_value")
        return self.by_row(row, result.verdict, request.salt, request.way.router, result)

    def by_row(
        self,
        row: Row | None,
        verdict: str | None = None,
        client: str | None = None,
        router: str | None = None,
        guidance: Guided | None = None,
    ) -> Resolution:
        """A request whose row is known, with the salt that keeps its cache apart."""
        parts = (self.settings.digest, router or name_of(self.generation.router), repr(self.generation.router))
        return Resolution(verdict, row, None, salt(row, parts, client), guidance)

    def text_of(self, ids: Sequence[int], tokenizer: Any) -> str:
        """The text that a prompt in tokens was made of; raises `ApiError` for what is no token of any tokenizer."""
        if max(ids, default=0) >= _MOST_ID:
            raise ApiError(400, f"token ids below {_MOST_ID}", param="prompt", code="invalid_value")
        return self.prompt.input_of(tokenizer, list(ids))

    def nearest(self, condition: Condition, unsure_to_base: bool) -> str | None:
        """The expert that answers alone by a condition of one query, or None for the base."""
        verdict = condition.verdicts[0] if condition.verdicts else None
        if bool(condition.bare_rows[0]) or (verdict == "unsure" and unsure_to_base):
            return None
        settled, scores = condition.settled, condition.global_scores
        if settled is not None and bool(settled.rows[0]):
            return self.names[int(settled.experts[0, 0])]  # the likeliest is the first
        if scores is None:
            raise ApiError(400, "no score says which expert is nearest; ask --mode route", code="unsupported_parameter")
        if settled is not None and not bool(scores[0][scores[0] > -torch.inf].any()):  # nothing could be embedded
            by_words = (expert for expert in settled.experts[0].tolist() if scores[0, expert] > -torch.inf)
            return self.names[next(by_words, int(scores[0].argmax()))]
        return self.names[int(scores[0].argmax())]


def require_servable(generation: Generation, settings: PluginSettings) -> None:
    """Raise `EngineError` for a router whose decisions would not be right inside vLLM."""
    router, prepared, name = generation.router, generation.prepared, name_of(generation.router)
    support = support_of(router)
    if isinstance(router, Observer) or not (support.packed and support.chunked and support.cache and support.mixed):
        got = f"{name}, which sees prompts whole"
        raise EngineError("a router that decides token by token", got, "Serve it by `glider serve`.")
    judge_term = None if prepared.judge is None else prepared.judge.term
    terms = [term for term in (prepared.global_term, prepared.described_term, judge_term) if term is not None]
    if any("hidden" in term.scores.needs for term in terms):
        got = "hidden, which runs the base model on every query"
        raise EngineError("a signal that reads the query's text", got, "Give --global examples.")
    if settings.mode == "select" and (prepared.judge is None or not prepared.judge.settles):
        got = f"{name} without any"
        remedy = "Calibrate the pool (`glider pool calibrate`), and leave the router and --no-abstain out."
        raise EngineError("verdicts, which say which expert answers alone (--mode select)", got, remedy)


def prompt_of(pool: Any) -> PromptFormat:
    """The form of prompts that the experts know; raises `PoolError` where they know several."""
    formats = list(dict.fromkeys(expert.card.prompt for expert in pool))
    if len(formats) != 1:
        got = f"{len(formats)} of them"
        raise PoolError("experts trained with one prompt format", got, "Serve pools of one form each.")
    return formats[0]


def turns_in(conversation: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Role and text of each turn of a chat as vLLM keeps it; what is no text is passed over."""
    turns = []
    for turn in conversation:
        content = turn.get("content")
        if isinstance(content, list):
            content = "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))
        role = str(turn.get("role"))
        turns.append(("system" if role == "developer" else role, content if isinstance(content, str) else ""))
    return tuple(turns)


def chat_text(turns: Sequence[Turn]) -> str:
    """The text of a chat that decides."""
    return question_text(turns)
