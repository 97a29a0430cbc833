"""One router on one task: a job, and the file of its result."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from glider.contribute.fewshot_fits import fit_of
from glider.errors import ConfigError, PoolError
from glider.evaluation.budgets import (
    BATCH_FILE,
    USUAL,
    Budget,
    Kind,
    device_name,
    known_budget,
    read_batches,
    with_batch,
)
from glider.evaluation.evaluated_rows import EvaluatedRows
from glider.evaluation.records import require_cell
from glider.evaluation.run_plan import FORMAT, RouterPlan, Task, cell_key
from glider.evaluation.task_rows import EvaluatedModel, measured_budget, score_rows_of, summary_of
from glider.experts.pool import POOL_FILE
from glider.files.disk import held_within, sha256, write_json
from glider.files.json_text import LARGEST_RESULT, MOST_OF_RESULT, read_json
from glider.inference.base_model import BaseModel
from glider.inference.queries import Query
from glider.inference.spec import BaseSpec, ModelSpec, open_pool
from glider.jobs.base import Fault, JobTick, Resources, silent
from glider.jobs.parcel import Parcel, Source
from glider.jobs.pool_source import source_of
from glider.routing.base import routers
from glider.routing.methods.oracle import best_expert
from glider.routing.requirements import outside

_PACKAGES = (
    *("glider-moe", "torch", "transformers", "peft", "tokenizers", "sentence-transformers", "numpy", "scipy"),
    *("lm-eval", "rouge-score", "sacrebleu", "nevergrad"),
)


@dataclass(frozen=True)
class BenchSpec:
    """The setting of a run's cells: the pool, the base model, the precision of float32 products."""

    pool: str
    require_key: str | None
    pool_hash: str
    base: BaseSpec
    matmul: str
    seed: int
    fewshot_splits: tuple[str, ...]
    engine: str = "transformers"
    batch_tokens: int | str = USUAL.tokens  # or "auto": measured

    @property
    def reads(self) -> tuple[Source, ...]:
        """The pool's files, unless it comes with the package, and the keys."""
        keys = () if self.require_key is None else (Source(Path(self.require_key)),)
        if self.pool == "demo":
            return keys
        return (*keys, source_of(self.pool, self.require_key, self.pool_hash))

    def moved(self, places: Mapping[Path, Path]) -> "BenchSpec":
        """The same bench with the pool at another path; raises `PoolError` if another pool is there."""
        key = None if self.require_key is None else str(places[Path(self.require_key)])
        if self.pool == "demo":
            return replace(self, require_key=key)
        pool = places[Path(self.pool)]
        if (got := sha256(pool / POOL_FILE)) != self.pool_hash:
            expected = f"the pool {self.pool} as it was when the run began ({self.pool_hash[:12]})"
            raise PoolError(expected, f"{got[:12]}", "Start the run anew.")
        return replace(self, pool=str(pool), require_key=key)


def require_by_vllm(spec: BenchSpec, plans: Sequence[RouterPlan]) -> None:
    """Raise `ConfigError` for what a run by vLLM cannot evaluate."""
    remedy = "Evaluate it by --engine transformers."
    if searched := [plan.label for plan in plans if plan.searched]:
        raise ConfigError("routers that need no search (--engine vllm)", ", ".join(searched), remedy)
    if spec.batch_tokens == "auto":
        raise ConfigError("--batch-tokens N (--engine vllm)", "auto: vLLM batches by itself", "Leave it out.")
    if spec.matmul != "highest":
        raise ConfigError("matmul: highest (--engine vllm)", spec.matmul, remedy)
    if spec.base.device != "cpu" or spec.base.arguments:
        raise ConfigError("vLLM's own choice of the device (--engine vllm)", spec.base.device, "Leave it out.")


