"""The metrics against values worked out by hand."""

import pytest

from glider.data.rows import Row
from glider.evaluation.metrics import corpus_bleu, guessing, score_text


def test_guessing_is_the_better_of_two_ways() -> None:
    def rows(*outputs: str, choices: str = "abcd") -> list[Row]:
        return [Row(input="?", output=output, choices=tuple(choices)) for output in outputs]

    assert guessing(rows("a", "b", "c", "d", "a")) == 0.4
    assert guessing(rows("a", "b", "c", choices="abc") + rows("d", choices="def")) == pytest.approx(1 / 3)
    both = Row(input="?", output="a", references=("a", "b"), choices=("a", "b", "c"))
    assert guessing([both, *rows("c", choices="cd")]) == pytest.approx((2 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize(
    ("metric", "prediction", "references", "score"),
    [
        ("exact_match", "The  End.", ["no", "the end"], 1.0),
        ("exact_match", "yes .", ["Yes"], 1.0),
        ("exact_match", "the ends", ["the end"], 0.0),
        ("squad", "The Eiffel-Tower!", ["eiffeltower"], 1.0),
        ("squad", "in Paris", ["Paris"], (0 + 2 / 3) / 2),
        ("squad", "the", ["Paris"], 0.0),
        ("squad", "", ["a"], 1.0),  # both empty after normalisation
        ("rougeL", "the cat sat", ["a dog", "the cat ran"], 2 / 3),
        ("bleu", "the quick brown fox", ["the quick brown fox"], 1.0),
    ],
)
def test_known_scores(metric, prediction: str, references: list[str], score: float) -> None:
    assert score_text(metric, prediction, references) == pytest.approx(score)


def test_bleu_of_a_corpus_takes_rows_of_different_references() -> None:
    assert corpus_bleu(["the quick brown fox", "it is so now"], [["the quick brown fox"], ["no", "it is so now"]]) == (
        pytest.approx(1.0)
    )
    assert corpus_bleu(["something else entirely here"], [["the quick brown fox"]]) < 0.1
