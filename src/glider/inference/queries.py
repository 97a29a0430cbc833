"""From queries to descriptions, vectors and the global term; each query records what failed on the way.

A query whose description or embedding fails keeps the local term alone: its global scores are zero, its alpha is beta.
"""

import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from glider.errors import DescriberError, EndpointError, GliderWarning, MissingDependency, QueryError
from glider.experts.card import EmbedderIdentity
from glider.inference.conversation import question_text
from glider.inference.descriptions import describe_queries, embed_texts
from glider.inference.setting_values import plain_value
from glider.instructions.cache import Cache, cache
from glider.instructions.describers import Describer
from glider.instructions.inputs import edges, ngrams
from glider.instructions.prompts import Pair
from glider.routing.base import GlobalTerm, Need, Prepared, QueryFeatures, Router
from glider.routing.condition import Condition, Described
from glider.routing.global_part import DESCRIPTIONS
from glider.shapes import Tensor
from glider.verdicts.judge import Judge, Override, override_of

NOT_USED = "not used"  # of what a query brings, in the fault that says so
_OF_TEXTS: frozenset[Need] = frozenset({"grams", "inputs", "hidden"})  # of a query's text and its examples' inputs
_HALF = re.compile("[\ud800-\udfff]")  # of a character outside the basic plane: no tokenizer takes it
Message = Mapping[str, Any]  # a turn of a chat: its role and its content


@dataclass(frozen=True)
class Query:
    """What the user asks, and what is known of its task.

    Arguments:
        text: The prompt; for a chat the text that `conversation.question_text` selects.
        description: One sentence naming the task, embedded in place of the text.
        examples: Input and output pairs of the same task: a describer reads them, and the signals that compare texts
            their inputs.
        verdict: Overrides the pool's: "route" uses the experts by the router's rule, "base" uses none.
        messages: The turns of a chat, rendered by the base's chat template; `Query.chat` makes such a query.

    Raises: `QueryError` for anything but a text or a chat.
    """

    text: str
    description: str | None = None
    examples: tuple[Pair, ...] = ()
    verdict: str | None = None
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        override_of(self.verdict)
        for number, pair in enumerate(self.examples, start=1):
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                got = f"{pair!r}"[:80] + f" (example {number})"
                raise QueryError("examples as pairs (input, output)", got, "Write [(input, output), ...].")
        for text in (self.text, self.description or "", *chain.from_iterable(self.examples)):
            require_text(text, "a query's text")
        if self.messages:
            object.__setattr__(self, "messages", turns_of(self.messages))

    @classmethod
    def of(cls, prompt: "Prompt") -> "Query":
        """A prompt as a query."""
        if isinstance(prompt, Query):
            return prompt
        return cls.chat(prompt) if is_chat(prompt) else cls(prompt)  # pyright: ignore[reportArgumentType]

    @classmethod
    def chat(cls, messages: Sequence[Message], **known: Any) -> "Query":
        """The turns of a chat as a query; `known` are the other fields."""
        turns = turns_of(messages)
        return cls(question_text([(turn["role"], turn["content"]) for turn in turns]), messages=turns, **known)


if TYPE_CHECKING:
    Prompt = str | Query | Sequence[Message]
else:
    Prompt = Any  # what is none of these is a `QueryError`


def is_chat(prompt: Any) -> bool:
    """Whether a prompt is given as the turns of a chat."""
    return isinstance(prompt, list | tuple) and bool(prompt) and all(isinstance(turn, Mapping) for turn in prompt)


def is_one(prompts: Any) -> bool:
    """Whether this is one prompt rather than several."""
    return isinstance(prompts, str | Query) or is_chat(prompts)


