"""`/v1/chat/completions` by the official client, beside the model in process."""

import openai
import pytest

from glider.inference.model import RoutedModel

TEXTS = ["the e0 e03 and e07", "the e2 e21 and", "good day to you"]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("text", TEXTS)
def test_greedy_answers_are_those_in_process(client: openai.OpenAI, model: RoutedModel, text: str) -> None:
    (wanted,) = model.generate([text], max_new_tokens=24)
    answer = client.chat.completions.create(
        model="tiny", messages=user(text), temperature=0, max_tokens=24, extra_body={"return_token_ids": True}
    )
    choice = answer.choices[0]
    assert choice.token_ids == list(wanted.token_ids)
    assert (choice.message.content or "").strip() == wanted.text
    assert choice.finish_reason == wanted.finish_reason
    assert answer.usage.prompt_tokens == len(model.prompt.prompt_ids(model.tokenizer, text))
    assert answer.usage.completion_tokens == len(wanted.token_ids)
    assert answer.glider["alpha"] == wanted.alpha
    assert answer.glider["scores"] == pytest.approx(wanted.global_scores)
