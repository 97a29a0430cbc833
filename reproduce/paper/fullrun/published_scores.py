"""A task's score as the published evaluation has it, from the predictions that a result file keeps.

It is the mean of the task's metrics: BLEU of the corpus, ROUGE-L without stemming, exact match to the letter. What
`glider evaluate` shows while it runs is milder (exact match without case, ROUGE-L of stems) or of sentences (BLEU).
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fullrun.plan import Published
from glider.errors import MissingDependency
from glider.evaluation.metrics import corpus_bleu


def published_score(metrics: Sequence[Published], result: Mapping[str, Any]) -> float:
    """The score in [0, 1] of a finished result file with its `results`."""
    rows = result["results"]
    return fmean(_score(metric, rows) for metric in metrics)


def _score(metric: Published, rows: Sequence[Mapping[str, Any]]) -> float:
    if metric in ("accuracy", "accuracy_multiple_ans", "squad"):
        return fmean(row["score"] for row in rows)
    if metric == "bleu":
        return corpus_bleu([row["prediction"] for row in rows], [row["gold"] for row in rows])
    if metric == "rouge":
        return fmean(_rouge_l(row["prediction"], row["gold"]) for row in rows)
    accepted = (row["gold"] if metric == "exact_match_multiple_ans" else row["gold"][:1] for row in rows)
    return fmean(float(row["prediction"] in gold) for row, gold in zip(rows, accepted, strict=True))


def _rouge_l(prediction: str, references: Sequence[str]) -> float:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError:
        raise MissingDependency("rouge-score", "score free text", "pip install 'glider-moe[eval]'") from None
    scorer = RougeScorer(["rougeL"])
    return max(scorer.score(reference, prediction)["rougeL"].fmeasure for reference in references)
