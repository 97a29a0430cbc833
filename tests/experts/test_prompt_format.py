"""How a row becomes tokens, for a chat model, a plain one and an encoder-decoder."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from glider.errors import QueryError
from glider.experts.chat_template import rendered
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
        "{{ 9 ** 99999 }}",
        "{{ nothing.at.all }}",
        "",
        "{{ range(99999)|batch(1, 'x')|list|length }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=9999999999) }}",
        "{{ 'x'.center(9999999999) }}",
        "{{ 'x'|indent(9999999999) }}",
        "{{ [1]|batch(9999999999, 'x')|list }}",
        "{{ (9).to_bytes(9999999999, 'big') }}",
        "{{ [[1]]|tojson(indent=9999999999) }}",
        "{{ strftime_now('%9999999999d') }}",
        *(
            "{% set all = namespace(x='ab') %}{% for i in range(40) %}" + line + "{% endfor %}{{ all.x }}"
            for line in (
                "{% set all.x = all.x ~ all.x %}",
                "{% set all.x = all.x + all.x %}",
                "{% set all.x = [all.x, all.x] %}",
                "{% set all.x = all.x * 2 %}",
                "{% set all.x = (all.x|length) ** 9999 %}",
                "{% set all.x = dict(a=all.x, b=all.x).items() %}",
                "{% set all.x = all.x|replace('', all.x) %}",
                "{% set all.x = all.x.replace('', all.x) %}",
                "{% set all.x = all.x|join(all.x) %}",
                "{% set all.x = all.x.join(all.x) %}",
                "{% set all.x = '%s%s' % (all.x, all.x) %}",
                "{% set all.x = '%s%s'|format(all.x, all.x) %}",
                "{% set all.x = '{0}{0}'.format(all.x) %}",
                "{% set y %}{{ all.x }}{{ all.x }}{% endset %}{% set all.x = y %}",
            )
        ),
        "{% for i in range(90000) %}{% for j in range(90000) %}" + "x" * 10_000 + "{% endfor %}{% endfor %}",
    ],
)
def test_a_template_of_a_card_that_fails_or_never_ends_is_refused(llama_directory: Path, template: str) -> None:
    """A card's template is a stranger's: these were tracebacks, or held the process for hours."""
    tokenizer = load_base(str(llama_directory)).tokenizer
    form = PromptFormat(kind="chat", template=template)
    with pytest.raises(QueryError, match="chat template"):
        form.prompt_ids(tokenizer, "hello")
    assert PromptFormat(kind="chat").prompt_ids(tokenizer, "hello")


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{%- for m in messages %}<|{{ m['role'] }}|>\n{{- m.content | trim ~ '</s>' + '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "{% macro turn(m) %}[{{ m.role|upper }}] {{ m.content.split('?')[0].strip() }}{% endmacro %}"
        "{% set all = namespace(text='', first=true) %}{% for m in messages if m.role != 'system' %}"
        "{% set all.text = all.text ~ turn(m) %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}"
        "{{ all.text }}{{ messages|tojson(indent=2) }}{{ messages|map(attribute='role')|join(', ') }}",
        "{% set system = messages|selectattr('role', 'equalto', 'system')|map(attribute='content')|list %}"
        "{{ '%s of %5.2f' % (system|length, 1) }}{{ 'a\nb'|indent(3, true) }}{{ '{} and {:>4}'.format(1, 'x') }}"
        "{{ messages[1:]|length }}{{ messages[-1].content.replace('e', '3').title().rjust(20) }}"
        "{{ '=' * 12 }}{{ 3 * 4 }}{{ 2 ** 5 }}{{ 2.5 * 2 }}"
        "{{ tools is none }}{{ nothing is defined }}{{ nothing|default('none') }}{{ [1, 2] + [3] }}{{ dict(a=1) }}",
    ],
)
def test_the_bounded_sandbox_renders_as_transformers_does(llama_directory: Path, template: str) -> None:
    tokenizer = load_base(str(llama_directory)).tokenizer
    turns = [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": 'Is "ß" < 2? Yes?'}]
    wanted = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True)
    assert rendered(tokenizer, template, turns, True) == wanted


def test_a_long_conversation_is_within_the_bound(llama_directory: Path) -> None:
    tokenizer = load_base(str(llama_directory)).tokenizer
    template = "{% for m in messages %}{{ (m.content ~ '!')|trim|replace('x', 'yy') }}{% endfor %}"
    text = rendered(tokenizer, template, [{"role": "user", "content": "x" * 3_000_000}], True)
    assert len(text) == 6_000_001
