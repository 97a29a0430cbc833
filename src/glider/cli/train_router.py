"""`glider pool train-router`: what a pool's routers are trained to, beside its experts."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from glider.cli.arguments import KeyOption
from glider.cli.options import with_settings
from glider.cli.signature import telling_signature
from glider.cli.task_rows import rows_of_tasks
from glider.contribute.settings import RouterTraining
from glider.inference.spec import BaseSpec
from glider.terminal import say


def train_router_command() -> Callable[..., Any]:
    """The command with its options."""
    return with_settings(BaseSpec, "spec")(with_settings(RouterTraining, "settings")(train_router))


def train_router(
    path: Annotated[Path, typer.Argument(help="Directory of the pool.")],
    spec: BaseSpec,
    settings: RouterTraining,
    router: Annotated[
        str,
        typer.Option("--router", help="joint, vq, mindskip, mindskip-attention, task-moe, seqr, ariadne or lorauter."),
    ],
    data: Annotated[str, typer.Option("--data", help="Rows of each expert's task ({name}).")],
    split: Annotated[str | None, typer.Option("--split", help="Use the rows of this split only.")] = None,
    key: KeyOption = None,
) -> None:
    """Train a router on rows of every expert's task.

    Everything else is frozen, and the router is stored with the pool. If it is interrupted, the same command continues
    where it stopped. A signed pool must be signed again: the signature covers the router's file like the experts'.
    """
    from glider.cli.terminal import quiet_libraries
    from glider.contribute.train_router import train_router as train
    from glider.contribute.train_router import trainable
    from glider.errors import ConfigError
    from glider.experts.pool import Pool
    from glider.experts.router_files import router_path
    from glider.progress import Bars

    if router not in trainable():
        raise ConfigError(f"a router of {', '.join(sorted(trainable()))}", repr(router), "Check the spelling.")
    pool = Pool.open(path, key)
    rows = rows_of_tasks(data, pool.names, split)
    quiet_libraries()
    pool.verify()
    base = spec.load_base_of(pool)
    with telling_signature(path):
        with Bars(resumes=True) as bars:
            report = lambda what, done, all_: bars.update(what, done / all_, f"{done}/{all_}")  # noqa: E731
            train(base, pool, router, rows, settings, report)
        file = router_path(path, router)
        say(f"{path}: {router} in {file.relative_to(path)} ({file.stat().st_size / 1e6:.1f} MB)")
