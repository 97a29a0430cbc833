"""Lay out the benchmark of LoraRetriever and LoRAuter: its rows, its adapters as a pool, and a run file.

    git clone https://github.com/StyxXuan/LoraRetriever CLONE
    python reproduce/flan/prepare.py WORK --published CLONE            # rows and the run file
    python reproduce/flan/prepare.py WORK --published CLONE --pool     # and the pool: a GPU or much memory, the hub
    glider pool train-router WORK/pool --router lorauter --data 'WORK/samples/{name}.jsonl'
    glider pool train-router WORK/pool --router ariadne --data 'WORK/samples/{name}.jsonl'
    glider evaluate WORK/run.yaml --out RESULTS --device cuda

In the clone `dataset/combined_test.json` has the evaluated rows (inputs, targets, task, domain, metric) and
`config/config.json` the 20 training samples of each adapter (model_name, domain, sample). The readers are written from
these fields; the whole has not been run.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from glider.cli.terminal import exit_code
from glider.config import EMBEDDED_EMBEDDER, Config, faults
from glider.errors import ConfigError, DataError
from glider.evaluation.metrics import Metric
from glider.files.disk import write_file, write_json
from glider.files.json_text import LARGEST_RESULT, MOST_OF_RESULT, read_json
from glider.files.yaml_text import read_yaml

HERE = Path(__file__).parent
ROWS, SAMPLES = Path("dataset/combined_test.json"), Path("config/config.json")
_FIELDS = ("inputs", "targets", "task", "domain", "metric")


class Benchmark(Config):
    """benchmark.yaml."""

    base: str
    adapters: str  # hub id or directory of each, with {task}
    tasks: int = Field(ge=1)
    domains: int = Field(ge=1)
    max_new_tokens: int = Field(ge=1)
    metrics: dict[str, Metric]
    template: str  # of chats, Jinja: the form that the adapters were trained in
    routers: list[Any]

    @classmethod
    def read(cls, path: Path = HERE / "benchmark.yaml") -> "Benchmark":
        try:
            return cls.model_validate(read_yaml(path))
        except ValidationError as fault:
            raise ConfigError(f"a benchmark in {path}", faults(fault), "Mend the file.") from fault
        except ValueError as fault:
            raise ConfigError(f"YAML in {path}", str(fault), "Mend the file.") from fault


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--published", type=Path, required=True, help="clone of the published repository")
    parser.add_argument("--pool", action="store_true", help="import the adapters too")
    parser.add_argument("--config", type=Path, default=HERE / "benchmark.yaml")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    return exit_code(lambda: _prepare(arguments))


def _prepare(arguments: argparse.Namespace) -> None:
    benchmark = Benchmark.read(arguments.config)
    tasks = lay_out(benchmark, arguments.published, arguments.work)
    if arguments.pool:
        make_pool(benchmark, tasks, arguments.work, arguments.device)
    print(f"{arguments.work / 'run.yaml'}: {len(tasks)} tasks in {len(set(tasks.values()))} domains")


def lay_out(benchmark: Benchmark, clone: Path, work: Path) -> dict[str, str]:
    """Write rows, samples and the run file; returns the domain of each task.

    Raises `DataError` for another number of tasks or domains than the benchmark has, and for rows of other fields.
    """
    rows, samples = read_rows(benchmark, clone / ROWS), read_samples(clone / SAMPLES)
    tasks = {task: entries[0]["domain"] for task, entries in rows.items()}
    counts = (len(tasks), len(set(tasks.values())))
    if counts != (benchmark.tasks, benchmark.domains):
        expected = f"{benchmark.tasks} tasks in {benchmark.domains} domains in {clone / ROWS}"
        raise DataError(expected, f"{counts[0]} in {counts[1]}", "Take the published file, or mend benchmark.yaml.")
    if lacking := sorted(tasks.keys() - samples.keys()):
        raise DataError(
            f"samples of every task in {clone / SAMPLES}", f"none of {', '.join(lacking)}", "Clone it anew."
        )
    for task, entries in rows.items():
        _write(work / "tasks" / f"{task}.jsonl", [{**row, "split": "test"} for row in entries])
        _write(work / "samples" / f"{task}.jsonl", samples[task])
    sets: dict[str, Any] = {}
    for task, entries in sorted(rows.items()):
        one = {"data": f"tasks/{task}.jsonl", "name": task, "metric": benchmark.metrics[entries[0]["metric"]]}
        sets.setdefault(_file_name(tasks[task]), {"tasks": []})["tasks"].append(one)
    content = {"pool": "pool", "base": benchmark.base, "dtype": "bfloat16", "max_new_tokens": benchmark.max_new_tokens}
    write_json(work / "run.yaml", {**content, "routers": benchmark.routers, "sets": sets})  # JSON is YAML
    return tasks


def read_rows(benchmark: Benchmark, path: Path) -> dict[str, list[dict[str, Any]]]:
    """The evaluated rows by task."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for number, entry in enumerate(_list_of(path)):
        if other := [name for name in _FIELDS if not isinstance(entry.get(name), str)]:
            raise DataError(f"texts in {', '.join(_FIELDS)} of row {number} of {path}", f"no {', '.join(other)}", _ANEW)
        if entry["metric"] not in benchmark.metrics:
            known = ", ".join(benchmark.metrics)
            raise DataError(f"a metric of {known} in row {number} of {path}", entry["metric"], "Mend benchmark.yaml.")
        task, row = _file_name(entry["task"]), {"id": f"{entry['task']}-{number}", "input": entry["inputs"]}
        row |= {"output": entry["targets"], "task": task, "domain": entry["domain"], "metric": entry["metric"]}
        if rows.get(task, [row])[0]["metric"] != entry["metric"] or rows.get(task, [row])[0]["domain"] != row["domain"]:
            got = f"{entry['metric']} and {entry['domain']} in row {number}"
            raise DataError(f"one metric and one domain for {task} in {path}", got, _ANEW)
        rows.setdefault(task, []).append(row)
    return rows


