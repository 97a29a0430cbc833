"""`glider cache`: what is remembered of descriptions and embeddings."""

import json
from dataclasses import asdict

import typer

from glider.cli.arguments import JsonOption


def register(app: typer.Typer, name: str, text: str) -> None:
    nouns = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)
    nouns.command()(info)
    nouns.command()(clear)
    app.add_typer(nouns, name=name)


def info(as_json: JsonOption = False) -> None:
    """Print where the cache is, what it holds and how large it may become."""
    from glider.instructions.cache import cache

    told = cache().info()
    if as_json:
        print(json.dumps(asdict(told), indent=2))
        return
    held = ", ".join(f"{count} {kind}s" for kind, count in told.entries.items()) or "empty"
    print(f"{told.path}: {held}; {told.bytes / 1e6:.1f} of {told.limit / 1e6:g} MB")


def clear(as_json: JsonOption = False) -> None:
    """Forget all descriptions and embeddings; they are made again when needed."""
    from glider.instructions.cache import cache

    store = cache()
    count = store.clear()
    print(json.dumps({"path": str(store.path), "cleared": count}) if as_json else f"{store.path}: {count} entries gone")