def listed(prompts: Any, what: str) -> Sequence[Any]:
    """Several prompts, or choices, as a sequence: an array of strings as a list.

    Raises `QueryError` for one alone, and for what has no order or can be read only once.
    """
    values = plain_value(prompts)
    if is_chat(values) and not any("role" in turn for turn in values):
        got = f"dictionaries with {', '.join(map(str, values[0])) or 'nothing'}"
        raise QueryError(f"a list of {what}", got, "Write texts, glider.Query(...), or chats of role and content.")
    if is_one(values) or not isinstance(values, Sequence | None) or isinstance(values, bytes | bytearray):
        one = is_one(values)
        got = f"one {what.removesuffix('s')}" if one else f"{type(prompts).__name__} ({prompts!r})"[:80]
        raise QueryError(f"a list of {what}", got, f"Write [{what.removesuffix('s')}].")
    return values or ()


def turns_of(messages: Sequence[Message]) -> tuple[dict[str, str], ...]:
    """Turns as a chat template takes them: role and text. The last one is the user's, to be answered.

    Raises `QueryError` for turns of another form.
    """
    expected, remedy = "turns {'role': ..., 'content': ...} that end with the user's", "Mend the chat."
    if not is_chat(messages):
        raise QueryError(expected, repr(messages)[:80], remedy)
    turns = []
    for number, turn in enumerate(messages, start=1):
        role, content = turn.get("role"), turn.get("content")
        if isinstance(content, list) and all(_is_text_part(part) for part in content):
            content = "".join(part["text"] for part in content)
        if not isinstance(role, str) or not role or not isinstance(content, str) or turn.keys() - {"role", "content"}:
            raise QueryError(expected, f"{dict(turn)!r}"[:120] + f" (turn {number})", remedy)
        turns.append({"role": role, "content": require_text(content, f"the text of turn {number}")})
    if turns[-1]["role"] != "user":
        raise QueryError(expected, f"a last turn of {turns[-1]['role']!r}", remedy)
    return tuple(turns)


def require_text(text: Any, what: str) -> str:
    """The text; raises `QueryError` for another type, or for half of a character in it."""
    if not isinstance(text, str):
        raise QueryError(f"{what} as a string", f"{type(text).__name__} ({text!r})"[:80], "Give a string.")
    if not text.isascii() and (half := _HALF.search(text)):
        raise QueryError(
            f"{what} of whole characters", f"half of one at place {half.start()}", "Mend its encoding (UTF-8)."
        )
    return text


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


