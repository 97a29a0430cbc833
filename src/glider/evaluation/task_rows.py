"""One model on the rows of one task: every row's prediction, score and routing."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from glider.data.rows import Row
from glider.evaluation.budgets import USUAL, Budget, MeasuredBudget, Probe, find_budget, timed
from glider.evaluation.evaluated_rows import EvaluatedRows
from glider.evaluation.metrics import TextMetric, corpus_bleu, score_text
from glider.experts.prompt_format import PromptFormat
from glider.inference.answers import Answer, ChoiceScore
from glider.inference.prompts import PromptEncoder
from glider.inference.queries import Query
from glider.instructions.prompts import Pair
from glider.progress import Tick
from glider.routing.condition import Condition


class EvaluatedModel(Protocol):
    """What a row is asked of: a `RoutedModel`, or a pool in another engine that scores and answers as one does."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def prompt(self) -> PromptFormat: ...

    @property
    def encoder(self) -> PromptEncoder: ...

    @property
    def experts(self) -> list[str]: ...

    def generate(
        self, prompts: Sequence[Query], *, max_new_tokens: int | None = None, truncate: bool = False
    ) -> list[Answer]: ...

    def score_many(
        self, prompts: Sequence[Query], choices: Sequence[Sequence[str]], *, truncate: bool = False
    ) -> tuple[list[list[ChoiceScore]], Condition]: ...


@dataclass(frozen=True)
class RowResult:
    """The result of one row. `choices`: log-likelihood per token (end token counted) of each, in the row's order."""

    id: str | int | None
    place: int  # among the rows of the split
    prediction: str
    gold: tuple[str, ...]
    score: float
    choices: tuple[float, ...] | None
    seconds: float  # its share of its batch
    expert: str | None  # of the highest global score; None without a global term
    alpha: float | None
    tokens: int  # that were computed: of the prompt, and of the answer or all choices
    verdict: str | None = None  # fits, unsure, stranger; None where nobody judged


def score_rows_of(
    model: EvaluatedModel,
    selected: EvaluatedRows,
    description: str | None,
    max_new_tokens: int,
    *,
    examples: tuple[Pair, ...] = (),
    tick: Tick = lambda _: None,
    budget: Budget = USUAL,
) -> list[RowResult]:
    """Results in the order of the rows; rows of like length run together, as many as the budget allows.

    `description` and `examples` are the task's: every query has them, for the global term; they are not part of the
    prompt.

    `accuracy`: rank classification by log-likelihood per token, end token included, as in the published code. Other
    metrics: of the greedy answer. Prompts beyond the model's context keep their end.
    """
    lengths = [model.encoder.length(row.input) for row in selected.rows]
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    results: dict[int, RowResult] = {}
    by_choice = selected.metric == "accuracy"
    batches = _batches(model, selected.rows, order, lengths, budget) if by_choice else _groups(order, budget.rows)
    for batch in batches:
        rows = [selected.rows[i] for i in batch]
        queries = [Query(row.input, description, examples) for row in rows]
        began = time.perf_counter()
        work = _rank(model, rows, queries) if by_choice else _answer(model, rows, queries, selected, max_new_tokens)
        scored = list(work)
        seconds = (time.perf_counter() - began) / len(batch)
        for i, row, fields in zip(batch, rows, scored, strict=True):
            results[i] = RowResult(
                id=row.id,
                place=selected.places[i],
                gold=row.accepted,
                seconds=round(seconds, 4),
                **{**fields, "tokens": lengths[i] + fields["tokens"]},
            )
        tick(len(results))
    return [results[i] for i in range(len(results))]


def measured_budget(
    model: EvaluatedModel, selected: EvaluatedRows, query: Query, max_new_tokens: int
) -> MeasuredBudget:
    """The budget that suits a model on its device, measured on the longest rows of a task.

    `query` has the description and the examples that come with each of them.
    """
    lengths = [model.encoder.length(row.input) for row in selected.rows]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    by_choice = selected.metric == "accuracy"

    def probe(budget: Budget) -> Probe:
        batches = _batches(model, selected.rows, order, lengths, budget) if by_choice else _groups(order, budget.rows)
        batch = next(iter(batches))
        rows = [selected.rows[i] for i in batch]
        queries = [replace(query, text=row.input) for row in rows]

        def run() -> int:
            work = _rank(model, rows, queries) if by_choice else _answer(model, rows, queries, selected, max_new_tokens)
            return sum(lengths[i] for i in batch) + sum(fields["tokens"] for fields in work)

        tokens, seconds = timed(run)
        return Probe(tokens, seconds, all_rows=len(batch) == len(order))

    return find_budget(probe)


def summary_of(selected: EvaluatedRows, results: Sequence[RowResult]) -> dict[str, Any]:
    """The task's score (mean over rows) and how it was computed."""
    summary: dict[str, Any] = {
        "metric": selected.metric,
        "score": sum(result.score for result in results) / len(results),
        "rows": len(results),
        "available": selected.available,
        "left_out": selected.left_out,
        "guess": selected.guess,
        "seconds": round(sum(result.seconds for result in results), 2),
    }
    if selected.metric == "bleu":  # the mean above is of sentences; this is what papers report
        summary["corpus_bleu"] = corpus_bleu([r.prediction for r in results], [r.gold for r in results])
    return summary


def _rank(model: EvaluatedModel, rows: Sequence[Row], queries: Sequence[Query]) -> Iterator[dict[str, Any]]:
    scored, condition = model.score_many(queries, [row.choices or () for row in rows], truncate=True)
    for i, (row, choices) in enumerate(zip(rows, scored, strict=True)):
        values = tuple(round(choice.normalised, 5) for choice in choices)
        best = max(choices, key=lambda choice: choice.normalised).choice
        yield {
            "prediction": best,
            "score": float(best in row.accepted),
            "choices": values,
            "tokens": sum(choice.tokens for choice in choices),
            **_guide(model, condition, i),
        }


def _answer(
    model: EvaluatedModel, rows: Sequence[Row], queries: Sequence[Query], selected: EvaluatedRows, max_new_tokens: int
) -> Iterator[dict[str, Any]]:
    answers = model.generate(queries, max_new_tokens=max_new_tokens, truncate=True)
    for row, answer in zip(rows, answers, strict=True):
        score = score_text(cast(TextMetric, selected.metric), answer.text, row.accepted)
        scores = answer.global_scores
        expert = max(scores, key=lambda name: scores[name]) if scores else None
        yield {
            "prediction": answer.text,
            "score": score,
            "choices": None,
            "expert": expert,
            "alpha": answer.alpha,
            "tokens": len(answer.token_ids),
            "verdict": answer.verdict,
        }


def _guide(model: EvaluatedModel, condition: Condition, row: int) -> dict[str, Any]:
    verdict = {"verdict": condition.verdicts[row] or None} if condition.verdicts else {}
    if condition.global_scores is None or condition.alpha is None:
        return {"expert": None, "alpha": None, **verdict}
    expert = model.experts[int(condition.global_scores[row].argmax())]
    return {"expert": expert, "alpha": round(float(condition.alpha[row]), 4), **verdict}


def _batches(
    model: EvaluatedModel, rows: Sequence[Row], order: Sequence[int], lengths: Sequence[int], budget: Budget
) -> Iterator[list[int]]:
    """Rows in order of length, as many together as the budget allows."""
    batch: list[int] = []
    width = longest = choices = 0
    for i in order:
        texts = rows[i].choices or ()
        target = max(len(model.prompt.target_ids(model.tokenizer, text)) for text in texts)
        beyond = max(width, lengths[i]) * (len(batch) + 1) > budget.tokens
        beyond |= max(longest, target) * (choices + len(texts)) > budget.choice_tokens
        if batch and beyond:
            yield batch
            batch, width, longest, choices = [], 0, 0, 0
        batch.append(i)
        width, longest, choices = max(width, lengths[i]), max(longest, target), choices + len(texts)
    yield batch


def _groups(order: Sequence[int], size: int) -> Iterator[list[int]]:
    return (list(order[i : i + size]) for i in range(0, len(order), size))
