"""Queries -> descriptions -> vectors -> the global term, with whatever failed on the way told for each query.

A query whose description or embedding fails keeps the local term alone: its global scores are zero, its alpha is beta.
"""

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch

from glider.errors import DescriberError, EndpointError, GliderWarning
from glider.experts.card import EmbedderIdentity
from glider.instructions.cache import Cache, cache, key_of
from glider.instructions.describers import Described, Describer, Task, describe
from glider.instructions.embedders import load_for
from glider.instructions.inputs import edges, ngrams
from glider.instructions.prompts import Pair
from glider.routing.base import Asked, Condition, Need
from glider.shapes import Tensor

_KIND = "embedding"


@dataclass(frozen=True)
class Query:
    """What the user asks, and what is known of its task.

    `description`, one sentence naming the task, is embedded in place of the text where given. `examples`, input and
    output pairs of the same task, are for a describer to read.
    """

    text: str
    description: str | None = None
    examples: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class DescribedCondition(Condition):
    """The global term of a batch, with what was embedded for each query and what failed."""

    described: tuple[Described, ...] = ()


@dataclass(frozen=True)
class AskedQueries:
    """A batch of queries as a global signal reads them; the vectors of a query with a fault are zero."""

    asked: Asked
    described: tuple[Described, ...] = ()

    def temper(self, condition: Condition | None, beta: float) -> Condition | None:
        """The router's condition with the global term taken out where a query has a fault."""
        if condition is None:
            return None
        failed = torch.tensor([one.fault is not None for one in self.described], device=condition.alpha.device)
        scores, alpha = condition.global_scores, condition.alpha
        if self.described:
            scores, alpha = scores.masked_fill(failed[:, None], 0.0), alpha.masked_fill(failed, beta)
        return DescribedCondition(scores, alpha, condition.signal, self.described)


def ask(
    queries: Sequence[Query],
    needs: Collection[Need],
    identity: EmbedderIdentity | None,
    describer: Describer | None = None,
    *,
    read: Callable[[Sequence[str]], Tensor] | None = None,
    strict: bool = False,
    store: Cache | None = None,
) -> AskedQueries:
    """What a signal needs of a batch: descriptions embedded, texts embedded, n-grams, hidden states of texts by `read`;
    `store` is the user's cache.

    Embeddings are by the pool's embedder, `identity`. Faults are in the result, with one warning for the batch, unless
    `strict`: then the first is raised (`DescriberError`, `EndpointError`). Raises `EmbedderError` if the installed
    embedder is not the pool's.
    """
    grams = tuple(tuple(map(ngrams, _texts(query))) for query in queries) if "grams" in needs else None
    hidden = None
    if "hidden" in needs:
        assert read is not None
        hidden = torch.stack([read(list(map(edges, _texts(query)))).mean(dim=0) for query in queries])
    if not {"instructions", "inputs"} & set(needs):
        return AskedQueries(Asked(grams=grams, hidden=hidden))
    assert identity is not None  # experts with embeddings have one
    store = store if store is not None else cache()
    described = describe_queries(queries, describer, store) if "instructions" in needs else []
    described = described or [Described(edges(query.text), "query") for query in queries]
    texts = [one.text for one in described if one.text is not None]
    inputs = [list(map(edges, _texts(query))) for query in queries] if "inputs" in needs else []
    vectors, fault = embed_texts(list(dict.fromkeys([*texts, *chain(*inputs)])), identity, store)
    if fault is not None:
        for i, one in enumerate(described):
            if one.text is not None and not vectors.keys() >= {one.text, *(inputs[i] if inputs else ())}:
                described[i] = replace(one, fault=str(fault))
    _tell(described, fault, strict)
    zero = torch.zeros(identity.dimension)
    rows = torch.stack([zero if one.text is None else vectors.get(one.text, zero) for one in described])
    means = [torch.stack([vectors.get(text, zero) for text in one]).mean(dim=0) for one in inputs]
    return AskedQueries(Asked(rows, grams, torch.stack(means) if means else None, hidden), tuple(described))


def _texts(query: Query) -> list[str]:
    """The query's text and the inputs of its examples."""
    return [query.text, *(pair[0] for pair in query.examples)]


def describe_queries(queries: Sequence[Query], describer: Describer | None, store: Cache) -> list[Described]:
    """For each query the text to embed: the description given with it, else the describer's, else its own text."""
    described = [
        Described(query.description, "given") if query.description else Described(edges(query.text), "query")
        for query in queries
    ]
    if describer is None:
        return described
    open_ = [i for i, query in enumerate(queries) if not query.description]
    tasks = [Task(queries[i].examples, queries[i].text) for i in open_]
    for i, one in zip(open_, describe(describer, tasks, cache=store), strict=True):
        if one.text is not None or one.fault is not None:
            described[i] = one
    return described


def embed_texts(
    texts: Sequence[str], identity: EmbedderIdentity, store: Cache
) -> tuple[dict[str, Tensor], EndpointError | None]:
    """Vectors (G,) of texts by the embedder of that identity, from the cache where it has them.

    The embedder is loaded only for a text that the cache lacks. A failing endpoint leaves texts out and is returned.
    """
    known: dict[str, Tensor] = {}
    keys: dict[str, bytes] = {}
    if identity.probe:  # without one it is not known whose vectors they would be
        space = identity.model_dump(mode="json")
        keys = {text: key_of(_KIND, space, text) for text in texts}
        found = store.get(keys.values())
        known = {
            text: vector
            for text, key in keys.items()
            if key in found and (vector := _vector(found[key], identity.dimension)) is not None
        }
    missing = [text for text in texts if text not in known]
    if not missing:
        return known, None
    try:
        made = load_for(identity).embed(missing)
    except EndpointError as fault:
        return known, fault
    if made.shape[1] != identity.dimension:
        got = f"{made.shape[1]} values"
        return known, EndpointError(f"vectors of {identity.dimension} values", got, "Check the endpoint's model.")
    fresh = dict(zip(missing, made, strict=True))
    if keys:
        store.put(_KIND, {keys[text]: vector.contiguous().numpy().tobytes() for text, vector in fresh.items()})
    return {**known, **fresh}, None


def _vector(stored: bytes, width: int) -> Tensor | None:
    """A cached vector, if it can be one: so many finite float32 values, of unit length."""
    if len(stored) != 4 * width:
        return None
    vector = torch.frombuffer(bytearray(stored), dtype=torch.float32)
    return vector if abs(float(vector.square().sum()) - 1.0) < 1e-2 else None


def _tell(described: Sequence[Described], endpoint_fault: EndpointError | None, strict: bool) -> None:
    faults = [one.fault for one in described if one.fault is not None]
    if not faults:
        return
    if strict:
        if endpoint_fault is not None:
            raise endpoint_fault
        raise DescriberError("a description of every query", faults[0], "Leave strict out to go on without it.")
    count = f"{len(faults)} of {len(described)} queries" if len(described) > 1 else "the query"
    warnings.warn(f"{count} routed by the local term alone: {faults[0]}", GliderWarning, stacklevel=4)
