"""A routed model in use: answers, streams, scores, and every mistake refused with its reason."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor

from glider.errors import BaseModelError, ExpertError, PoolError, QueryError, RouterError
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptFormat
from glider.inference.answers import ChoiceScore
from glider.inference.model import RoutedModel
from glider.inference.queries import Query
from glider.inference.spec import load
from glider.inference.streaming import Piece
from glider.layers.routed_linear import RoutedLinear
from glider.routing.methods.glider import Glider
from glider.routing.select import TopK

PROMPTS = ["What is the capital of France?", "sort 3 1 2", "Übersetze: guten Tag"]
CONTEXT = 512
TEMPLATE_TOKENS = len("<u></u><a>")


@pytest.fixture
def model(base_directory: Path, make_pool) -> RoutedModel:
    return load(str(base_directory), make_pool(base_directory, 3).path)


@pytest.fixture
def llama(llama_directory: Path, make_pool) -> RoutedModel:
    return load(str(llama_directory), make_pool(llama_directory, 3).path)


def test_each_prompt_gets_one_answer_with_what_guided_it(model: RoutedModel) -> None:
    answers = model.generate(PROMPTS, max_new_tokens=7)
    assert len(answers) == len(PROMPTS)
    for answer in answers:
        assert answer.text == model.tokenizer.decode(answer.token_ids, skip_special_tokens=True).strip()
        assert answer.finish_reason == ("stop" if answer.token_ids[-1] == 1 else "length")
        assert len(answer.token_ids) == 7 or answer.finish_reason == "stop"
        assert list(answer.global_scores) == ["e0", "e1", "e2"] == model.experts
        assert answer.alpha == 3
        assert answer.usage == {}


def test_an_answer_that_ends_by_itself_says_stop(model: RoutedModel) -> None:
    [answer] = model.generate(PROMPTS[:1], max_new_tokens=5, forced_eos_token_id=1)
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] == 1
    [answer] = model.generate(PROMPTS[:1], max_new_tokens=5, suppress_tokens=[1])
    assert answer.finish_reason == "length"
    assert len(answer.token_ids) == 5


def test_a_description_is_embedded_in_place_of_the_text(model: RoutedModel) -> None:
    plain, told = model.generate([PROMPTS[0], Query(PROMPTS[0], description=PROMPTS[1])], max_new_tokens=2)
    [other] = model.generate([PROMPTS[1]], max_new_tokens=2)
    assert told.global_scores == pytest.approx(other.global_scores, abs=1e-5)
    assert told.global_scores != pytest.approx(plain.global_scores, abs=1e-3)


def test_a_router_without_a_global_term_has_no_scores(base_directory: Path, make_pool) -> None:
    model = load(str(base_directory), make_pool(base_directory, 2).path, router="phatgoose")
    [answer] = model.generate(PROMPTS[:1], max_new_tokens=2)
    assert (answer.global_scores, answer.alpha) == ({}, None)


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


@torch.inference_mode()
def plain_score(model: RoutedModel, prompt: str, choice: str) -> tuple[float, int]:
    """The whole sequence at once, for one choice."""
    ids = model.prompt.prompt_ids(model.tokenizer, prompt)
    target = [*model.tokenizer(choice, add_special_tokens=False)["input_ids"], model.tokenizer.eos_token_id]
    with model.attached.routing(model.condition([prompt])):
        if model.model.config.is_encoder_decoder:
            logits = model.model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[0, *target[:-1]]]))
            logits = logits.logits[0]
        else:
            logits = model.model(torch.tensor([ids + target])).logits[0, len(ids) - 1 : -1]
    logp = logits.log_softmax(-1)
    return sum(logp[i, token].item() for i, token in enumerate(target)), len(target)


@pytest.mark.parametrize(
    "choices",
    [["yes", "no", "perhaps, perhaps not", "n", ""], ["a", "b"], ["only one"], [""], ["é", "same", "same"]],
    ids=["unlike lengths", "one letter", "one choice", "end token alone", "repeated"],
)
def test_scores_are_those_of_the_whole_sequence(model: RoutedModel, choices: list[str]) -> None:
    scores = model.score(PROMPTS[0], choices)
    assert [score.choice for score in scores] == choices
    for score in scores:
        total, tokens = plain_score(model, PROMPTS[0], score.choice)
        assert score.tokens == tokens
        assert score.log_likelihood == pytest.approx(total, abs=2e-3, rel=1e-4)
        assert score.normalised == pytest.approx(total / tokens, abs=2e-3, rel=1e-4)


def test_a_choices_score_does_not_depend_on_the_others(model: RoutedModel) -> None:
    together = model.score(PROMPTS[1], ["1 2 3", "a much longer wrong answer"])
    [alone] = model.score(PROMPTS[1], ["1 2 3"])
    assert together[0].log_likelihood == pytest.approx(alone.log_likelihood, abs=2e-3)


def test_scores_follow_the_querys_own_global_term(base_directory: Path, make_pool) -> None:
    pool = make_pool(base_directory, 3)
    low, high = (load(str(base_directory), pool.path, p=p).score(PROMPTS[0], ["yes"])[0] for p in (-1.0, 1.0))
    assert abs(low.log_likelihood - high.log_likelihood) > 0.01


def test_normalised_is_per_token() -> None:
    assert ChoiceScore("a", -6.0, 3).normalised == -2


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_prompt_is_refused_by_its_number(model: RoutedModel, text: str) -> None:
    with pytest.raises(QueryError, match="prompt 2"):
        model.generate(["fine", text])
    with pytest.raises(QueryError, match="empty"):
        model.score(text, ["a"])
    with pytest.raises(QueryError, match="empty"):
        model.trace(text)


def test_no_prompt_and_no_choice_are_refused(model: RoutedModel) -> None:
    with pytest.raises(QueryError, match="at least one prompt"):
        model.generate([])
    with pytest.raises(QueryError, match="at least one choice"):
        model.score("a question", [])


def test_several_answers_to_one_prompt_are_refused(model: RoutedModel) -> None:
    with pytest.raises(QueryError, match="one answer"):
        model.generate(PROMPTS, num_return_sequences=2, do_sample=True)


def test_a_prompt_beyond_the_context_says_how_long_it_is(llama: RoutedModel) -> None:
    length = 600 + TEMPLATE_TOKENS
    with pytest.raises(QueryError, match=rf"at most {CONTEXT - 20} tokens .*got {length} tokens \(prompt 2\)"):
        llama.generate(["short", "x" * 600], max_new_tokens=20)


def test_the_longest_prompt_that_fits_is_answered(llama: RoutedModel) -> None:
    fits = "x" * (CONTEXT - 4 - TEMPLATE_TOKENS)
    assert llama.generate([fits], max_new_tokens=4)
    with pytest.raises(QueryError, match=f"at most {CONTEXT - 4}"):
        llama.generate([fits + "x"], max_new_tokens=4)


def test_truncating_keeps_the_end(llama: RoutedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "a" * 300 + "b" * 300
    seen: list[torch.Tensor] = []
    original = llama.model.generate
    monkeypatch.setattr(llama.model, "generate", lambda **k: (seen.append(k["input_ids"]), original(**k))[1])
    llama.generate([prompt], max_new_tokens=12, truncate=True)
    whole = llama.prompt.prompt_ids(llama.tokenizer, prompt)
    assert seen[0][0].tolist() == whole[-(CONTEXT - 12) :]


def test_an_answer_longer_than_the_context_cannot_be_truncated_for(llama: RoutedModel) -> None:
    with pytest.raises(QueryError, match="context of 512"):
        llama.generate(["hi"], max_new_tokens=CONTEXT, truncate=True)


def test_t5_has_no_limit(t5_directory: Path, make_pool) -> None:
    model = load(str(t5_directory), make_pool(t5_directory, 1).path)
    assert len(model.generate(["x" * 700], max_new_tokens=2)) == 1


def test_another_base_is_refused(llama_directory: Path, other_llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 1)
    with pytest.raises(BaseModelError, match=r"tiny-llama.*other-llama.*other weights"):
        load(str(other_llama_directory), pool.path)


def test_another_architecture_is_refused(llama_directory: Path, t5_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 1)
    with pytest.raises(BaseModelError, match="another architecture"):
        load(str(t5_directory), pool.path)


@pytest.fixture
def no_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to load a base model fails the test."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the base model was loaded")

    monkeypatch.setattr("glider.inference.base_model.load_base", refuse)


@pytest.mark.parametrize(
    ("router", "setting", "error", "reason"),
    [
        ("gilder", {}, RouterError, "base, .*glider, .*phatgoose, .*single.*'gilder'"),
        ("single:nobody", {}, PoolError, "e0, e1.*'nobody'"),
        ("single", {}, RouterError, "single:NAME"),
        ("glider", {"temper": 2}, RouterError, "beta, gamma, global_, local, .*, p, select; got temper for glider"),
        ("base", {"p": 0.5}, RouterError, "settings of none; got p for base"),
        (Glider(), {"p": 0.5}, RouterError, "p beside it"),
    ],
    ids=["unknown", "unknown expert", "no argument", "unknown setting", "setting of none", "beside a router"],
)
def test_a_router_that_cannot_be_made_is_refused_before_the_base_is_loaded(
    llama_directory: Path, make_pool, request, router: Any, setting: dict, error: type[Exception], reason: str
) -> None:
    pool = make_pool(llama_directory, 2)
    request.getfixturevalue("no_base")
    with pytest.raises(error, match=reason):
        load(str(llama_directory), pool.path, router=router, **setting)


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [({"gates": False}, "gate at every site .*e0, e1"), ({"embedder": None}, "instruction embedding .*e0, e1")],
    ids=["gates", "instructions"],
)
def test_a_pool_that_cannot_serve_glider_is_refused_before_the_base_is_loaded(
    llama_directory: Path, make_pool, request, lacking: dict, reason: str
) -> None:
    pool = make_pool(llama_directory, 2, **lacking)
    request.getfixturevalue("no_base")
    with pytest.raises(RouterError, match=reason):
        load(str(llama_directory), pool.path)


def test_a_changed_file_is_refused_before_the_base_is_loaded(llama_directory: Path, make_pool, request) -> None:
    pool = make_pool(llama_directory, 2)
    file = pool.path / "e1" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    request.getfixturevalue("no_base")
    with pytest.raises(ExpertError, match=r"adapter_model\.safetensors of expert e1"):
        load(str(llama_directory), pool.path)


def pool_of_two_formats(directory: Path, make_pool) -> Pool:
    pool = make_pool(directory, 2)
    pool = pool.remove("e1")
    card = pool.path / "e1" / "card.json"
    content = json.loads(card.read_text())
    card.write_text(json.dumps({**content, "prompt": {"kind": "plain"}}))
    return pool.add("e1")


def test_experts_of_two_prompt_formats_need_a_choice(llama_directory: Path, make_pool) -> None:
    pool = pool_of_two_formats(llama_directory, make_pool)
    with pytest.raises(PoolError, match=r"one prompt format.*chat.*plain.*prompt="):
        load(str(llama_directory), pool.path)
    model = load(str(llama_directory), pool.path, prompt=PromptFormat(kind="plain"))
    tokens, _ = model.trace("hi")
    assert "".join(tokens) == "hi\n"


def test_the_prompt_format_is_the_pools(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 1)
    tokens, _ = load(str(llama_directory), pool.path).trace("hi")
    assert "".join(tokens) == "<u>hi</u><a>"


def test_a_router_object_and_a_name_with_settings_are_the_same(llama_directory: Path, make_pool) -> None:
    path = make_pool(llama_directory, 2).path
    assert load(str(llama_directory), path, router=Glider(TopK(1), p=0.5)).router == (
        load(str(llama_directory), path, select=TopK(1), p=0.5).router
    )


def test_single_is_that_expert_and_its_name_alone(base_directory: Path, make_pool) -> None:
    model = load(str(base_directory), make_pool(base_directory, 3).path, router="single:e1")
    [answer] = model.generate(PROMPTS[:1], max_new_tokens=3, trace=True)
    assert model.experts == ["e1"]
    assert answer.usage == pytest.approx({"e1": 1})


def test_detach_gives_back_the_bare_model(model: RoutedModel) -> None:
    bare = model.detach()
    assert bare is model.model
    assert not any(isinstance(module, RoutedLinear) for module in bare.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_model_loads_in_the_asked_dtype(base_directory: Path, make_pool, dtype: torch.dtype) -> None:
    path = make_pool(base_directory, 2).path
    model = load(str(base_directory), path, dtype=dtype, expert_dtype=torch.bfloat16)
    assert model.model.lm_head.weight.dtype == dtype
    assert len(model.generate(PROMPTS, max_new_tokens=3)) == 3
    assert all(torch.isfinite(torch.tensor(s.log_likelihood)) for s in model.score(PROMPTS[0], ["a", "bc"]))


def test_an_end_of_the_callers_own_ends_the_answer(make_pool, llama_directory: Path) -> None:
    model = load(str(llama_directory), make_pool(llama_directory).path)
    prompts = ["hello", "a second prompt"]
    free = model.generate(prompts, max_new_tokens=8)
    end = free[0].token_ids[2]
    stopped = model.generate(prompts, max_new_tokens=8, eos_token_id=[end])
    for whole, cut in zip(free, stopped, strict=True):
        wanted = whole.token_ids[: whole.token_ids.index(end) + 1] if end in whole.token_ids else whole.token_ids
        assert cut.token_ids == wanted
        assert cut.finish_reason == ("stop" if end in whole.token_ids else whole.finish_reason)
