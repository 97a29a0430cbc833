"""Many experts at once: a declarative plan, one self-contained, retryable, idempotent job per expert."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from glider.config import EMBEDDED_BASE, Config, faults, repeated
from glider.contribute.settings import TrainConfig
from glider.data.records import columns_of
from glider.data.rows import read_rows
from glider.errors import ConfigError, ExpertError, GliderError, PoolError
from glider.experts.card import CARD_FILE, NAME, ExpertCard
from glider.experts.index import POOL_FILE, require_home
from glider.experts.membership import add_expert, is_unchanged, require_future
from glider.experts.peft_format import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from glider.files.disk import canonical_json, sha256, work_directory, write_json
from glider.files.held import held
from glider.files.opening import UnfitFile
from glider.files.replacing import is_directory, put_directory, remove_entry
from glider.files.yaml_text import faults_of_plan, read_yaml
from glider.inference.spec import BaseSpec
from glider.jobs.base import Executor, JobResult, JobTick, Resources, Status, silent
from glider.jobs.parcel import Parcel, Source
from glider.jobs.run import only_writer, run_jobs

GATE_STEP = 2  # steps of LoRA that a step of gates counts as: it took 1.5 times as long on the mean, up to four times
_ROWS_OF_ESTIMATE = 256
MAKING = ".making"  # inside the pool: experts that are not whole yet


class ExpertPlan(Config):
    """One entry of a plan: an expert to train (`data`), to import (`adapter`), or to import and give gates (both)."""

    name: str = Field(pattern=NAME, description="Name of the expert and of its directory.")
    data: Path | None = Field(
        default=None, description="File of rows, which train the expert, or give an adapter its gates and profile."
    )
    adapter: str | None = Field(
        default=None, description="Directory or hub id of a PEFT adapter to import. Default: one is trained."
    )
    description: str | None = Field(
        default=None, description="One sentence that names the task. Default: the rows' own definition, if any."
    )
    task: str | None = Field(default=None, description="Name of the task. Default: the expert's name.")
    licence: str | None = Field(default=None, description="SPDX identifier of the licence. Default: none.")
    config: dict[str, Any] = Field(default={}, description="Settings of this training, in place of `defaults`.")


class PoolPlan(Config):
    """`pool.yaml`: the base, settings for all experts, and the experts. Paths are relative to the file."""

    base: str = Field(default=EMBEDDED_BASE, min_length=1, description="Id or path of the base model.")
    defaults: dict[str, Any] = Field(default={}, description="Settings of training, for every expert.")
    experts: tuple[ExpertPlan, ...] = Field(min_length=1, description="Experts to make.")

    @classmethod
    def read(cls, path: Path) -> "PoolPlan":
        """Read a plan; every fault of it is reported together, as a `ConfigError`."""
        with faults_of_plan("a plan", "a plan", "docs/experts.md", path):
            plan = cls.model_validate(read_yaml(path))
        plan.jobs(path.parent, path.parent)  # settings of every expert are checked now, not an hour later
        return plan

    def jobs(self, root: Path, pool: Path, base: BaseSpec | None = None) -> list["ExpertJob"]:
        """A job for each expert, with paths resolved against `root`; names the faults of all of them."""
        spec = base or BaseSpec()
        spec = spec.model_copy(update={"base": spec.base or self.base})
        jobs, wrong = [], []
        for plan in self.experts:
            try:
                settings = TrainConfig(**{**self.defaults, **plan.config})
            except ValidationError as fault:
                wrong.append(f"{plan.name}: {faults(fault)}")
                continue
            if plan.data is None and plan.adapter is None:
                wrong.append(f"{plan.name}: neither data nor adapter")
            adapter = plan.adapter
            if adapter is not None and (root / adapter).exists():
                adapter = str(root / adapter)
            jobs.append(
                ExpertJob(
                    base=spec,
                    out=pool / plan.name,
                    data=None if plan.data is None else root / plan.data,
                    adapter=adapter,
                    config=settings,
                    description=plan.description,
                    task=plan.task,
                    licence=plan.licence,
                )
            )
        names = [plan.name for plan in self.experts]
        wrong += [f"{name} twice" for name in repeated(names)]
        alike = dict(zip(map(str.lower, reversed(names)), reversed(names), strict=True))  # the first of each
        for name in names:
            try:
                require_home(name, [alike[name.lower()]])
            except PoolError as fault:
                wrong.append(fault.got)
        if wrong:
            raise ConfigError("a plan without faults", "; ".join(wrong), "Mend the plan.")
        return jobs


@dataclass(frozen=True)
class ExpertJob:
    """Everything one expert needs. It is made beside its place (`work`), and put there when it is whole."""

    base: BaseSpec
    out: Path
    data: Path | None
    adapter: str | None
    config: TrainConfig
    description: str | None
    task: str | None
    licence: str | None
    threads: int | None = None
    sent_key: str | None = None  # its key, where it was sent to another machine

    @property
    def name(self) -> str:
        """The expert's."""
        return self.out.name

    @property
    def resources(self) -> Resources:
        """Of the base model, on its device."""
        return Resources(threads=self.threads, device=self.base.device)

    @property
    def work(self) -> Path:
        """The directory in which this very expert is made."""
        return self.out.parent / MAKING / self.name / self.key[:16] / self.name

    @property
    def key(self) -> str:
        """Hash of the settings and of the content of the files the job reads; a missing one is a `ConfigError`."""
        if self.sent_key is not None:
            return self.sent_key
        files = [] if self.data is None else [self.data]
        if self.adapter is not None and Path(self.adapter).is_file():
            remedy = "Give the directory that PEFT saved."
            raise ConfigError(f"the directory of an adapter for {self.name}", f"the file {self.adapter}", remedy)
        if self.adapter is not None and Path(self.adapter).exists():
            files += [Path(self.adapter) / file for file in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE)]
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise ConfigError(f"the files of {self.name}", f"no {', '.join(missing)}", "Check the paths.")
        arithmetic = [] if self.base.dtype == BaseSpec().dtype else [self.base.dtype]
        settings = [self.base.base, self.config.content, self.description, self.task, self.licence]
        remote = self.adapter if self.adapter and not Path(self.adapter).exists() else None
        content = canonical_json([*settings, remote, *arithmetic, *map(_digest, files)])
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def finished(self) -> bool:
        """Whether the expert is in place, made by this very job."""

        if not self.out.exists() or ExpertCard.read(self.out).training.get("job") != self.key:
            return False
        return is_unchanged(self.out.parent, self.name)

    def run(self, report: JobTick = silent) -> Path:
        """Make the expert in `work`, or continue one begun there; returns that directory."""
        self.require_place()
        with self._held_folder() as folder:
            self._make(folder / self.name, report)
        return self.work

    def _make(self, work: Path, report: JobTick) -> None:
        from glider.contribute.protocol import train_expert

        if os.path.lexists(work):
            work_directory(work)

        def report_stage(stage: str, progress: Any, steps: int) -> None:
            text = f"{stage} {progress.step}/{steps}  loss {progress.loss:.3f}"
            report(self.name, text, self._share(stage, progress.step))

        if self.adapter is not None:
            from glider.contribute.adopt import adopt

            adopt(
                self.adapter,
                self.base,
                work,
                self.config,
                data=self.data,
                description=self.description,
                task=self.task,
                licence=self.licence,
                report=report_stage,
            )
        elif not work.exists():
            assert self.data is not None
            train_expert(
                self.data,
                self.base,
                work,
                self.config,
                description=self.description,
                task=self.task,
                licence=self.licence,
                report=report_stage,
            )
        card = ExpertCard.read(work)
        resources = {"device": self.base.device, "threads": _threads()}
        record = {**card.training, "job": self.key, "resources": resources}
        write_json(work / CARD_FILE, card.model_copy(update={"training": record}).model_dump(mode="json"))

    def _share(self, stage: str, step: int) -> float:
        """The share of the training that is done after a step of a stage."""
        lora, gates = 0 if self.adapter is not None else self.config.steps, GATE_STEP * self.config.gate_steps
        return min(1.0, (step if stage == "lora" else lora + GATE_STEP * step) / (lora + gates))

    def require_place(self) -> None:
        """Raise `ExpertError` if an expert that no plan made is in place, `PoolError` if its name is no expert's."""
        require_future(self.out)
        if self.out.exists() and "job" not in ExpertCard.read(self.out).training:
            raise ExpertError(
                f"no expert at {self.out}, or one that a plan made",
                "one made by hand",
                "Remove it, or give the plan's expert another name.",
            )

    @contextmanager
    def _held_folder(self) -> Iterator[Path]:
        """A path to `folder` that leads there whatever is put in the way, with nothing beside it of another plan's."""
        key, place = self.folder, self.out.parent
        beside = place
        with ExitStack() as stack:
            for name in key.relative_to(place).parts:
                beside, place = place, stack.enter_context(held(work_directory(place / name)))
            for other in sorted(beside.iterdir()):  # what another plan left is not this expert
                if other.name != key.name:
                    remove_entry(other)
            yield place

    def store(self, result: Path) -> None:
        """Put the finished directory into its place and the expert into the pool; an older expert is replaced."""
        put_directory(result, self.out)
        self.clear()
        self.join()

    @property
    def reads(self) -> tuple[Source, ...]:
        """Rows, and the files of an adapter that lies in a directory."""
        from glider.contribute.adapter_tokenizer import TEXT_FILES

        files = () if self.data is None else (Source(self.data),)
        if self.adapter is None or not Path(self.adapter).is_dir():
            return files
        return (*files, Source(Path(self.adapter), (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, *TEXT_FILES)))

    @property
    def effort(self) -> float:
        """Characters of the rows that its training goes through; those of a file that cannot be read are none."""
        if self.data is None:
            return 0.0
        try:
            rows = read_rows(self.data, columns=columns_of(self.config.columns))[:_ROWS_OF_ESTIMATE]
        except (GliderError, OSError):
            return 0.0
        length = sum(len(row.input) + len(row.output) for row in rows) / len(rows)
        steps = self.config.gate_steps + (self.config.steps if self.adapter is None else 0)
        return float(steps * self.config.batch_size * length)

    @property
    def folder(self) -> Path:
        """The unfinished work, and in the end the expert."""
        return self.work.parent

    def leaving(self) -> "ExpertJob":
        """The job under its key, and the base's directory by a path that every machine can read alike."""
        self.require_place()
        return replace(self, sent_key=self.key, base=self.base.with_absolute_path())

    def moved(self, places: Mapping[Path, Path], scratch: Path) -> "ExpertJob":
        """The job with its rows and its adapter elsewhere, to be made in `scratch`."""
        adapter = self.adapter
        if adapter is not None:
            adapter = str(places.get(Path(adapter), adapter))
        data = None if self.data is None else places[self.data]
        return replace(self, out=scratch / self.name, data=data, adapter=adapter)

    def take(self, content: Parcel) -> None:
        """Put received files into `folder`."""
        with self._held_folder():
            pass
        content.unpack(self.folder)

    def arrived(self, result: Path) -> Path:
        """The expert's directory."""
        return self.work

    def clear(self) -> None:
        """Remove the directory in which the expert was made."""
        if not is_directory(making := self.out.parent / MAKING):  # a link would lead to what is not glider's
            return
        with held(making) as folder:
            if is_directory(home := folder / self.name):
                shutil.rmtree(home)

    def renew(self) -> None:
        """Handle an expert that is already in place."""
        self.clear()
        self.join()

    def join(self) -> None:
        """Put the expert, which lies in its place, into the pool; the first one makes the pool."""
        from glider.experts.expert import Expert
        from glider.experts.pool import Pool

        root = self.out.parent
        if not (root / POOL_FILE).exists():
            Pool.create(root, Expert.open(self.out).card.base)
        add_expert(root, self.name)


