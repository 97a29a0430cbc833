"""Continuous batching: each request by its own global term, whatever it shares passes, pages and chunks with."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import ContinuousBatchingConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs

from glider.contribute.adopt import import_adapter
from glider.errors import BatchingError, QueryError
from glider.experts.pool import Pool
from glider.inference import packed_engine
from glider.inference.answers import Answer
from glider.inference.base_model import load_base
from glider.inference.engine import Ended, events
from glider.inference.model import RoutedModel
from glider.inference.packing import refusal
from glider.inference.packing_trial import trial
from glider.inference.queries import Query
from glider.inference.sampler import RequestSettings
from glider.inference.spec import load
from glider.routing.methods.glider import Glider

from ..conftest import byte_tokenizer

TASKS = ["Sort the numbers.", "Name the capital of a country.", "Translate into German.", "Is the review positive?"]
TEXTS = [
    "sort 3 1 2",
    "What is the capital of France?",
    "good day to you all and " * 4,
    "a film " * 20,
    "ok",
    "4 9 1 " * 9,
]
QUERIES = [Query(text, TASKS[i % 4]) for i, text in enumerate(TEXTS)]
PREFIX = "The following is a list of questions, each with its answer. " * 2
STRONG = Glider(p=-1.0)  # alpha is 103: the global term decides


@pytest.fixture
def model(llama_directory: Path, make_pool) -> RoutedModel:
    model = load(str(llama_directory), make_pool(llama_directory, 4).path, router=STRONG)
    assert trial(model.attached) is None  # its own passes are none of those that tests look at
    return model


def tokens(answers: list[Answer]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers]


def alone(model: RoutedModel, queries: list[Query], **settings: Any) -> list[Answer]:
    return [model.generate([query], **settings)[0] for query in queries]


@contextmanager
def widths(model: RoutedModel) -> Iterator[list[list[int]]]:
    """The numbers of tokens of each request in each packed pass."""
    seen: list[list[int]] = []

    def see(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        if "cu_seq_lens_q" in inputs:
            seen.append(inputs["cu_seq_lens_q"].diff().tolist())

    hook = model.model.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def test_answers_are_those_of_generate(model: RoutedModel) -> None:
    wanted = model.generate(QUERIES, max_new_tokens=12)
    assert model.generate_batch(QUERIES, max_new_tokens=12) == wanted
    swapped = [Query(query.text, TASKS[(i + 1) % 4]) for i, query in enumerate(QUERIES)]
    assert tokens(model.generate(swapped, max_new_tokens=12)) != tokens(wanted)  # descriptions matter


def test_requests_that_wait_and_prompts_in_chunks(model: RoutedModel) -> None:
    narrow = ContinuousBatchingConfig(page_size=16, max_batch_tokens=24, max_requests_per_batch=2)
    with widths(model) as seen:
        answers = model.generate_batch(QUERIES, max_new_tokens=12, batching=narrow)
    assert tokens(answers) == tokens(alone(model, QUERIES, max_new_tokens=12))
    assert max(map(len, seen)) == 2
    assert max(map(sum, seen)) <= 24 < max(len(text) for text in TEXTS)
    assert any(min(one) == 1 < max(one) for one in seen)  # a step of one request beside a chunk of another


def test_a_request_put_out_of_a_full_cache_comes_back_with_its_own_term(model: RoutedModel) -> None:
    queries = [QUERIES[0], QUERIES[1], Query("sort 9 7", TASKS[2])]
    small = ContinuousBatchingConfig(page_size=16, num_blocks=6, max_batch_tokens=64, safety_margin=0.0)
    with widths(model) as seen:
        answers = model.generate_batch(queries, max_new_tokens=40, batching=small)
    once = sum(len(row) + 39 for row in model.encoder.rows(queries, False, 40))
    assert sum(map(sum, seen)) > once  # something was computed again
    assert tokens(answers) == tokens(alone(model, queries, max_new_tokens=40))


def test_a_prefix_is_shared_among_equal_terms_alone(model: RoutedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values depend on the global term, so that another query's prefix is another prefix."""
    mixed = [Query(PREFIX + text, task) for text, task in zip("abcd", TASKS, strict=True)]
    alike = [Query(PREFIX + text, TASKS[0]) for text in "abcd"]
    paged = ContinuousBatchingConfig(
        page_size=16, max_batch_tokens=150
    )  # one prompt a pass: the next may find its pages

    def batched(queries: list[Query]) -> tuple[list[tuple[int, ...]], int]:
        with widths(model) as seen:
            answers = model.generate_batch(queries, max_new_tokens=12, batching=paged)
        return tokens(answers), sum(map(sum, seen))

    wanted = tokens(alone(model, mixed, max_new_tokens=12))
    (got, all_), (got_alike, fewer) = batched(mixed), batched(alike)
    assert got == wanted
    assert got_alike == tokens(alone(model, alike, max_new_tokens=12))
    assert fewer <= all_ - 2 * 96  # two of them found the first's pages
    monkeypatch.setattr(packed_engine, "_salt", lambda condition, generation, cache: ())
    assert batched(mixed)[0] != wanted  # what sharing would have done


