"""A stream's pieces are the generated text, and it ends where the text does."""

import threading
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor

from glider.errors import QueryError
from glider.inference.model import RoutedModel
from glider.inference.streaming import Piece

from .prompts import PROMPTS


def unreadable(model: RoutedModel) -> list[int]:
    """Every token but the printable ASCII letters: without them each step of a random model writes a character."""
    letters = [model.tokenizer.decode([token]) for token in range(259)]
    return [i for i, text in enumerate(letters) if i < 3 or not (text.isascii() and text.isprintable())]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_streams_pieces_are_the_generated_text(model: RoutedModel, prompt: str) -> None:
    assert (
        "".join(model.stream(prompt, max_new_tokens=20)).strip() == model.generate([prompt], max_new_tokens=20)[0].text
    )
    readable = {"max_new_tokens": 9, "suppress_tokens": unreadable(model)}
    pieces = list(model.stream(prompt, **readable))
    assert "".join(pieces).strip() == model.generate([prompt], **readable)[0].text
    assert sum(len(piece) for piece in pieces) == 9
    assert max(len(piece) for piece in pieces) == 1


class Dictate(LogitsProcessor):
    """Makes every row write these tokens."""

    def __init__(self, tokens: list[int]):
        self.left = iter(tokens)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = next(self.left)
        forced = torch.full_like(scores, -torch.inf)
        forced[:, token] = 0.0
        return forced


def test_a_character_of_several_tokens_is_streamed_whole(model: RoutedModel) -> None:
    text = "é日 x🙂"
    tokens = [*model.tokenizer(text, add_special_tokens=False)["input_ids"], 1]
    assert len(tokens) == len(text.encode()) + 1
    pieces = list(model.stream("hi", max_new_tokens=20, logits_processor=[Dictate(tokens)]))
    assert [piece for piece in pieces if piece] == list(text)


def test_a_batchs_stream_tells_every_row(model: RoutedModel) -> None:
    pieces: list[Piece] = list(model.stream(PROMPTS, max_new_tokens=12))
    answers = model.generate(PROMPTS, max_new_tokens=12)
    for row, answer in enumerate(answers):
        own = [piece for piece in pieces if piece.row == row]
        assert "".join(piece.text for piece in own).strip() == answer.text
        assert [piece.ended for piece in own] == [False] * (len(own) - 1) + [True]


@pytest.mark.parametrize("batch", [False, True])
def test_leaving_a_stream_early_stops_the_model(model: RoutedModel, batch: bool) -> None:
    steps: list[int] = []
    model.model.lm_head.register_forward_hook(lambda *_: steps.append(1))
    before = threading.active_count()
    asked: Any = PROMPTS if batch else PROMPTS[0]
    stream: Any = model.stream(asked, max_new_tokens=400, suppress_tokens=unreadable(model))
    next(stream)
    stream.close()
    assert threading.active_count() <= before
    assert 0 < len(steps) < 400
    assert model.attached.context.batch is None


def test_a_stream_never_begun_starts_no_thread(model: RoutedModel) -> None:
    before = threading.active_count()
    model.stream(PROMPTS, max_new_tokens=400)
    assert threading.active_count() <= before


def test_a_fault_inside_a_stream_reaches_its_reader(model: RoutedModel) -> None:
    def fail(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise ValueError("a processor's own")

    with pytest.raises(ValueError, match="a processor's own"):
        list(model.stream(PROMPTS[0], logits_processor=[fail]))


def test_a_streams_mistakes_show_when_it_is_asked_for(llama: RoutedModel) -> None:
    with pytest.raises(QueryError, match="empty"):
        llama.stream(" ")
    with pytest.raises(QueryError, match="at most 500"):
        llama.stream("x" * 600, max_new_tokens=12)
    with pytest.raises(QueryError, match="no_such_setting"):
        llama.stream("hi", no_such_setting=1)
    with pytest.raises(QueryError, match="beam_search"):
        llama.stream("hi", num_beams=2)


STOPS = [["a"], ["zq", "e "], ["never there"]]


@pytest.mark.parametrize("stop", STOPS)
def test_an_answer_ends_before_its_stop_string(model: RoutedModel, stop: list[str]) -> None:
    """The same by every way: padded, packed and streamed."""
    settings = {"max_new_tokens": 40, "suppress_tokens": unreadable(model)}
    whole = model.generate(PROMPTS, **settings)
    if stop[0] == "zq":  # a text that is there for sure
        stop = [whole[0].text[5:7], whole[1].text[9:12]]
    answers = model.generate(PROMPTS, stop_strings=stop, **settings)
    for answer, full in zip(answers, whole, strict=True):
        places = [place for one in stop if (place := full.text.find(one)) >= 0]
        assert answer.text == (full.text[: min(places)] if places else full.text).strip()
        assert (answer.finish_reason, len(answer.token_ids) < 40) == (("stop", True) if places else ("length", False))
        assert full.token_ids[: len(answer.token_ids)] == answer.token_ids
    assert model.generate_batch(PROMPTS, stop_strings=stop, **settings) == answers
    pieces: list[Piece] = list(model.stream(PROMPTS, stop_strings=stop, **settings))
    for row, answer in enumerate(answers):
        assert "".join(piece.text for piece in pieces if piece.row == row).strip() == answer.text
        assert [piece.ended for piece in pieces if piece.row == row][-1]


def test_a_seed_repeats_a_stream(model: RoutedModel) -> None:
    settings = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 12}
    first, second, other = ("".join(model.stream(PROMPTS[0], seed=seed, **settings)) for seed in (5, 5, 6))
    assert first == second != other
    torch.manual_seed(5)
    [answer] = model.generate(PROMPTS[:1], **settings)
    assert first.strip() == answer.text
    by_batch = model.generate_batch(PROMPTS[:2], seed=5, **settings)
    assert by_batch[0].text == answer.text
