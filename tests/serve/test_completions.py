"""`/v1/completions`, tokens, embeddings, models."""

import base64
from typing import Any

import httpx2 as httpx
import numpy
import openai
import pytest
import torch

from glider.experts.prompt_format import PromptFormat
from glider.inference.model import RoutedModel
from glider.instructions.embedders import load_embedder

from .conftest import Served

TEXT = "the e1 e13 and"


def complete(client: openai.OpenAI, prompt: Any, model: str = "tiny", **more: Any) -> Any:
    settings = {"temperature": 0, "max_tokens": 8, **more}
    beside = {"return_token_ids": True, **settings.pop("extra_body", {})}
    return client.completions.create(model=model, prompt=prompt, extra_body=beside, **settings)


@pytest.fixture
def raw(model: RoutedModel) -> RoutedModel:
    """The model in process, prompts as they stand."""
    form = PromptFormat(kind="raw")
    return RoutedModel(model.base, model.pool, model.attached, form)


def test_prompts_are_continued_as_they_stand(client: openai.OpenAI, raw: RoutedModel) -> None:
    prompts = [TEXT, "good day", "the e3 e3"]
    wanted = raw.generate(prompts, max_new_tokens=8)
    together = complete(client, prompts)
    assert [choice.token_ids for choice in together.choices] == [list(one.token_ids) for one in wanted]
    assert [choice.text.strip() for choice in together.choices] == [one.text for one in wanted]
    ids = raw.tokenizer(TEXT).input_ids
    assert complete(client, ids).choices[0].token_ids == list(wanted[0].token_ids)
    assert complete(client, [ids, ids], n=2).usage.prompt_tokens == 2 * len(ids)


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = complete(client, [TEXT, "good day"], echo=True, logprobs=2)
    for number in range(2):
        mine = [
            chunk.choices[0]
            for chunk in complete(client, [TEXT, "good day"], echo=True, logprobs=2, stream=True)
            if chunk.choices and chunk.choices[0].index == number
        ]
        choice = whole.choices[number]
        assert "".join(one.text for one in mine) == choice.text
        assert [o for one in mine if one.logprobs for o in one.logprobs.text_offset] == choice.logprobs.text_offset
        assert mine[-1].finish_reason == choice.finish_reason


def test_a_stream_tells_the_token_that_ended_it(client: openai.OpenAI) -> None:
    """It had all but that one; and a chunk with the prompt had a field of our own."""
    settings: dict[str, Any] = {"logit_bias": {"1": 100}, "echo": True}
    (choice,) = complete(client, TEXT, **settings).choices
    chunks = [chunk.choices[0] for chunk in complete(client, TEXT, stream=True, **settings)]
    assert [token for chunk in chunks for token in getattr(chunk, "token_ids", [])] == choice.token_ids == [1]
    plain = client.completions.create(model="tiny", prompt=TEXT, echo=True, max_tokens=1, stream=True)
    assert all(chunk.model_extra.keys() <= {"glider"} for chunk in plain)


def test_echo_scores_the_prompt(client: openai.OpenAI, raw: RoutedModel) -> None:
    answer = complete(client, TEXT, echo=True, logprobs=2, max_tokens=3)
    choice, ids = answer.choices[0], raw.tokenizer(TEXT).input_ids
    assert choice.text.startswith(TEXT)
    whole = torch.tensor([[*ids, *choice.token_ids]])
    with torch.inference_mode(), raw.attached.routing(raw.condition([TEXT])):
        values = raw.model(whole).logits[0, :-1].log_softmax(dim=-1)
    wanted = values.gather(1, whole[0, 1:, None])[:, 0].tolist()
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(wanted, abs=1e-3)
    assert max(choice.logprobs.top_logprobs[3].values()) == pytest.approx(values[2].max().item(), abs=1e-3)
    only = complete(client, TEXT, echo=True, logprobs=0, max_tokens=0).choices[0]
    assert only.text == TEXT
    assert only.logprobs.token_logprobs[1:] == pytest.approx(wanted[: len(ids) - 1], abs=1e-3)


def test_tokens_go_there_and_back(server: Served, model: RoutedModel) -> None:
    told = httpx.post(f"{server.url}/tokenize", json={"prompt": "käse", "return_token_strs": True}).json()
    assert told["tokens"] == model.tokenizer("käse").input_ids
    assert told["count"] == len(told["token_strs"]) == 5
    back = httpx.post(f"{server.url}/detokenize", json={"tokens": told["tokens"]}).json()
    assert back == {"prompt": "käse"}
    turns = [{"role": "user", "content": "hello"}]
    for body in ({"messages": turns, "add_special_tokens": False}, {"prompt": "a", "add_generation_prompt": False}):
        refused = httpx.post(f"{server.url}/tokenize", json=body)  # what has no meaning was ignored
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, list(body)[1])
    chat = httpx.post(f"{server.url}/tokenize", json={"messages": turns, "model": "tiny"}).json()
    assert chat["tokens"] == model.prompt.prompt_ids(model.tokenizer, "hello")


