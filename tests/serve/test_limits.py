"""Queues, keys, clients that leave, signals, and passes that crash."""

import hashlib
import json
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from glider.serve.errors import ApiError
from glider.serve.keys import Keys

from .conftest import Serve, Served

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
LONG: dict[str, Any] = {**ASK, "max_tokens": 400, "logit_bias": {"1": -100}}


def load(served: Served) -> int:
    return httpx.get(f"{served.url}/load").json()["server_load"]


def until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it does not come about"  # a minute is beyond any machine
        time.sleep(0.02)


class Asking(threading.Thread):
    """A request in a thread, and its outcome."""

    def __init__(self, served: Served, **body: Any):
        super().__init__()
        self.served, self.body, self.outcome = served, {**LONG, **body}, None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self.served.client().chat.completions.create(**self.body)
        except openai.OpenAIError as fault:
            self.outcome = fault


def test_more_than_the_queue_holds_is_refused(serve: Serve) -> None:
    served = serve("--max-requests", "1", "--max-queue", "1")
    first = Asking(served)
    until(lambda: load(served) == 1)
    second = Asking(served)
    until(lambda: load(served) == 2)
    with pytest.raises(openai.RateLimitError) as caught:
        served.client().chat.completions.create(**ASK)
    assert caught.value.code == "queue_full"
    assert caught.value.response.headers["retry-after"]
    first.join()
    second.join()
    assert first.outcome.usage.completion_tokens == second.outcome.usage.completion_tokens == 400
    text = httpx.get(f"{served.url}/metrics").text
    assert 'glider:refused_requests_total{code="queue_full"} 1.0' in text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_place(serve: Serve, stream: bool) -> None:
    served = serve("--max-requests", "1")
    waiting = {**LONG, "n": 16, "stream": stream}  # one place: one after the other
    with httpx.Client() as link:
        if stream:
            with link.stream("POST", f"{served.url}/v1/chat/completions", json=waiting) as answer:
                lines = answer.iter_lines()  # kept: with it goes the connection
                next(lines)
                assert load(served) == 1
        else:
            with pytest.raises(httpx.TimeoutException):
                link.post(f"{served.url}/v1/chat/completions", json=waiting, timeout=1.0)
    until(lambda: load(served) == 0)
    assert served.client().chat.completions.create(**ASK, max_tokens=2).usage.completion_tokens <= 2
    text = httpx.get(f"{served.url}/metrics").text
    begun = 'finished_reason="abort",model_name="tiny"}' in text
    assert begun or (not stream and 'code="client_closed_request"' in text)  # or it was still waiting


def test_a_client_that_reads_nothing_gives_its_place_back(serve: Serve) -> None:
    """It kept it as long as it liked, once the buffers between were full."""
    served = serve("--request-timeout", "20", "--body-timeout", "1", "--max-requests", "8")
    body = json.dumps({**LONG, "n": 8, "stream": True, "logprobs": True, "top_logprobs": 20})
    host, port = served.url.removeprefix("http://").split(":")
    with socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect((host, int(port)))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        link.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        until(lambda: load(served) == 8)
        until(lambda: load(served) == 0)


def test_one_that_takes_too_long_is_ended(serve: Serve) -> None:
    served = serve("--request-timeout", "0.4")
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=LONG, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    streamed = httpx.post(f"{served.url}/v1/chat/completions", json={**LONG, "stream": True}, timeout=60)
    assert '"code": "timeout"' in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")
    until(lambda: load(served) == 0)


def test_a_signal_drains(serve: Serve) -> None:
    served = serve()
    asking = Asking(served, max_tokens=200)
    until(lambda: load(served) == 1)
    assert served.stop() == 0
    asking.join()
    assert asking.outcome.usage.completion_tokens == 200


def test_whoever_asks_while_it_drains_is_told_so(serve: Serve) -> None:
    """Nobody could connect any more: probes and clients saw a server that had gone."""
    served = serve()
    with served.client().chat.completions.create(**LONG, n=16, stream=True) as stream:
        next(iter(stream))
        served.process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{served.url}/ready").status_code == 503)
        assert httpx.get(f"{served.url}/health").status_code == 200
        answer = httpx.post(f"{served.url}/v1/chat/completions", json=ASK)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert answer.headers["retry-after"]
        assert next(iter(stream)).choices[0].finish_reason is None  # the one in flight goes on
    assert served.process.wait(600) == 0


def test_what_takes_longer_than_draining_may_is_cut(serve: Serve) -> None:
    """It was told `Internal Server Error` in plain text, and the log had a traceback, as of a fault of the server's."""
    served = serve("--shutdown-timeout", "1")
    asking = Asking(served, n=16)
    until(lambda: load(served) == 16)
    assert served.stop() == 0
    asking.join()
    assert_told_of_the_end(served, asking.outcome)


def test_a_second_signal_stops(serve: Serve) -> None:
    served = serve("--shutdown-timeout", "300")
    asking = Asking(served, n=16)
    until(lambda: load(served) == 16)
    served.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert served.process.poll() is None
    served.stop()
    asking.join()
    assert_told_of_the_end(served, asking.outcome)


