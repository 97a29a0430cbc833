"""`--mode route` inside vLLM on a GPU, by both of its runners, with and without CUDA graphs, where there is one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glider.engines.vllm.rows import Row
from glider.errors import EngineError
from glider.inference.model import RoutedModel
from glider.inference.spec import load
from glider.routing.condition import Condition

from .conftest import needs_vllm, opened
from .requests_of_three_kinds import TEXTS, ask

pytestmark = [*needs_vllm, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
TOKENS = 16
TIE = 0.02  # nats
SETTLED = Row((), (2, 0), (0.75, 0.5))


def answered(library: RoutedModel, texts: list[str], rows: list[Row | None]) -> list[tuple[int, ...]]:
    """The library's greedy tokens of texts by their rows."""
    answers: list[tuple[int, ...]] = []
    for text, row in zip(texts, rows, strict=True):
        inputs = library.encoder.batch(library.encoder.rows([text], False, TOKENS))
        condition = Condition.nobody(1) if row is None else row.condition
        with torch.inference_mode(), library.attached.routing(condition):
            output = library.model.generate(
                **inputs, max_new_tokens=TOKENS, do_sample=False, pad_token_id=library.encoder.pad_id
            )
        new = output[0, inputs["input_ids"].shape[1] :].tolist()
        ends = [place for place, token in enumerate(new) if token in library.encoder.ends()]
        answers.append(tuple(new[: ends[0] + 1] if ends else new))
    return answers


def requests_of(library: RoutedModel, texts: list[str]) -> tuple[list[str], list[Row | None]]:
    """Each text with its global term, without one, with settled experts, and bare."""
    condition = library.condition(texts)
    every: list[list[Row | None]] = [
        [Row.of(condition.rows([i])) for i in range(len(texts))],
        *([row] * len(texts) for row in (Row(), SETTLED, None)),
    ]
    return texts * len(every), [row for rows in every for row in rows]


@pytest.mark.parametrize("second", ["0", "1"])
@pytest.mark.parametrize(
    "engine",
    [
        {"enforce_eager": True},
        {"enforce_eager": False, "max_num_seqs": 8},  # fewer than the requests, so that they come and go
        {"enforce_eager": True, "max_num_batched_tokens": 24, "max_num_seqs": 24, "enable_chunked_prefill": True},
    ],
    ids=["eager", "graphs", "chunks"],
)
def test_greedy_tokens_are_the_librarys(
    wide_llama: Path, make_wide_pool: Callable, monkeypatch: pytest.MonkeyPatch, second: str, engine: dict[str, Any]
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", second)
    pool = make_wide_pool(experts=5, rank=4)
    library = load(str(wide_llama), str(pool.path), abstain=False, device="cuda")
    texts, rows = requests_of(library, list(TEXTS))
    expected = answered(library, texts, rows)
    assert len(set(expected)) > len(TEXTS) * 2  # else nothing is shown by equality
    with opened(str(pool.path), base=str(wide_llama), abstain=False, engine=engine) as model:
        assert model.llm.llm_engine.vllm_config.use_v2_model_runner == (second == "1")
        requests = list(zip(texts, rows, strict=True))
        require_alike(ask(model, requests, TOKENS, logprobs=2), expected)
        require_alike(ask(model, requests[::-1], TOKENS, logprobs=2), expected[::-1])  # of the cache, in other company


def require_alike(outputs: list[Any], expected: list[tuple[int, ...]]) -> None:
    """The expected tokens; where an answer leaves them, the two likeliest were a tie, as vLLM's attention rounds."""
    gaps = [gap for output, tokens in zip(outputs, expected, strict=True) if (gap := gap_at_parting(output, tokens))]
    print("ties:", [f"{gap:.4f}" for gap in gaps])
    assert all(gap < TIE for gap in gaps), gaps
    assert len(gaps) <= len(expected) // 4


def gap_at_parting(output: Any, expected: tuple[int, ...]) -> float | None:
    """By how much the token that vLLM took was likelier than the expected one, where they first differ."""
    answer = output.outputs[0]
    for place, (token, other) in enumerate(zip(answer.token_ids, expected, strict=False)):
        if token != other:
            likely = answer.logprobs[place]
            return likely[token].logprob - likely[other].logprob if other in likely else float("inf")
    return None if len(answer.token_ids) == len(expected) else float("inf")


def test_a_router_whose_decisions_no_kernel_makes_is_refused(wide_llama: Path, make_wide_pool: Callable) -> None:
    pool = make_wide_pool(experts=3, rank=4)
    refused = pytest.raises((EngineError, RuntimeError), match="decides on the GPU")
    with refused, opened(str(pool.path), base=str(wide_llama), router="spectr"):
        pass
