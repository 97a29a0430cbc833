"""How a row becomes tokens, for a chat model, a plain one and an encoder-decoder."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from glider.errors import QueryError
from glider.experts.prompt_format import PromptFormat
from glider.inference.base_model import BaseModel, load_base


@pytest.fixture(scope="module")
def llama(llama_directory: Path) -> BaseModel:
    return load_base(str(llama_directory))


def test_each_model_has_its_natural_format(llama_directory: Path, t5_directory: Path):
    llama, t5 = load_base(str(llama_directory)), load_base(str(t5_directory))
    assert PromptFormat.of(llama.model, llama.tokenizer).kind == "chat"
    assert PromptFormat.of(t5.model, t5.tokenizer).kind == "encoder-decoder"
    llama.tokenizer.chat_template = None
    assert PromptFormat.of(llama.model, llama.tokenizer).kind == "plain"


def test_chat_puts_the_input_into_one_user_turn(llama: BaseModel):
    ids = PromptFormat(kind="chat").prompt_ids(llama.tokenizer, "Hi {{ x }}")
    assert llama.tokenizer.decode(ids) == "<u>Hi {{ x }}</u><a>"


def test_a_system_turn_comes_first(llama: BaseModel):
    ids = PromptFormat(kind="chat", system="Be brief.").prompt_ids(llama.tokenizer, "Hi")
    assert llama.tokenizer.decode(ids) == "<u>Be brief.</u><u>Hi</u><a>"


def test_plain_ends_the_input_with_a_line_break(llama: BaseModel):
    assert llama.tokenizer.decode(PromptFormat(kind="plain").prompt_ids(llama.tokenizer, "Hi")) == "Hi\n"


def test_an_encoder_gets_the_input_as_it_is(llama: BaseModel):
    assert llama.tokenizer.decode(PromptFormat(kind="encoder-decoder").prompt_ids(llama.tokenizer, "Hi")) == "Hi"


@given(text=st.text(st.characters(codec="utf8"), min_size=1, max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_an_answer_is_its_text_and_one_end_token(llama: BaseModel, text: str):
    ids = PromptFormat(kind="chat").target_ids(llama.tokenizer, text)
    assert ids[-1] == llama.tokenizer.eos_token_id
    if "<" not in text:
        assert llama.tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False) == text
        assert llama.tokenizer.eos_token_id not in ids[:-1]


def test_a_format_survives_the_card():
    format = PromptFormat(kind="chat", system="Be brief.")
    assert PromptFormat.model_validate_json(format.model_dump_json()) == format


def test_an_unknown_format_is_refused():
    with pytest.raises(ValidationError):
        PromptFormat.model_validate({"kind": "song"})


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ raise_exception('no') }}",
        "{% for",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{{ 'x' * 9999999999 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ nothing.at.all }}",
        "",
    ],
)
def test_a_template_of_a_card_that_fails_or_never_ends_is_refused(llama_directory: Path, template: str) -> None:
    """A card's template is a stranger's: these were tracebacks, or held the process for hours."""
    tokenizer = load_base(str(llama_directory)).tokenizer
    form = PromptFormat(kind="chat", template=template)
    with pytest.raises(QueryError, match="chat template"):
        form.prompt_ids(tokenizer, "hello")
    assert PromptFormat(kind="chat").prompt_ids(tokenizer, "hello")
