"""Whatever a model replies becomes one plain sentence, or is refused."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glider.instructions.cleaning import LONGEST, Nonsense, clean, printable
from glider.instructions.prompts import PROMPTS

PLAIN = "Translate the sentence into French."
PROMPT = PROMPTS["query@1"]


@pytest.mark.parametrize(
    "reply",
    [
        PLAIN,
        f"  {PLAIN}\n",
        f'"{PLAIN}"',
        f"\u201c{PLAIN}\u201d",
        f"Instruction: {PLAIN}",
        f"**Instruction:** {PLAIN}",
        f"### Task description: {PLAIN}",
        f"1. {PLAIN}",
        f"- {PLAIN}",
        f"> **{PLAIN}**",
        f"Sure! Here is the instruction:\n\n{PLAIN}",
        f"```\n{PLAIN}\n```",
        f"{PLAIN} It needs knowledge of both languages. And more.",
        f"{PLAIN}\n\nSecond paragraph.",
        "<b>Translate</b> the <i>sentence</i> into French.",
        f"<think>They want French.\nOr not?</think>\n\n{PLAIN}",
        f"They want French.</think>{PLAIN}",
        "Translate  the\tsentence into\x00 Fren\u200bch.",
        "Translate the \x1b[31msentence\x1b[0m into French.",
        "\u202eTranslate the sentence into French.\ud800",
        "\x1b]0;title\x07Translate the sentence into French.",
    ],
)
def test_one_plain_sentence_is_left(reply: str):
    assert clean(reply) == PLAIN


def test_abbreviations_and_numbers_do_not_end_a_sentence():
    kept = "Compare two amounts, e.g. 3.5 and 4.0, and name the larger, i.e. The greater one."
    assert clean(kept + " Then stop.") == kept


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "nothing"),
        (" \n\t", "nothing"),
        ("...", "nothing|echo"),
        ("ok", "hardly a word"),
        ("12345 67890 12345", "hardly a word"),
        ("<!DOCTYPE html><html><body>Bad gateway</body></html>", "a web page"),
        ("  <html>\n<head><title>502</title></head></html>", "a web page"),
        ('{"instruction": "Translate."}', "structured data"),
        ("x" * 10_000_000, "10000000 characters"),
        ("<think>I wonder and wonder", "a thought without an end"),
        ("I'm sorry, but I can't help with that.", "a refusal"),
        ("I\u2019m sorry, I cannot.", "a refusal"),
        ("As an AI language model, I do not.", "a refusal"),
    ],
)
def test_nonsense_is_refused(reply: str, why: str):
    with pytest.raises(Nonsense, match=why):
        clean(reply)


def test_an_echo_of_the_prompt_is_no_description():
    asked = PROMPT.render((), "What is the capital of Italy?")
    for echo in (PROMPT.instruction, PROMPT.instruction.split(". ")[0] + ".", "Request:\n" + PROMPT.instruction):
        with pytest.raises(Nonsense, match="echo"):
            clean(echo, asked, PROMPT.instruction)
    assert clean(f"{asked} {PLAIN}", asked, PROMPT.instruction) == PLAIN
    assert clean(f"{PROMPT.instruction}\n{PLAIN}", asked, PROMPT.instruction) == PLAIN


def test_a_long_sentence_is_cut_between_words():
    text = clean("Sort " + "words " * 1000)
    assert len(text) <= LONGEST and text.endswith("words")


@given(st.text(alphabet=st.characters(), max_size=400))
def test_what_is_left_is_short_and_printable_and_stays_as_it_is(reply: str):
    try:
        text = clean(reply)
    except Nonsense:
        return
    assert 0 < len(text) <= LONGEST
    assert not any(unicodedata.category(letter).startswith("C") for letter in text)
    text.encode("utf8")


def test_a_message_shows_a_strangers_text_on_one_line():
    assert printable("bad\x1b[2Jness\n\nhere\r!") == "badness here !"
    assert len(printable("x" * 10_000)) < 250
