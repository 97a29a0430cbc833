"""Prompts are bounded, named with a version, and show what they are given."""

import hashlib

import pytest

from glider.errors import DescriberError
from glider.instructions.prompts import PROMPTS, prompt_for, prompt_named

# a text that changes gets a new version: the old name must not stand for two prompts
FINGERPRINTS = {
    "paper-3@1": "9080e0f6f9799471",
    "examples@1": "ff1041e928aa65eb",
    "query@1": "1d13cf84ea993250",
}


@pytest.mark.parametrize(("count", "name"), [(0, "query@1"), (1, "examples@1"), (3, "paper-3@1"), (7, "examples@1")])
def test_the_prompt_suits_the_number_of_examples(count: int, name: str):
    assert prompt_for([("in", "out")] * count).name == name


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_a_version_never_changes_its_text(name: str):
    assert prompt_named(name).name == name
    assert hashlib.sha256(PROMPTS[name].instruction.encode()).hexdigest()[:16] == FINGERPRINTS[name]


def test_every_example_is_shown_and_the_query_only_where_there_is_none():
    pairs = [(f"question {i}", f"answer {i}") for i in range(5)]
    shown = PROMPTS["examples@1"].render(pairs, "the query")
    assert all(f"question {i}" in shown and f"answer {i}" in shown for i in range(5))
    assert "the query" not in shown
    assert "question 3" not in PROMPTS["paper-3@1"].render(pairs)
    assert "the query" in PROMPTS["query@1"].render((), "the query")


def test_a_prompt_is_bounded():
    assert len(PROMPTS["query@1"].render((), "x" * 10_000_000)) < 3_000
    shown = PROMPTS["examples@1"].render([("head " + "x" * 10**6 + " tail", "y")] * 1000)
    assert len(shown) < 14_000 and "head" in shown and "tail" in shown


def test_an_unknown_prompt_lists_the_known():
    with pytest.raises(DescriberError, match=r"paper-3@1.*'paper-3'"):
        prompt_named("paper-3")
