"""Settings that read the prompt give each row of a padded batch what they give it alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, RepetitionPenaltyLogitsProcessor

from glider.experts.prompt_format import PromptFormat
from glider.inference.model import RoutedModel
from glider.inference.spec import load

from ..conftest import PoolMaker

PROMPTS = ["a", "a question of some length, with a tail", "short"]
END, PADDING = 1, 0
READING: list[dict[str, Any]] = [
    {"min_length": 6, "sequence_bias": {(END,): 30.0}},
    {"no_repeat_ngram_size": 1, "sequence_bias": {(PADDING,): 30.0}},
    {"encoder_no_repeat_ngram_size": 1, "sequence_bias": {(PADDING,): 30.0}},
    {"encoder_repetition_penalty": 4.0, "sequence_bias": {(PADDING,): 4.0}},
    {"repetition_penalty": 4.0, "sequence_bias": {(PADDING,): 4.0}},
    {"forced_bos_token_id": 44},
    {"bad_words_ids": [[PADDING, 97, 98], [70]]},
]


@pytest.fixture
def model(base_directory: Path, make_pool: PoolMaker) -> RoutedModel:
    return load(str(base_directory), make_pool(base_directory).path, prompt=PromptFormat(kind="raw"))


@pytest.mark.parametrize("settings", READING, ids=lambda settings: next(iter(settings)))
@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_is_answered_as_alone(model: RoutedModel, settings: dict[str, Any], beams: int) -> None:
    alone = [model.generate([p], max_new_tokens=6, num_beams=beams, **settings)[0].token_ids for p in PROMPTS]
    together = model.generate(PROMPTS, max_new_tokens=6, num_beams=beams, **settings)
    assert [answer.token_ids for answer in together] == alone
    if beams == 1:
        assert [one.token_ids for one in model.generate_batch(PROMPTS, max_new_tokens=6, **settings)] == alone


def test_pieces_come_while_settings_go_by_rows(model: RoutedModel) -> None:
    pieces: dict[int, str] = {}
    answers = model.generate(
        PROMPTS,
        max_new_tokens=6,
        no_repeat_ngram_size=2,
        on_piece=lambda piece: pieces.update({piece.row: pieces.get(piece.row, "") + piece.text}),
    )
    assert [pieces[row].strip() for row in range(len(PROMPTS))] == [answer.text for answer in answers]


def test_the_callers_own_processor_sees_the_batch(model: RoutedModel) -> None:
    seen: list[int] = []

    class Watch(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen.append(len(input_ids))
            return scores

    own = RepetitionPenaltyLogitsProcessor(1.5)
    settings: dict[str, Any] = {"max_new_tokens": 3, "repetition_penalty": 1.2}
    model.generate(PROMPTS, logits_processor=[Watch(), own], **settings)
    assert set(seen) == {len(PROMPTS)}


@pytest.mark.parametrize("keyword", [True, False])
def test_a_decoder_begins_in_every_way_as_the_caller_says(
    t5_directory: Path, make_pool: PoolMaker, keyword: bool
) -> None:
    model = load(str(t5_directory), make_pool(t5_directory).path)
    settings: dict[str, Any] = {"decoder_start_token_id": 77}
    if not keyword:
        settings = {"generation_config": GenerationConfig(**settings)}
    usual = [answer.token_ids for answer in model.generate(PROMPTS, max_new_tokens=6)]
    started = [answer.token_ids for answer in model.generate(PROMPTS, max_new_tokens=6, **settings)]
    assert started != usual
    assert [one.token_ids for one in model.generate_batch(PROMPTS, max_new_tokens=6, **settings)] == started
    text = "".join(model.stream(PROMPTS[0], max_new_tokens=6, **settings))
    assert text.strip() == model.generate(PROMPTS[:1], max_new_tokens=6, **settings)[0].text


def test_angles_that_a_longer_prompt_stretches_are_no_others(routed: Callable[[str], RoutedModel]) -> None:
    """Phi-3 and Phi-4-mini: past a length all tokens of a pass have other rotary angles."""
    model = routed("phi3")
    prompts = ["short", "x" * 90 + " a long one"]
    alone = [model.generate([prompt], max_new_tokens=6)[0].token_ids for prompt in prompts]
    assert [answer.token_ids for answer in model.generate_batch(prompts, max_new_tokens=6)] == alone
    engine = model.engine()
    engine.close()
    assert "beside a longer prompt" in engine.can.why_not, engine.can.why_not
