"""Routers that are learnt from what the base sees, without gradients: codebooks, norms, centroids, a choice by loss."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from glider.contribute.examples import EncodedRow, collate
from glider.contribute.settings import RouterTraining
from glider.contribute.stages import Stages
from glider.contribute.train_router import Tasks
from glider.errors import RouterError
from glider.experts.card import EmbedderIdentity
from glider.experts.pool import Pool
from glider.experts.router_files import Shape
from glider.inference.base_model import BaseModel
from glider.inference.forward import padded
from glider.inference.likelihood import likelihoods
from glider.layers.attach import attach
from glider.progress import CountTick
from glider.routing.local_scores.joint import width_at
from glider.routing.local_scores.seqr import QRNorm
from glider.routing.local_scores.vq import nearest_code
from glider.routing.methods.single import Single
from glider.routing.scores import standardise
from glider.shapes import Float, Tensor

_SITE_TOKENS = 512  # tokens of a site that the first codes are found on
_MOST_VISITS = 16  # of a row at a site: a model may come by it several times
_DECAY = 0.99  # of the moving averages
_SMOOTHING = 1.0  # tokens of each expert added to every code
_LLOYD = 8
_EMBEDDED = 64  # inputs that are embedded at once
_CENTROIDS, _LOSSES = "/centroids", "/losses"  # no expert's names


def fit_vq(
    base: BaseModel, pool: Pool, tasks: Tasks, settings: RouterTraining, state: Path, report: CountTick
) -> dict[str, Tensor]:
    """Three passes over all rows, each under its expert: k-means on some tokens, moving averages, then counts.

    The averages weigh late tokens more: their pass takes the rows of all experts in one order, shuffled by the seed.
    """
    draw, empty = torch.Generator().manual_seed(settings.seed), torch.zeros(0)
    tensors = {f"{part}.{name}": empty for part in ("codes", "sizes", "counts") for name in pool.sites}
    rows = max(1, sum(len(task.train) for task in tasks.values()))
    share = max(1, _SITE_TOKENS // rows)
    stages = Stages(
        state,
        report,
        count=4,
        tensors=tensors,
        shapes=_codebooks(pool),
        lists={name: (_MOST_VISITS * rows * share, width_at(pool, name)) for name in pool.sites},
        draw=draw,
    )
    codebooks, first = stages.tensors, stages.lists

    def keep(site: str, x: Float[Tensor, "T D"], expert: int) -> None:
        first[site].append(drawn(x, share, draw))

    _over_rows(base, pool, tasks, keep, stages, "Reading tokens")
    for name in stages.todo("Finding codes", list(pool.sites)):
        codes = k_means(stages.listed(name), settings.codes, draw)
        first[name].clear()
        codebooks[f"codes.{name}"], codebooks[f"sizes.{name}"] = codes, torch.ones(len(codes))
        codebooks[f"counts.{name}"] = torch.full((len(pool), len(codes)), _SMOOTHING)

    stages.require(all(map(len, codebooks.values())), "no codes")
    least = {"codes": -torch.inf, "sizes": 0.0, "counts": _SMOOTHING}
    for name, tensor in codebooks.items():
        stages.require(bool((tensor >= least[name.partition(".")[0]]).all()), f"numbers of tokens below any in {name}")

    def move(site: str, x: Float[Tensor, "T D"], expert: int) -> None:
        codes, sizes = codebooks[f"codes.{site}"], codebooks[f"sizes.{site}"]
        codebooks[f"codes.{site}"], codebooks[f"sizes.{site}"] = moved(codes, sizes, x)

    def count(site: str, x: Float[Tensor, "T D"], expert: int) -> None:
        codes = codebooks[f"codes.{site}"]
        codebooks[f"counts.{site}"][expert] += torch.bincount(nearest_code(x, codes), minlength=len(codes))

    _over_rows(base, pool, tasks, move, stages, "Moving codes", shuffle=settings.seed)
    _over_rows(base, pool, tasks, count, stages, "Counting tokens")
    tensors = {f"{name}.codes": codebooks[f"codes.{name}"] for name in pool.sites}
    for name in pool.sites:
        counts = codebooks[f"counts.{name}"]
        shares = counts / counts.sum(dim=1, keepdim=True)  # each expert counts alike, whatever its rows
        tensors[f"{name}.table"] = (shares / shares.sum(dim=0)).log()
    return tensors


def _codebooks(pool: Pool) -> dict[str, Shape]:
    """The shapes of each site's codes, of their sizes, and of each expert's counts of them."""
    shapes: dict[str, Shape] = {}
    for name in pool.sites:
        codes = f"codes of {name}"
        shapes |= {f"codes.{name}": (codes, width_at(pool, name)), f"sizes.{name}": (codes,)}
        shapes[f"counts.{name}"] = (len(pool), codes)
    return shapes


def drawn(tokens: Float[Tensor, "N D"], count: int, draw: torch.Generator) -> Float[Tensor, "M D"]:
    """At most so many of the tokens, in memory of their own: a slice would keep all of them."""
    return tokens[torch.randperm(len(tokens), generator=draw)[:count]]


def k_means(tokens: Float[Tensor, "N D"], codes: int, draw: torch.Generator) -> Float[Tensor, "C D"]:
    """Lloyd's iterations from tokens drawn by k-means++; a code that loses all its tokens stays where it was."""
    codes = min(codes, len(tokens))
    centres = tokens[torch.randint(len(tokens), (1,), generator=draw)]
    nearest = (tokens - centres).square().sum(dim=1)
    for _ in range(codes - 1):
        at = torch.multinomial(nearest + 1e-12, 1, generator=draw)
        centres = torch.cat([centres, tokens[at]])
        nearest = torch.minimum(nearest, (tokens - tokens[at]).square().sum(dim=1))
    for _ in range(_LLOYD):
        nearest_centre = nearest_code(tokens, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest_centre, tokens)
        sizes = torch.bincount(nearest_centre, minlength=codes)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