def _digest(file: Path) -> str:
    try:
        return sha256(file)
    except (OSError, UnfitFile) as fault:
        raise ConfigError(f"a file to make an expert of at {file}", str(fault), "Check the file.") from fault


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def build_pool(
    plan: PoolPlan,
    root: Path,
    pool: Path,
    executor: Executor,
    report: JobTick = silent,
    *,
    base: BaseSpec | None = None,
) -> Iterator[JobResult]:
    """Make what is missing or changed, skip the rest, put every finished expert into the pool; yields how each ended.

    The same call resumes after an interruption: finished experts are kept, and a training continues. `base` sets the
    device and arithmetic of the base model, and the model itself if it names one.
    """
    jobs = plan.jobs(root, pool, base)
    with only_writer(pool):
        yield from run_jobs(jobs, executor, report, unchanged=lambda job: job.renew())
        making = pool / MAKING
        if is_directory(making) and not any(making.iterdir()):
            making.rmdir()


def names_of(results: Iterable[JobResult], status: Status) -> list[str]:
    """Names of the experts with a status."""
    return [result.job.name for result in results if result.status == status]


def as_json(results: Sequence[JobResult]) -> list[Mapping[str, str]]:
    """Results as a table of strings."""
    return [{"name": result.job.name, "status": result.status, "message": result.message} for result in results]
