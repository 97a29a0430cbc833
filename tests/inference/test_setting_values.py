"""Values of other types than settings have are refused before anything is computed; numpy's numbers are numbers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from glider.errors import BaseModelError, QueryError, RouterError
from glider.inference.model import RoutedModel
from glider.inference.spec import load
from glider.inference.streaming import Piece

from ..conftest import byte_tokenizer, tiny_llama

PROMPTS = ["sort 3 1 2"]
SAMPLED = {"do_sample": True}


@pytest.fixture
def llama(llama_directory: Path, make_pool) -> RoutedModel:
    return load(str(llama_directory), make_pool(llama_directory).path)


def _name(settings: Any) -> str:
    """Of a case, the same in every process: without addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(settings))


def _nothing(row: int, ids: Any) -> list[int]:
    """Allows no token at all."""
    return []


@pytest.mark.parametrize("answer", ["generate", "generate_batch"])
@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": "false"},
        {"use_cache": "no"},
        {"top_k": True, **SAMPLED},
        {"top_k": 2.5, **SAMPLED},
        {"top_p": "0.5", **SAMPLED},
        {"temperature": 1e-300, **SAMPLED},
        {"temperature": 10**400, **SAMPLED},
        {"temperature": True, **SAMPLED},
        {"no_repeat_ngram_size": True},
        {"bad_words_ids": [[10**6]]},
        {"forced_eos_token_id": 10**6},
        {"eos_token_id": "x"},
        {"eos_token_id": [[1]]},
        {"eos_token_id": 1.0},
        {"pad_token_id": -5},
        {"suppress_tokens": list(range(259))},
        {"max_time": "x"},
        {"prefix_allowed_tokens_fn": 3},
        {"assistant_model": 3},
        {"streamer": 3},
        {"watermarking_config": {"bias": "x"}},
        {"prompt_lookup_num_tokens": 0},
        {"prompt_lookup_num_tokens": "a"},
    ],
    ids=_name,
)
def test_a_value_of_another_type_is_refused(llama: RoutedModel, answer: str, settings: dict[str, Any]) -> None:
    with pytest.raises(QueryError):
        getattr(llama, answer)(PROMPTS, max_new_tokens=3, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 0},
        {"num_beams": "2"},
        {"num_beams": 2.5},
        {"num_beams": 2, "length_penalty": "x"},
        {"num_beams": 2, "on_piece": print},
        {"prefill_chunk_size": 0},
        {"prefix_allowed_tokens_fn": _nothing},
        {"on_piece": 3},
    ],
    ids=_name,
)
def test_generate_refuses_what_its_searches_would_trip_over(llama: RoutedModel, settings: dict[str, Any]) -> None:
    with pytest.raises(QueryError):
        llama.generate(PROMPTS, max_new_tokens=3, **settings)


@pytest.mark.parametrize(
    "settings", [{"seed": "x"}, {"seed": 10**30}, {"batching": 3}, {"on_answer": 3}, {"seed": 1.5}], ids=_name
)
def test_generate_batch_refuses_likewise(llama: RoutedModel, settings: dict[str, Any]) -> None:
    with pytest.raises(QueryError):
        llama.generate_batch(PROMPTS, max_new_tokens=3, **SAMPLED, **settings)


@pytest.mark.parametrize("answer", ["generate", "generate_batch"])
def test_numbers_of_numpy_and_torch_are_numbers(llama: RoutedModel, answer: str) -> None:
    ask: Callable[..., Any] = getattr(llama, answer)
    plain = ask(PROMPTS, max_new_tokens=3, eos_token_id=[5, 6], repetition_penalty=2.0, top_k=3)
    for count, ends, top in (
        (numpy.int64(3), numpy.array([5, 6]), numpy.int32(3)),
        (torch.tensor(3), torch.tensor([5, 6]), torch.tensor(3)),
    ):
        prompts = numpy.array(PROMPTS)
        assert ask(prompts, max_new_tokens=count, eos_token_id=ends, repetition_penalty=2, top_k=top) == plain
    sampled = [
        llama.generate_batch(PROMPTS, max_new_tokens=3, seed=seed, temperature=temperature, **SAMPLED)
        for seed, temperature in ((4, 2.0), (numpy.int64(4), numpy.float32(2)))
    ]
    assert sampled[0] == sampled[1]


@pytest.mark.parametrize("prompts", [3, {"a": 1}, {"a"}, (text for text in PROMPTS), b"ab", None, "one"])
def test_what_is_no_list_of_prompts_is_refused(llama: RoutedModel, prompts: Any) -> None:
    asks: list[Callable[[Any], Any]] = [llama.generate, llama.generate_batch]
    asks += [] if prompts in (None, "one") else [llama.condition, lambda value: list(llama.stream(value))]
    for ask in asks:
        with pytest.raises(QueryError, match=r"prompt|queries"):
            ask(prompts)


@pytest.mark.parametrize("choices", [3, {"a"}, (text for text in PROMPTS), None, "one", b"ab", [], [3]])
def test_what_is_no_list_of_choices_is_refused(llama: RoutedModel, choices: Any) -> None:
    with pytest.raises(QueryError, match="choice"):
        llama.score(PROMPTS[0], choices)


def test_every_prompt_has_choices_of_its_own(llama: RoutedModel) -> None:
    for prompts, choices in ((["a", "b"], [["x"]]), (["a"], [["x"], ["y"]])):
        with pytest.raises(QueryError, match="Give as many"):
            llama.score_many(prompts, choices)
    assert [one.choice for one in llama.score("a", numpy.array(["x", "y"]))] == ["x", "y"]  # pyright: ignore


def test_a_choice_without_a_token_is_refused(tmp_path: Path, make_pool) -> None:
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.eos_token = None
    tiny_llama().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = load(str(tmp_path / "base"), make_pool(tmp_path / "base").path)
    with pytest.raises(QueryError, match="at least one token; got ''"):
        model.score("a", ["", "yes"])  # 0.0 is the best score there is


@pytest.mark.parametrize("router", [3, None, ["glider"]])
def test_what_is_no_router_is_refused(llama: RoutedModel, llama_directory: Path, router: Any) -> None:
    with pytest.raises(RouterError, match="a router, or the name of one"):
        llama.set_router(router)
    if router is not None:
        with pytest.raises(RouterError, match="a router, or the name of one"):
            load(str(llama_directory), llama.pool.path, router=router)
    with pytest.raises(BaseModelError, match=r"no pool attached.*Call detach\(\)"):
        load(llama.base.model, llama.pool.path, tokenizer=llama.tokenizer)
    with pytest.raises(RouterError, match="k of at least 1"):
        llama.set_router("arrow", top_k=True)


def test_what_listens_is_called(llama: RoutedModel) -> None:
    pieces: list[Piece] = []
    llama.generate(PROMPTS, max_new_tokens=3, on_piece=pieces.append)
    assert pieces[-1].ended
