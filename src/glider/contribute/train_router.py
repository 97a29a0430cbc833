"""Training of a pool's routers, everything else frozen: by the language model's loss, or from what the base sees."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glider.contribute.examples import Batches, EncodedRow
from glider.contribute.loop import Loop, Progress
from glider.contribute.protocol import arithmetic_of, training_state
from glider.contribute.router_rows import TaskRows, encoded_tasks
from glider.contribute.settings import RouterTraining
from glider.contribute.stages import Stages
from glider.data.rows import Row
from glider.errors import RouterError
from glider.experts.base_identity import require_same_base
from glider.experts.pool import Pool
from glider.experts.router_files import put_router, router_path
from glider.files.disk import work_directory
from glider.inference.base_model import BaseModel
from glider.layers.attach import Attached, Storage, attach
from glider.progress import CountTick
from glider.routing.base import Prepared, Router
from glider.routing.condition import Condition
from glider.routing.local_scores.joint import sites_of, width_at
from glider.routing.methods.joint import Joint
from glider.routing.methods.mindskip import MindSkip
from glider.routing.methods.mindskip_attention import KIND as SKIPPED_ATTENTION
from glider.routing.methods.mindskip_attention import MindSkipAttention, blocks_of
from glider.routing.methods.task_moe import TaskMoe
from glider.routing.scores import standardise
from glider.shapes import Float, Tensor

Tasks = Mapping[str, TaskRows]
_PROCEDURES = {"vq": {"procedure": 2}}  # counts up where a state of an older procedure could not go on
Fit = Callable[[BaseModel, Pool, Tasks, RouterTraining, Path, CountTick], dict[str, Tensor]]


def train_router(
    base: BaseModel,
    pool: Pool,
    kind: str,
    rows: Mapping[str, Sequence[Row]],
    settings: RouterTraining,
    report: CountTick = lambda what, done, all_: None,
) -> Pool:
    """Train a router on rows of every expert's task and store it beside the experts; returns the pool with it.

    If it is interrupted, the same call continues from the last checkpoint and ends with the same file. With other
    settings or rows, for a changed expert or on another base it begins anew. Raises `RouterError` for a router that is
    not trained so, `DataError` for an expert without rows.
    """
    fits = trainable()
    if kind not in fits:
        raise RouterError(f"a router of {', '.join(sorted(fits))}", repr(kind), "Check the spelling.")
    require_same_base(pool.index.base, base.identity, f"the pool {pool.path}")
    tasks = encoded_tasks(base, pool, rows, settings)
    content = settings.model_dump()
    origin = {"router": kind, "settings": content, **_learnt_from(base, pool, tasks), **_PROCEDURES.get(kind, {})}
    out = router_path(pool.path, kind)
    work_directory(out.parent)  # a link would lead the state, and what comes of it, elsewhere
    training, was = base.model.training, [p.requires_grad for p in base.model.parameters()]
    base.model.eval().requires_grad_(False)
    try:
        with training_state(out, origin) as state:
            tensors = fits[kind](base, pool, tasks, settings, state / "state.safetensors", report)
            return put_router(pool, kind, tensors, content)
    finally:
        base.model.train(training)
        for parameter, needed in zip(base.model.parameters(), was, strict=True):
            parameter.requires_grad_(needed)


def trainable() -> dict[str, Fit]:
    """How each router is trained, by name."""
    from glider.contribute.router_statistics import fit_ariadne, fit_lorauter, fit_seqr, fit_vq

    by_loss: dict[str, Fit] = {"joint": fit_joint, "mindskip": fit_mindskip, "task-moe": fit_task_moe}
    by_loss[SKIPPED_ATTENTION] = fit_mindskip_attention
    return {**by_loss, "vq": fit_vq, "seqr": fit_seqr, "ariadne": fit_ariadne, "lorauter": fit_lorauter}


def _learnt_from(base: BaseModel, pool: Pool, tasks: Tasks) -> dict[str, Any]:
    """What decides a router but its settings: the base, the experts' files, the embedder, the rows."""
    experts = [[one.name, {name: file.sha256 for name, file in one.files.items()}] for one in pool.index.experts]
    embedder = pool.index.embedder and pool.index.embedder.model_dump(mode="json")
    rows = [
        [[[row.prompt, row.target] for row in part] for part in (task.train, task.validation)]
        + [[row.input for row in task.rows]]
        for task in tasks.values()
    ]
    return {"base": base.identity.hash, **arithmetic_of(base), "experts": experts, "embedder": embedder, "rows": rows}


