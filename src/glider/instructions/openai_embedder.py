"""The embedder `openai:MODEL`: any endpoint that speaks OpenAI's embedding protocol.

A pool names the model and never an address: where a user's queries go is for the user to say.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch

from glider.errors import EmbedderError, EndpointError
from glider.instructions.embedders import ENDPOINT_VARIABLE, Embedder, embedder
from glider.instructions.endpoint import Endpoint

_TEXTS = 64  # of a request
_LONGEST_VECTOR = 250_000  # bytes of one vector in JSON


@embedder("openai")
def openai_embedder(
    argument: str,
    prefix: str = "",
    base_url: str | None = None,
    key_variable: str = "OPENAI_API_KEY",
    timeout: float = 30.0,
    retries: int = 2,
    backoff: float = 0.5,
) -> Embedder:
    """An embedding model of an endpoint, by default the one at `$GLIDER_EMBEDDING_URL`."""
    base_url = base_url or os.environ.get(ENDPOINT_VARIABLE)
    if base_url is None:
        raise EmbedderError(
            f"the address of an endpoint that has {argument}",
            f"no {ENDPOINT_VARIABLE} set",
            "Set it to an endpoint that may read your queries, such as http://127.0.0.1:8000/v1.",
        )
    settings = {"key_variable": key_variable, "timeout": timeout, "retries": retries, "backoff": backoff}
    endpoint = Endpoint.parse(argument=argument, base_url=base_url, **settings)
    endpoint.require_client()

    def encode(texts: list[str]) -> torch.Tensor:
        return _embed(endpoint, texts)

    return Embedder(f"openai:{argument}", encode, prefix)


def _embed(endpoint: Endpoint, texts: Sequence[str]) -> torch.Tensor:
    """Vectors of unit length (B, G); raises `EndpointError` for a failure or for anything but finite vectors."""
    parts = [list(texts[i : i + _TEXTS]) for i in range(0, len(texts), _TEXTS)]
    requests = [{"input": part, "encoding_format": "float"} for part in parts]
    rows: list[list[float]] = []
    replies = endpoint.ask("embeddings", requests, 100_000 + _TEXTS * _LONGEST_VECTOR)
    for part, reply in zip(parts, replies, strict=True):
        if isinstance(reply, EndpointError):
            raise reply
        rows += _vectors(endpoint, reply, len(part))
    if len({len(row) for row in rows}) > 1:
        raise _nonsense(endpoint, "vectors of different widths")
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)


def _vectors(endpoint: Endpoint, reply: dict[str, Any], count: int) -> list[list[float]]:
    try:
        data = sorted(reply["data"], key=lambda item: item["index"])
        rows = [[float(value) for value in item["embedding"]] for item in data]
        order = [item["index"] for item in data]
    except (LookupError, TypeError, ValueError):
        raise _nonsense(endpoint, "something else") from None
    if order != list(range(count)) or not all(rows):
        raise _nonsense(endpoint, f"{len(rows)} vectors for {count} texts")
    vectors = torch.tensor([sum(value * value for value in row) for row in rows])
    if not torch.isfinite(vectors).all() or (vectors == 0).any():
        raise _nonsense(endpoint, "NaN, infinity, or a vector of zeros")
    return rows


def _nonsense(endpoint: Endpoint, got: str) -> EndpointError:
    return EndpointError(f"embeddings of {endpoint.argument} from {endpoint.shown}", got, "Check the model's name.")
