"""`/v1/chat/completions` by the official client, beside the model in process."""

from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from glider.inference.model import RoutedModel
from glider.inference.queries import Query
from glider.inference.spec import ModelSpec

TEXTS = ["the e0 e03 and e07", "the e2 e21 and", "good day to you"]


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def ask(client: openai.OpenAI, text: str, model: str = "tiny", **more: Any) -> Any:
    settings = {"temperature": 0, "max_tokens": 16, **more}
    beside = {"return_token_ids": True, **settings.pop("extra_body", {})}
    return client.chat.completions.create(model=model, messages=user(text), extra_body=beside, **settings)


@pytest.mark.parametrize("text", TEXTS)
def test_greedy_answers_are_those_in_process(client: openai.OpenAI, model: RoutedModel, text: str) -> None:
    (wanted,) = model.generate([text], max_new_tokens=24)
    answer = ask(client, text, max_tokens=24)
    choice = answer.choices[0]
    assert choice.token_ids == list(wanted.token_ids)
    assert choice.message.content.strip() == wanted.text
    assert choice.finish_reason == wanted.finish_reason
    assert answer.usage.prompt_tokens == len(model.prompt.prompt_ids(model.tokenizer, text))
    assert answer.usage.completion_tokens == len(wanted.token_ids)
    assert answer.glider["alpha"] == wanted.alpha
    assert answer.glider["scores"] == pytest.approx(wanted.global_scores)


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = ask(client, TEXTS[0])
    chunks = list(ask(client, TEXTS[0], stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    ids = [token for c in chunks if c.choices for token in getattr(c.choices[0], "token_ids", [])]
    assert ids == whole.choices[0].token_ids
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].choices == []
    assert [c for c in chunks if c.choices][-1].glider == whole.glider


def test_the_base_is_the_base(client: openai.OpenAI, model: RoutedModel) -> None:
    inputs = model.encoder.batch(model.encoder.rows([TEXTS[0]], False, 16))
    with model.attached.bare():
        wanted = model.model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    by_name = ask(client, TEXTS[0], "tiny-llama")
    by_verdict = ask(client, TEXTS[0], extra_body={"glider": {"verdict": "base"}})
    assert by_name.choices[0].token_ids == by_verdict.choices[0].token_ids == wanted.tolist()
    assert by_name.glider["experts"] == by_verdict.glider["experts"] == {}
    assert ask(client, TEXTS[0]).choices[0].token_ids != wanted.tolist()


def test_an_expert_by_its_name_is_that_expert(client: openai.OpenAI, llama_directory: Any, pool_directory: Any) -> None:
    spec = ModelSpec(base=str(llama_directory), pool=str(pool_directory), router="single:e2")
    (wanted,) = spec.load().generate([TEXTS[0]], max_new_tokens=16)
    assert ask(client, TEXTS[0], "e2").choices[0].token_ids == list(wanted.token_ids)
    weighed = ask(client, TEXTS[0], extra_body={"glider": {"experts": {"e2": 1.0}}})
    assert weighed.choices[0].token_ids == list(wanted.token_ids)


def test_a_router_that_differs_in_its_condition(
    client: openai.OpenAI, llama_directory: Any, pool_directory: Any
) -> None:
    spec = ModelSpec(base=str(llama_directory), pool=str(pool_directory), router="phatgoose")
    (wanted,) = spec.load().generate([TEXTS[0]], max_new_tokens=16)
    answer = ask(client, TEXTS[0], "tiny:phatgoose")
    assert answer.choices[0].token_ids == list(wanted.token_ids)
    assert answer.glider["alpha"] is None
    with pytest.raises(openai.BadRequestError, match="another process"):
        ask(client, TEXTS[0], "tiny:arrow")
    with pytest.raises(openai.NotFoundError):
        ask(client, TEXTS[0], "tiny:nonsense")


def test_a_router_that_is_not_served_is_told_with_a_command_that_runs(client: openai.OpenAI) -> None:
    """The advice was `glider serve POOL --router ...`, which the command refuses, its parentheses unquoted; and for the
    base or one expert, a process that nobody needs."""
    with pytest.raises(openai.BadRequestError, match=r"glider serve --pool POOL --router 'arrow\(top_k=1\)'"):
        ask(client, TEXTS[0], "tiny:arrow(top_k=1)")
    for router in ("base", "single:e2"):
        with pytest.raises(openai.BadRequestError, match=r"/v1/models") as refusal:
            ask(client, TEXTS[0], f"tiny:{router}")
        assert "another process" not in refusal.value.message


def test_two_limits_of_an_answer_are_told(client: openai.OpenAI) -> None:
    """The message was the two names with an "or" between them."""
    with pytest.raises(openai.BadRequestError, match=r"wanted one number .*; got two"):
        ask(client, TEXTS[0], extra_body={"max_completion_tokens": 8, "max_tokens": 4})


def test_a_description_steers(client: openai.OpenAI, model: RoutedModel) -> None:
    query = Query("good day", examples=(("the e3 e31 and e33", "yes"),))
    (wanted,) = model.generate([query], max_new_tokens=16)
    steering = {"glider": {"examples": [["the e3 e31 and e33", "yes"]]}}
    answer = ask(client, "good day", extra_body=steering)
    assert answer.choices[0].token_ids == list(wanted.token_ids)
    assert answer.glider["scores"] != ask(client, "good day").glider["scores"]


def test_the_servers_examples_are_those_of_requests_without(serve: Any, model: RoutedModel, tmp_path: Path) -> None:
    """Clients that send plain requests of OpenAI's had no way to give the examples that the paper gives with each."""
    file = tmp_path / "examples.jsonl"
    file.write_text('{"input": "the e3 e31 and e33", "output": "yes"}\n')
    client = serve("--examples", str(file)).client()
    (wanted,) = model.generate([Query("good day", examples=(("the e3 e31 and e33", "yes"),))], max_new_tokens=16)
    answer = ask(client, "good day")
    assert answer.choices[0].token_ids == list(wanted.token_ids)
    assert answer.glider["scores"] == pytest.approx(wanted.global_scores, abs=1e-4)
    own = ask(client, "good day", extra_body={"glider": {"examples": [["the e1 e11", "no"]]}})
    assert own.glider["scores"]["e1"] > answer.glider["scores"]["e1"]
    assert ask(client, "good day", "e1").choices[0].token_ids  # an expert alone has no router to steer
    unread = ask(client, "good day", "tiny:phatgoose")
    assert unread.glider["fault"] == "the examples are not used: the router has no global term"


def test_experts_left_out_have_no_part(client: openai.OpenAI) -> None:
    steering = {"glider": {"exclude": ["e0", "e1"], "trace": True}}
    answer = ask(client, TEXTS[0], extra_body=steering)
    assert set(answer.glider["experts"]) <= {"e2", "e3"}
    assert sum(answer.glider["experts"].values()) == pytest.approx(1, abs=0.01)
    assert set(ask(client, TEXTS[0], extra_body={"glider": {"trace": True}}).glider["experts"]) & {"e0", "e1"}
    only = ask(client, TEXTS[0], extra_body={"glider": {"experts": ["e3"]}})
    assert only.choices[0].token_ids == pytest.approx(ask(client, TEXTS[0], "e3").choices[0].token_ids)


def test_a_trace_has_every_token(client: openai.OpenAI, model: RoutedModel) -> None:
    traced, (answers, trace) = (
        ask(client, TEXTS[1], extra_body={"glider": {"trace": True}}),
        model.generate_traced([TEXTS[1]], max_new_tokens=16),
    )
    told = traced.glider["trace"]
    assert traced.choices[0].token_ids == list(answers[0].token_ids)
    assert [token["text"] for token in told["tokens"]] == [
        model.tokenizer.decode([token]) for token in answers[0].token_ids
    ]
    assert told["sites"] == trace.sites
    rows = len(answers[0].token_ids)
    steps = [[call for call in trace.calls if call.site == site][:rows] for site in trace.sites]
    wanted = torch.stack([torch.stack([trace.weights(call)[0, -1] for call in calls]).mean(dim=0) for calls in steps])
    assert torch.allclose(torch.tensor(told["heatmap"]), wanted, atol=2e-3)


def test_sampling_is_repeatable_and_follows_its_settings(client: openai.OpenAI) -> None:
    settings = {"temperature": 1.5, "max_tokens": 20, "seed": 7, "n": 3}
    first, second = ask(client, TEXTS[0], **settings), ask(client, TEXTS[0], **settings)
    texts = [choice.token_ids for choice in first.choices]
    assert texts == [choice.token_ids for choice in second.choices]
    assert len({tuple(ids) for ids in texts}) == 3
    assert ask(client, TEXTS[0], **{**settings, "n": 1, "seed": 8}).choices[0].token_ids == texts[1]
    greedy = ask(client, TEXTS[0], max_tokens=20).choices[0].token_ids
    for narrow in ({"top_p": 1e-6}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}):
        assert ask(client, TEXTS[0], **{**settings, "n": 1, **narrow}).choices[0].token_ids == greedy