def fit_joint(
    base: BaseModel, pool: Pool, tasks: Tasks, settings: RouterTraining, state: Path, report: CountTick
) -> dict[str, Tensor]:
    """A row an expert and site, from its gate where all experts have gates, else from zero."""
    gated = all(site.has_gate for expert in pool for site in expert.sites.values())
    rows = {}
    for name in pool.sites:
        start = torch.zeros(len(pool), width_at(pool, name))
        for place, expert in zip(start, pool, strict=True):
            if gated and name in expert.sites and (gate := expert.gate(name)) is not None:
                place.copy_(standardise(gate))
        rows[name] = nn.Parameter(start)
    prepared = Prepared(pool.experts, sites_of(pool, rows))
    _by_loss(base, pool, tasks, settings, state, report, (Joint(), prepared), rows)
    return dict(rows)


def fit_mindskip(
    base: BaseModel, pool: Pool, tasks: Tasks, settings: RouterTraining, state: Path, report: CountTick
) -> dict[str, Tensor]:
    """Gates that begin open."""
    gates = {f"{name}.gate": nn.Parameter(torch.zeros(width_at(pool, name))) for name in pool.sites}
    gates |= {f"{name}.bias": nn.Parameter(torch.full((1,), 0.5)) for name in pool.sites}
    router = _Watched()
    prepared = router.prepared_with(pool, gates)
    _by_loss(
        base, pool, tasks, settings, state, report, (router, prepared), gates, _Penalised(router, settings.penalty)
    )
    return dict(gates)


def fit_mindskip_attention(
    base: BaseModel, pool: Pool, tasks: Tasks, settings: RouterTraining, state: Path, report: CountTick
) -> dict[str, Tensor]:
    """Gates of whole attention blocks, that begin open."""
    gates = {}
    for name, width in blocks_of(pool).items():
        gates |= {f"{name}.gate": nn.Parameter(torch.zeros(width)), f"{name}.bias": nn.Parameter(torch.full((1,), 0.5))}
    router = _WatchedBlocks()
    prepared = router.prepared_with(pool, gates)
    price = _Penalised(router, settings.penalty)
    _by_loss(base, pool, tasks, settings, state, report, (router, prepared), gates, price)
    return dict(gates)


def fit_task_moe(
    base: BaseModel, pool: Pool, tasks: Tasks, settings: RouterTraining, state: Path, report: CountTick
) -> dict[str, Tensor]:
    """Matrices that begin at ten times the identity: each layer at the tasks' own experts."""
    count = len(pool)
    tensors = {f"{name}.matrix": nn.Parameter(10 * torch.eye(count)) for name in pool.sites}
    tensors |= {f"{name}.bias": nn.Parameter(torch.zeros(count)) for name in pool.sites}
    router = TaskMoe()
    prepared = router.prepared_with(pool, tensors, settings.signal)
    lists = {name: (1, len(pool)) for name in tasks}
    stages = Stages(state.with_name("means.safetensors"), report, count=1, lists=lists)
    means = _represented(base, pool, tasks, router, prepared, stages)
    by_task = _ByTask(means, {id(row): name for name, task in tasks.items() for row in (*task.train, *task.validation)})
    _by_loss(base, pool, tasks, settings, state, report, (router, prepared), tensors, by_task)
    return dict(tensors)


def _represented(
    base: BaseModel, pool: Pool, tasks: Tasks, router: TaskMoe, prepared: Prepared, stages: Stages
) -> dict[str, Float[Tensor, "1 E"]]:
    """The mean scores of each task's rows by the signal, a stage that appends them to the lists of the tasks' names."""
    from glider.inference.prompt_states import prompt_states
    from glider.inference.queries import Query, QueryReader

    reader = QueryReader(pool.index.embedder, None, lambda texts: prompt_states(base, texts), True)
    for name in stages.todo("Reading tasks", list(tasks)):
        rows = tasks[name].rows
        scores = reader.condition([Query(row.input) for row in rows], router, prepared).global_scores
        assert scores is not None
        stages.lists[name].append(scores.mean(dim=0, keepdim=True))
    return {name: stages.listed(name, 1) for name in tasks}


def _by_loss(
    base: BaseModel,
    pool: Pool,
    tasks: Tasks,
    settings: RouterTraining,
    state: Path,
    report: CountTick,
    router: tuple[Router, Prepared],
    parameters: Mapping[str, nn.Parameter],
    loss: "_Loss | None" = None,
) -> None:
    """Train parameters that a router has prepared, in place, by the loss on the rows of all tasks."""
    loss = loss or _Loss()
    attached = attach(base.model, pool, router[0], Storage(kernel="torch"), router[1])
    try:
        loop = _RouterLoop(attached, parameters, settings, base.tokenizer.pad_token_id, state, loss)
        validation = [row for task in tasks.values() for row in task.validation] if loss.validates else []
        batches: Any = loss.batches(tasks, settings)
        tick: Callable[[Progress], None] = lambda done: report("Training the router", done.step, settings.steps)  # noqa: E731
        loop.run(batches, validation, tick)
    finally:
        attached.detach()


