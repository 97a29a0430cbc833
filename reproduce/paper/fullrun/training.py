"""Section 5.1: the data step, then every expert, trained where it is not there yet; several processes may share it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fullrun.notes import noted
from fullrun.training_plan import CategorySource, FlanSource, Training
from fullrun.training_rows import (
    CLONE,
    Fit,
    FlanFiles,
    Rows,
    as_lines,
    category_rows,
    flan_rows,
    task_training_rows,
)
from fullrun.workspace import Workspace, shortened, tokenizer_of
from glider.contribute.build import ExpertJob, PoolPlan
from glider.experts.card import ExpertCard
from glider.files.disk import write_file, write_json
from glider.inference.spec import BaseSpec
from glider.jobs.base import attempt

FORM_TOKENS = 8  # that a prompt's form may add: its beginning, a line break, the answer's end
FILE = "pool.yaml"  # a plan of `glider pool build`


def train(space: Workspace, training: Training) -> dict[str, Any]:
    """Make what is missing of a pool of experts; its summary, with the experts that could not be trained.

    Processes over one place of work share the experts: one that another process is training is left to it, and waited
    for in the end.
    """
    folder = space.root / "training" / training.name
    pool = space.root / "pools" / f"trained-{training.name}"
    prepare(space, training, folder)
    plan = PoolPlan.read(folder / FILE)
    jobs = plan.jobs(folder, pool, BaseSpec(base=training.base, dtype=training.dtype, device=space.device))
    faults: dict[str, str] = {}
    left = [job for job in jobs if not _trained(space, job, faults, wait=False)]
    for job in left:
        _trained(space, job, faults, wait=True)
    return _summary(training, pool, jobs, faults)


def prepare(space: Workspace, training: Training, folder: Path) -> None:
    """The rows of every task, and beside them the plan that `glider pool build` takes too."""
    tasks, fit = training.tasks, _Fit(training.base, training.settings.max_tokens)
    with space.alone(f"training-rows-{training.name}"):
        missing = [name for name in tasks if not _is_there(folder, name, training)]
        for name, rows in _rows(space, training, missing, fit):
            space.say(f"{len(rows)} training rows of {name}")
            file = folder / "rows" / f"{name}.jsonl"
            file.with_suffix(".source.json").unlink(missing_ok=True)  # of other rows
            write_file(file, partial(_write_text, as_lines(rows, name)))
            write_json(file.with_suffix(".source.json"), _source(training, name))
        experts = [{"name": name, "task": name, "data": f"rows/{name}.jsonl"} for name in tasks]
        settings = dict(training.settings.content)
        write_json(folder / FILE, {"base": training.base, "defaults": settings, "experts": experts})  # JSON is YAML


def _write_text(text: str, place: Path) -> None:
    place.write_text(text, "utf8")


class _Fit:
    """Cuts inputs so that they are trained on with their answers: `glider expert train` leaves longer rows out.

    The tokenizer of the base is loaded when the first text might be too long.
    """

    def __init__(self, base: str, most: int):
        self._base, self._most, self._tokenizer = base, most - FORM_TOKENS, None

    def __call__(self, text: str, answer: str) -> str:
        if len(text.encode()) + len(answer.encode()) <= self._most:  # a token is a byte at least
            return text
        self._tokenizer = self._tokenizer or tokenizer_of(self._base)
        taken = len(self._tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"])
        return shortened(self._tokenizer, text, max(self._most - taken, 1))


def _rows(space: Workspace, training: Training, names: list[str], fit: Fit) -> Iterator[tuple[str, Rows]]:
    flan: dict[str, dict[str, FlanSource]] = {}
    categories: dict[str, CategorySource] = {}
    for name in names:
        task = training.tasks[name]
        if isinstance(task, FlanSource):
            flan.setdefault(task.submix, {})[name] = task
        elif isinstance(task, CategorySource):
            categories[name] = task
        else:
            yield name, task_training_rows(task, training.most, space.rows_of_hub, space.prompts, fit)
    if categories:
        yield from category_rows(categories, space.downloads / CLONE, training.most, fit).items()
    files = space.flan or FlanFiles(space.downloads / "data", space.hub)
    for submix, tasks in flan.items():
        space.say(f"reading the submix {submix}")
        yield from flan_rows(tasks, files(submix), training.most, fit).items()


def _source(training: Training, name: str) -> dict[str, Any]:
    source = training.tasks[name].model_dump(mode="json", exclude={"assumed", "available"})
    return source | {"most": training.most, "tokenizer": training.base, "max_tokens": training.settings.max_tokens}


def _is_there(folder: Path, name: str, training: Training) -> bool:
    file = folder / "rows" / f"{name}.jsonl"
    beside = file.with_suffix(".source.json")
    return file.is_file() and noted(beside) == _source(training, name)


def _trained(space: Workspace, job: ExpertJob, faults: dict[str, str], *, wait: bool) -> bool:
    """Train an expert and put it into the pool, unless it is there; False where another process is at it."""
    with _mine(space, job, wait) as mine:
        if not mine:
            return False
        with space.alone(f"pool-{job.out.parent.name}"):
            if job.finished:
                space.say(f"unchanged: {job.name}")
                job.renew()
                return True
        space.say(f"training {job.name}")
        tried = attempt(job, partial(_tell, space))
        if tried.fault is not None:
            faults[job.name] = tried.fault.message
            space.say(f"failed: {job.name} {tried.fault.message}")
            return True
        with space.alone(f"pool-{job.out.parent.name}"):
            job.store(tried.result)
        space.say(f"done: {job.name}")
        return True


def _tell(space: Workspace, name: str, text: str, share: float) -> None:
    """Each hundredth step, so that a log stays short."""
    step = text.partition(" ")[2].partition("/")[0]
    if step.isdigit() and int(step) % 100 == 0:
        space.say(f"{name}: {text}")


@contextmanager
def _mine(space: Workspace, job: ExpertJob, wait: bool) -> Iterator[bool]:
    """Whether this process is the one that trains an expert, for as long as the block lasts."""
    place = space.root / "locks" / f"expert-{job.out.parent.name}-{job.name}.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _summary(training: Training, pool: Path, jobs: list[ExpertJob], faults: Mapping[str, str]) -> dict[str, Any]:
    losses = {job.name: ExpertCard.read(job.out).training["lora"]["best_loss"] for job in jobs if job.out.exists()}
    missing = [job.name for job in jobs if job.name in faults or job.name not in losses]
    summary: dict[str, Any] = {
        "config": training.config,
        "method": "train",
        "pool": training.name,
        "set": training.name,
    }
    summary |= {"score": None, "published": None, "missing": missing, "tasks": {}, "faults": dict(faults)}
    return summary | {"experts": str(pool), "losses": losses}