def test_penalties_and_bias_change_the_logits(client: openai.OpenAI, model: RoutedModel) -> None:
    plain = ask(client, TEXTS[0]).choices[0].token_ids
    banned = ask(client, TEXTS[0], logit_bias={str(plain[0]): -100}).choices[0].token_ids
    assert plain[0] not in banned
    forced = ask(client, TEXTS[0], logit_bias={"77": 100}).choices[0].token_ids
    assert forced == [77] * 16
    near = {"77": 100, "78": 90}
    counted = ask(client, TEXTS[0], logit_bias=near, frequency_penalty=2).choices[0].token_ids
    assert counted[0] == 77
    assert set(counted) == {77, 78}
    assert ask(client, TEXTS[0], logit_bias=near, presence_penalty=2).choices[0].token_ids == [77] * 16
    (wanted,) = model.generate([TEXTS[0]], max_new_tokens=16, repetition_penalty=1.8)
    repeated = ask(client, TEXTS[0], extra_body={"repetition_penalty": 1.8})
    assert repeated.choices[0].token_ids == list(wanted.token_ids)


def test_stops(client: openai.OpenAI) -> None:
    plain = ask(client, TEXTS[0], max_tokens=30)
    text, ids = plain.choices[0].message.content, plain.choices[0].token_ids
    stop = text[5:7]
    stopped = ask(client, TEXTS[0], max_tokens=30, stop=[stop, "never comes"]).choices[0]
    assert stopped.message.content == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"
    streamed = list(ask(client, TEXTS[0], max_tokens=30, stop=stop, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == text[: text.index(stop)]
    ending: dict[str, Any] = {"max_tokens": 30, "extra_body": {"stop_token_ids": [ids[4]]}}
    by_id = ask(client, TEXTS[0], **ending).choices[0]
    assert by_id.finish_reason == "stop"
    assert by_id.token_ids == ids[: ids.index(ids[4]) + 1]
    chunks = [chunk.choices[0] for chunk in ask(client, TEXTS[0], stream=True, **ending)]
    assert [token for chunk in chunks for token in getattr(chunk, "token_ids", [])] == by_id.token_ids


def test_a_stop_string_that_ends_with_half_a_character_is_a_stop(client: openai.OpenAI) -> None:
    """The last token may be the beginning of a character, which is shown at the end alone: then too it stops there."""
    texts = (ask(client, TEXTS[0], max_tokens=length).choices[0].message.content for length in range(2, 40))
    length, text = next((n, text) for n, text in enumerate(texts, 2) if text.endswith("\ufffd"))
    for streams in (False, True):
        answer = ask(client, TEXTS[0], max_tokens=length, stop=text[-2:], stream=streams)
        last = list(answer)[-1].choices[0] if streams else answer.choices[0]
        assert last.finish_reason == "stop"


def test_the_end_token_can_be_ignored(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"logit_bias": {"1": 100}, "max_tokens": 5}
    ended = ask(client, TEXTS[0], **settings).choices[0]
    assert (ended.token_ids, ended.message.content, ended.finish_reason) == ([1], "", "stop")
    ignored = ask(client, TEXTS[0], **settings, extra_body={"ignore_eos": True}).choices[0]
    assert (ignored.token_ids, ignored.finish_reason) == ([1] * 5, "length")


def test_logprobs_are_the_models(client: openai.OpenAI, model: RoutedModel) -> None:
    answer = ask(client, TEXTS[0], logprobs=True, top_logprobs=3, max_tokens=6)
    choice = answer.choices[0]
    prompt = model.prompt.prompt_ids(model.tokenizer, TEXTS[0])
    ids = torch.tensor([[*prompt, *choice.token_ids]])
    with torch.inference_mode(), model.attached.routing(model.condition([TEXTS[0]])):
        values = model.model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
    content = choice.logprobs.content
    assert [one.logprob for one in content] == pytest.approx(values.max(dim=-1).values.tolist(), abs=1e-3)
    for one, row in zip(content, values, strict=True):
        assert [top.logprob for top in one.top_logprobs] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)
        assert one.top_logprobs[0].token == one.token
    assert b"".join(bytes(one.bytes) for one in content).decode(errors="replace") == choice.message.content
    streamed = [c.choices[0].logprobs for c in ask(client, TEXTS[0], logprobs=True, max_tokens=6, stream=True)]
    told = [one.logprob for part in streamed if part for one in part.content]
    assert told == pytest.approx([one.logprob for one in content], abs=1e-3)


def test_turns_are_in_the_template_and_the_users_in_the_condition(client: openai.OpenAI, model: RoutedModel) -> None:
    turns: list[Any] = [
        {"role": "system", "content": "the e3 e31 e33 and e35"},
        {"role": "user", "content": [{"type": "text", "text": TEXTS[0]}]},
        {"role": "assistant", "content": "the e3 e31 e33"},
        {"role": "user", "content": "and more"},
    ]
    answer: Any = client.chat.completions.create(
        model="tiny", messages=turns, temperature=0, max_tokens=8, extra_body={"return_token_ids": True}
    )
    asked = f"{TEXTS[0]}\n\nand more"
    condition = model.condition([asked])
    assert condition.global_scores is not None
    assert list(answer.glider["scores"].values()) == pytest.approx(condition.global_scores[0].tolist())
    texts = [turns[0]["content"], TEXTS[0], *(turn["content"] for turn in turns[2:])]
    rendered = "".join(f"<u>{text}</u>" for text in texts) + "<a>"
    ids = torch.tensor([model.tokenizer(rendered).input_ids])
    with torch.inference_mode(), model.attached.routing(condition):
        wanted = model.model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
    assert answer.choices[0].token_ids == wanted
