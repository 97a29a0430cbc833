"""What is embedded for a query, and its vector: by the pool's embedder, from the user's cache where it is there."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from glider.errors import EndpointError
from glider.experts.card import EmbedderIdentity
from glider.instructions.cache import Cache, key_of
from glider.instructions.describers import Describer, Task, describe_tasks
from glider.instructions.embedders import load_for
from glider.instructions.inputs import edges
from glider.routing.condition import Described
from glider.shapes import Tensor

if TYPE_CHECKING:
    from glider.inference.queries import Query

_KIND = "embedding"


def describe_queries(queries: "Sequence[Query]", describer: Describer | None, store: Cache) -> list[Described]:
    """For each query the text to embed: the description given with it, else the describer's, else its own text."""
    described = [
        Described(query.description, "given") if query.description else Described(edges(query.text), "query")
        for query in queries
    ]
    if describer is None:
        return described
    open_ = [i for i, query in enumerate(queries) if not query.description]
    tasks = [Task(queries[i].examples, queries[i].text) for i in open_]
    for i, one in zip(open_, describe_tasks(describer, tasks, cache=store), strict=True):
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
        stored = store.get(keys.values())
        known = {
            text: vector
            for text, key in keys.items()
            if key in stored and (vector := _vector(stored[key], identity.dimension)) is not None
        }
    missing = [text for text in texts if text not in known]
    if not missing:
        return known, None
    try:
        embedded = load_for(identity).embed(missing)
    except EndpointError as fault:
        return known, fault
    if embedded.shape[1] != identity.dimension:
        got = f"{embedded.shape[1]} values"
        return known, EndpointError(f"vectors of {identity.dimension} values", got, "Check the endpoint's model.")
    fresh = dict(zip(missing, embedded, strict=True))
    if keys:
        store.put(_KIND, {keys[text]: vector.contiguous().numpy().tobytes() for text, vector in fresh.items()})
    return {**known, **fresh}, None


def _vector(stored: bytes, width: int) -> Tensor | None:
    """A cached vector, if it can be one: so many finite float32 values, of unit length."""
    if len(stored) != 4 * width:
        return None
    vector = torch.frombuffer(bytearray(stored), dtype=torch.float32)
    return vector if abs(float(vector.square().sum()) - 1.0) < 1e-2 else None
