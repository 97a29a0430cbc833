"""Our JSON Lines as tasks of lm-evaluation-harness: a config a file, for its `--include_path`."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glider.config import repeated
from glider.data.rows import Row, read_rows
from glider.errors import DataError
from glider.evaluation.evaluated_rows import require_scorable
from glider.evaluation.metrics import TextMetric, score_text
from glider.files.disk import write_file

_HERE = "glider.evaluation.lm_eval_tasks"


def task_name(path: Path) -> str:
    """`ag_news` for `.../ag_news.jsonl.gz`."""
    return path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")


def task_config(
    path: Path,
    *,
    split: str | None = "test",
    rows: int | None = None,
    seed: int = 0,
    metric: TextMetric = "rougeL",
    max_new_tokens: int = 64,
) -> dict[str, Any]:
    """The harness's config of a file's rows of one split (`rows` of them, drawn by `seed`).

    Rows with choices make a multiple-choice task (its `acc`, and `acc_norm` by characters), rows without are answered
    freely and scored by `metric`. Raises `DataError` for rows that cannot be scored.
    """
    sample = _sample(path, split, rows, seed)
    require_scorable(sample)
    data = {"path": str(path.resolve()), "split": split, "rows": rows, "seed": seed, "metric": metric}
    shared = {
        "task": task_name(path),
        "custom_dataset": documents,
        "dataset_kwargs": data,
        "test_split": "test",
        "doc_to_text": "input",
        "target_delimiter": " ",
        "metadata": {"version": 1.0},
    }
    if sample[0].choices:
        names = ["acc", "acc_norm"]
        return shared | {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names],
        }
    return shared | {
        "output_type": "generate_until",
        "doc_to_target": "output",
        "process_results": score_answer,
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": max_new_tokens, "do_sample": False},
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
    }


def write_tasks(paths: Sequence[Path], out: Path, **settings: Any) -> list[str]:
    """Write a config of each file into `out` and return the tasks' names; `settings` are those of `task_config`.

    Then: `lm_eval --include_path OUT --tasks NAME`, with any model where this package is installed.
    """
    import yaml

    names = [task_name(path) for path in paths]
    if twice := sorted(repeated(names)):
        raise DataError("files of different names", f"{', '.join(twice)} twice", "Write them to two directories.")
    for path in paths:
        config = task_config(path, **settings)
        functions = {key: value for key, value in config.items() if callable(value)}
        plain = {key: value for key, value in config.items() if key not in functions}
        text = yaml.safe_dump(plain, sort_keys=False)
        text += "".join(f"{key}: !function {_HERE}.{value.__name__}\n" for key, value in functions.items())
        write_file(out / f"{config['task']}.yaml", lambda partial, text=text: partial.write_text(text, "utf8"))
    return names


def documents(
    path: str, split: str | None = None, rows: int | None = None, seed: int = 0, metric: str = "rougeL", **_: Any
) -> dict[str, Any]:
    """The rows as the harness wants a data set: by split, here `test` alone."""
    from datasets import Dataset

    sample = _sample(Path(path), split, rows, seed)
    several = any(row.references and len(row.references) > 1 for row in sample if row.choices)
    return {"test": Dataset.from_list([_document(row, metric, several) for row in sample])}


def score_answer(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The harness's `process_results` for free text."""
    return {doc["metric"]: score_text(doc["metric"], results[0].strip(), doc["references"])}


def _document(row: Row, metric: str, several: bool) -> dict[str, Any]:
    shared = {"input": row.input, "output": row.output}
    if row.choices is None:
        return shared | {"references": list(row.accepted), "metric": metric}
    gold = [i for i, choice in enumerate(row.choices) if choice in row.accepted]
    return shared | {"choices": list(row.choices), "gold": gold if several else gold[0]}


def _sample(path: Path, split: str | None, rows: int | None, seed: int) -> list[Row]:
    every = read_rows(path, split)
    return every if rows is None else random.Random(seed).sample(every, min(rows, len(every)))
