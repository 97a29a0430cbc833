"""Stop strings end each row as they end it alone: in whole batches, in beams, packed and streamed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria

from glider.inference.model import RoutedModel
from glider.inference.spec import load
from glider.inference.streaming import Piece

from ..conftest import byte_tokenizer, tiny_llama

PROMPTS = ["first", "a second one", "firstE"]
LONG = "abcdefghij" * 4
CASES = [  # the prompt, what is written, the stop strings, the text and why it ended
    (0, "one<|end|>more", ["<|end|>"], "one", "stop"),  # a token without text
    (0, "one<|end|>more", ["e<|end|>m"], "on", "stop"),
    (0, "one END and more", ["END"], "one", "stop"),
    (0, "one two three four", ["four", "thr"], "one two", "stop"),
    (0, "ENDone", ["END"], "", "stop"),
    (0, "one \u00e8 \u00e9", ["\u00e9"], "one \u00e8", "stop"),
    (0, "\nand on", ["\n\n"], "and on" + "n" * 13, "length"),  # the prompt ends with a line break
    (2, "\nND and on", ["E\n\nND"], "ND and on" + "n" * 10, "length"),
]


class Writes(LogitsProcessor):
    """Makes the model write given tokens, those of a row in all its beams, and then its last one."""

    def __init__(self, rows: Sequence[list[int]]):
        self.rows, self.begin = rows, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.begin = self.begin or input_ids.shape[1]
        forced = torch.full_like(scores, -1e9)
        beams = len(input_ids) // len(self.rows)
        for number in range(len(input_ids)):
            row = self.rows[number // beams]
            forced[number, row[min(input_ids.shape[1] - self.begin, len(row) - 1)]] = 0
        return forced + 1e-3 * scores.clamp(-5, 5)


@pytest.fixture
def model(tmp_path: Path, make_pool) -> RoutedModel:
    base, tokenizer = tiny_llama(), byte_tokenizer(chat=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return load(str(tmp_path / "base"), make_pool(tmp_path / "base").path, router="arrow")


def _rows(model: RoutedModel, *texts: str) -> list[list[int]]:
    return [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@pytest.mark.parametrize(("prompt", "written", "stops", "text", "reason"), CASES)
def test_a_row_ends_as_it_does_alone(
    model: RoutedModel, prompt: int, written: str, stops: list[str], text: str, reason: str
) -> None:
    asked, settings = PROMPTS[prompt], {"max_new_tokens": 20, "stop_strings": stops}
    rows = _rows(model, written, LONG)

    def one(answer: Any, **more: Any) -> Any:
        return answer([asked], **settings, logits_processor=[Writes(rows[:1])], **more)[0]

    alone = one(model.generate, trace=True)
    assert (alone.text, alone.finish_reason) == (text, reason)
    together = model.generate(
        [asked, PROMPTS[1]], **settings, logits_processor=[Writes(rows)], trace=True
    )  # fmt: skip
    assert together[0].token_ids == alone.token_ids and together[0].finish_reason == reason
    assert together[0].usage == pytest.approx(alone.usage, abs=1e-3)
    assert len(together[1].token_ids) == 20
    packed = one(model.generate_batch)
    assert (packed.text, packed.token_ids, packed.finish_reason) == (text, alone.token_ids, reason)
    pieces: list[Piece] = []
    one(model.generate, on_piece=pieces.append)
    assert "".join(piece.text for piece in pieces).strip() == text
    streamed = model.stream(asked, **settings, logits_processor=[Writes(rows[:1])])
    assert "".join(streamed).strip() == text


class _AfterSpace(StoppingCriteria):
    def __init__(self, space: int):
        self.space = space

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        return input_ids[:, -1] == self.space


@pytest.mark.parametrize("stops", [["END"], ["e<|end|>"], None])
def test_a_beam_ends_as_it_does_alone(model: RoutedModel, stops: list[str] | None) -> None:
    rows = _rows(model, "one<|end|> END and more", LONG)
    settings: dict[str, Any] = {"max_new_tokens": 20, "num_beams": 2, "stop_strings": stops}
    if stops is None:
        [[space]] = _rows(model, " ")
        settings["stopping_criteria"] = [_AfterSpace(space)]
    [alone] = model.generate(PROMPTS[:1], **settings, logits_processor=[Writes(rows[:1])])
    [first, second] = model.generate(PROMPTS[:2], **settings, logits_processor=[Writes(rows)])
    assert first == alone and first.finish_reason == "stop"
    assert (len(second.token_ids), second.finish_reason) == (20, "length")


def test_an_answer_that_time_ends_is_cut(model: RoutedModel) -> None:
    [answer] = model.generate(
        PROMPTS[:1], max_new_tokens=20, max_time=1e-9, logits_processor=[Writes(_rows(model, LONG))]
    )
    assert len(answer.token_ids) < 20 and answer.finish_reason == "length"