class Bench:
    """A base model in memory on which one router after another is evaluated; a process has one at a time.

    With vLLM each router has its own engine, started when needed and closed before the next.
    """

    _open: "Bench | None" = None

    def __init__(self, spec: BenchSpec):
        self.spec, self.pool = spec, open_pool(spec.pool, spec.require_key)
        self.pool.verify()
        self._base: BaseModel | None = None if spec.engine == "vllm" else spec.base.load_base()
        self._router: str | None = None
        self._model: Any = None
        self._notes: dict[str, Any] = {}

    @property
    def base(self) -> BaseModel:
        """The base model in transformers."""
        if self._base is None:
            self._base = self.spec.base.load_base()
        return self._base

    @classmethod
    def of(cls, spec: BenchSpec) -> "Bench":
        """The process's bench, opened anew where it is for another run."""
        if cls._open is None or cls._open.spec != spec:
            cls.close()
            cls._open = Bench(spec)
        return cls._open

    @classmethod
    def close(cls) -> None:
        """Give up the process's bench."""
        bench, cls._open = cls._open, None
        if bench is not None:
            bench.take_off()

    def take_off(self) -> None:
        """Take the router off the base model."""
        model, self._model, self._router = self._model, None, None
        if model is not None:
            model.close() if self.spec.engine == "vllm" else model.detach()

    def model(self, plan: RouterPlan, task: Task) -> tuple[EvaluatedModel, dict[str, Any]]:
        """The base model under a router, which stays attached for the next task where possible, and the result of its
        search."""
        name = plan.label if not plan.by_task else f"{plan.label}\n{task.set}\n{task.name}"
        if self._model is None or self._router != name:
            self.take_off()
            self._model, self._notes = self._routed(plan, task)
            self._router = name
        return self._model, self._notes

    def _routed(self, plan: RouterPlan, task: Task) -> tuple[EvaluatedModel, dict[str, Any]]:
        method = fit_of(plan.router, plan.settings)
        if method is None:
            router = plan.router.replace("{task}", task.name)
            spec = ModelSpec(router=router, settings=plan.settings, strict=True)
            if self.spec.engine == "vllm":
                return self._by_vllm(spec), {}
            return spec.over(self.base, self.pool), {}
        rows = task.fewshot(plan.fewshot, self.spec.fewshot_splits)
        router, notes = method.fit(self.base, self.pool, rows, **{"seed": self.spec.seed, **plan.settings})
        return ModelSpec(router=router, strict=True).over(self.base, self.pool), {plan.router: notes}

    def _by_vllm(self, spec: ModelSpec) -> EvaluatedModel:
        """A router in an engine of its own, which scores and answers as a routed model does."""
        from glider.engines.vllm.offline import of_spec

        base = {"base": self.spec.base.base, "dtype": self.spec.base.dtype}
        return of_spec(spec.model_copy(update={**base, "pool": self.spec.pool, "require_key": self.spec.require_key}))

    @contextmanager
    def matmul(self) -> Iterator[None]:
        """The run's precision of float32 products, which PyTorch holds for the whole process."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.spec.matmul)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Cell:
    """One router on one task. Its result is stored whole, with everything that decided it."""

    plan: RouterPlan
    task: Task
    path: Path  # DIR/ROUTER/SET/TASK.json
    config: dict[str, Any]
    hashes: dict[str, str]
    bench: BenchSpec
    batches: dict[str, Any] | None = None  # what was measured before, where the results lie on another machine

    @property
    def name(self) -> str:
        """Router, set and task."""
        return f"{self.plan.label}: {self.task.set}/{self.task.name}"

    @property
    def key(self) -> str:
        """The hash of everything that decides the result."""
        return cell_key(self.config, self.hashes)

    @property
    def resources(self) -> Resources:
        """Of the base model, on its device."""
        return Resources(device=self.bench.base.device)

    @property
    def reads(self) -> tuple[Source, ...]:
        """The task's rows, the pool, the keys that must have signed it, an expert outside it."""
        sources = [Source(self.task.path), *self.bench.reads]
        if (directory := self._outside()) is not None:
            sources.append(
                Source(directory, tuple(file.name for file in sorted(directory.glob("*")) if file.is_file()))
            )
        return tuple(sources)

    @property
    def effort(self) -> float:
        """Equal for all cells, so that a router stays attached while its tasks run in order."""
        return 1.0

    @property
    def folder(self) -> None:
        """None: a cell is always evaluated from the start."""
        return

    def leaving(self) -> "Cell":
        """The cell alone, with the base's directory by its whole path."""
        bench = replace(self.bench, base=self.bench.base.with_absolute_path())
        return replace(self, bench=bench, batches=read_batches(self.path.parent))

    def moved(self, places: Mapping[Path, Path], scratch: Path) -> "Cell":
        """The cell with its rows, its pool and what lies outside it elsewhere."""
        plan, directory = self.plan, self._outside()
        if directory is not None:
            label = f"{plan.label} {self.task.name}" if plan.by_task else plan.label  # a router of its own stays one
            router = f"{plan.router.partition(':')[0]}:{places[directory]}"
            plan = plan.model_copy(update={"router": router, "name": label})
        task = replace(self.task, path=places[self.task.path])
        return replace(self, plan=plan, task=task, bench=self.bench.moved(places))

    def take(self, content: Parcel) -> None:
        """Do nothing: an unfinished cell leaves no state."""

    def arrived(self, result: dict[str, Any]) -> dict[str, Any]:
        """The result's content."""
        return result

    def _outside(self) -> Path | None:
        directory = outside(self.plan.router.replace("{task}", self.task.name))
        return directory if directory is not None and directory.is_dir() else None

    @property
    def finished(self) -> bool:
        """Whether there is a result of this very cell."""
        return self.read() is not None

    def run(self, report: JobTick = silent) -> dict[str, Any]:
        """Evaluate; returns the result's content."""
        task = self.task
        selected = task.evaluated_rows()  # before the base model is loaded: they may not be what is wanted
        bench = Bench.of(self.bench)
        description = task.description if self.plan.descriptions else None
        rows = task.fewshot(self.plan.examples, self.bench.fewshot_splits) if self.plan.examples else []
        examples = tuple((row.input, row.output) for row in rows)
        with bench.matmul():
            model, notes = bench.model(self.plan, task)
            batch, measured = self._batch(model, selected, Query("", description, examples))
            results = score_rows_of(
                model,
                selected,
                description,
                task.max_new_tokens,
                examples=examples,
                budget=batch,
                tick=lambda done: report(self.name, f"{done}/{len(selected.rows)} rows", done / len(selected.rows)),
            )
        summary = {**summary_of(selected, results), **({"batch": measured} if measured else {})}
        return {**summary, **notes, "results": [asdict(result) for result in results]}

    def _batch(
        self, model: EvaluatedModel, selected: EvaluatedRows, query: Query
    ) -> tuple[Budget, dict[str, Any] | None]:
        """The budget of a batch; where it is measured also what is told of it."""
        setting = self.bench.batch_tokens
        if isinstance(setting, int):
            return Budget(setting), None
        kind: Kind = "choices" if selected.metric == "accuracy" else "answers"
        device = device_name(self.bench.base.device)
        batches = self.batches if self.batches is not None else read_batches(self.path.parent)
        earlier = known_budget(batches, kind, device)
        if earlier is not None:
            return earlier, {"device": device, "kind": kind, "tokens": earlier.tokens}
        result = measured_budget(model, selected, query, self.task.max_new_tokens)
        return result.budget, {"device": device, "kind": kind, **result.content}

    def store(self, result: dict[str, Any]) -> None:
        """Put a result's content in place, whole, and what was measured for it beside the router's results."""
        batch = result.get("batch", {})
        head = {
            "format": FORMAT,
            "key": self.key,
            "router": self.plan.label,
            "set": self.task.set,
            "task": self.task.name,
        }
        tail = {"config": self.config, "hashes": self.hashes, "versions": versions()}
        with self.held_folder() as folder:
            if "tokens_per_second" in batch:
                write_json(folder / BATCH_FILE, with_batch(read_batches(folder), batch))
            write_json(folder / self.path.name, {**head, **result, **tail})

    def held_folder(self) -> AbstractContextManager[Path]:
        """A path to the result's folder, `DIR/ROUTER/SET`, to which no link leads; raises `ExpertError` for one."""
        return held_within(self.path.parents[2], *self.path.parts[-3:-1])

    def _has_head(self, content: Mapping[str, Any]) -> bool:
        labels = (self.plan.label, routers.former(self.plan.label))
        head = {"format": FORMAT, "set": self.task.set, "task": self.task.name}
        return content.get("router") in labels and all(content.get(name) == value for name, value in head.items())

    def store_fault(self, fault: Fault) -> None:
        """Put a fault where the result would be: a failed evaluation is never a number."""
        self.store({"fault": {"type": fault.type, "message": fault.text}})

    def read(self) -> dict[str, Any] | None:
        """The finished result of this very cell; None where there is none, or only a fault, a result of other settings,
        or one that an earlier version wrote without the accuracy of guessing."""
        try:
            content = read_json(self.path, LARGEST_RESULT, MOST_OF_RESULT)
        except (OSError, ValueError):
            return None
        if not isinstance(content, dict) or content.get("key") != self.key or "fault" in content:
            return None
        if not self._has_head(content):
            return None  # a report would take it for another's, or for none
        if content.get("score") is None:
            return None  # which the best of several is chosen by
        try:
            require_cell(content)
        except ValueError:
            return None
        return content


@dataclass(frozen=True)
class BestOf(Cell):
    """A cell whose result is that of the best of other cells: an oracle over the single experts."""

    of: dict[str, Cell] = field(default_factory=dict)  # by expert

    def run(self, report: JobTick = silent) -> dict[str, Any]:
        """The result of the expert that is best on the task."""
        results = {name: cell.read() for name, cell in self.of.items()}
        for name, result in results.items():
            if result is None:
                raise ConfigError("a result of every expert (oracle)", f"none of {name}", "See that cell's fault.")
        scores = {name: result["score"] for name, result in results.items() if result is not None}
        best = results[best_expert(scores)] or {}
        shared = ("metric", "score", "rows", "available", "left_out", "guess", "seconds", "corpus_bleu")
        content = {name: best[name] for name in shared if name in best}
        return {**content, "oracle": {"expert": best_expert(scores), "scores": scores}, "results": best["results"]}


def versions() -> dict[str, str]:
    """Versions of the packages that affect a result."""
    installed = {}
    for name in _PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed
