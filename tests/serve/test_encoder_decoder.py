"""A pool of an encoder-decoder base, served in padded batches."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from glider.experts.pool import Pool
from glider.inference.spec import load

from .conftest import serving
from .test_metrics import ANSWERED, counted

TEXTS = ["the e0 e03 and e07", "the e2 e21 and", "good day to you"]


@pytest.mark.slow
def test_answers_are_those_in_process(make_pool: Callable[..., Pool], t5_directory: Path, tmp_path: Path) -> None:
    pool = make_pool(t5_directory, name="tiny", profile=True)
    router = "glider(global=examples, p=-1.0)"
    model = load(str(t5_directory), pool.path, router=router)
    wanted = [model.generate([text], max_new_tokens=8)[0] for text in TEXTS]
    options = ["--base", str(t5_directory), "--pool", str(pool.path), "--router", router]
    with serving(tmp_path / "log", *options) as served:
        client = served.client()

        def ask(text: str) -> object:
            messages = [{"role": "user", "content": text}]
            settings = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 8}
            return client.chat.completions.create(**settings, extra_body={"return_token_ids": True})

        with ThreadPoolExecutor(len(TEXTS)) as threads:
            answers = list(threads.map(ask, TEXTS))
        for answer, one in zip(answers, wanted, strict=True):
            assert answer.choices[0].token_ids == list(one.token_ids)
            assert answer.glider["scores"] == pytest.approx(one.global_scores)
        chunks = list(
            client.completions.create(model="tiny", prompt=TEXTS[0], temperature=0, max_tokens=8, stream=True)
        )
        plain = client.completions.create(model="tiny", prompt=TEXTS[0], temperature=0, max_tokens=8)
        assert "".join(chunk.choices[0].text for chunk in chunks) == plain.choices[0].text
        before = counted(served, *ANSWERED)
        with pytest.raises(openai.BadRequestError, match="no probability"):
            client.completions.create(model="tiny", prompt=TEXTS[0], max_tokens=1, echo=True, logprobs=1)
        assert counted(served, *ANSWERED) == before  # it was counted as an answer that had been broken off
        with pytest.raises(openai.BadRequestError, match="2048 is the most"):
            client.completions.create(model="tiny", prompt=[5] * 20_000, max_tokens=1)
        with pytest.raises(openai.BadRequestError, match="2048 is the most"):
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "ab " * 1000}])
        with pytest.raises(openai.BadRequestError, match="2048 is the most"):
            client.post("/route", cast_to=object, body={"model": "tiny", "prompt": "ab " * 1000})
