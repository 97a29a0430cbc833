"""Requests of three kinds, and what the library answers to them: what every test of `--mode route` compares with."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from glider.engines.vllm.requests import Preset
from glider.engines.vllm.rows import ARGUMENT, Row
from glider.inference.model import RoutedModel
from glider.inference.spec import load
from glider.routing.condition import Condition

TOKENS = 24
FIRST = (
    *("Put the concepts together to form a sentence: dog, beach, ball.", "Where does the Nile end?"),
    *("Review: a dull, lifeless film. Sentiment?", "Is this about sport or business? Shares fell on Monday."),
    *("Who wrote the Odyssey?", "Do both mean the same? He left. He went away."),
)
MORE = (  # longer than a block of the cache
    "Read this with care, take all the time that you need, think of nothing else while you do so, and then write your "
    "answer in plain words that a child of ten years could read aloud to an aunt without having to ask what they mean."
)
TEXTS = (*FIRST, *(f"{text} {MORE}" for text in FIRST))
KINDS = ("term", "local", "bare")


@pytest.fixture(scope="session")
def library() -> RoutedModel:
    """The demo pool by transformers, without verdicts: tokens of every query are routed."""
    return load(abstain=False)


def rows_of(model: RoutedModel) -> list[tuple[str, Row | None]]:
    """36 requests: twelve texts, each with its global term, without one, and bare."""
    condition = model.condition(list(TEXTS))
    made: list[tuple[str, Row | None]] = []
    for kind in KINDS:
        for i, text in enumerate(TEXTS):
            row = {"term": Row.of(condition.rows([i])), "local": Row(), "bare": None}[kind]
            made.append((text, row))
    return made


@pytest.fixture(scope="session")
def wanted(library: RoutedModel) -> list[tuple[int, ...]]:
    """The library's greedy tokens of the 36."""
    inputs = library.encoder.batch(library.encoder.rows(list(TEXTS), False, TOKENS))
    answers: list[tuple[int, ...]] = []
    for kind in KINDS:
        condition = {
            "term": library.condition(list(TEXTS)),
            "local": Condition.local(len(TEXTS)),
            "bare": Condition.nobody(len(TEXTS)),
        }[kind]
        with torch.inference_mode(), library.attached.routing(condition):
            output = library.model.generate(
                **inputs, max_new_tokens=TOKENS, do_sample=False, pad_token_id=library.encoder.pad_id
            )
        for row in output[:, inputs["input_ids"].shape[1] :].tolist():
            ends = [place for place, token in enumerate(row) if token in library.encoder.ends()]
            answers.append(tuple(row[: ends[0] + 1] if ends else row))
    groups = [answers[i :: len(TEXTS)] for i in range(len(TEXTS))]
    assert sum(len(set(group)) == 3 for group in groups) >= 5  # else nothing is shown by equality
    return answers


def ask(model: Any, rows: Sequence[tuple[str, Row | None]], tokens: int = TOKENS, **settings: Any) -> list[Any]:
    """What vLLM makes of prompts with these rows."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": model.prompt.prompt_ids(model.tokenizer, text)} for text, _ in rows]
    params = [
        SamplingParams(temperature=0, max_tokens=tokens, extra_args={ARGUMENT: Preset(row, None)}, **settings)
        for _, row in rows
    ]
    return model.llm.generate(prompts, params, use_tqdm=False)


def tokens_of(outputs: Sequence[Any]) -> list[tuple[int, ...]]:
    return [tuple(output.outputs[0].token_ids) for output in outputs]


def counted(llm: Any, name: str) -> float:
    """One of vLLM's own counters."""
    return sum(getattr(metric, "value", 0) for metric in llm.get_metrics() if metric.name == name)