class _Loss:
    """The language model's loss on batches of any rows."""

    validates = True  # the best parameters on held-back rows count, else the last

    def batches(self, tasks: Tasks, settings: RouterTraining) -> Any:
        rows = [row for task in tasks.values() for row in task.train]
        return Batches(rows, settings.batch_size, settings.seed)

    @contextmanager
    def during(self, attached: Attached, rows: Sequence[EncodedRow]) -> Iterator[Callable[[], Tensor | None]]:
        """Around the passes of a batch; yields what is added to its mean loss."""
        with attached.routing(None):
            yield lambda: None

    def parts(self, rows: Sequence[EncodedRow]) -> list[list[EncodedRow]]:
        """Rows that run together."""
        return [list(rows)]


@dataclass(frozen=True)
class _Watched(MindSkip):
    """MindSkip that notes how open its gates were."""

    seen: list[Tensor] = field(default_factory=list)

    def openness(self, site: Any, x: Float[Tensor, "T D"]) -> Float[Tensor, " T"]:
        openness = super().openness(site, x)
        if openness.requires_grad:  # neither in passes that are tried, nor in validation
            self.seen.append(openness.mean())
        return openness


@dataclass(frozen=True)
class _WatchedBlocks(MindSkipAttention):
    """The same of blocks: which of them were computed, as the authors price it."""

    seen: list[Tensor] = field(default_factory=list)

    def computed(self, block: Any, x: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        computed = super().computed(block, x)
        if computed.requires_grad:
            self.seen.append(computed.mean())
        return computed


class _Penalised(_Loss):
    """With a price for every token that uses experts; held-back rows, without it, would choose the dearest gates."""

    validates = False

    def __init__(self, router: "_Watched | _WatchedBlocks", penalty: float):
        self.router, self.penalty = router, penalty

    @contextmanager
    def during(self, attached: Attached, rows: Sequence[EncodedRow]) -> Iterator[Callable[[], Tensor | None]]:
        self.router.seen.clear()
        with attached.routing(None):
            yield lambda: self.penalty * torch.stack(self.router.seen).mean() if self.router.seen else None
        self.router.seen.clear()


class _ByTask(_Loss):
    """Batches of one task each, under the scores that represent it."""

    def __init__(self, means: Mapping[str, Tensor], owner: Mapping[int, str]):
        self.means, self.owner = means, owner

    def batches(self, tasks: Tasks, settings: RouterTraining) -> Any:
        task_batches = [Batches(task.train, settings.batch_size, settings.seed) for task in tasks.values()]
        return _Turns(task_batches)

    @contextmanager
    def during(self, attached: Attached, rows: Sequence[EncodedRow]) -> Iterator[Callable[[], Tensor | None]]:
        condition = Condition.of(self.means[self.owner[id(rows[0])]], torch.ones(1))
        with attached.routing(condition):
            yield lambda: None

    def parts(self, rows: Sequence[EncodedRow]) -> list[list[EncodedRow]]:
        names = dict.fromkeys(self.owner[id(row)] for row in rows)  # a set's order changes from run to run
        return [[row for row in rows if self.owner[id(row)] == name] for name in names]


class _Turns:
    """A batch of each task in turn."""

    def __init__(self, tasks: Sequence[Batches]):
        self._tasks = tasks

    def __getitem__(self, index: int) -> list[EncodedRow]:
        turn, task = divmod(index, len(self._tasks))
        return self._tasks[task][turn]


class _RouterLoop(Loop):
    """The training loop with passes that route."""

    def __init__(
        self,
        attached: Attached,
        parameters: Mapping[str, nn.Parameter],
        settings: RouterTraining,
        pad_id: int,
        state: Path,
        loss: _Loss,
    ):
        super().__init__(
            attached.model, parameters, settings.schedule, pad_id, state, autocast=False, seed=settings.seed
        )
        self._attached, self._added = attached, loss

    def _loss(self, rows: Sequence[EncodedRow]) -> tuple[Float[Tensor, ""], int]:
        sums: list[tuple[Tensor, int]] = []
        for part in self._added.parts(rows):
            with self._added.during(self._attached, part) as more:
                summed, count = super()._loss(part)
                extra = more()
                sums.append((summed if extra is None else summed + count * extra, count))
        return torch.stack([one for one, _ in sums]).sum(), sum(count for _, count in sums)