@pytest.mark.parametrize("router", ["phatgoose", "tasklevel", "single:e1", "base"])
def test_every_kind_of_router(llama_directory: Path, make_pool, router: str) -> None:
    model = load(str(llama_directory), make_pool(llama_directory, 3).path, router=router)
    queries = [Query(f"{text} {i}") for i in range(2) for text in TEXTS]
    wanted = model.generate(queries, max_new_tokens=6)
    got = model.generate_batch(queries, max_new_tokens=6)
    assert tokens(got) == tokens(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert list(one.global_scores.values()) == pytest.approx(list(other.global_scores.values()), abs=1e-4)


def test_sampling_is_repeatable_and_greedy_leaves_the_seed(model: RoutedModel) -> None:
    torch.manual_seed(5)
    model.generate_batch(QUERIES, max_new_tokens=3)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(tokens(model.generate_batch(QUERIES, max_new_tokens=8, do_sample=True, temperature=1.5)))
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_end_token_ends_a_request_and_answers_come_as_they_end(model: RoutedModel) -> None:
    [first] = model.generate(QUERIES[:1], max_new_tokens=12)
    end = first.token_ids[2]
    wanted = model.generate(QUERIES, max_new_tokens=12, eos_token_id=end)
    ended: list[tuple[int, Answer]] = []
    got = model.generate_batch(
        QUERIES, max_new_tokens=12, eos_token_id=end, on_answer=lambda row, answer: ended.append((row, answer))
    )
    assert got == wanted
    assert got[0].finish_reason == "stop"
    assert sorted(ended, key=lambda one: one[0]) == list(enumerate(got))
    assert ended[0][0] == min(range(len(got)), key=lambda row: len(got[row].token_ids))


def test_the_model_is_left_as_it_was(model: RoutedModel) -> None:
    threads = threading.active_count()
    hooks = [list(each) for each in (model.model._forward_pre_hooks, model.model._forward_hooks)]
    model.model.set_attn_implementation("eager")
    wanted = model.generate(QUERIES[:2], max_new_tokens=4)
    assert tokens(model.generate_batch(QUERIES[:2], max_new_tokens=4)) == tokens(wanted)
    assert model.model.config._attn_implementation == "eager"
    assert [list(each) for each in (model.model._forward_pre_hooks, model.model._forward_hooks)] == hooks
    assert threading.active_count() <= threads


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_threads_keep_their_own_queries(model: RoutedModel, attention: str) -> None:
    model.model.set_attn_implementation(attention)
    wanted = tokens(alone(model, QUERIES, max_new_tokens=24))
    beside: list[list[tuple[int, ...]]] = []

    def ask() -> None:
        beside.append(tokens(model.generate(QUERIES, max_new_tokens=24)))
        beside.append(tokens(model.generate_batch(QUERIES[::-1], max_new_tokens=24)))

    thread = threading.Thread(target=ask)
    thread.start()
    got = [tokens(model.generate_batch(QUERIES, max_new_tokens=24)) for _ in range(2)]
    thread.join()
    assert got == [wanted, wanted]
    assert beside == [wanted, wanted[::-1]]


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_engine_that_ends_during_a_pass_of_another_thread(model: RoutedModel, place: str) -> None:
    """torch has read its hooks by then, and hands them no keywords once they are gone."""
    ids = torch.tensor([model.prompt.prompt_ids(model.tokenizer, TEXTS[0])])
    own = threading.get_ident()
    inside, ended = threading.Event(), threading.Event()
    logits: list[torch.Tensor] = []

    def stop(*_: Any) -> None:
        if threading.get_ident() != own:
            inside.set()
            assert ended.wait(30)

    def ask() -> None:
        with torch.inference_mode(), model.attached.bare():
            logits.append(model.model(input_ids=ids, use_cache=False).logits)

    with torch.inference_mode(), model.attached.bare():
        wanted = model.model(input_ids=ids, use_cache=False).logits
    engine = model.engine()
    engine.add("one", ids[0].tolist(), model.condition([TEXTS[0]]), RequestSettings(2))
    assert [event for event in events(engine, ["one"]) if isinstance(event, Ended)]
    hook = (
        model.model.register_forward_pre_hook(stop, prepend=True)
        if place == "before"
        else model.model.register_forward_hook(stop, prepend=True)
    )
    thread = threading.Thread(target=ask)
    try:
        thread.start()
        assert inside.wait(30)
        engine.close()
    finally:
        ended.set()
        thread.join()
        hook.remove()
    assert torch.equal(logits[0], wanted)


def test_a_pass_in_the_midst_of_one_of_the_engine(model: RoutedModel) -> None:
    """Causal as ever: transformers writes otherwise into the configuration that all passes share."""
    ids = torch.tensor([model.prompt.prompt_ids(model.tokenizer, TEXTS[0])])
    with torch.inference_mode(), model.attached.bare():
        wanted = model.model(input_ids=ids, use_cache=False).logits
    inside, done = threading.Event(), threading.Event()
    own = threading.get_ident()

    def stop(*_: Any) -> None:
        if threading.get_ident() != own and not inside.is_set():
            inside.set()
            done.wait(30)

    hook = model.model.get_input_embeddings().register_forward_hook(stop)
    engine = model.engine()
    try:
        engine.add("beside", ids[0].tolist(), model.condition([TEXTS[0]]), RequestSettings(4))
        assert inside.wait(30)
        with torch.inference_mode(), model.attached.bare():
            midway = model.model(input_ids=ids, use_cache=False).logits
        done.set()
        assert [event for event in events(engine, ["beside"]) if isinstance(event, Ended)]
        with torch.inference_mode(), model.attached.bare():
            after = model.model(input_ids=ids, use_cache=False).logits
    finally:
        done.set()
        engine.close()
        hook.remove()
    assert torch.equal(midway, wanted) and torch.equal(after, wanted)


def test_a_reader_that_fails_stops_the_run(model: RoutedModel) -> None:
    def fail(row: int, answer: Answer) -> None:
        raise KeyError(row)

    threads = threading.active_count()

    with pytest.raises(KeyError):
        model.generate_batch(QUERIES, max_new_tokens=4, on_answer=fail)
    assert threading.active_count() <= threads
    assert len(model.generate_batch(QUERIES[:1], max_new_tokens=4)) == 1


def test_a_request_that_the_manager_refuses_leaves_nothing(model: RoutedModel, monkeypatch) -> None:
    """Its name stayed taken, and its generation of the pool in use."""
    ids = model.prompt.prompt_ids(model.tokenizer, TEXTS[0])
    engine = model.engine()

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room")

    try:
        with monkeypatch.context() as patch:
            patch.setattr(ContinuousBatchingManager, "add_request", refuse)
            with pytest.raises(RuntimeError, match="no room"):
                engine.add("one", ids, model.condition([TEXTS[0]]), RequestSettings(2))
        engine.add("one", ids, model.condition([TEXTS[0]]), RequestSettings(2))
        assert [event for event in events(engine, ["one"]) if isinstance(event, Ended)]
    finally:
        engine.close()


def test_requests_out_of_order_are_noticed(model: RoutedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = ContinuousBatchingIOs.prepare_batch_tensors

    def reversed_(self: ContinuousBatchingIOs, *args: Any, **kwargs: Any) -> None:
        prepare(self, *args, **kwargs)
        self.requests_in_batch = self.requests_in_batch[::-1]

    monkeypatch.setattr(ContinuousBatchingIOs, "prepare_batch_tensors", reversed_)
    with pytest.raises(BatchingError, match=r"fill the pass in order.*cumulative lengths say"):
        model.generate_batch(QUERIES, max_new_tokens=4)


def test_a_scheduler_that_does_not_tell_its_requests_is_refused(model: RoutedModel, monkeypatch) -> None:
    prepare = ContinuousBatchingIOs.prepare_batch_tensors

    def silent(self: ContinuousBatchingIOs, *args: Any, **kwargs: Any) -> None:
        prepare(self, *args, **kwargs)
        del self.requests_in_batch

    monkeypatch.setattr(ContinuousBatchingIOs, "prepare_batch_tensors", silent)
    with pytest.raises(BatchingError, match=f"transformers {transformers.__version__}.*5.18"):
        model.generate_batch(QUERIES, max_new_tokens=4)


def test_transformers_without_it_is_refused(model: RoutedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "ContinuousBatchingConfig", None)
    with pytest.raises(BatchingError, match=r"Upgrade transformers to 5\.18"):
        model.generate_batch(QUERIES)


def test_a_cache_too_small_for_a_request_says_so(model: RoutedModel) -> None:
    small = ContinuousBatchingConfig(page_size=16, num_blocks=2, max_batch_tokens=64)
    with pytest.raises(BatchingError, match="larger cache"):
        model.generate_batch(QUERIES, max_new_tokens=4, batching=small)


def test_a_kept_manager_is_not_taken_over(model: RoutedModel) -> None:
    """Its cache may hold prefixes of other queries."""
    kept = ContinuousBatchingConfig(page_size=16, num_blocks=8, max_batch_tokens=64)
    with model.attached.bare(), pytest.warns(UserWarning, match="no query is set"):
        model.model.generate_batch([[5, 6]], continuous_batching_config=kept, persistent_manager=True, max_new_tokens=2)
    with pytest.raises(BatchingError, match="destroy_cached_continuous_batching_manager"):
        model.generate_batch(QUERIES)
    model.model.destroy_cached_continuous_batching_manager()
    assert model.generate_batch(QUERIES, max_new_tokens=2)


def test_what_packed_requests_cannot_do_is_refused(model: RoutedModel, t5_directory: Path, make_pool) -> None:
    with pytest.raises(QueryError, match="num_beams"):
        model.generate_batch(QUERIES, num_beams=2)
    with pytest.raises(QueryError, match="compiled pass"):
        model.generate_batch(QUERIES, batching=ContinuousBatchingConfig(use_async_batching=True))
    with pytest.raises(QueryError, match="compiled pass"):
        model.generate_batch(QUERIES, batching=ContinuousBatchingConfig(use_cuda_graph=(False, True)))
    with pytest.raises(QueryError, match="prompt 2"):
        model.generate_batch(["a", " "])
    with pytest.raises(QueryError, match="no_such_setting"):
        model.generate_batch(QUERIES, no_such_setting=2)


@pytest.mark.parametrize(
    "settings", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 1}, {"bad_words_ids": [[5], [9]]}]
)
def test_each_request_has_its_own_processors(model: RoutedModel, settings: dict[str, Any]) -> None:
    """Penalties look at a request's own tokens, and are those of `generate`."""
    wanted = tokens(alone(model, QUERIES, max_new_tokens=12, **settings))
    assert wanted != tokens(alone(model, QUERIES, max_new_tokens=12))
    assert tokens(model.generate_batch(QUERIES, max_new_tokens=12, **settings)) == wanted


def test_models_and_routers_whose_passes_cannot_be_packed_run_in_padded_batches(t5_directory: Path, make_pool) -> None:
    t5 = load(str(t5_directory), make_pool(t5_directory, 3, name="t5").path, router=STRONG)
    queries = [*QUERIES, *QUERIES[::-1]]  # more than one batch
    wanted = t5.generate(queries, max_new_tokens=6)
    seen: list[int] = []
    got = t5.generate_batch(queries, max_new_tokens=6, on_answer=lambda row, _: seen.append(row))
    assert tokens(got) == tokens(wanted) and sorted(seen) == list(range(12))
    engine = t5.engine()
    assert not engine.can.join and "T5ForConditionalGeneration" in engine.can.why_not
    engine.close()


@pytest.mark.slow
def test_the_embedded_pool_answers_as_generate_does() -> None:
    model = load(pool="demo")
    queries = [Query(f"{text}\n{PREFIX}", task) for task in TASKS[:2] for text in TEXTS[:4]]
    assert tokens(model.generate_batch(queries, max_new_tokens=12)) == tokens(alone(model, queries, max_new_tokens=12))


def test_a_window_that_the_model_does_not_keep_is_no_window(model: RoutedModel) -> None:
    """Moshi names one, for another kind of attention: a paged cache that kept it gave other tokens."""
    model.model.config.sliding_window = 4
    wanted = tokens(model.generate(QUERIES, max_new_tokens=6))
    assert "past the sliding_window" in str(refusal(model.attached))
    assert tokens(model.generate_batch(QUERIES, max_new_tokens=6)) == wanted


def test_an_expert_behind_the_blocks_is_answered_in_padded_batches(tmp_path: Path) -> None:
    """RoBERTa has a layer before the output layer: it was an error that named a larger cache as the remedy."""
    torch.manual_seed(0)
    settings = transformers.RobertaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=80, pad_token_id=0, bos_token_id=None, eos_token_id=1, is_decoder=True,
        initializer_range=0.3,
    )  # fmt: skip
    transformers.RobertaForCausalLM(settings).save_pretrained(tmp_path / "base")
    byte_tokenizer(chat=False).save_pretrained(tmp_path / "base")
    routed = _routed(tmp_path, ["query", "lm_head.dense"])
    assert "lm_head.dense" in str(refusal(routed.attached))
    prompts = ["a", "ab"]
    assert tokens(routed.generate_batch(prompts, max_new_tokens=4)) == tokens(
        routed.generate(prompts, max_new_tokens=4)
    )


def test_keys_that_a_model_repeats_itself_are_answered_in_padded_batches(tmp_path: Path) -> None:
    """JetMoE's attention sees more heads than its cache keeps: the remedy was a larger cache."""
    torch.manual_seed(0)
    settings = transformers.JetMoeConfig(
        vocab_size=259, hidden_size=32, num_hidden_layers=1, num_key_value_heads=2, kv_channels=8, num_local_experts=4,
        num_experts_per_tok=2, intermediate_size=48, max_position_embeddings=80, pad_token_id=0, bos_token_id=None,
        eos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    transformers.JetMoeForCausalLM(settings).save_pretrained(tmp_path / "base")
    byte_tokenizer(chat=False).save_pretrained(tmp_path / "base")
    jetmoe = _routed(tmp_path, ["kv_proj"])
    assert "become 4 before attention" in str(refusal(jetmoe.attached))
    prompts = ["a", "ab"]
    assert tokens(jetmoe.generate_batch(prompts, max_new_tokens=4)) == tokens(
        jetmoe.generate(prompts, max_new_tokens=4)
    )


def _routed(place: Path, targets: list[str]) -> RoutedModel:
    """The base of a directory with an expert on some of its layers."""
    base = load_base(str(place / "base"))
    peft = get_peft_model(base.model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    peft.save_pretrained(str(place / "adapter"))
    pool = Pool.create(place / "pool", load_base(str(place / "base")).identity)
    import_adapter(place / "adapter", str(place / "base"), pool.path / "ex")
    return load(str(place / "base"), pool.add("ex").path, router="single:ex")