def assert_told_of_the_end(served: Served, outcome: Any) -> None:
    assert isinstance(outcome, openai.InternalServerError)
    assert (outcome.status_code, outcome.code) == (503, "shutting_down")
    assert outcome.response.headers["retry-after"]
    assert "Traceback" not in served.log.read_text("utf8")


def test_a_stream_that_is_cut_has_no_end(serve: Serve) -> None:
    served = serve("--shutdown-timeout", "1")
    with served.client().chat.completions.create(**LONG, n=16, stream=True) as stream:
        chunks = iter(stream)
        next(chunks)
        assert served.stop() == 0
        with pytest.raises(openai.APIConnectionError):
            list(chunks)
    assert "Traceback" not in served.log.read_text("utf8")


def test_a_pass_that_crashes_fails_its_requests_alone(serve: Serve, tmp_path: Path) -> None:
    """A hook in the server's process breaks one pass; what comes after is answered as before."""
    switch = tmp_path / "break"
    (tmp_path / "sitecustomize.py").write_text(BREAKING, "utf8")
    import os

    served = serve(PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", BREAK=str(switch))
    client = served.client()
    before = client.chat.completions.create(**ASK, max_tokens=8).choices[0].message.content
    switch.touch()
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**ASK, max_tokens=8)
    switch.unlink()
    assert client.chat.completions.create(**ASK, max_tokens=8).choices[0].message.content == before
    until(lambda: load(served) == 0)


BREAKING = """
import os, pathlib
import transformers.models.llama.modeling_llama as llama
forward = llama.LlamaMLP.forward
def breaking(self, x):
    if pathlib.Path(os.environ["BREAK"]).exists():
        raise RuntimeError("out of memory, say")
    return forward(self, x)
llama.LlamaMLP.forward = breaking
"""


def key_file(path: Path, *keys: dict[str, Any]) -> str:
    told = [{"sha256": hashlib.sha256(key["name"].encode()).hexdigest(), **key} for key in keys]
    path.write_text(json.dumps({"keys": told}), "utf8")
    return str(path)


def test_keys_and_rights(serve: Serve, tmp_path: Path) -> None:
    keys = key_file(tmp_path / "keys", {"name": "ann", "max_streams": 1}, {"name": "bob", "rights": ["ask"]},
                    {"name": "ops", "rights": ["metrics"]})  # fmt: skip
    served = serve("--api-key-file", keys)
    asking = {**ASK, "max_tokens": 2}
    assert served.client("ann").chat.completions.create(**asking).choices
    for wrong in ("", "an", "ann", "ANN", "x" * 1000):
        answer = httpx.post(
            f"{served.url}/v1/chat/completions", json=asking, headers={"authorization": f"Bearer x{wrong}"}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    for path in ("/v1/models", "/metrics", "/v1/pool", "/nothing"):
        assert httpx.get(f"{served.url}{path}").status_code == 401
    for content in (b"{", b"x" * 3_000_000):  # of strangers' bodies nothing is read, and nothing told
        answer = httpx.post(f"{served.url}/v1/chat/completions", content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    with pytest.raises(openai.PermissionDeniedError):
        served.client("bob").chat.completions.create(**asking, extra_body={"glider": {"trace": True}})
    with pytest.raises(openai.PermissionDeniedError):
        served.client("ops").chat.completions.create(**asking)
    assert httpx.get(f"{served.url}/metrics", headers={"authorization": "Bearer ops"}).status_code == 200
    assert httpx.get(f"{served.url}/metrics", headers={"authorization": "Bearer ann"}).status_code == 403
    assert httpx.get(f"{served.url}/health").status_code == 200
    stream = served.client("ann").chat.completions.create(**LONG, stream=True)
    next(iter(stream))
    with pytest.raises(openai.RateLimitError) as caught:
        served.client("ann").chat.completions.create(**asking)
    assert caught.value.code == "too_many_streams"
    assert served.client("bob").chat.completions.create(**asking).choices
    stream.close()


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"keys": []}', '{"keys": [{"name": "a", "sha256": "x"}]}',
     '{"keys": [{"name": "a", "sha256": "' + "0" * 64 + '", "pools": ["other"]}]}'],
)  # fmt: skip
def test_key_files_that_do_not_fit(tmp_path: Path, text: str) -> None:
    from glider.errors import ConfigError

    (tmp_path / "keys").write_text(text, "utf8")
    with pytest.raises(ConfigError):
        Keys.read(str(tmp_path / "keys"), ["tiny"])


def test_only_bearers_are_known(tmp_path: Path) -> None:
    keys = Keys.read(key_file(tmp_path / "keys", {"name": "ann"}), ["tiny"])
    assert keys.of("Bearer ann").name == keys.of("bearer ann").name == "ann"
    for header in (None, "", "ann", "Basic ann", "Bearer", "Bearer ann bob"):
        with pytest.raises(ApiError):
            keys.of(header)


def test_the_log_has_no_prompts_unless_asked(serve: Serve) -> None:
    quiet, telling = serve(), serve("--log-prompts")
    secret = {**ASK, "messages": [{"role": "user", "content": "my secret"}], "max_tokens": 2}
    for served in (quiet, telling):
        served.client().chat.completions.create(**secret)
        until(lambda served=served: "completion_tokens" in served.log.read_text("utf8"))
    assert "my secret" not in quiet.log.read_text("utf8")
    assert "my secret" in telling.log.read_text("utf8")
