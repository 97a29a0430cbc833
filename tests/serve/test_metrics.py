"""What `/metrics` counts of requests that are refused."""

from typing import Any

import httpx2 as httpx
import pytest

from .conftest import Served

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
ANSWERED = (
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:request_queue_time_seconds_count",
    "glider:requests_total",
)
REFUSED = "glider:refused_requests_total"


def counted(served: Served, *names: str) -> dict[str, float]:
    """The sums of these metrics over their labels."""
    lines = httpx.get(f"{served.url}/metrics").text.splitlines()
    values = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: sum(float(value) for label, value in values if label.partition("{")[0] == name) for name in names}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"model": "tiny:bogus"}),
        (CHAT, {"glider": {"experts": ["e9"]}}),
        (CHAT, {"glider": {"experts": {"e9": 1}}}),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}}),
        (CHAT, {"logit_bias": {"999999": 1}}),
        (CHAT, {"stop_token_ids": [999999]}),
        ("/v1/completions", {"model": "tiny", "prompt": "hello", "logit_bias": {"999999": 1}, "n": 2}),
        ("/v1/responses", {"model": "tiny", "input": "hello", "glider": {"exclude": ["e9"]}}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_request_that_is_refused_counts_as_that_alone(server: Served, path: str, fields: dict[str, Any]) -> None:
    """Its tokens, its time and a `failed` request were counted too, and an answer where its place had been taken."""
    before = counted(server, *ANSWERED, REFUSED)
    answer = httpx.post(f"{server.url}{path}", json={**ASK, **fields} if path == CHAT else fields, timeout=120)
    assert answer.status_code in (400, 404), answer.text
    assert counted(server, *ANSWERED, REFUSED) == {**before, REFUSED: before[REFUSED] + 1}


def test_a_request_that_is_answered_counts_as_no_refusal(server: Served) -> None:
    before = counted(server, *ANSWERED, REFUSED)
    answer = httpx.post(f"{server.url}{CHAT}", json={**ASK, "n": 2}, timeout=120).json()
    usage, after = answer["usage"], counted(server, *ANSWERED, REFUSED)
    more = [usage["prompt_tokens"], usage["completion_tokens"], 2, 1, 1, 1, 0]
    assert [after[name] - before[name] for name in (*ANSWERED, REFUSED)] == more
