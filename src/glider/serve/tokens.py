"""`/tokenize`, `/detokenize`, `/v1/embeddings`."""

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from glider.experts.token_ids import token_ids
from glider.instructions.embedders import load_for
from glider.serve import bodies
from glider.serve.bodies import MOST_MEMBERS
from glider.serve.errors import ApiError, require_one
from glider.serve.prompts import chat_prompt, require_short
from glider.serve.replies import Embeddings, Text, Tokens, described
from glider.serve.schemas import DetokenizeRequest, EmbeddingRequest, TokenizeRequest
from glider.serve.service import Service

if TYPE_CHECKING:
    from glider.inference.model import RoutedModel
    from glider.instructions.embedders import Embedder
    from glider.serve.keys import Key


def routes(service: Service) -> APIRouter:
    """The routes, over a service."""
    router = bodies.router()

    @router.post("/tokenize", **described(Tokens))
    async def tokenize(request: Request, body: TokenizeRequest) -> JSONResponse:
        key = service.key(request, "ask")
        service.admit()
        model = _model(service, key, body.model)
        _require_fitting(body)
        if body.messages is not None:
            tools = [tool.rendered for tool in body.tools] or None
            begins = body.add_generation_prompt
            prompt = await service.runner.prepare(chat_prompt, model, body.messages, begins, tools)
            ids = prompt.ids
        else:
            ids = await service.runner.prepare(_tokenized, model, body.prompt or "", body.add_special_tokens)
        return await service.runner.prepare(_answer, model, ids, body.return_token_strs)

    @router.post("/detokenize", **described(Text))
    async def detokenize(request: Request, body: DetokenizeRequest) -> JSONResponse:
        key = service.key(request, "ask")
        service.admit()
        model = _model(service, key, body.model)
        return await service.runner.prepare(_text, model, body.tokens)

    @router.post("/v1/embeddings", **described(Embeddings))
    async def embed(request: Request, body: EmbeddingRequest) -> dict[str, Any]:
        key = service.key(request, "ask")
        service.admit()
        identity, pool = None, None
        for one in service.pools.visible(key.pools):
            known = one.model.pool.index.embedder
            if known is not None and body.model in (one.name, known.embedder):
                identity, pool = known, one
        if identity is None or pool is None:
            message = f"no embedder {body.model!r}: name a pool that has one, or the pool's embedder"
            raise ApiError(404, message, param="model", code="model_not_found")
        if body.dimensions not in (None, identity.dimension):
            message = f"{identity.embedder} has {identity.dimension} dimensions, not {body.dimensions}"
            raise ApiError(400, message, param="dimensions", code="invalid_value")
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not all(text.strip() for text in texts):
            raise ApiError(400, "texts that are not empty", param="input", code="invalid_value")
        embedder = await service.runner.prepare(load_for, identity)
        tokens = await service.runner.prepare(_counted, embedder, pool.model, texts)
        vectors = await service.runner.prepare(embedder.embed, texts)
        data = [
            {"object": "embedding", "index": number, "embedding": _encoded(vector.tolist(), body.encoding_format)}
            for number, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": body.model, "usage": usage}

    return router


def _model(service: Service, key: "Key", name: str | None) -> "RoutedModel":
    """The model whose tokens are asked for; by the base's name any pool's that the key sees."""
    if name is not None:
        return service.pools.target(name, key.pools).pool.model
    return service.pools.pool_of(None, key.pools).model


def _require_fitting(body: TokenizeRequest) -> None:
    """Raise `ApiError` for fields that have no meaning together."""
    chat = body.messages is not None
    require_one(prompt=body.prompt, messages=body.messages)
    if body.tools and not chat:
        raise ApiError(400, "tools need messages", param="tools", code="invalid_value")
    field = "add_special_tokens" if chat else "add_generation_prompt"
    if field in body.model_fields_set:
        message = f"{field} has no meaning beside {'messages' if chat else 'prompt'}"
        raise ApiError(400, message, param=field, code="unsupported_parameter")


def _answer(model: "RoutedModel", ids: list[int], strings: bool) -> JSONResponse:
    """The reply of hundreds of thousands of tokens, made beside the event loop."""
    texts = model.tokenizer.convert_ids_to_tokens(ids) if strings else None
    content = {"count": len(ids), "max_model_len": model.encoder.context, "tokens": ids, "token_strs": texts}
    return JSONResponse(content)


def _text(model: "RoutedModel", tokens: Sequence[int]) -> JSONResponse:
    """The text of tokens, likewise; raises `ApiError` for what is none."""
    size = len(model.tokenizer)
    if tokens and not 0 <= min(tokens) <= max(tokens) < size:
        raise ApiError(400, f"token ids of 0 to {size - 1}", param="tokens", code="invalid_value")
    return JSONResponse({"prompt": model.tokenizer.decode(tokens)})


def _tokenized(model: "RoutedModel", text: str, special: bool) -> list[int]:
    require_short(model.tokenizer, text, MOST_MEMBERS, "prompt")
    return _ids(model, text, special)


def _ids(model: "RoutedModel", text: str, special: bool = True) -> list[int]:
    return token_ids(model.tokenizer, text, special=special)


def _counted(embedder: "Embedder", model: "RoutedModel", texts: Sequence[str]) -> int:
    """Tokens of the embedder's, or of the base's where an endpoint has its own. Raises `ApiError` for a text that the
    embedder would not read to its end."""
    if embedder.measure is None:
        require_short(model.tokenizer, "".join(texts), MOST_MEMBERS, "input")
        return sum(len(_ids(model, text)) for text in texts)
    longest = embedder.measure.longest
    for text in texts:
        require_short(embedder.measure.tokenizer, text, MOST_MEMBERS if longest is None else 2 * longest, "input")
    lengths = embedder.measure([embedder.prefix + text for text in texts])
    if longest is not None and max(lengths) > longest:
        message = f"a text of {max(lengths)} tokens, where {embedder.name} reads {longest}"
        raise ApiError(400, message, param="input", code="context_length_exceeded")
    return sum(lengths)


def _encoded(vector: list[float], form: str) -> list[float] | str:
    if form == "float":
        return vector
    return base64.b64encode(numpy.array(vector, dtype="<f4").tobytes()).decode()
