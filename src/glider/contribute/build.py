"""Many experts at once: a declarative plan, one self-contained, retryable, idempotent job per expert."""

import hashlib
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, ValidationError

from glider.config import EMBEDDED_BASE, Config, faults
from glider.contribute.settings import TrainConfig
from glider.errors import ConfigError, ExpertError, GliderError
from glider.experts.card import CARD_FILE, NAME, ExpertCard
from glider.experts.peft_format import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from glider.files.disk import canonical_json, sha256, write_json

Status = Literal["unchanged", "done", "failed"]
Report = Callable[[str, str, float], None]  # expert, what it does now, share done


class ExpertPlan(Config):
    """One entry of a plan: an expert to train (`data`), to import (`adapter`), or to import and give gates (both)."""

    name: str = Field(pattern=NAME)
    data: Path | None = None
    adapter: str | None = None
    description: str | None = None
    task: str | None = None
    licence: str | None = None
    config: dict[str, Any] = {}


class PoolPlan(Config):
    """`pool.yaml`: the base, settings for all experts, and the experts. Paths are relative to the file."""

    base: str = EMBEDDED_BASE
    defaults: dict[str, Any] = {}
    experts: tuple[ExpertPlan, ...] = Field(min_length=1)

    @classmethod
    def read(cls, path: Path) -> "PoolPlan":
        """Read a plan; every fault of it is reported together, as a `ConfigError`."""
        import yaml

        try:
            content = yaml.safe_load(path.read_text("utf8"))
            plan = cls.model_validate(content)
        except FileNotFoundError:
            raise ConfigError(f"a plan at {path}", "no such file", "Check the path.") from None
        except (yaml.YAMLError, UnicodeDecodeError) as fault:
            raise ConfigError(f"YAML in {path}", " ".join(str(fault).split()), "Mend the file.") from fault
        except ValidationError as fault:
            raise ConfigError(f"a plan in {path}", faults(fault), "See docs/experts.md for the form.") from fault
        plan.jobs(path.parent, path.parent)  # settings of every expert are checked now, not an hour later
        return plan

    def jobs(self, root: Path, pool: Path) -> list["ExpertJob"]:
        """A job for each expert, with paths resolved against `root`; names the faults of all of them."""
        found, wrong = [], []
        for plan in self.experts:
            try:
                settings = TrainConfig(**{**self.defaults, **plan.config})
            except ValidationError as fault:
                wrong.append(f"{plan.name}: {faults(fault)}")
                continue
            if plan.data is None and plan.adapter is None:
                wrong.append(f"{plan.name}: neither data nor adapter")
            data = None if plan.data is None else root / plan.data
            adapter = plan.adapter
            if adapter is not None and (root / adapter).exists():
                adapter = str(root / adapter)
            found.append(
                ExpertJob(
                    self.base, pool / plan.name, data, adapter, settings, plan.description, plan.task, plan.licence
                )
            )
        names = [plan.name for plan in self.experts]
        wrong += [f"{name} twice" for name in dict.fromkeys(names) if names.count(name) > 1]
        if wrong:
            raise ConfigError("a plan without faults", "; ".join(wrong), "Mend the plan.")
        return found


@dataclass(frozen=True)
class ExpertJob:
    """Everything one expert needs; picklable, and the same job gives the same expert wherever it runs."""

    base: str
    out: Path
    data: Path | None
    adapter: str | None
    config: TrainConfig
    description: str | None
    task: str | None
    licence: str | None

    @property
    def key(self) -> str:
        """Hash of the settings and of the content of the files the job reads; a missing one is a `ConfigError`."""
        files = [] if self.data is None else [self.data]
        if self.adapter is not None and Path(self.adapter).exists():
            files += [Path(self.adapter) / file for file in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE)]
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise ConfigError(f"the files of {self.out.name}", f"no {', '.join(missing)}", "Check the paths.")
        told = [self.base, self.config.model_dump(mode="json"), self.description, self.task, self.licence]
        remote = self.adapter if self.adapter and not Path(self.adapter).exists() else None
        return hashlib.sha256(canonical_json([*told, remote, *map(sha256, files)]).encode()).hexdigest()

    @property
    def finished(self) -> bool:
        """Whether the expert lies there, made by this very job."""
        from glider.experts.pool import Pool

        if not self.out.exists() or ExpertCard.read(self.out).training.get("job") != self.key:
            return False
        return Pool.unchanged(self.out.parent, self.out.name)

    def run(self, report: Report = lambda expert, text, share: None) -> None:
        """Make the expert; an interrupted run goes on, and an older expert is replaced when the new one is whole."""
        from glider.contribute.adopt import describe, import_adapter, make_gates, make_profile
        from glider.contribute.protocol import train_expert

        name, key = self.out.name, self.key
        if self.out.exists() and "job" not in ExpertCard.read(self.out).training:
            raise ExpertError(
                f"no expert at {self.out}, or one that a plan made",
                "one made by hand",
                "Remove it, or give the plan's expert another name.",
            )
        making = self.out.parent / ".making" / name / key[:16] / name  # what another plan left is not this expert
        for other in making.parent.parent.glob("*"):
            if other != making.parent:
                shutil.rmtree(other)

        def told(stage: str, progress: Any, steps: int) -> None:
            report(name, f"{stage} {progress.step}/{steps}  loss {progress.loss:.3f}", progress.step / steps)

        if self.adapter is None:
            assert self.data is not None
            if not making.exists():
                train_expert(
                    self.data, self.base, making, self.config, description=self.description, task=self.task,
                    licence=self.licence, report=told,
                )  # fmt: skip
        else:
            if not making.exists():
                import_adapter(self.adapter, self.base, making, task=self.task, licence=self.licence)
            if self.data is not None and "gates" not in ExpertCard.read(making).training:
                make_gates(making, self.data, self.base, self.config, told)
            if self.description is not None:
                describe(making, self.description, self.config.embedder, self.config.embedder_prefix)
            if self.data is not None and self.config.validation:
                make_profile(making, self.data, self.base, self.config)
        card = ExpertCard.read(making)
        card = card.model_copy(update={"training": {**card.training, "job": key}})
        write_json(making / CARD_FILE, card.model_dump(mode="json"))
        if self.out.exists():
            self.out.rename(making.parent / "replaced")
        making.rename(self.out)
        shutil.rmtree(making.parent.parent)


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    job: ExpertJob
    status: Status
    message: str = ""


