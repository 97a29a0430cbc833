"""`push` and `pull` of `glider expert` and `glider pool`."""

from pathlib import Path
from typing import Annotated

import typer

from glider.cli.arguments import KeyOption
from glider.terminal import say

Repo = Annotated[str, typer.Argument(help="Repository on the hub, owner/name, or a folder: ./path.")]
Out = Annotated[Path, typer.Option("--out", help="The new directory.")]
Private = Annotated[bool, typer.Option("--private", help="Make the repository private, if it is made now.")]
Branch = Annotated[str | None, typer.Option("--revision", help="Branch to push to; made if there is none.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit. Default: main.")]


def push_expert(
    path: Annotated[Path, typer.Argument(help="Directory of the expert.")],
    repo: Repo,
    private: Private = False,
    revision: Branch = None,
) -> None:
    """Publish an expert, with a model card, on the hub.

    Needs a login: `hf auth login` or HF_TOKEN."""
    from glider.experts.expert import Expert
    from glider.sharing import hub

    say(hub.push_expert(Expert.open(path), repo, private=private, revision=revision))


def pull_expert(repo: Repo, out: Out, revision: Revision = None) -> None:
    """Get an expert from the hub. It is verified before it appears."""
    from glider.sharing import hub

    _quiet()
    expert = hub.pull_expert(repo, out, revision=revision)
    say(f"{out}: {expert.name}, {len(expert.sites)} sites, for {expert.card.base.model_id}")


def push_pool(
    path: Annotated[Path, typer.Argument(help="Directory of the pool.")],
    repo: Repo,
    private: Private = False,
    revision: Branch = None,
    key: KeyOption = None,
) -> None:
    """Publish a pool, its experts and its signature on the hub.

    Needs a login: `hf auth login` or HF_TOKEN."""
    from glider.experts.pool import Pool
    from glider.sharing import hub

    say(hub.push_pool(Pool.open(path, key), repo, private=private, revision=revision))


def pull_pool(repo: Repo, out: Out, revision: Revision = None, key: KeyOption = None) -> None:
    """Get a pool from the hub, and verify it before it appears.

    Its signature is verified too, if a key is given.
    """
    from glider.sharing import hub

    _quiet()
    pool = hub.pull_pool(repo, out, revision=revision, require_key=key)
    say(f"{out}: {len(pool)} experts for {pool.index.base.model_id}")


def _quiet() -> None:
    """Keep the client's own notes off the terminal: of a full disk it tells a file that nobody asked for."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
