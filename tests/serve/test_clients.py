"""Clients that people use beside OpenAI's own: what they read of a server is what the model in process says."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

from glider.evaluation.lm_eval_model import GliderLM
from glider.inference.model import RoutedModel

from .conftest import Served

ROOT = Path(__file__).parents[2]
TEXTS = ["the e0 e03 and e07", "the e2 e21 and", "good day to you"]
CONTEXTS = ["Is it so? Answer:", "A longer question about something else. Answer: ", "Why"]
CHOICES = [" yes", " no, it is not", " 7"]
UNTIL = {"until": ["a"], "max_gen_toks": 12}


def clients_python() -> Path:
    """The interpreter of the environment that has the clients; skips the test where there is none."""
    python = Path(os.environ.get("CLIENTS_PYTHON", ROOT / ".venv-clients" / "bin" / "python"))
    if not python.exists():
        pytest.skip("LangChain and LiteLLM are not installed: make clients-test")
    return python


@pytest.mark.slow
@pytest.mark.parametrize("client", ["langchain", "litellm"])
def test_answers_are_those_in_process(server: Served, model: RoutedModel, client: str) -> None:
    command = [clients_python(), Path(__file__).with_name("other_clients.py"), client, server.url]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONWARNINGS")}
    ran = subprocess.run(command, input=json.dumps(TEXTS), env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    answered = json.loads(ran.stdout.splitlines()[-1])
    answers = model.generate(TEXTS, max_new_tokens=16)
    assert [text.strip() for text in answered["chat"]] == [answer.text for answer in answers]
    assert answered["streamed"] == answered["responses"] == answered["chat"][0]
    assert answered["usage"] == len(answers[0].token_ids)
    assert answered["logprobs"] == len(answers[0].token_ids) - (answers[0].finish_reason == "stop")
    turns = [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": "Yes."},
             {"role": "user", "content": TEXTS[1]}]  # fmt: skip
    (continued,) = model.generate([turns], max_new_tokens=16)
    assert answered["turns"].strip() == continued.text
    theirs = server.client()
    steered = theirs.chat.completions.create(
        model="tiny", messages=turns[:1], temperature=0, max_tokens=16, extra_body={"glider": {"experts": ["e2"]}}
    )  # pyright: ignore
    assert answered["steered"] == steered.choices[0].message.content != answered["chat"][0]
    plain = theirs.completions.create(model="tiny", prompt=TEXTS[0], temperature=0, max_tokens=16)
    assert answered["completion"] == plain.choices[0].text
    assert answered["embedded"] == len(theirs.embeddings.create(model="tiny", input=TEXTS[0]).data[0].embedding)
    assert answered["fault"].startswith("404 ") and "no model 'nobody' here" in answered["fault"]


def instances(kind: Any, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, args, i, ("task", i, 1)) for i, args in enumerate(arguments)]


@pytest.fixture
def harness(server: Served, llama_directory: Path) -> Any:
    """`harness(model)`: the harness's client of a server, for one of its models."""

    def make(name: str, **more: Any) -> LocalCompletionsAPI:
        where = {"model": name, "base_url": f"{server.url}/v1/completions", "tokenizer": str(llama_directory)}
        return LocalCompletionsAPI(**{**where, "max_retries": 1, "max_length": 512, **more})

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "router"), [("tiny-llama", "base"), ("tiny:phatgoose", "phatgoose"), ("e2", "single:e2")]
)
def test_the_harness_scores_as_in_process(
    harness: Any, llama_directory: Path, pool_directory: Path, name: str, router: str
) -> None:
    """Where the experts do not depend on the text: the server sees context and continuation as one prompt."""
    requests = instances("loglikelihood", *((context, choice) for context in CONTEXTS for choice in CHOICES))
    inside = GliderLM(base=str(llama_directory), pool=str(pool_directory), router=router)
    expected = inside.loglikelihood(requests, disable_tqdm=True)
    got = harness(name).loglikelihood(requests, disable_tqdm=True)
    assert [value for value, _ in got] == pytest.approx([value for value, _ in expected], abs=2e-3)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]


@pytest.mark.slow
@pytest.mark.parametrize("tokenized", [True, False])
def test_the_harness_generates_as_in_process(
    harness: Any, llama_directory: Path, pool_directory: Path, tokenized: bool
) -> None:
    requests = instances("generate_until", *((text, dict(UNTIL)) for text in TEXTS))
    inside = GliderLM(base=str(llama_directory), pool=str(pool_directory), router="glider(global=examples, p=-1.0)")
    expected = inside.generate_until(instances("generate_until", *((text, dict(UNTIL)) for text in TEXTS)),
                                     disable_tqdm=True)  # fmt: skip
    got = harness("tiny", tokenized_requests=tokenized).generate_until(requests, disable_tqdm=True)
    assert got == expected


@pytest.mark.slow
def test_the_harness_chats_as_in_process(server: Served, model: RoutedModel) -> None:
    client = LocalChatCompletion(model="tiny", base_url=f"{server.url}/v1/chat/completions", max_retries=1)
    history = [client.apply_chat_template([{"role": "user", "content": text}]) for text in TEXTS]
    requests = instances("generate_until", *((one, {"until": ["\0"], "max_gen_toks": 12}) for one in history))
    got = client.generate_until(requests, disable_tqdm=True)
    assert [text.strip() for text in got] == [answer.text for answer in model.generate(TEXTS, max_new_tokens=12)]
