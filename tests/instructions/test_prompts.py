"""Prompts are bounded, named with a version, and show what they are given."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from glider.errors import DescriberError
from glider.instructions.cache import Cache, key_of
from glider.instructions.describers import Task, Written, describe_tasks
from glider.instructions.prompts import PROMPTS, prompt_for, prompt_named
from glider.progress import Tick

# a text that changes gets a new version: the old name must not stand for two prompts
FINGERPRINTS = {
    "guarded-3@1": "9080e0f6f9799471",
    "paper-3@2": "5a829123e5e350be",
    "paper-1@1": "9dc80c7ea71fc988",
    "paper-5@1": "11e359c79e7222ac",
    "paper-10@1": "0c362aab4c29c92a",
    "examples@1": "ff1041e928aa65eb",
    "query@1": "1d13cf84ea993250",
}


@pytest.mark.parametrize(("count", "name"), [(0, "query@1"), (1, "examples@1"), (3, "paper-3@2"), (7, "examples@1")])
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
    assert "question 3" not in PROMPTS["guarded-3@1"].render(pairs)
    assert "the query" in PROMPTS["query@1"].render((), "the query")


def test_a_prompt_is_bounded():
    assert len(PROMPTS["query@1"].render((), "x" * 10_000_000)) < 3_000
    shown = PROMPTS["examples@1"].render([("head " + "x" * 10**6 + " tail", "y")] * 1000)
    assert len(shown) < 14_000 and "head" in shown and "tail" in shown


def test_an_unknown_prompt_lists_the_known():
    with pytest.raises(DescriberError, match=r"paper-3@2.*'paper-3'"):
        prompt_named("paper-3")


def test_the_papers_prompt_is_the_papers_word_for_word(shared: Path):
    """The text extracted from the paper has lost some spaces and kept every letter."""
    paper = (shared / "paper" / "glider-paper.txt").read_text("utf8")
    printed = paper[paper.index("The following are three pairs") : paper.index("A.2 EXAMPLES")]
    shown = PROMPTS["paper-3@2"].render([("", "")] * 3)
    assert "".join(shown.split()) == "".join(printed.split())
    assert (
        PROMPTS["paper-3@2"]
        .render([("a fine film", "good"), ("slept", "bad"), ("see it", "good")])
        .endswith(
            "to guide the language model.\n- Input: a fine film\n- Output: good\n- Input: slept\n- Output: bad\n"
            "- Input: see it\n- Output: good"
        )
    )


@pytest.mark.parametrize("count", [1, 3, 5, 10])
def test_a_prompt_for_a_number_of_examples_shows_them_all(count: int):
    prompt = next(prompt for prompt in PROMPTS.values() if prompt.dashed and prompt.examples == count)
    shown = prompt.render([(f"head{i} " + "x" * 10**5, f"answer{i} " + "y" * 10**5) for i in range(12)])
    assert all((f"head{i} " in shown and f"answer{i} " in shown) == (i < count) for i in range(12))
    assert len(shown) < 14_000


def test_a_prompt_is_known_by_its_former_name_and_so_are_its_cached_texts(tmp_path: Path):
    """`paper-3@1` was ours, not the paper's: cards that name it and caches that hold its texts stay readable."""
    ours = prompt_named("paper-3@1")
    assert ours is PROMPTS["guarded-3@1"]
    task = Task((("a", "b"), ("c", "d"), ("e", "f")))
    store, writer = Cache(tmp_path / "cache.sqlite3"), Silent()
    key = key_of("description", writer.makes, "paper-3@1", ours.render(task.examples))
    store.put("description", {key: b"Tell letters apart."})
    (told,) = describe_tasks(writer, [task], cache=store, prompt=ours)
    assert (told.text, told.cached, told.prompt) == ("Tell letters apart.", True, "guarded-3@1")
    (told,) = describe_tasks(writer, [task], cache=store)  # the paper's: another text, another key
    assert told.text is None and told.prompt == "paper-3@2"


class Silent:
    """A describer that writes nothing."""

    name, makes = "silent", {"describer": "silent"}

    def write(self, prompts: Sequence[str], tick: Tick = lambda done: None) -> list[Written]:
        return [Written() for _ in prompts]
