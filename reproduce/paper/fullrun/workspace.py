"""Everything a cell needs on disk, made once and found again: downloads, pools, rows, run files, results."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from fullrun.figures import draw
from fullrun.hub import Hub
from fullrun.notes import noted
from fullrun.plan import Cell, Plan, PoolSource, TaskSet
from fullrun.prompts import read_prompts
from fullrun.published_queries import learn, read_queries, vectors_of
from fullrun.published_scores import published_score
from fullrun.readers import HubRow
from fullrun.sources import FEWSHOT_SPLIT, Fetch, FromHub, Prompts, task_rows
from glider.contribute.published_format import open_checkpoint, read_embeddings
from glider.contribute.published_import import OfficialBase, import_checkpoint
from glider.errors import ConfigError, DataError, PoolError
from glider.evaluation.budgets import USUAL
from glider.evaluation.run_plan import RunPlan
from glider.evaluation.runs import Run
from glider.experts.pool import Pool
from glider.files.disk import new_directory, write_file, write_json
from glider.inference.base_model import load_base
from glider.jobs.base import Executor, JobResult
from glider.jobs.local import LocalExecutor

OWNER = "MoE-UNC"  # of the published downloads on the hub
EXPERT = "_best.pt"  # how the file of an expert ends
Say = Callable[[str], None]


@dataclass(frozen=True)
class Workspace:
    """A directory of work, and where rows and templates come from."""

    root: Path
    downloads: Path
    fetch: Fetch | None = None  # default: the hub, kept in the downloads
    prompts: Prompts = read_prompts
    flan: Callable[[str], Iterable[Sequence[HubRow]]] | None = None  # rows of Flan's submixes; default: the hub's
    dtype: str = "float32"
    device: str = "cpu"
    say: Say = field(default=lambda line: None)
    executor: Executor | None = None  # of the cells; default: this process
    hub: Hub = Hub()
    batch_tokens: int | Literal["auto"] = USUAL.tokens  # of the cells

    def run(self, plan: Plan) -> list[dict[str, Any]]:
        """Train and evaluate what is missing of a plan; each cell's summary, also kept in `summary.json`.

        What can be seen to be wrong of a pool is told before anything is made.
        """
        from fullrun.training import train

        if plan.trainings and self.executor not in (None, LocalExecutor()):
            remedy = "Say --devices, or give the pool.yaml that the data step writes to `glider pool build`."
            raise ConfigError("training in plain processes", "another executor, or workers", remedy)
        self.require_pools(plan)
        told = [train(self, training) for training in plan.trainings]
        for cells in plan.groups():
            pool, tasks = plan.pools[cells[0].pool], plan.sets[cells[0].set]
            if cells[0].figure is not None:
                told += [self._figure(cell, pool, tasks) for cell in cells]
                continue
            run = Run(self.run_plan(cells, pool, tasks), self.root, self.results(cells[0]))
            for result in run.go(executor=self._executor_of(run), shared=True):
                self._tell(result)
            told += [self._summary(cell, tasks, run) for cell in cells]
        return told

    @property
    def rows_of_hub(self) -> Fetch:
        """Where rows come from."""
        return self.fetch or FromHub(self.downloads / "data", self.hub)

    def require_pools(self, plan: Plan) -> None:
        """Raise `PoolError` for a pool of the plan whose checkpoint has another number of experts than it should.

        What lies among the downloads is counted there, what is to be downloaded in the hub's list of its files.
        """
        for name in dict.fromkeys(cell.pool for cell in plan.cells):
            source = plan.pools[name]
            if source.checkpoint is None:
                continue
            files = self._expert_files(source.checkpoint)
            found = [
                file for file in files if file.endswith(EXPERT) and file.removesuffix(EXPERT) not in source.without
            ]
            if files and found and len(found) != source.experts:  # of the other layout one file holds all experts
                remedy = f"Look at what it lacks or has beside them, download it anew, or mend pools.yaml ({name})."
                raise PoolError(f"{source.experts} experts in {source.checkpoint}", str(len(found)), remedy)

    def _expert_files(self, checkpoint: str) -> list[str]:
        """Names of the files of a checkpoint, there or on the hub; none where neither can be asked."""
        here = self.downloads / checkpoint
        if here.exists() and not self._begun(checkpoint.partition("/")[0]).exists():
            return [file.name for file in sorted(here.iterdir())]
        if self.fetch is not None:  # rows are made up: nothing is downloaded
            return []
        top, _, below = checkpoint.partition("/")
        return [Path(file.path).name for file in self.hub.files(f"{OWNER}/{top}", "model", folder=below)]

    def _executor_of(self, run: Run) -> Executor | None:
        """The executor, whose processes know the published queries as this one does."""
        keys = {task.description for task in run.tasks if task.description is not None}
        if not keys or self.executor is None or self.executor == LocalExecutor():
            return self.executor
        if isinstance(self.executor, LocalExecutor):
            got = f"{self.executor.workers} workers here, which do not know them"
            remedy = "Say --workers 1, or --executor ray."
            raise ConfigError("one process, for the published embeddings of queries", got, remedy)
        return replace(self.executor, setup=partial(learn, vectors_of(keys)))  # pyright: ignore

    def run_plan(self, cells: tuple[Cell, ...], pool: PoolSource, tasks: TaskSet) -> RunPlan:
        """The run of `glider evaluate` for cells of one config, pool and set; its file is kept in `runs`."""
        first = cells[0]
        path = self.pool(first.pool, pool)
        data = self.rows(first.set, tasks, pool.base)
        queries = self.root / "queries" / f"{first.set}.json"
        if pool.experts:
            write_json(queries, read_queries(self.download(tasks.queries), tasks.tasks))
        told = {
            "pool": str(path),
            "base": pool.base,
            "dtype": self.dtype,
            "device": self.device,
            "batch_tokens": self.batch_tokens,
            "fewshot_splits": [FEWSHOT_SPLIT],
            **({"descriptions": str(queries)} if pool.experts else {}),
            "routers": [
                {
                    "router": cell.method.router,
                    "settings": cell.method.settings,
                    "name": cell.label,
                    "fewshot": cell.method.fewshot,
                }
                for cell in cells
            ],
            "sets": {
                first.set: {
                    "tasks": [
                        {
                            "data": str(data[name]),
                            "name": name,
                            "metric": task.metric,
                            **({"max_new_tokens": task.max_length - 1} if task.max_length else {}),
                        }
                        for name, task in tasks.tasks.items()
                    ]
                }
            },
        }
        self._keep_run(first, told)
        return RunPlan.parse(**told)

    def _keep_run(self, cell: Cell, told: dict[str, Any]) -> None:
        """Keep a run's file, with the methods that other calls have put there."""
        kept = self.root / "runs" / cell.config / f"{cell.pool}-{cell.set}.yaml"
        with self.alone(f"run-{cell.config}-{cell.pool}-{cell.set}"):
            before = _kept(kept, "a run file")
            names = {router["name"] for router in told["routers"]}
            others = [router for router in _routers(before, kept) if router["name"] not in names]
            write_json(kept, {**told, "routers": [*others, *told["routers"]]})  # JSON is YAML

    @contextmanager
    def alone(self, what: str, place: Path | None = None) -> Iterator[None]:
        """Be the one process at work on something that processes over one `--work` share; the others wait.

        `place` is the lock's file, for what several places of work share.
        """
        place = place or self.root / "locks" / f"{what.replace('/', '-')}.lock"
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.say(f"waiting for another process: {what}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def results(self, cell: Cell) -> Path:
        return self.root / "results" / cell.config / cell.pool

    def download(self, path: str) -> Path:
        """A published file or directory: as it lies in the downloads, else from the hub."""
        top = path.partition("/")[0]
        begun = self._begun(top)
        if not begun.exists() and (self.downloads / top).exists():  # whole, in a place that need not be ours to write
            return self.downloads / path
        begun.parent.mkdir(parents=True, exist_ok=True)
        with self.alone(f"download-{top}", begun.with_name(f"{top}.lock")):
            return self._download(path)

    def _begun(self, top: str) -> Path:
        """The mark of a download that is not whole: among the downloads, which several places of work may share."""
        return self.downloads / ".begun" / top

    def _download(self, path: str) -> Path:
        top = path.partition("/")[0]
        begun = self._begun(top)
        if begun.exists() or not (self.downloads / top).exists():
            self.say(f"downloading {OWNER}/{top}")
            begun.touch()
            files = self.hub.files(f"{OWNER}/{top}", "model")
            if not files:
                raise DataError(f"{OWNER}/{top} from the hub", "no files", "Check it on the hub.")
            for file in files:
                self.hub.fetch(file, self.downloads / top / file.path)
            begun.unlink()
        return self.downloads / path

    def pool(self, name: str, source: PoolSource) -> Path:
        """The pool of a name, imported where it is not there yet or its source changed."""
        with self.alone(f"pool-{name}"):
            return self._pool(name, source)

    def _pool(self, name: str, source: PoolSource) -> Path:
        path, beside = self.root / "pools" / name, self.root / "pools" / f"{name}.source.json"
        wanted = source.model_dump(mode="json") | {"files": self._files_of(source)}
        if path.exists() and noted(beside) == wanted:
            return path
        self.say(f"importing the pool {name}")
        beside.unlink(missing_ok=True)  # or a kill would leave the new pool with the old one's source
        shutil.rmtree(path, ignore_errors=True)
        self._import(path, source)
        write_json(beside, wanted)
        return path

    def _files_of(self, source: PoolSource) -> dict[str, int]:
        """Sizes of the downloaded files that a pool is made of."""
        places = [self.download(place) for place in (source.checkpoint, source.embeddings) if place is not None]
        files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*.pt")))]
        return {str(file.relative_to(self.downloads)): file.stat().st_size for file in files}

    def _import(self, path: Path, source: PoolSource) -> None:
        if source.checkpoint is None:
            base = load_base(source.base)
            with new_directory(path) as made:
                Pool.create(made, base.identity)
            return
        checkpoint = open_checkpoint(self.download(source.checkpoint))
        left_out = [expert for expert in source.without if expert in checkpoint.names]
        if (count := len(checkpoint.names) - len(left_out)) != source.experts:
            remedy = "Download it anew, or mend pools.yaml."
            raise PoolError(f"{source.experts} experts in {checkpoint.path}", str(count), remedy)
        embeddings = None if source.embeddings is None else read_embeddings(self.download(source.embeddings))
        base = load_base(source.base)
        facts = OfficialBase.of(base.model, base.identity.model_id)
        del base
        import_checkpoint(checkpoint, path, facts, embeddings=embeddings, without=left_out)

    def rows(self, name: str, tasks: TaskSet, base: str) -> dict[str, Path]:
        """A file of rows for each task of a set, fetched where it is not there yet or its source changed.

        Prompts are cut by the tokenizer of `base`; the bases of all pools have the same one.
        """
        with self.alone(f"rows-{name}"):
            return self._rows(name, tasks, base)

    def _rows(self, name: str, tasks: TaskSet, base: str) -> dict[str, Path]:
        files = {task: self.root / "rows" / name / f"{task}.jsonl" for task in tasks.tasks}
        shared = tasks.model_dump(mode="json", exclude={"tasks", "queries"})
        tokenizer: Any = None
        for task, file in files.items():
            source = tasks.tasks[task]
            wanted = {**shared, **source.model_dump(mode="json", exclude={"assumed", "available"})}
            beside = file.with_suffix(".source.json")
            if file.is_file() and noted(beside) == wanted:
                continue
            self.say(f"rows of {name}/{task}")
            beside.unlink(missing_ok=True)  # a kill must not leave new rows with the old ones' source
            tokenizer = tokenizer or tokenizer_of(base)
            found = task_rows(source, tasks, self.rows_of_hub, partial(shortened, tokenizer), prompts=self.prompts)
            lines = "".join(json.dumps({"task": task, **row}, ensure_ascii=False) + "\n" for row in found)
            write_file(file, lambda place, lines=lines: place.write_text(lines, "utf8"))
            write_json(beside, wanted)
        return files

    def _figure(self, cell: Cell, pool: PoolSource, tasks: TaskSet) -> dict[str, Any]:
        """Draw a figure of one method, pool and set, with its numbers beside it."""
        place, rows = self.pool(cell.pool, pool), self.rows(cell.set, tasks, pool.base)
        queries = read_queries(self.download(tasks.queries), tasks.tasks)
        spec = {"pool": str(place), "base": pool.base, "dtype": self.dtype, "device": self.device}
        self.say(f"drawing {cell.label} {cell.pool}/{cell.set}")
        numbers = self.results(cell) / f"{cell.label}-{cell.set}.json"
        picture = draw(cell, spec, list(rows.values()), queries, numbers)
        told: dict[str, Any] = {"config": cell.config, "method": cell.label, "pool": cell.pool, "set": cell.set}
        return told | {"score": None, "published": None, "missing": [], "tasks": {}, "figure": str(picture)}

    def _tell(self, result: JobResult) -> None:
        cell = result.job
        self.say(f"{result.status}: {cell.plan.label} {cell.task.set}/{cell.task.name} {result.message}".rstrip())

    def _summary(self, cell: Cell, tasks: TaskSet, run: Run) -> dict[str, Any]:
        """The cell's score as published: the mean over its tasks, and none while one is missing."""
        scores, missing = {}, []
        for name, task in tasks.tasks.items():
            found = run.cells[cell.label, cell.set, name].read()
            if found is not None:
                scores[name] = round(100 * published_score(task.metrics, found), 3)
            else:
                missing.append(name)
        told: dict[str, Any] = {"config": cell.config, "method": cell.label, "pool": cell.pool, "set": cell.set}
        told |= {"score": None if missing or not scores else round(sum(scores.values()) / len(scores), 2)}
        told |= {"published": cell.published, "missing": missing, "tasks": scores}
        path = self.results(cell) / "summary.json"
        with self.alone(f"summary-{cell.config}-{cell.pool}"):
            write_json(path, {**_kept(path, "summaries"), f"{cell.label}/{cell.set}": told})
        return told


def _kept(path: Path, what: str) -> dict[str, Any]:
    """What earlier calls put into a file, which this one adds to; raises `ConfigError` where it would be lost."""
    if not os.path.lexists(path):
        return {}
    if not isinstance(kept := noted(path), dict):
        raise ConfigError(f"{what} in {path}", "another content", "Move the file away: it is written anew.")
    return kept


def _routers(kept: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    routers = kept.get("routers", [])
    if not isinstance(routers, list) or not all(isinstance(router, dict) and "name" in router for router in routers):
        raise ConfigError(f"a run file in {path}", "other routers", "Move the file away: it is written anew.")
    return routers


def tokenizer_of(base: str) -> Any:
    """The tokenizer of a base by its id or path."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def shortened(tokenizer: Any, text: str, most: int) -> str:
    """The beginning of a text that fits, with its end token, into so many tokens, as the published code cuts it."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return text if len(ids) < most else tokenizer.decode(ids[: most - 1], skip_special_tokens=True)