def moved(
    codes: Float[Tensor, "C D"], sizes: Float[Tensor, " C"], x: Float[Tensor, "T D"]
) -> tuple[Float[Tensor, "C D"], Float[Tensor, " C"]]:
    """VQ-VAE's moving averages (arXiv 1711.00937, appendix A.1): N <- g N + (1 - g) n, m <- g m + (1 - g) sum x,
    e = m / N.

    Returns codes and sizes.
    """
    nearest = nearest_code(x, codes)
    sums = _DECAY * sizes[:, None] * codes
    sums.index_add_(0, nearest, (1 - _DECAY) * x)
    sizes = _DECAY * sizes + (1 - _DECAY) * torch.bincount(nearest, minlength=len(codes))
    return sums / sizes[:, None], sizes


def fit_seqr(
    base: BaseModel, pool: Pool, tasks: Tasks, settings: RouterTraining, state: Path, report: CountTick
) -> dict[str, Tensor]:
    """Mean and deviation of each adapter's lengths over the tokens of all rows, in the bare base."""
    score = QRNorm()
    sites = score.prepare(pool)
    nothing = {name: torch.zeros(3, len(pool), dtype=torch.float64) for name in pool.sites}
    stages = Stages(state, report, count=1, tensors=nothing)
    sums = stages.tensors

    def add(site: str, x: Float[Tensor, "T D"], expert: int) -> None:
        lengths = score.scores(x, sites[site]).double().masked_fill(sites[site].absent, 0.0)
        sums[site] += torch.stack(
            [lengths.sum(dim=0), lengths.square().sum(dim=0), lengths.new_ones(()).expand(len(pool)) * len(x)]
        )

    for name, (_, squares, count) in sums.items():
        stages.require(bool((squares >= 0).all() and (count >= 0).all()), f"squares or numbers below 0 in {name}")
    _over_rows(base, pool, tasks, add, stages, "Measuring answers", under=False, standard=False)
    tensors = {}
    for name, (total, squares, count) in sums.items():
        mean = total / count
        tensors[f"{name}.mean"] = mean
        tensors[f"{name}.deviation"] = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
    return tensors


def fit_ariadne(
    base: BaseModel, pool: Pool, tasks: Tasks, settings: RouterTraining, state: Path, report: CountTick
) -> dict[str, Tensor]:
    """k-means over the embeddings of each expert's inputs."""
    draw = torch.Generator().manual_seed(settings.seed)
    width = _embedder(pool).dimension
    most = {_CENTROIDS: (len(pool) * settings.centroids, width)}
    stages = Stages(state, report, count=2, lists=_embeddings(tasks, width) | most, draw=draw)
    groups = stages.lists[_CENTROIDS]
    vectors = _embedded(pool, tasks, stages)
    for name in stages.todo("Finding centroids", list(tasks)):
        centroids = k_means(vectors[name], settings.centroids, draw)
        groups.append(torch.cat([centroids, centroids[:1].expand(settings.centroids - len(centroids), -1)]))
    centroids = stages.listed(_CENTROIDS, len(pool) * settings.centroids).unflatten(0, (len(pool), settings.centroids))
    return {"centroids": torch.nn.functional.normalize(centroids, dim=-1)}


def fit_lorauter(
    base: BaseModel, pool: Pool, tasks: Tasks, settings: RouterTraining, state: Path, report: CountTick
) -> dict[str, Tensor]:
    """The mean embedding of each task's rows, and the adapter of least loss on them, found by successive halving."""
    most = len(tasks) * losses_of(len(pool))
    lists = _embeddings(tasks, _embedder(pool).dimension)
    stages = Stages(state, report, count=2, lists=lists, numbers=(_LOSSES, most))
    means = [vectors.mean(dim=0) for vectors in _embedded(pool, tasks, stages).values()]
    loss = stages.numbers("Choosing adapters by loss", _LOSSES, most)
    best = torch.zeros(len(tasks), len(pool))
    for number, task in enumerate(tasks.values()):
        rows = [*task.validation, *task.train]
        name = halving(pool.names, rows, lambda n, rows: loss(lambda: _loss_under(base, pool, n, rows)))
        best[number, pool.names.index(name)] = 1
    return {"tasks": torch.nn.functional.normalize(torch.stack(means), dim=-1), "best": best}


