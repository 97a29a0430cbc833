"""The metrics of the tasks: the score of each row's answer, in [0, 1]."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

from glider.data.rows import Row
from glider.errors import MissingDependency

TextMetric = Literal["exact_match", "squad", "rougeL", "bleu"]
Metric = Literal["accuracy", "exact_match", "squad", "rougeL", "bleu"]
TEXT_METRICS: tuple[TextMetric, ...] = get_args(TextMetric)
_INSTALL = "pip install 'glider-moe[eval]'"


def score_text(metric: TextMetric, prediction: str, references: Sequence[str]) -> float:
    """The best score over the references.

    - exact_match: equal but for case, spaces and a final full stop.
    - squad: mean of exact match and F1 over words, both after SQuAD's normalisation (arXiv 1606.05250, section 6.1:
      no case, punctuation or articles).
    - rougeL: F-measure of the longest common subsequence, words stemmed (rouge-score).
    - bleu: BLEU-4 of the one sentence with exponential smoothing (sacrebleu), against all references at once.
    """
    if metric == "bleu":
        return _bleu(prediction, references)
    return max(_PAIRWISE[metric](prediction, reference) for reference in references)


def corpus_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of all answers together, in [0, 1] (sacrebleu); rows may have different numbers of references."""
    most = max(map(len, references))
    streams = [[row[i] if i < len(row) else None for row in references] for i in range(most)]
    return _sacrebleu().corpus_bleu(predictions, streams).score / 100


def guessing(rows: Sequence[Row]) -> float:
    """The accuracy of the better of a random choice and of always giving the commonest answer; rows have choices."""
    random_choice = sum(min(1.0, len(row.accepted) / len(row.choices or ())) for row in rows) / len(rows)
    commonest = max(Counter(answer for row in rows for answer in row.accepted).values()) / len(rows)
    return max(random_choice, min(1.0, commonest))


def require(metric: Metric) -> None:
    """Raise `MissingDependency` where the package of a metric is not installed."""
    if metric == "rougeL":
        _rouge()
    if metric == "bleu":
        _sacrebleu()


def _exact_match(prediction: str, reference: str) -> float:
    return float(_plain(prediction) == _plain(reference))


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(". ")


def _squad(prediction: str, reference: str) -> float:
    """Mean of exact match and F1."""
    said, accepted = _squad_words(prediction), _squad_words(reference)
    exact = float(said == accepted)
    if not said or not accepted:
        return exact
    common = sum((Counter(said) & Counter(accepted)).values())
    return (exact + 2 * common / (len(said) + len(accepted))) / 2


def _squad_words(text: str) -> list[str]:
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(?:a|an|the)\b", " ", bare).split()


def _rouge_l(prediction: str, reference: str) -> float:
    return _rouge().score(reference, prediction)["rougeL"].fmeasure


def _bleu(prediction: str, references: Sequence[str]) -> float:
    return _sacrebleu().sentence_bleu(prediction, list(references)).score / 100


@lru_cache(maxsize=1)
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError:
        raise MissingDependency("rouge-score", "score free text", _INSTALL) from None
    return RougeScorer(["rougeL"], use_stemmer=True)


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ModuleNotFoundError:
        raise MissingDependency("sacrebleu", "score by BLEU", _INSTALL) from None
    return sacrebleu


_PAIRWISE: dict[TextMetric, Callable[[str, str], float]] = {
    "exact_match": _exact_match,
    "squad": _squad,
    "rougeL": _rouge_l,
}
