"""`vllm serve BASE $(glider vllm-args POOL)`: names, the field `glider`, refusals, in processes of its own."""

import json
from collections.abc import Iterator

import pytest

from glider.inference.model import RoutedModel
from glider.inference.spec import load

from .conftest import needs_vllm
from .served import TOKENS, Server, served

pytestmark = [*needs_vllm, pytest.mark.slow]
FITS = "Put the concepts together to form a sentence: dog, beach, ball."
STRANGER = "What is the capital of Egypt?"


@pytest.fixture(scope="module", params=["route", "select"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """In both modes in turn."""
    with served(request.param, tmp_path_factory.mktemp("served") / "log", "--enforce-eager") as started:
        yield started


@pytest.fixture(scope="module")
def library() -> RoutedModel:
    return load()


def answer(model: RoutedModel, text: str) -> tuple[int, ...]:
    return model.generate([text], max_new_tokens=TOKENS)[0].token_ids


def test_names_decide_who_answers(server: Server, library: RoutedModel) -> None:
    base = library.base.identity.model_id
    assert server.tokens(FITS) == answer(library, FITS)
    assert server.tokens(STRANGER) == answer(library, STRANGER)
    bare = answer(load(router="base"), FITS)
    assert bare != answer(library, FITS)
    assert server.tokens(FITS, base) == bare
    assert server.tokens(STRANGER, "paws") == answer(load(router="single:paws"), STRANGER)
    _, models = server.ask("/v1/models")
    assert {"demo", base, "paws", "common_gen"} <= {card["id"] for card in models["data"]}
    assert server.chat(FITS, "nobody")[0] == 404


def test_each_prompt_of_a_list_has_its_own_condition(server: Server, library: RoutedModel) -> None:
    body = {"model": "demo", "temperature": 0, "max_tokens": TOKENS, "return_token_ids": True}
    ids = [library.prompt.prompt_ids(library.tokenizer, text) for text in (FITS, STRANGER)]
    status, reply = server.ask("/v1/completions", {**body, "prompt": ids})
    assert status == 200
    got = [tuple(choice["token_ids"]) for choice in sorted(reply["choices"], key=lambda choice: choice["index"])]
    assert got == [answer(library, FITS), answer(library, STRANGER)]


def test_a_stream_is_routed_too(server: Server, library: RoutedModel) -> None:
    body = {"model": "demo", "temperature": 0, "max_tokens": TOKENS, "stream": True}
    status, text = server.ask("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": FITS}]})
    pieces = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    written = "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces if piece["choices"])
    assert status == 200 and written.strip() == library.generate([FITS], max_new_tokens=TOKENS)[0].text


def test_the_field_glider_steers(server: Server, library: RoutedModel) -> None:
    assert server.tokens(FITS, glider={"verdict": "base"}) == answer(load(router="base"), FITS)
    assert server.tokens(STRANGER, glider={"experts": ["paws"]}) != ()
    for told in ({"verdict": "maybe"}, {"nothing": 1}, {"trace": True}, {"exclude": ["nobody"]}, 7):
        status, reply = server.chat(FITS, glider=told)
        assert status == 400, reply


def test_replies_say_what_answered(server: Server) -> None:
    for text in (FITS, STRANGER):
        _, route = server.ask("/v1/route", {"model": "demo", "messages": [{"role": "user", "content": text}]})
        expected = {name: route[name] for name in ("verdict", "alpha", "experts", "scores", "generation")}
        status, reply = server.chat(text)
        assert status == 200 and reply["glider"] == expected
        body = {"model": "demo", "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}}
        _, stream = server.ask("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": text}]})
        pieces = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
        assert [piece.get("glider") for piece in pieces if piece["choices"]][-1] == expected
        assert sum("glider" in piece for piece in pieces) == 1
        body = {"model": "demo", "input": text, "max_output_tokens": 4}
        status, reply = server.ask("/v1/responses", body)
        assert status == 200 and reply["glider"] == expected
        _, stream = server.ask("/v1/responses", {**body, "stream": True})
        pieces = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
        assert [piece["response"].get("glider") for piece in pieces if "response" in piece][-1] == expected
        body = {"model": "demo", "messages": [{"role": "user", "content": text}], "max_tokens": 4}
        status, reply = server.ask("/v1/messages", body)
        assert status == 200 and reply["glider"] == expected
        _, stream = server.ask("/v1/messages", {**body, "stream": True})
        pieces = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
        assert [piece["type"] for piece in pieces if piece.get("glider") == expected] == ["message_delta"]
    _, reply = server.chat(STRANGER, "paws")
    assert reply["glider"]["experts"] == {"paws": 1.0}


