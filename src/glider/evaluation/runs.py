"""Routers x tasks, one JSON file for each pair: a run that can stop anywhere and be resumed."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from glider.config import repeated
from glider.data.rows import rows_digest
from glider.errors import BaseModelError, ConfigError
from glider.evaluation.cells import Bench, BenchSpec, BestOf, Cell, require_by_vllm
from glider.evaluation.run_plan import RouterPlan, RunPlan, Task, pool_hash, router_hashes, without_place
from glider.experts.pool import Pool
from glider.files.disk import held_within
from glider.files.replacing import sweep
from glider.inference.base_model import BaseModel
from glider.inference.spec import BaseSpec, base_of, device_of, dtype_of, open_pool
from glider.jobs.base import Executor, JobResult, JobTick, silent
from glider.jobs.local import LocalExecutor
from glider.jobs.run import only_writer, run_jobs
from glider.routing.base import routers

Kind = TypeVar("Kind")


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
        place = plan.pool if plan.pool == "demo" else str(root / plan.pool)
        self.pool: Pool = open_pool(place, plan.key_file(root))
        dtype_of(plan.dtype)
        device_of(plan.device)
        routers = plan.router_plans(root, self.pool)
        selected = _with_singles(routers, only_routers, self.pool)
        self.routers = _named("router", routers, lambda router: router.label, selected)
        tasks = _named("set", plan.tasks(root), lambda task: task.set, only_sets)
        self.tasks = _named("task", tasks, lambda task: task.name, only_tasks)
        spec = BaseSpec(base=plan.base or base_of(self.pool), dtype=plan.dtype, device=plan.device)
        hashes = {"pool": pool_hash(self.pool), "base": self.pool.index.base.hash}
        self.bench = BenchSpec(
            pool=place,
            require_key=plan.key_file(root),
            pool_hash=hashes["pool"],
            base=spec,
            matmul=plan.matmul,
            seed=plan.seed,
            fewshot_splits=plan.fewshot_splits,
            engine=plan.engine,
            batch_tokens=plan.batch_tokens,
        )
        if plan.engine == "vllm":
            require_by_vllm(self.bench, self.routers)
        files = {task.path: rows_digest(task.path) for task in self.tasks}
        self.cells: dict[tuple[str, str, str], Cell] = {}
        for router in sorted(self.routers, key=lambda router: router.of_results):  # of the others' results
            for task in self.tasks:
                key = (router.label, task.set, task.name)
                self.cells[key] = self._cell(router, task, {**hashes, "data": files[task.path]})
        places = [str(cell.path) for cell in self.cells.values()]
        if twice := sorted(repeated(places)):
            raise ConfigError("names that make different files", ", ".join(twice), "Give the routers other names.")

    def go(
        self, report: JobTick = silent, executor: Executor | None = None, *, shared: bool = False
    ) -> Iterator[JobResult]:
        """Evaluate what is missing, router by router; yields how each cell ended.

        A cell that fails is written as a fault, without a score, and tried again by the next run. An interruption
        leaves no partial file, and the next run continues with the interrupted cell. Raises `BaseModelError`
        where there is no base model, `ExpertError` for a link in place of a folder, and `ConfigError` for a directory
        or a pipe in place of a result, and while another process writes results there; with `shared` only while it
        writes those of the same router and set, so that several processes may fill one directory.
        """
        executor = executor or LocalExecutor()
        folders = {cell.path.parent: cell.held_folder for cell in self.cells.values()}
        with ExitStack() as stack:
            for held in [folders[path] for path in sorted(folders)] if shared else [lambda: held_within(self.out)]:
                stack.enter_context(only_writer(stack.enter_context(held())))
            for path in sorted(folders):
                with folders[path]() as folder:
                    sweep(folder)  # what killed runs left
            if blocked := [str(path) for path in (cell.path for cell in self.cells.values()) if _is_no_file(path)]:
                got = f"a directory, a pipe or a device at {', '.join(blocked[:3])}"
                raise ConfigError("files of results, or none", got, "Move it away; nothing was evaluated.")
            try:
                for of_results in (False, True):
                    cells = [cell for cell in self.cells.values() if cell.plan.of_results == of_results]
                    yield from self._go(cells, report, LocalExecutor() if of_results else executor)
            finally:
                Bench.close()

    def _go(self, cells: Sequence[Cell], report: JobTick, executor: Executor) -> Iterator[JobResult]:
        present = [cell for cell in cells if not self.absent(cell.plan, cell.task)]
        yield from (JobResult(cell, "absent") for cell in cells if cell not in present)
        for result in run_jobs(present, executor, report):
            if result.fault is not None and result.fault.type == BaseModelError.__name__:
                raise BaseModelError(*result.fault.parts)
            if result.fault is not None:
                result.job.store_fault(result.fault)
            yield result

    def base(self) -> BaseModel:
        """The base model, loaded when first needed."""
        return Bench.of(self.bench).base

    def absent(self, router: RouterPlan, task: Task) -> bool:
        """Whether `single:{task}` has no expert of that name."""
        return router.router == "single:{task}" and task.name not in self.pool.names

    def _folder(self, router: RouterPlan) -> Path:
        """The folder of a router's results: under its name, or its former name where results exist there."""
        folder, former = (self.out / _file_name(name) for name in (router.label, routers.former(router.label)))
        return former if former.is_dir() and not folder.is_dir() else folder

    def _cell(self, router: RouterPlan, task: Task, hashes: dict[str, str]) -> Cell:
        name = router.router.replace("{task}", task.name)
        config: dict[str, Any] = {
            "router": {"router": without_place(name), "settings": router.settings},
            "task": task.settings() | ({} if router.descriptions else {"description": None}),
            "base": self.bench.base.base,
            "dtype": self.plan.dtype,
            "matmul": self.plan.matmul,
        }
        if self.plan.engine != "transformers":
            config["engine"] = self.plan.engine
        if router.searched:
            config["fewshot"] = {"rows": router.fewshot, "splits": self.plan.fewshot_splits, "seed": self.plan.seed}
        if router.examples:
            config["examples"] = {"rows": router.examples, "splits": self.plan.fewshot_splits, "seed": self.plan.seed}
        path = self._folder(router) / _file_name(task.set) / f"{_file_name(task.name)}.json"
        parts = (router, task, path, config, hashes | router_hashes(name), self.bench)
        if not router.of_results:
            return Cell(*parts)
        singles = {plan.router: plan.label for plan in self.routers}
        of = {name: self.cells[singles[f"single:{name}"], task.set, task.name] for name in self.pool.names}
        return BestOf(*parts, of=of)


def _named(kind: str, every: list[Kind], name: Callable[[Kind], str], only: Sequence[str]) -> list[Kind]:
    """The items of the requested names, or all."""
    known = {name(one) for one in every}
    if unknown := [label for label in only if label not in known]:
        raise ConfigError(f"a {kind} of the run ({', '.join(sorted(known))})", ", ".join(unknown), "Check the name.")
    return [one for one in every if not only or name(one) in only]


def _with_singles(routers: Sequence[RouterPlan], only: Sequence[str], pool: Pool) -> list[str]:
    """The requested names; a router that needs others' results adds the single experts."""
    if not any(plan.of_results and plan.label in only for plan in routers):
        return list(only)
    singles = {f"single:{name}" for name in pool.names}
    return [*only, *(plan.label for plan in routers if plan.router in singles)]


def _is_no_file(path: Path) -> bool:
    return path.exists() and not path.is_file()


def _file_name(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.")
    return name or hashlib.sha256(text.encode()).hexdigest()[:12]  # of no such letter
