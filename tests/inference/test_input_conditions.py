"""The transformers model inside a routed one, asked with token ids alone, answers as the routed one."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

from glider.errors import RouterError
from glider.experts.chat_reading import turns_of_prompt
from glider.inference.base_model import load_base
from glider.inference.model import RoutedModel
from glider.inference.queries import Query
from glider.inference.spec import load
from glider.layers.attach import attach
from glider.layers.caches import cache_after, with_cache
from glider.routing.methods.glider import Glider

PROMPTS = ["Put the words together: dog, ball.", "a dull, endless sequel", "why?"]


@pytest.fixture(params=["glider", "tasklevel"])
def model(request, base_directory: Path, make_pool) -> RoutedModel:
    settings = {"p": -1.0} if request.param == "glider" else {}  # alpha is high: the global term decides
    return load(str(base_directory), make_pool(base_directory).path, router=request.param, **settings)


@pytest.fixture
def llama(llama_directory: Path, make_pool) -> RoutedModel:
    return load(str(llama_directory), make_pool(llama_directory).path, p=-1.0)


def wanted(model: RoutedModel, prompts: list[str] = PROMPTS, **settings: Any) -> list[list[int]]:
    return [list(answer.token_ids) for answer in model.generate(prompts, max_new_tokens=6, **settings)]


def written(model: RoutedModel, prompts: list[str], **settings: Any) -> list[list[int]]:
    """What the inner model writes, up to its end token."""
    inputs = model.encoder.batch(model.encoder.rows(prompts, False, 6))
    output = model.model.generate(**inputs, max_new_tokens=6, do_sample=False, **settings)
    start = 1 if model.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    rows = [row[start:].tolist() for row in output]
    return [row[: row.index(1) + 1] if 1 in row else row for row in rows]


def test_generate_of_the_inner_model_answers_as_the_routed_one(model: RoutedModel) -> None:
    assert written(model, PROMPTS) == wanted(model)
    assert written(model, PROMPTS[:2], num_beams=2) == wanted(model, PROMPTS[:2], num_beams=2)


def test_a_pipeline_answers_as_the_routed_model(llama: RoutedModel) -> None:
    pipe = pipeline("text-generation", model=llama.model, tokenizer=llama.tokenizer)
    for prompt in PROMPTS:
        [told] = pipe([[{"role": "user", "content": prompt}]], max_new_tokens=6, do_sample=False)
        assert told[0]["generated_text"][-1]["content"].strip() == llama.generate([prompt], max_new_tokens=6)[0].text


USER, ANSWER, SYSTEM = "user", "assistant", "system"
CHATS = [
    [(USER, PROMPTS[0]), (ANSWER, "It is a dog."), (USER, PROMPTS[1])],
    [(USER, PROMPTS[1]), (ANSWER, "Yes."), (USER, PROMPTS[2])],  # a follow-up, read with the question before
    [(SYSTEM, "You sort numbers."), (USER, PROMPTS[0])],
    [
        (SYSTEM, "You sort."),
        (USER, PROMPTS[0]),
        (ANSWER, "no"),
        (USER, PROMPTS[1]),
        (ANSWER, "1"),
        (USER, "3 1 2, to be sorted"),
    ],
]


@pytest.mark.parametrize("turns", CHATS, ids=len)
def test_a_chat_of_several_turns_is_asked_as_the_routed_model_asks_it(llama: RoutedModel, turns: list) -> None:
    """Its whole text, answers and template included, decided which experts a pipeline had."""
    chat = [{"role": role, "content": text} for role, text in turns]
    ids = torch.tensor([llama.prompt.chat_ids(llama.tokenizer, chat)])
    assert turns_of_prompt(llama.prompt, llama.tokenizer, ids[0].tolist()) == chat
    with torch.inference_mode():
        own = llama.model(input_ids=ids).logits
        with llama.routing([chat]):
            wanted = llama.model(input_ids=ids).logits
        with llama.routing([llama.prompt.input_of(llama.tokenizer, ids[0].tolist())]):
            of_whole_text = llama.model(input_ids=ids).logits
    torch.testing.assert_close(own, wanted)
    assert (own - of_whole_text).abs().max() > 1e-3
    pipe = pipeline("text-generation", model=llama.model, tokenizer=llama.tokenizer)
    [answer] = pipe([chat], max_new_tokens=6, do_sample=False)
    assert answer[0]["generated_text"][-1]["content"].strip() == llama.generate([chat], max_new_tokens=6)[0].text


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[/]{% endfor %}[assistant]",
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
        "{{ m['content'] }}</s>{% endif %}{% endfor %}",
        "{% if messages[0]['role'] != 'system' %}<s>Be kind.</s>{% endif %}{% for m in messages %}<{{ m['role'][0] }}>"
        "{{ m['content'] | trim }}</{{ m['role'][0] }}>{% endfor %}<a>",
    ],
)
def test_the_turns_of_a_chat_are_read_by_any_template(llama: RoutedModel, template: str) -> None:
    form = llama.prompt.model_copy(update={"template": template})
    for turns in ([(USER, "one\ntwo")], *CHATS):
        chat = [{"role": role, "content": text} for role, text in turns]
        if "raise_exception" in template and turns[0][0] == SYSTEM:
            continue
        ids = form.chat_ids(llama.tokenizer, chat)
        assert turns_of_prompt(form, llama.tokenizer, ids) == chat
    assert turns_of_prompt(form, llama.tokenizer, llama.tokenizer("another text")["input_ids"]) is None
    raw = form.model_copy(update={"kind": "raw"})
    assert turns_of_prompt(raw, llama.tokenizer, [40, 41]) is None


def test_a_forward_pass_has_its_querys_condition_and_so_has_what_continues_it(llama: RoutedModel) -> None:
    ids = torch.tensor([llama.prompt.prompt_ids(llama.tokenizer, PROMPTS[0])])
    [tokens] = wanted(llama, PROMPTS[:1])
    with torch.inference_mode():
        output, got = llama.model(input_ids=ids, use_cache=True), []
        for _ in tokens:
            got.append(int(output.logits[0, -1].argmax()))
            fed = torch.tensor([got[-1:]])
            output = llama.model(input_ids=fed, **with_cache(llama.model, cache_after(output)), use_cache=True)
    assert got == tokens


def test_queries_may_be_given_for_a_block(llama: RoutedModel) -> None:
    queries = [Query(PROMPTS[0], description="Translate a poem."), Query(PROMPTS[1])]
    rows = [list(answer.token_ids) for answer in llama.generate(queries, max_new_tokens=6)]
    with llama.routing(queries):
        assert written(llama, PROMPTS[:2]) == rows
    inputs = llama.encoder.batch(llama.encoder.rows(PROMPTS[:1], False, 6))
    with torch.inference_mode():
        own = llama.model(**inputs).logits
        with llama.routing(PROMPTS[1]):
            other = llama.model(**inputs).logits
        with llama.routing(PROMPTS[0]):
            torch.testing.assert_close(llama.model(**inputs).logits, own)
    assert (own - other).abs().max() > 1e-3


def test_a_cache_of_another_state_of_the_pool_is_not_continued(llama: RoutedModel) -> None:
    ids = torch.tensor([llama.prompt.prompt_ids(llama.tokenizer, PROMPTS[0])])
    with torch.inference_mode():
        cache = cache_after(llama.model(input_ids=ids, use_cache=True))
        llama.set_router("glider", p=-1.0)
        with pytest.raises(RouterError, match="Begin anew"):
            llama.model(input_ids=ids[:, :1], **with_cache(llama.model, cache))
        llama.model(input_ids=ids)  # the thread's next pass is not disturbed


def test_after_detaching_the_inner_model_is_the_bare_one(model: RoutedModel, base_directory: Path) -> None:
    bare = model.detach()
    assert "generate" not in vars(bare) and not bare._forward_hooks and not bare._forward_pre_hooks
    inputs = model.encoder.batch(model.encoder.rows(PROMPTS, False, 6))
    plain = load_base(str(base_directory)).model
    assert torch.equal(bare.generate(**inputs, max_new_tokens=4), plain.generate(**inputs, max_new_tokens=4))
    for ask in (
        lambda: model.generate(PROMPTS), lambda: model.generate_batch(PROMPTS), lambda: model.score(PROMPTS[0], ["a"]),
        lambda: list(model.stream(PROMPTS[0])), lambda: model.trace(PROMPTS[0]), lambda: model.condition(PROMPTS),
        lambda: model.routing(PROMPTS).__enter__(), lambda: model.fold(),
    ):  # fmt: skip
        with pytest.raises(RouterError, match="detached"):
            ask()


def test_a_raw_attachment_has_no_tokenizer_and_warns(llama_directory: Path, make_pool) -> None:
    base = load_base(str(llama_directory))
    attached = attach(base.model, make_pool(llama_directory), Glider(p=-1.0))
    with pytest.warns(UserWarning, match="no query is set"):
        base.model(input_ids=torch.tensor([[40, 71]]))
    attached.detach()


def test_a_router_without_a_global_term_asks_for_nothing(llama_directory: Path, make_pool) -> None:
    model = load(str(llama_directory), make_pool(llama_directory).path, router="phatgoose")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert written(model, PROMPTS) == wanted(model)


@pytest.mark.parametrize("kind", ["chat", "plain", "raw"])
def test_a_prompt_in_tokens_gives_its_text_back(llama: RoutedModel, kind: str) -> None:
    form = llama.prompt.model_copy(update={"kind": kind})
    for text in ("why?", "two\nlines", " spaces "):
        ids = form.prompt_ids(llama.tokenizer, text)
        assert form.input_of(llama.tokenizer, ids) == text
        assert form.input_in(llama.tokenizer, llama.tokenizer.decode(ids)) == text
    if kind == "chat":
        assert form.input_of(llama.tokenizer, llama.tokenizer("bare text")["input_ids"]) == "bare text"