@dataclass(frozen=True)
class QueryReader:
    """Computes the features of queries that signals need, and the queries' condition.

    `embedder` is the pool's; `describer` writes the descriptions of queries that come without; `read_states` gives
    early hidden states (B, H) of the bare base model for texts. Faults are in the result, with one warning for the
    batch, unless `strict`: then the first is raised (`DescriberError`, `EndpointError`). `store` is the user's cache.
    """

    embedder: EmbedderIdentity | None = None
    describer: Describer | None = None
    read_states: Callable[[Sequence[str]], Tensor] | None = None
    strict: bool = False
    store: Cache | None = None

    def condition(self, queries: Sequence[Query], router: Router, prepared: Prepared) -> Condition:
        """The condition of a batch; signal, p and alpha belong to the row.

        A query with a description, its own or a describer's, uses the router's term for descriptions where there is
        one. A description that cannot be used is recorded as a fault of the row, and the query is treated as if it had
        none; so is a description, or examples, that nothing reads. Raises `EmbedderError` if the
        installed embedder is not the pool's.
        """
        queries = [
            self._with_request(query, prepared, lambda one: self.condition([one], router, prepared))
            for query in queries
        ]
        by_description = prepared.described_term is not None
        groups = [
            [i for i, query in enumerate(queries) if (by_description and self._brings_description(query)) is described]
            for described in (False, True)
        ]
        parts = [
            self._condition_of([queries[i] for i in rows], router, replace(prepared, global_term=term))
            for rows, term in zip(groups, (prepared.global_term, prepared.described_term), strict=True)
            if rows
        ]
        order = torch.tensor([i for rows in groups for i in rows])
        return Condition.cat(parts).rows(order.argsort()) if len(parts) > 1 else parts[0]

    def _with_request(self, query: Query, prepared: Prepared, condition: Callable[[Query], Condition]) -> Query:
        """A chat whose system prompt may name its task, with the text that decides; `condition` judges a text."""
        turns = [(turn["role"], turn["content"]) for turn in query.messages]
        if prepared.judge is None or not any(role == "system" for role, _ in turns):
            return query

        def fits(text: str) -> bool:
            return condition(replace(query, text=text, messages=())).verdicts == ("fits",)

        return replace(query, text=question_text(turns, fits))

    def features(
        self, queries: Sequence[Query], needs: Collection[Need], without: str = "routed by the local term alone"
    ) -> tuple[QueryFeatures, tuple[Described, ...]]:
        """The needed features, and the description or text that was embedded for each query, if any.

        The vectors of a query with a fault are zero. The pool's embedder embeds. `without` says in the warning what
        becomes of a query whose embedding fails.
        """
        count = len(queries)
        grams = tuple(tuple(map(ngrams, _texts(query))) for query in queries) if "grams" in needs else None
        hidden = None
        if "hidden" in needs:
            assert self.read_states is not None
            read = self.read_states
            hidden = torch.stack([read(list(map(edges, _texts(query)))).mean(dim=0) for query in queries])
        if not {"instructions", "inputs"} & set(needs):
            return QueryFeatures(count, grams=grams, hidden=hidden), ()
        assert self.embedder is not None  # experts with embeddings have one
        store = self.store if self.store is not None else cache()
        described = describe_queries(queries, self.describer, store) if "instructions" in needs else []
        described = described or [Described(edges(query.text), "query") for query in queries]
        texts = [one.text for one in described if one.text is not None]
        inputs = [list(map(edges, _texts(query))) for query in queries] if "inputs" in needs else []
        vectors, fault = embed_texts(list(dict.fromkeys([*texts, *chain(*inputs)])), self.embedder, store)
        if fault is not None:
            for i, one in enumerate(described):
                if one.text is not None and not vectors.keys() >= {one.text, *(inputs[i] if inputs else ())}:
                    described[i] = replace(one, fault=str(fault))
        _report_faults(described, fault, self.strict, without)
        zero = torch.zeros(self.embedder.dimension)
        rows = torch.stack([zero if one.text is None else vectors.get(one.text, zero) for one in described])
        means = [torch.stack([vectors.get(text, zero) for text in one]).mean(dim=0) for one in inputs]
        return QueryFeatures(count, rows, grams, torch.stack(means) if means else None, hidden), tuple(described)

    def _brings_description(self, query: Query) -> bool:
        return bool(query.description) or (self.describer is not None and self.describer.name != "none")

    def _condition_of(self, queries: Sequence[Query], router: Router, prepared: Prepared) -> Condition:
        """The condition of queries that share one global term."""
        term, judge = prepared.global_term, prepared.judge
        needs = frozenset[Need]() if term is None else term.scores.needs
        features, described = self.features(queries, needs | _judging(judge))
        condition = router.condition(prepared, features)
        if term is not None and described:
            failed = torch.tensor([one.fault is not None for one in described])
            condition = condition.without_term(failed, term.beta)
        unused = [self._unused(query, term, needs, judge) for query in queries]
        condition = replace(condition, described=_with_faults(described, unused))
        return self._judged(queries, condition, features, prepared)

    def judged(self, queries: Sequence[Query], condition: Condition, prepared: Prepared) -> Condition:
        """A condition that the router did not compute from the queries' features, with their verdicts."""
        first = condition.rows([0]) if queries else condition
        queries = [
            self._with_request(query, prepared, lambda one: self.judged([one], first, prepared)) for query in queries
        ]
        judging = _judging(prepared.judge)
        features, _ = self.features(queries, judging)
        unused = [self._unused(query, None, frozenset(), prepared.judge) for query in queries]
        condition = replace(condition, described=_with_faults(condition.described, unused))
        return self._judged(queries, condition, features, prepared)

    def _unused(
        self, query: Query, term: GlobalTerm | None, needs: Collection[Need], judge: Judge | None
    ) -> str | None:
        """Why the query's description or its examples are not used; None where all are used."""
        lost = []
        if query.description and "instructions" not in needs:
            reason = f"the signal {term.signal} reads the query's text" if term else "the router has no global term"
            but = "" if judge is None or judge.kinship is None else " but for the experts of an unsure query"
            lost.append(f"the description is {NOT_USED}{but}: {reason}")
        describes = "instructions" in needs and self.describer is not None and self.describer.makes is not None
        if query.examples and not set(needs) & _OF_TEXTS and not (describes and not query.description):
            reason = "a describer would read them, and there is none that does"
            if term is None:
                reason = "the router has no global term"
            elif query.description:
                reason = "the query brings its description"
            but = " but for the verdict" if set(_judging(judge)) & _OF_TEXTS else ""
            lost.append(f"the examples are {NOT_USED}{but}: {reason}")
        return "; ".join(lost) or None

    def _judged(
        self, queries: Sequence[Query], condition: Condition, features: QueryFeatures, prepared: Prepared
    ) -> Condition:
        overrides: list[Override | None] = [override_of(query.verdict) for query in queries]
        if prepared.judge is not None:
            term = prepared.global_term
            reads = term is not None and term.signal == DESCRIPTIONS
            described = [reads and self._brings_description(query) for query in queries]
            kinship = self._kinship(queries, prepared.judge)
            condition = prepared.judge.judged(condition, features, overrides, term, described, kinship)
        return condition.left_to_base([override == "base" for override in overrides])

    def _kinship(self, queries: Sequence[Query], judge: Judge) -> Callable[[Sequence[int]], Tensor]:
        """Of queries by number, how near their descriptions are to the experts' (N, E); embedded when it is called."""

        def scores(rows: Sequence[int]) -> Tensor:
            assert judge.kinship is not None
            without = "given experts by the signal, not by descriptions"
            try:
                features, _ = self.features([queries[row] for row in rows], {"instructions"}, without)
            except MissingDependency as fault:
                if self.strict:
                    raise
                warnings.warn(f"unsure queries are {without}: {fault}", GliderWarning, stacklevel=4)
                return torch.full((len(rows), judge.kinship.experts), torch.nan)
            assert features.instructions is not None
            return judge.kinship.scores(features.instructions)

        return scores