def read_samples(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The training samples of each adapter, by its task."""
    samples: dict[str, list[dict[str, Any]]] = {}
    for number, entry in enumerate(_list_of(path)):
        try:
            entries = [{"input": _text(one["inputs"]), "output": _text(one["targets"])} for one in entry["sample"]]
            task = _file_name(_text(entry["model_name"]))
        except (KeyError, TypeError) as fault:
            expected = f"model_name and sample (inputs, targets) in entry {number} of {path}"
            raise DataError(expected, f"{type(fault).__name__}: {fault}", _ANEW) from fault
        samples[task] = [{**row, "task": task} for row in entries if row["input"].strip() and row["output"].strip()]
    return samples


def make_pool(benchmark: Benchmark, tasks: dict[str, str], work: Path, device: str) -> None:
    """Import each adapter with the profile of its samples; what is there already stays."""
    from glider.contribute.adopt import add_description, import_adapter, make_profile
    from glider.contribute.settings import TrainConfig
    from glider.experts.expert import Expert
    from glider.experts.membership import add_expert
    from glider.experts.pool import POOL_FILE, Pool
    from glider.experts.prompt_format import PromptFormat
    from glider.inference.spec import BaseSpec

    root, prompt = work / "pool", PromptFormat(kind="chat", template=benchmark.template)
    base = BaseSpec(base=benchmark.base, dtype="bfloat16", device=device).load_base()
    for task, domain in sorted(tasks.items()):
        out = root / task
        if not out.exists():
            import_adapter(benchmark.adapters.format(task=task), base, out, task=task, prompt=prompt)
        if Expert.open(out).profile is None:
            add_description(out, f"The task {task} of the Flan collection ({domain}).", EMBEDDED_EMBEDDER)
            make_profile(out, work / "samples" / f"{task}.jsonl", base, TrainConfig.parse(validation=6))
        if not (root / POOL_FILE).exists():
            Pool.create(root, Expert.open(out).card.base)
        if task not in Pool.open(root).names:
            add_expert(root, task)
        print(f"{task}: {domain}", file=sys.stderr)


_ANEW = "Clone the published repository anew."


def _list_of(path: Path) -> list[Any]:
    try:
        content = read_json(path, LARGEST_RESULT, MOST_OF_RESULT)
    except (OSError, ValueError) as fault:
        raise DataError(f"JSON at {path}", f"{type(fault).__name__}: {fault}"[:200], _ANEW) from fault
    if not isinstance(content, list) or not content or not all(isinstance(entry, dict) for entry in content):
        raise DataError(f"a list of rows in {path}", type(content).__name__, _ANEW)
    return content


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_file(path, lambda place: place.write_text(text, "utf8"))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of a text")
    return value


def _file_name(name: str) -> str:
    if not (text := re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")):
        raise DataError("names with a letter or a digit", repr(name[:60]), _ANEW)
    return text


if __name__ == "__main__":
    sys.exit(main())
