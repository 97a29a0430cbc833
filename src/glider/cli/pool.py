"""`glider pool`: make, look at and check pools."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glider.cli.arguments import JsonOption, KeyOption, PoolPath, ReadPool, pool_to_read
from glider.cli.hub import pull_pool, push_pool
from glider.cli.options import with_settings
from glider.cli.pool_calibrate import calibrate, expected_lines
from glider.cli.pool_ls import ls
from glider.cli.signature import keygen, sign, telling_signature
from glider.cli.task_rows import rows_of_tasks
from glider.cli.terminal import experts_text, note_log
from glider.cli.train_router import train_router_command
from glider.errors import ConfigError
from glider.inference.spec import BaseSpec
from glider.jobs.placement import Placement
from glider.terminal import say, say_json

if TYPE_CHECKING:
    from glider.contribute.build import PoolPlan
    from glider.experts.pool import Pool
    from glider.jobs.base import Executor, JobResult

Calibrate = Annotated[
    bool,
    typer.Option("--calibrate/--no-calibrate", help="Choose what the pool decides by where it has not been chosen."),
]
_MOST_NAMES = 20  # of experts that failed, in a line


def register(app: typer.Typer, name: str, text: str) -> None:
    nouns = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)
    for command in (ls, show, verify, add, remove, rename):
        nouns.command()(command)
    nouns.command()(with_settings(Placement, "placement")(with_settings(BaseSpec, "spec")(build)))
    for command in (calibrate, check):
        nouns.command()(with_settings(BaseSpec, "spec")(command))
    nouns.command("train-router")(train_router_command())
    nouns.command("push")(push_pool)
    nouns.command("pull")(pull_pool)
    for command in (keygen, sign):
        nouns.command()(command)
    app.add_typer(nouns, name=name)


def show(
    path: ReadPool,
    name: Annotated[str | None, typer.Argument(help="An expert; default: the pool.")] = None,
    key: KeyOption = None,
) -> None:
    """Print pool.json, or the card of one expert."""
    from glider.experts.membership import read_index
    from glider.experts.pool import Pool

    directory, trust = pool_to_read(path, key)
    shown = read_index(directory, trust) if name is None else Pool.open(directory, trust, only=[name])[name].card
    say_json(shown.model_dump(mode="json"))


def verify(path: ReadPool, key: KeyOption = None) -> None:
    """Check every file of a pool.

    Each is compared with its hash, every weight is finite, and the signature is checked if a key is given.
    """
    from glider.experts.pool import Pool
    from glider.experts.router_files import verify_routers
    from glider.experts.trust import trusted_keys
    from glider.progress import track

    directory, trust = pool_to_read(path, key)
    pool = Pool.open(directory, trust)
    if (keys := trusted_keys(trust)) is not None:
        say(f"{path}: signed by the owner of {keys}")
    for expert, record in track(zip(pool.experts, pool.index.experts, strict=True), len(pool), "Verifying"):
        expert.verify({file: known.sha256 for file, known in record.files.items()})
    verify_routers(pool)
    _ = pool.background  # checked as it is read
    say(f"{path}: {len(pool)} experts are as they were when they joined")


def add(
    path: PoolPath,
    directories: Annotated[
        list[str], typer.Argument(help="Directories of experts inside the pool, or elsewhere: those are copied in.")
    ],
    name: Annotated[str | None, typer.Option("--as", help="What the expert is called in this pool.")] = None,
    calibrate: Calibrate = True,
    key: KeyOption = None,
) -> None:
    """Add experts to a pool, or take up what changed in them.

    The first expert makes the pool.

    A pool that was never calibrated is, as by `glider pool calibrate`, where its experts' profiles suffice for it. With
    --key the pool must be as its owner signed it; changed, it is to be signed anew.
    """
    from glider.experts.expert import Expert
    from glider.experts.membership import add_expert, check_base, read_index
    from glider.experts.pool import POOL_FILE, Pool
    from glider.experts.trust import UNSIGNED

    if name is not None and len(directories) > 1:
        raise ConfigError("--as with one expert", f"{len(directories)} experts", "Add them one by one.")
    places = [Path(one) if Path(one).is_dir() and not (path / one).is_dir() else path / one for one in directories]
    experts = [Expert.open(place) for place in places]
    there = (path / POOL_FILE).exists()
    base = read_index(path, UNSIGNED).base if there else experts[0].card.base
    for expert in experts:  # one of another base leaves the pool as it was
        check_base(base, expert)
    if not there:
        Pool.create(path, base)
        key = None
    trust = UNSIGNED if key is None else key
    with telling_signature(path):
        for directory in directories:
            add_expert(path, directory, name, require_key=trust)
            trust = UNSIGNED  # it is not as it was signed any more
        pool = _renewed(path, calibrate)
    say(f"{path}: {experts_text(len(pool))}")


def remove(
    path: PoolPath, name: Annotated[str, typer.Argument(help="An expert of the pool.")], key: KeyOption = None
) -> None:
    """Take an expert out of a pool. Its directory stays where it is."""
    from glider.experts.membership import remove_expert
    from glider.experts.trust import UNSIGNED

    with telling_signature(path):
        home = remove_expert(path, name, UNSIGNED if key is None else key)
        pool = _renewed(path)
    say(f"{path}: {experts_text(len(pool))}; the files of {name} are still in {path / home}")


def rename(
    path: PoolPath,
    name: Annotated[str, typer.Argument(help="An expert of the pool.")],
    new: Annotated[str, typer.Argument(help="Its new name.")],
    key: KeyOption = None,
) -> None:
    """Give an expert another name in this pool."""
    from glider.experts.pool import Pool
    from glider.experts.trust import UNSIGNED

    with telling_signature(path):
        pool = Pool.open(path, UNSIGNED if key is None else key).rename(name, new)
        _renewed(path)
    say(f"{path}: {name} is now {new}, its files stay in {pool[new].directory}")


def build(
    plan: Annotated[Path, typer.Argument(help="A plan: base, defaults, experts (YAML).")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the pool.")],
    spec: BaseSpec,
    placement: Placement,
    calibrate: Calibrate = True,
    json_: JsonOption = False,
) -> None:
    """Train or import what a plan names and the pool lacks.

    Exit code 1 if an expert failed. Unchanged experts are skipped, and one expert's failure does not stop the others.
    If it is interrupted, the same command continues where it stopped. The pool is calibrated, as by `glider pool
    calibrate`, where it never was and its experts' profiles suffice for it.
    """
    from glider.contribute.build import PoolPlan, names_of
    from glider.experts.pool import POOL_FILE

    read, executor = PoolPlan.read(plan), placement.make()
    with telling_signature(out):
        results = _built(read, plan.parent, out, executor, spec, json_)
        failed = names_of(results, "failed")
        if (out / POOL_FILE).exists() and len(failed) < len(results):  # else nothing of it changed
            _renewed(out, calibrate)
    if failed:
        raise typer.Exit(1)


def check(
    path: PoolPath,
    spec: BaseSpec,
    data: Annotated[str, typer.Option("--data", help="Rows of each expert's task ({name}).")],
    split: Annotated[str | None, typer.Option("--split", help="Use the rows of this split only.")] = "val",
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of each task, drawn by --seed.")] = 24,
    seed: Annotated[int, typer.Option("--seed", help="For --rows.")] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 32,
    store: Annotated[
        bool, typer.Option("--store", help="Keep the gains in the pool's gains.json, for `glider pool ls`.")
    ] = False,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what each expert gains, and which ones harm other tasks.

    An expert harms where the pool's answers to rows of others are worse for it. The rows are scored by the base, by
    each one's own expert, and by the pool.
    """
    import random
    from dataclasses import asdict

    from glider.cli.terminal import quiet_libraries
    from glider.evaluation.pool_check import check_pool
    from glider.experts.pool import Pool
    from glider.progress import Bars

    pool = Pool.open(path, key)
    every = rows_of_tasks(data, pool.names, split)
    drawn = {name: random.Random(seed).sample(task, min(rows, len(task))) for name, task in every.items()}
    quiet_libraries()
    pool.verify()
    base, total = spec.load_base_of(pool), sum(map(len, drawn.values()))
    with Bars() as bars:
        tick = lambda router, done: bars.update(router, done / total, f"{done}/{total} rows")  # noqa: E731
        checks = check_pool(pool, base, drawn, max_new_tokens, tick)
    if store:
        from glider.experts.gains import store_gains

        store_gains(pool, {one.expert: one.measured for one in checks})
    if as_json:
        say_json([{**asdict(one), "hurts": one.hurts} for one in checks])
        return
    for one in checks:
        lent = f"; lent to {one.lent_rows} rows of others: {one.lent.text}" if one.lent is not None else ""
        say(f"{one.expert}: base {100 * one.base:.1f}, alone {one.gain.text}; in the pool {one.routed.text}{lent}")
    hurting = [one.expert for one in checks if one.hurts]
    say(f"experts to leave out, as rows are worse with them beyond chance: {', '.join(hurting) or 'none'}")


def _built(
    plan: "PoolPlan", folder: Path, out: Path, executor: "Executor", spec: BaseSpec, json_: bool
) -> "list[JobResult]":
    """What became of each expert of a plan, shown while it runs and at its end."""
    from glider.cli.terminal import quiet_libraries
    from glider.contribute.build import as_json, build_pool, names_of
    from glider.progress import Bars

    quiet_libraries()
    with Bars(stay=True, resumes=True) as bars:
        for entry in plan.experts:
            bars.update(entry.name, 0.0, "waiting")
        results = []
        report = lambda name, text, share: bars.update(name, share, text)  # noqa: E731
        for result in build_pool(plan, folder, out, executor, report, base=spec):
            bars.finish(result.job.name, result.status)
            note_log(bars, result)
            results.append(result)
    if json_:
        say_json(as_json(results))
    else:
        for row in as_json(results):
            say(f"{row['name']:>24}  {row['status']:<9}  {row['message']}".rstrip())
    failed = names_of(results, "failed")
    if failed:
        more = f" and {len(failed) - _MOST_NAMES} more" if len(failed) > _MOST_NAMES else ""
        names = ", ".join(failed[:_MOST_NAMES]) + more
        say(f"glider: {len(failed)} of {len(results)} experts failed: {names}", error=True)
    return results


def _renewed(path: Path, first: bool = False) -> "Pool":
    """The pool, its calibrations made anew if its experts changed; with `first` also made where it has none."""
    from glider.calibration.automatic import calibrated, has_queries, renewed
    from glider.experts.pool import Pool
    from glider.experts.trust import UNSIGNED

    before = Pool.open(path, UNSIGNED)  # changed by this process, it is signed by nobody yet
    pool = calibrated(before) if first else renewed(before)
    verdicts = pool.index.verdicts
    if verdicts is None and has_queries(pool):
        text = f"{path} cannot tell yet what no expert suits; then: glider pool calibrate {path}"
        say(text, error=True)
    if verdicts is not None and before.index.verdicts is None:
        for line in expected_lines(verdicts):
            say(line, error=True)
    return pool