def _judging(judge: Judge | None) -> frozenset[Need]:
    """The features of queries that a judge uses."""
    if judge is None:
        return frozenset()
    return frozenset[Need]({"grams"}) | (frozenset() if judge.term is None else judge.term.scores.needs)


def _with_faults(described: Sequence[Described], unused: Sequence[str | None]) -> tuple[Described, ...]:
    """The descriptions, with a fault for each query whose description or examples nothing uses."""
    if not any(unused):
        return tuple(described)
    known = described or [Described(None, "none") for _ in unused]
    return tuple(
        one if reason is None else replace(one, fault=f"{one.fault}; {reason}" if one.fault else reason, unused=reason)
        for one, reason in zip(known, unused, strict=True)
    )


def _texts(query: Query) -> list[str]:
    """The query's text and the inputs of its examples."""
    return [query.text, *(pair[0] for pair in query.examples)]


def _report_faults(
    described: Sequence[Described], endpoint_fault: EndpointError | None, strict: bool, without: str
) -> None:
    faults = [one.fault for one in described if one.fault is not None]
    if not faults:
        return
    if strict:
        if endpoint_fault is not None:
            raise endpoint_fault
        raise DescriberError("a description of every query", faults[0], "Leave strict out to go on without it.")
    count = f"{len(faults)} of {len(described)} queries" if len(described) > 1 else "the query"
    warnings.warn(f"{count} {without}: {faults[0]}", GliderWarning, stacklevel=4)
