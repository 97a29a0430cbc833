"""Calls of the transformers model inside, while another thread takes the pool off or puts another router in place."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from glider.calibration.verdict import choose_thresholds
from glider.errors import RouterError
from glider.inference.base_model import load_base
from glider.inference.model import RoutedModel
from glider.inference.spec import load
from glider.layers.attach import attach

PROMPT = "hello there"


class Pause(LogitsProcessor):
    """Stops at the third token until it may go on."""

    def __init__(self) -> None:
        self.steps, self.reached, self.free = 0, threading.Event(), threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        if self.steps == 3:
            self.reached.set()
            assert self.free.wait(30)
        return scores


def _generate(model: Any, tokenizer: Any, *processors: LogitsProcessor) -> list[int]:
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    more = LogitsProcessorList(processors)
    return model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, logits_processor=more)[0].tolist()


def _meanwhile(model: Any, tokenizer: Any, act: Callable[[], Any]) -> list[int]:
    """What a thread writes while another one acts; `act` may wait for it."""
    pause, written = Pause(), list[int]()
    writing = threading.Thread(target=lambda: written.extend(_generate(model, tokenizer, pause)))
    writing.start()
    assert pause.reached.wait(30)
    acting = threading.Thread(target=act)
    acting.start()
    acting.join(0.2)
    pause.free.set()
    writing.join(30)
    acting.join(30)
    assert not acting.is_alive()
    return written


@pytest.fixture(params=["single:e0", "phatgoose", "glider"])
def model(request, llama_directory: Path, make_pool) -> RoutedModel:
    return load(str(llama_directory), make_pool(llama_directory).path, router=request.param)


def test_detach_waits_for_a_run_of_the_inner_model(model: RoutedModel) -> None:
    wanted = _generate(model.model, model.tokenizer)
    assert _meanwhile(model.model, model.tokenizer, model.detach) == wanted
    assert _generate(model.model, model.tokenizer) != wanted


def test_a_run_of_the_inner_model_keeps_its_router(model: RoutedModel) -> None:
    wanted = _generate(model.model, model.tokenizer)
    assert _meanwhile(model.model, model.tokenizer, lambda: model.set_router("single:e1")) == wanted
    assert _generate(model.model, model.tokenizer) != wanted
    assert len(model.attached._generations) == 1  # the one before has gone with its last run


@pytest.mark.filterwarnings("ignore:no query is set")
@pytest.mark.parametrize("router", ["single:e0", "glider"])
def test_detaching_from_a_raw_model_waits_too(llama_directory: Path, make_pool, router: str) -> None:
    base = load_base(str(llama_directory))
    bare = _generate(base.model, base.tokenizer)
    attached = attach(base.model, make_pool(llama_directory), router)
    wanted = _generate(base.model, base.tokenizer)
    assert wanted != bare
    assert _meanwhile(base.model, base.tokenizer, attached.detach) == wanted
    assert _generate(base.model, base.tokenizer) == bare
    assert "generate" not in vars(base.model) and not base.model._forward_hooks and not base.model._forward_pre_hooks


def test_a_pass_that_breaks_holds_nothing_afterwards(model: RoutedModel) -> None:
    with pytest.raises(IndexError):
        model.model(input_ids=torch.tensor([[10**6]]))
    with pytest.raises(IndexError):
        model.model.generate(torch.tensor([[10**6]]), max_new_tokens=2)
    model.detach()


def test_a_run_does_not_wait_for_itself(model: RoutedModel) -> None:
    class Detaches(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            model.detach()
            return scores

    with pytest.raises(RouterError, match="Leave it first"):
        _generate(model.model, model.tokenizer, Detaches())


def test_a_judge_without_a_global_term_is_asked_too(pool_with_profiles, llama_directory: Path) -> None:
    pool = pool_with_profiles()
    pool = pool.set_verdicts(choose_thresholds(pool))
    model = load(str(llama_directory), pool.path, router="phatgoose", abstain=True)
    [answer] = model.generate([PROMPT], max_new_tokens=8, eos_token_id=[])
    assert answer.verdict == "stranger"
    inputs = model.encoder.batch(model.encoder.rows([PROMPT], False, 8))
    written = model.model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=[])
    assert tuple(written[0, inputs["input_ids"].shape[1] :].tolist()) == answer.token_ids


@pytest.mark.parametrize("act", ["detach", "fold"])
@pytest.mark.parametrize("ask", ["generate", "inner"])
def test_queries_that_come_do_not_keep_a_pool_from_being_taken_off(
    llama_directory: Path, make_pool, act: str, ask: str
) -> None:
    """Under steady traffic some query is always in flight: those that come wait for what waits already."""
    model = load(str(llama_directory), make_pool(llama_directory).path, router="single:e0")
    running, free, told = threading.Event(), threading.Event(), threading.Event()
    outcome: list[object] = []

    def first() -> None:
        with model.routing("why?"):
            running.set()
            free.wait(60)

    def next_one() -> None:
        ids = model.encoder.batch(model.encoder.rows(["why?"], False, 2))["input_ids"]
        try:
            if ask == "generate":
                outcome.append(model.generate(["why?"], max_new_tokens=2, streamer=_Slow(acted)))
            else:
                outcome.append(model.model.generate(ids, max_new_tokens=2, streamer=_Slow(acted)))
        except RouterError as fault:
            outcome.append(fault)

    acted = threading.Event()

    def acting() -> None:
        getattr(model, act)()
        acted.set()

    threads = [threading.Thread(target=target) for target in (first, acting, next_one)]
    threads[0].start()
    assert running.wait(60)
    threads[1].start()
    while not model.attached._claims:
        told.wait(0.005)
    threads[2].start()
    told.wait(0.1)  # it has come to the pool by now, or comes later still
    free.set()
    for thread in threads:
        thread.join(60)
    assert acted.is_set() and len(outcome) == 1
    assert isinstance(outcome[0], RouterError) == (act == "detach")


class _Slow(BaseStreamer):
    """Ends no answer before an event, or gives up."""

    def __init__(self, event: threading.Event):
        self._event = event

    def put(self, value: object) -> None:
        self._event.wait(20)

    def end(self) -> None:
        pass