def test_embeddings_are_the_pools_embedders(client: openai.OpenAI) -> None:
    texts = ["sort the numbers", "name a capital"]
    wanted = load_embedder().embed(texts)
    for form in ("float", None):
        more: Any = {} if form is None else {"encoding_format": form}
        answer = client.embeddings.create(model="tiny", input=texts, **more)
        assert torch.allclose(torch.tensor([one.embedding for one in answer.data]), wanted, atol=1e-5)
    raw = client.embeddings.with_raw_response.create(model="all-MiniLM-L6-v2", input=texts[0], encoding_format="base64")
    vector = numpy.frombuffer(base64.b64decode(raw.http_response.json()["data"][0]["embedding"]), dtype="<f4")
    assert numpy.allclose(vector, wanted[0].numpy(), atol=1e-5)


def test_an_embedding_is_of_the_whole_text(client: openai.OpenAI) -> None:
    """Two texts that began alike had one vector; and the tokens were those of the base."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="tiny", input=["short", "word " * 300])
    assert (caught.value.param, caught.value.code) == ("input", "context_length_exceeded")
    whole = client.embeddings.create(model="tiny", input=["word " * 254, "hello world"])
    assert whole.usage.prompt_tokens == 256 + 4
    assert whole.data[0].embedding != whole.data[1].embedding


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    models: dict[str, Any] = {model.id: model for model in client.models.list()}
    assert list(models) == ["tiny", "e0", "e1", "e2", "e3", "tiny-llama"]
    assert (models["e1"].parent, models["e1"].root) == ("tiny", "e1")
    assert client.models.retrieve("e2").id == "e2"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("e9")


def test_a_route_is_told_without_generating(server: Served, model: RoutedModel) -> None:
    turns = [{"role": "user", "content": TEXT}]
    body = {"model": "tiny", "messages": turns, "glider": {"trace": True}}
    told = httpx.post(f"{server.url}/v1/route", json=body).json()
    tokens, trace = model.trace(TEXT)
    assert told["experts"] == pytest.approx({n: w for n, w in trace.usage().items() if w > 1e-4}, abs=1e-3)
    assert [token["text"] for token in told["trace"]["tokens"]] == tokens
    assert torch.allclose(torch.tensor(told["trace"]["heatmap"]), trace.heatmap(), atol=1e-3)
    assert told["alpha"] == 103.0
    base = httpx.post(f"{server.url}/v1/route", json={"model": "tiny-llama", "prompt": TEXT}).json()
    assert (base["experts"], base["alpha"]) == ({}, None)


def test_a_pool_under_another_router_can_be_looked_up(client: openai.OpenAI) -> None:
    """It was no model there, though it answered."""
    card = client.models.retrieve("tiny:phatgoose")
    assert (card.id, card.model_extra["parent"], card.model_extra["kind"]) == ("tiny:phatgoose", "tiny", "router")
    with pytest.raises(openai.BadRequestError, match="another process"):
        client.models.retrieve("tiny:arrow")
    for name in ("tiny:nonsense", "tiny:", "e0:phatgoose"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


def test_the_pool_is_told(server: Served, model: RoutedModel) -> None:
    (pool,) = httpx.get(f"{server.url}/v1/pool").json()["data"]
    assert (pool["id"], pool["router"], pool["signal"]) == ("tiny", "Glider", "examples")
    assert [expert["name"] for expert in pool["experts"]] == model.experts
    assert pool["experts"][0]["task"] == "e0"


def test_what_a_probe_asks(server: Served) -> None:
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.get(f"{server.url}/ready").status_code == 200
    assert httpx.get(f"{server.url}/version").json()["version"]
    assert httpx.get(f"{server.url}/load").json() == {"server_load": 0}


def test_metrics_count_requests(server: Served, client: openai.OpenAI) -> None:
    def value(name: str) -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    before = {name: value(name) for name in COUNTED}
    answer = complete(client, TEXT, max_tokens=5, extra_body={"glider": {"trace": True}})
    tokens = answer.usage.completion_tokens
    after = {name: value(name) - before[name] for name in COUNTED}
    assert list(after.values()) == [answer.usage.prompt_tokens, tokens, 1, tokens - 1, 1, 1, tokens, 1]


COUNTED = (
    'vllm:prompt_tokens_total{model_name="tiny"}',
    'vllm:generation_tokens_total{model_name="tiny"}',
    'vllm:time_to_first_token_seconds_count{model_name="tiny"}',
    'vllm:inter_token_latency_seconds_count{model_name="tiny"}',
    'vllm:e2e_request_latency_seconds_count{model_name="tiny"}',
    'glider:requests_total{pool="tiny"',
    "glider:expert_tokens_total{expert=",
    'glider:routing_seconds_count{pool="tiny"}',
)