def test_a_batch_of_chats_says_of_each_what_answered(server: Server) -> None:
    texts = [STRANGER, FITS, STRANGER]
    wanted = [server.chat(text)[1] for text in texts]
    body = {"model": "demo", "temperature": 0, "max_tokens": TOKENS, "return_token_ids": True}
    conversations = [[{"role": "user", "content": text}] for text in texts]
    status, reply = server.ask("/v1/chat/completions/batch", {**body, "messages": conversations})
    assert status == 200, reply
    assert [choice["glider"] for choice in reply["choices"]] == [one["glider"] for one in wanted]
    tokens = [choice["token_ids"] for choice in reply["choices"]]
    assert tokens == [one["choices"][0]["token_ids"] for one in wanted]
    status, reply = server.ask("/v1/chat/completions/batch", {**body, "messages": conversations, "model": "paws"})
    assert [choice["glider"]["experts"] for choice in reply["choices"]] == [{"paws": 1.0}] * 3
    steered = {**body, "messages": conversations, "glider": {"verdict": "base"}}
    _, reply = server.ask("/v1/chat/completions/batch", steered)
    bare = [server.chat(text, glider={"verdict": "base"})[1]["glider"] for text in texts]
    assert [choice["glider"] for choice in reply["choices"]] == bare and bare[1]["experts"] == {}


def test_a_client_cannot_choose_terms_or_end_the_engine(server: Server, library: RoutedModel) -> None:
    for term in ([0.0], [1e300] * 8, ["nan"] * 8):
        status, reply = server.chat(FITS, vllm_xargs={"glider": term})
        assert status == 400 and "not the client" in json.dumps(reply)
    assert server.ask("/health")[0] == 200
    assert server.tokens(FITS) == answer(library, FITS)


def test_a_clients_salt_separates_its_requests_and_opens_nobody_elses(server: Server, library: RoutedModel) -> None:
    for text in (FITS, STRANGER):
        assert server.tokens(text, cache_salt="mine") == answer(library, text)


def test_the_field_glider_steers_routes_that_know_no_other_fields(server: Server) -> None:
    """vLLM drops what it does not know of a message's fields: the pool answered as if nothing had been asked."""
    message = {"role": "user", "content": FITS}
    bodies = {
        "/v1/responses": {"input": FITS, "max_output_tokens": 4},
        "/v1/messages": {"messages": [message], "max_tokens": 4},
    }
    for path, body in bodies.items():
        status, reply = server.ask(path, {**body, "model": "demo", "glider": {"verdict": "base"}})
        assert (status, reply["glider"]["experts"]) == (200, {}), path
        _, reply = server.ask(path, {**body, "model": "demo"})
        assert reply["glider"]["experts"] == {"common_gen": 1.0}, path
        for told in ({"verdict": "maybe"}, {"trace": True}, 7):
            status, reply = server.ask(path, {**body, "model": "demo", "glider": told})
            assert status == 400, (path, told, reply)


def test_several_answers_and_beams_are_answered_as_one(server: Server, library: RoutedModel) -> None:
    for text in (FITS, STRANGER):
        status, reply = server.chat(text, use_beam_search=True)
        assert status == 200, reply
        got = tuple(reply["choices"][0]["token_ids"])
        assert got and got == answer(library, text)[: len(got)]
        status, reply = server.chat(text, n=2, temperature=1.0, seed=3)
        assert status == 200, reply
        several = [tuple(choice["token_ids"]) for choice in sorted(reply["choices"], key=lambda one: one["index"])]
        assert several == [server.tokens(text, temperature=1.0, seed=seed) for seed in (3, 4)]


def test_what_a_pool_cannot_answer_is_refused_and_the_server_goes_on(server: Server, library: RoutedModel) -> None:
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]
    refused = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": image}]},
        "/v1/completions": {"prompt_embeds": "AAAA", "prompt": ""},
        "/v1/embeddings": {"input": FITS},
        "/pooling": {"input": FITS},
        "/score": {"text_1": FITS, "text_2": STRANGER},
        "/classify": {"input": FITS},
    }
    for path, body in refused.items():
        status, reply = server.ask(path, {"model": "demo", "max_tokens": 4, **body})
        assert status in (400, 404), (path, status, reply)
    assert server.tokens(FITS) == answer(library, FITS)


def test_metrics_and_the_pools_own_routes(server: Server) -> None:
    server.chat(FITS)
    _, metrics = server.ask("/metrics")
    assert 'glider:requests_total{pool="demo",verdict="fits"}' in metrics
    assert "glider:routing_seconds_count" in metrics and "vllm:num_requests_running" in metrics
    status, pools = server.ask("/v1/pool")
    assert status == 200 and len(pools["data"][0]["experts"]) == 8
    status, told = server.ask("/v1/route", {"model": "demo", "prompt": FITS})
    assert status == 200 and told["verdict"] == "fits" and told["experts"] == {"common_gen": 1.0}
    status, told = server.ask("/v1/route", {"model": "demo", "messages": [{"role": "user", "content": STRANGER}]})
    assert status == 200 and told["verdict"] == "stranger" and told["experts"] == {}
    assert server.ask("/v1/route", {"model": "demo"})[0] == 400
    assert server.ask("/v1/route", {"model": "nobody", "prompt": FITS})[0] == 404


def test_a_router_with_the_same_token_scores_is_served_beside(server: Server) -> None:
    _, models = server.ask("/v1/models")
    if "demo:phatgoose" not in {card["id"] for card in models["data"]}:
        assert server.chat(STRANGER, "demo:phatgoose")[0] == 404  # one expert a request: no router to differ
        return
    local = load(router="phatgoose")
    assert server.tokens(STRANGER, "demo:phatgoose") == answer(local, STRANGER)
