"""Which template renders a conversation."""

from pathlib import Path

import pytest

from glider.experts.prompt_format import PromptFormat
from glider.inference.model import RoutedModel
from glider.inference.queries import Query
from glider.inference.spec import load
from glider.serve.prompts import chat_prompt
from glider.serve.schemas import Message

TEMPLATE = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}<assistant>"
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say x."}]


@pytest.fixture
def templated(llama_directory: Path, pool_directory: Path) -> RoutedModel:
    """A model whose experts bring a template of their own."""
    return load(
        str(llama_directory), pool_directory, abstain=False, prompt=PromptFormat(kind="chat", template=TEMPLATE)
    )


@pytest.mark.parametrize("turns", [TURNS, TURNS[1:]], ids=["two turns", "one"])
def test_the_template_of_the_cards_renders_every_conversation(templated: RoutedModel, turns: list[dict[str, str]]):
    """The server and the library put the same tokens to the model."""
    prompt = chat_prompt(templated, [Message.model_validate(turn) for turn in turns])
    assert prompt.ids == templated.prompt.chat_ids(templated.tokenizer, Query.chat(turns).messages)
    assert "<assistant>" in templated.tokenizer.decode(prompt.ids).replace(" ", "")