class Executor(Protocol):
    """Runs jobs somewhere and yields each outcome as it comes; a job that fails does not stop the others."""

    def run(self, jobs: Sequence[ExpertJob], report: Report) -> Iterator[Outcome]: ...


@dataclass(frozen=True)
class LocalExecutor:
    """Processes on this machine, one for each job, the cores shared among them.

    A process that dies is the failure of its job alone. None outlives the caller.
    """

    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError("at least one worker", str(self.workers), "Give 1 or more.")

    def run(self, jobs: Sequence[ExpertJob], report: Report) -> Iterator[Outcome]:
        if self.workers == 1:
            yield from (attempt(job, report) for job in jobs)
            return
        waiting, running = deque(jobs), dict[Any, tuple[BaseProcess, ExpertJob]]()
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    job = waiting.popleft()
                    process, lines = _start(job, self.workers)
                    running[lines] = process, job
                for lines in wait(list(running)):
                    process, job = running[lines]
                    told = _receive(lines)
                    if isinstance(told, tuple):
                        report(*told)
                        continue
                    process.join()
                    del running[lines]
                    yield told or Outcome(job, "failed", f"its process ended early ({_ending(process.exitcode)})")
        finally:
            for process, _ in running.values():
                process.terminate()
                process.join()


def build_pool(
    plan: PoolPlan, root: Path, pool: Path, executor: Executor, report: Report = lambda expert, text, share: None
) -> Iterator[Outcome]:
    """Make what is missing or changed, skip the rest, put every finished expert into the pool; yields outcomes.

    Killed at any moment, the same call goes on: finished experts are kept, a training resumes.
    """
    jobs = plan.jobs(root, pool)
    ready, todo = [], []
    for job in jobs:
        try:
            (ready if job.finished else todo).append(job)
        except GliderError as fault:
            yield Outcome(job, "failed", _one_line(fault))
    for job in ready:
        yield _take_up(Outcome(job, "unchanged"))
    for outcome in executor.run(todo, report):
        yield _take_up(outcome) if outcome.status == "done" else outcome
    making = pool / ".making"
    if making.exists() and not any(making.iterdir()):
        making.rmdir()


def attempt(job: ExpertJob, report: Report) -> Outcome:
    """Run a job; what goes wrong is its outcome."""
    try:
        job.run(report)
    except Exception as fault:  # one expert's failure is told at the end, and is not the others'
        return Outcome(job, "failed", _one_line(fault))
    return Outcome(job, "done")


def _start(job: ExpertJob, workers: int) -> tuple[BaseProcess, Any]:
    """A process that makes an expert, and the connection that brings its reports and at last its outcome."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_attempt_elsewhere, args=(job, sender, workers), name=job.out.name, daemon=True
    )  # fmt: skip
    process.start()
    sender.close()
    return process, receiver


def _attempt_elsewhere(job: ExpertJob, lines: Any, workers: int) -> None:
    """`attempt` in a process of its own, which ends with the one that started it; Ctrl-C is that one's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _share_cores(workers)
    lines.send(attempt(job, lambda expert, text, share: lines.send((expert, text, share))))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _receive(lines: Any) -> Any:
    """A report, an outcome, or None from a process that died, be it in the middle of a report."""
    try:
        return lines.recv()
    except (EOFError, OSError):
        return None


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"{name}, most often for want of memory" if name == "SIGKILL" else name
    return f"exit code {code}"


def _take_up(outcome: Outcome) -> Outcome:
    """Put a finished expert into its pool; what goes wrong is the outcome."""
    from glider.experts.expert import Expert
    from glider.experts.pool import POOL_FILE, Pool

    root, name = outcome.job.out.parent, outcome.job.out.name
    try:
        if not (root / POOL_FILE).exists():
            Pool.create(root, Expert.open(outcome.job.out).card.base)
        Pool.put(root, name)
    except GliderError as fault:
        return Outcome(outcome.job, "failed", _one_line(fault))
    return outcome


def _share_cores(workers: int) -> None:
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def _one_line(fault: BaseException) -> str:
    text = " ".join(str(fault).split())
    return text if isinstance(fault, GliderError) else f"{type(fault).__name__}: {text}"


def names_of(outcomes: Iterable[Outcome], status: Status) -> list[str]:
    """Names of the experts with a status."""
    return [outcome.job.out.name for outcome in outcomes if outcome.status == status]


def as_json(outcomes: Sequence[Outcome]) -> list[Mapping[str, str]]:
    """Outcomes as a table of strings."""
    return [{"name": o.job.out.name, "status": o.status, "message": o.message} for o in outcomes]
