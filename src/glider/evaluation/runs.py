"""Routers x tasks, one JSON file for each pair: a run that may stop anywhere and goes on where it was."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from glider.contribute.lorahub import search_lorahub
from glider.errors import ConfigError, GliderError
from glider.evaluation.run_plan import (
    FORMAT,
    RouterPlan,
    RunPlan,
    Task,
    cell_key,
    pool_hash,
    router_hashes,
    without_place,
)
from glider.evaluation.task_rows import score_rows_of, summary_of
from glider.experts.pool import Pool
from glider.files.disk import sha256, write_json
from glider.inference.base_model import BaseModel
from glider.inference.model import RoutedModel
from glider.inference.spec import ModelSpec, base_of, device_of, dtype_of, open_pool
from glider.routing.methods.oracle import best_expert

Status = Literal["unchanged", "done", "failed", "absent"]
Tick = Callable[[str, str, int], None]  # router, task, rows done
Kind = TypeVar("Kind")
_PACKAGES = (
    *("glider-moe", "torch", "transformers", "peft", "tokenizers", "sentence-transformers", "numpy", "scipy"),
    *("lm-eval", "rouge-score", "sacrebleu", "nevergrad"),
)


@dataclass(frozen=True)
class Cell:
    """One router on one task, and the file of its result."""

    plan: RouterPlan
    task: Task
    path: Path
    config: dict[str, Any]
    hashes: dict[str, str]

    @property
    def key(self) -> str:
        """The hash of everything that decides the result."""
        return cell_key(self.config, self.hashes)

    def read(self) -> dict[str, Any] | None:
        """The finished result of this very cell; None where there is none, or one of other settings, or a fault, or one
        that an earlier version wrote without what guessing gives."""
        try:
            told = json.loads(self.path.read_text("utf8"))
        except (OSError, ValueError):
            return None
        return told if told.get("key") == self.key and "guess" in told else None

    def write(self, content: dict[str, Any]) -> None:
        """Put a result or a fault in place, whole."""
        head = {
            "format": FORMAT,
            "key": self.key,
            "router": self.plan.label,
            "set": self.task.set,
            "task": self.task.name,
        }
        tail = {"config": self.config, "hashes": self.hashes, "versions": versions()}
        write_json(self.path, {**head, **content, **tail})


@dataclass(frozen=True)
class Outcome:
    """How a cell ended."""

    cell: Cell
    status: Status
    message: str = ""


class Run:
    """A run file over a pool, with its results in a directory. `only_` lists, where given, leave all else out."""

    def __init__(
        self,
        plan: RunPlan,
        root: Path,
        out: Path,
        only_routers: Sequence[str] = (),
        only_tasks: Sequence[str] = (),
        only_sets: Sequence[str] = (),
    ):
        self.plan, self.out = plan, out
        self.pool: Pool = open_pool(plan.pool if plan.pool == "demo" else root / plan.pool)
        dtype_of(plan.dtype)
        device_of(plan.device)
        routers = plan.router_plans(root, self.pool)
        wanted = _with_singles(routers, only_routers, self.pool)
        self.routers = _named("router", routers, lambda own: own.label, wanted)
        tasks = _named("set", plan.tasks(root), lambda own: own.set, only_sets)
        self.tasks = _named("task", tasks, lambda own: own.name, only_tasks)
        self._base_name = plan.base or base_of(self.pool)
        self._base: BaseModel | None = None
        hashes = {"pool": pool_hash(self.pool), "base": self.pool.index.base.hash}
        files = {task.path: sha256(task.path) for task in self.tasks}
        self.cells = {
            (router.label, task.set, task.name): self._cell(router, task, {**hashes, "data": files[task.path]})
            for router in self.routers
            for task in self.tasks
        }
        places = [str(cell.path) for cell in self.cells.values()]
        if twice := sorted({path for path in places if places.count(path) > 1}):
            raise ConfigError("names that make different files", ", ".join(twice), "Give the routers other names.")

    def go(self, tick: Tick = lambda router, task, done: None) -> Iterator[Outcome]:
        """Evaluate what is missing, router by router; yields an outcome for each cell as it ends.

        A cell that fails is written as a fault, without a score, and tried again by the next run. Interrupted at any
        moment, no file is partial, and the next run goes on with the cell that was broken off.
        """
        for router in sorted(self.routers, key=lambda own: own.router == "oracle"):  # of the others' results
            todo = []
            for task in self.tasks:
                cell = self.cells[router.label, task.set, task.name]
                if self.absent(router, task):
                    yield Outcome(cell, "absent")
                elif cell.read() is not None:
                    yield Outcome(cell, "unchanged")
                else:
                    todo.append(cell)
            if router.router == "oracle":
                yield from (self._attempt(cell, lambda cell=cell: self._oracle(cell)) for cell in todo)
            elif router.by_task:
                for cell in todo:
                    yield from self._with_model(cell.plan, [cell], tick)
            elif todo:
                yield from self._with_model(router, todo, tick)

    def _with_model(self, router: RouterPlan, cells: Sequence[Cell], tick: Tick) -> Iterator[Outcome]:
        """Evaluate cells that share one routed model."""
        self.base()  # a base that is missing stops the run
        try:
            with self._matmul():
                model, notes = self._model(router, cells[0].task)
        except Exception as fault:  # one router's fault is not the others'
            yield from [self._fail(cell, fault) for cell in cells]
            return
        try:
            for cell in cells:
                yield self._attempt(cell, lambda cell=cell: self._evaluate(cell, model, notes, tick))
        finally:
            model.detach()

    def _model(self, plan: RouterPlan, task: Task) -> tuple[RoutedModel, dict[str, Any]]:
        base = self.base()
        if not plan.searched:
            router = plan.router.replace("{task}", task.name)
            return ModelSpec(router=router, settings=plan.settings, strict=True).over(base, self.pool), {}
        rows = task.fewshot(plan.fewshot, self.plan.fewshot_splits)
        search = search_lorahub(base, self.pool, rows, **{"seed": self.plan.seed, **plan.settings})
        told = {"weights": search.weights, "loss": search.best.loss, "rows": len(rows)}
        return ModelSpec(router=search.router, strict=True).over(base, self.pool), {"lorahub": told}

    def _evaluate(self, cell: Cell, model: RoutedModel, notes: dict[str, Any], tick: Tick) -> dict[str, Any]:
        task, chosen = cell.task, cell.task.chosen()
        description = task.description if cell.plan.descriptions else None
        rows = task.fewshot(cell.plan.examples, self.plan.fewshot_splits) if cell.plan.examples else []
        examples = tuple((row.input, row.output) for row in rows)
        with self._matmul():
            results = score_rows_of(
                *(model, chosen, description, task.max_new_tokens),
                examples=examples,
                tick=lambda done: tick(cell.plan.label, task.name, done),
            )
        return {**summary_of(chosen, results), **notes, "results": [asdict(result) for result in results]}

    def _oracle(self, cell: Cell) -> dict[str, Any]:
        """The result of the expert that is best on the task, taken from the cells of the singles."""
        told = {}
        for name in self.pool.names:
            single = next(plan for plan in self.routers if plan.router == f"single:{name}")
            result = self.cells[single.label, cell.task.set, cell.task.name].read()
            if result is None:
                raise ConfigError("a result of every expert (oracle)", f"none of {name}", "See that cell's fault.")
            told[name] = result
        scores = {name: result["score"] for name, result in told.items()}
        best = told[best_expert(scores)]
        kept = ("metric", "score", "rows", "available", "left_out", "guess", "seconds", "corpus_bleu", "results")
        content = {name: best[name] for name in kept if name in best and name != "results"}
        return {**content, "oracle": {"expert": best_expert(scores), "scores": scores}, "results": best["results"]}

    def _attempt(self, cell: Cell, work: Callable[[], dict[str, Any]]) -> Outcome:
        try:
            cell.write(work())
        except Exception as fault:  # a failed evaluation is a fault, never a number
            return self._fail(cell, fault)
        return Outcome(cell, "done")

    def _fail(self, cell: Cell, fault: Exception) -> Outcome:
        text = " ".join(str(fault).split())
        cell.write({"fault": {"type": type(fault).__name__, "message": text}})
        return Outcome(cell, "failed", text if isinstance(fault, GliderError) else f"{type(fault).__name__}: {text}")

    def _cell(self, router: RouterPlan, task: Task, hashes: dict[str, str]) -> Cell:
        name = router.router.replace("{task}", task.name)
        config: dict[str, Any] = {
            "router": {"router": without_place(name), "settings": router.settings},
            "task": task.settings() | ({} if router.descriptions else {"description": None}),
            "base": self._base_name,
            "dtype": self.plan.dtype,
            "matmul": self.plan.matmul,
        }
        if router.searched:
            config["fewshot"] = {"rows": router.fewshot, "splits": self.plan.fewshot_splits, "seed": self.plan.seed}
        if router.examples:
            config["examples"] = {"rows": router.examples, "splits": self.plan.fewshot_splits, "seed": self.plan.seed}
        path = self.out / _file_name(router.label) / _file_name(task.set) / f"{_file_name(task.name)}.json"
        return Cell(router, task, path, config, hashes | router_hashes(name))

    def absent(self, router: RouterPlan, task: Task) -> bool:
        """Whether `single:{task}` has no expert of that name."""
        return router.router == "single:{task}" and task.name not in self.pool.names

    @contextmanager
    def _matmul(self) -> Iterator[None]:
        """The run's precision of float32 products, which PyTorch holds for the whole process."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.plan.matmul)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def base(self) -> BaseModel:
        """The base model, loaded when first needed."""
        if self._base is None:
            self.pool.verify()
            spec = ModelSpec(base=self._base_name, dtype=self.plan.dtype, device=self.plan.device)
            self._base = spec.load_base()
        return self._base


def _named(kind: str, found: list[Kind], name: Callable[[Kind], str], only: Sequence[str]) -> list[Kind]:
    """Those of the names asked for, or all."""
    known = {name(own) for own in found}
    if unknown := [wanted for wanted in only if wanted not in known]:
        raise ConfigError(f"a {kind} of the run ({', '.join(sorted(known))})", ", ".join(unknown), "Check the name.")
    return [own for own in found if not only or name(own) in only]


def _with_singles(routers: Sequence[RouterPlan], only: Sequence[str], pool: Pool) -> list[str]:
    """The names asked for; an oracle, whatever its name, brings the single experts it chooses among."""
    if not any(plan.router == "oracle" and plan.label in only for plan in routers):
        return list(only)
    singles = {f"single:{name}" for name in pool.names}
    return [*only, *(plan.label for plan in routers if plan.router in singles)]


def versions() -> dict[str, str]:
    """Of the packages that have a part in a result."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.")