def halving(
    names: Sequence[str], rows: Sequence[EncodedRow], loss: Callable[[str, Sequence[EncodedRow]], float]
) -> str:
    """The name of least loss: all on few rows, the better half on twice as many, and so on."""
    left, count = list(names), max(1, min(4, len(rows)))
    while len(left) > 1:
        losses = {name: loss(name, rows[:count]) for name in left}
        left = sorted(left, key=losses.__getitem__)[: (len(left) + 1) // 2]
        count = min(2 * count, len(rows))
    return left[0]


def losses_of(names: int) -> int:
    """How many losses are asked for to halve so many names down to one."""
    return names + losses_of((names + 1) // 2) if names > 1 else 0


def _embedded(pool: Pool, tasks: Tasks, stages: Stages) -> dict[str, Float[Tensor, "N G"]]:
    """The embeddings of each task's inputs, a stage that appends them to the lists of the tasks' names."""
    from glider.instructions.embedders import load_for
    from glider.instructions.inputs import edges

    embedder = load_for(_embedder(pool))
    starts = [(name, start) for name, task in tasks.items() for start in range(0, len(task.rows), _EMBEDDED)]
    for name, start in stages.todo("Embedding inputs", starts):
        texts = [edges(row.input) for row in tasks[name].rows[start : start + _EMBEDDED]]
        stages.lists[name].append(embedder.embed(texts).float())
    return {name: stages.listed(name, len(task.rows)) for name, task in tasks.items()}


def _embeddings(tasks: Tasks, width: int) -> dict[str, tuple[int, ...]]:
    """The lists of the embeddings of each task's inputs."""
    return {name: (len(task.rows), width) for name, task in tasks.items()}


def _embedder(pool: Pool) -> EmbedderIdentity:
    if pool.index.embedder is None:
        raise RouterError("a pool with an embedder", "one without", "Describe its experts: `glider expert describe`.")
    return pool.index.embedder


def _loss_under(base: BaseModel, pool: Pool, name: str, rows: Sequence[EncodedRow]) -> float:
    """Mean loss of an answer's token under one expert."""
    attached = attach(base.model, pool, Single(name))
    try:
        inputs = padded([row.prompt for row in rows], base.tokenizer.pad_token_id, base.model)
        condition = attached.router.condition(attached.prepared, _features(len(rows)))
        scored = likelihoods(base.model, attached, inputs, [[row.target] for row in rows], condition)
        return -sum(one.total for (one,) in scored) / sum(one.tokens for (one,) in scored)
    finally:
        attached.detach()


def _features(count: int) -> Any:
    from glider.routing.base import QueryFeatures

    return QueryFeatures(count)


Visit = Callable[[str, Tensor, int], None]


def _over_rows(
    base: BaseModel,
    pool: Pool,
    tasks: Tasks,
    visit: Visit,
    stages: Stages,
    what: str,
    *,
    under: bool = True,
    standard: bool = True,
    shuffle: int | None = None,
) -> None:
    """A stage that hands what each site sees of each expert's rows to `visit`: under the expert or in the bare base,
    standardised or as it is; expert by expert, or in the order of a seed, which is the same after a kill."""
    rows = [(number, row) for number, task in enumerate(tasks.values()) for row in task.train]
    if shuffle is not None:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(shuffle))
        rows = [rows[at] for at in order.tolist()]
    for number, of_expert in groupby(stages.todo(what, rows), key=itemgetter(0)):
        name = pool.names[number]
        attached = attach(base.model, pool, Single(name)) if under else None
        names = pool[name].sites if under else pool.sites
        try:
            with _watching(
                base.model, names, lambda site, x, e=number: visit(site, standardise(x) if standard else x, e)
            ):
                for _, row in of_expert:
                    _pass(base, row, attached)
        finally:
            if attached is not None:
                attached.detach()


@torch.no_grad()
def _pass(base: BaseModel, row: EncodedRow, attached: Any) -> None:
    """One row by itself: no padding, whichever tokens a site sees."""
    model: Any = base.model
    batch = collate([row], base.tokenizer.pad_token_id, model.config.is_encoder_decoder)
    if not model.config.is_encoder_decoder:
        del batch["labels"]
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    if attached is None:
        model(**inputs, use_cache=False)
        return
    with attached.routing(None):
        model(**inputs, use_cache=False)


@contextmanager
def _watching(model: Any, names: Any, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    hooks = []
    for name in names:

        def hook(_: Any, inputs: tuple, site: str = name) -> None:
            see(site, inputs[0].reshape(-1, inputs[0].shape[-1]).float().cpu())

        hooks.append(model.get_submodule(name).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
