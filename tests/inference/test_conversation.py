"""Which text of a conversation is asked, in long chats and in chats that change their subject."""

import pytest

from glider.inference.conversation import Turn, question_text

REVIEW = "Is this review positive or negative? A warm and funny film."


def chat(*texts: str, system: str | None = None) -> list[Turn]:
    turns = [("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    return turns if system is None else [("system", system), *turns]


@pytest.mark.parametrize(
    ("turns", "asked"),
    [
        (chat("Hello there, how are you?"), "Hello there, how are you?"),
        (chat(REVIEW, "positive", "What is the capital of Italy?"), "What is the capital of Italy?"),
        (chat("What is the capital of Italy?", "Rome", REVIEW), REVIEW),
        (chat(REVIEW, "positive", "Why?"), f"{REVIEW}\nWhy?"),
        (chat(REVIEW, "positive", "Why?", "It is warm.", "Are you sure?"), f"{REVIEW}\nWhy?\nAre you sure?"),
        (chat("Why?"), "Why?"),
        (chat(REVIEW, "positive", "这句话是什么意思呢"), "这句话是什么意思呢"),
        (chat(REVIEW, "positive", "为什么"), f"{REVIEW}\n为什么"),
        (chat("", "?", "  "), ""),
        ([("assistant", "positive")], ""),
    ],
)
def test_the_last_subject_of_the_user_is_asked(turns: list[Turn], asked: str) -> None:
    assert question_text(turns) == asked


def test_a_long_chat_is_asked_by_its_end() -> None:
    turns = [turn for i in range(50) for turn in chat(f"Tell me about the number {i}, please.", f"It is {i}.")]
    assert question_text([*turns, ("user", "Shorter!")]) == "Tell me about the number 49, please.\nShorter!"


def test_a_system_prompt_counts_where_it_names_the_task() -> None:
    knows = lambda text: "review" in text  # noqa: E731
    system = "You say whether a review is positive."
    turns = chat("A warm and funny film for everyone.", system=system)
    assert question_text(turns, knows) == f"{system}\n\nA warm and funny film for everyone."
    assert question_text(turns) == "A warm and funny film for everyone."
    helpful = chat("What is the capital of Italy?", system="You are a helpful assistant.")
    assert question_text(helpful, knows) == "What is the capital of Italy?"
    assert question_text(chat(REVIEW, system="You are a pirate."), knows) == REVIEW
