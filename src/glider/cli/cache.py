"""`glider cache`: what is remembered of descriptions, embeddings and spectra."""

from dataclasses import asdict

import typer

from glider.cli.arguments import JsonOption
from glider.terminal import say, say_json


def register(app: typer.Typer, name: str, text: str) -> None:
    nouns = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)
    nouns.command()(info)
    nouns.command()(clear)
    app.add_typer(nouns, name=name)


def info(as_json: JsonOption = False) -> None:
    """Print where the caches are, what they hold and their limits."""
    from glider.instructions.cache import cache
    from glider.routing.spectra_files import spectra_directory, stored_spectra

    statistics, files = cache().info(), stored_spectra()
    size = sum(file.stat().st_size for file in files)
    if as_json:
        spectra = {"path": str(spectra_directory()), "experts": len(files), "bytes": size}
        say_json({**asdict(statistics), "spectra": spectra})
        return
    held = ", ".join(f"{count} {kind}s" for kind, count in statistics.entries.items()) or "empty"
    say(f"{statistics.path}: {held}; {statistics.bytes / 1e6:.1f} of {statistics.limit / 1e6:g} MB")
    say(f"{spectra_directory()}: spectra of {len(files)} experts; {size / 1e6:.1f} MB")


def clear(as_json: JsonOption = False) -> None:
    """Forget all descriptions, embeddings and spectra.

    They are made again when they are needed.
    """
    from glider.instructions.cache import cache
    from glider.routing.spectra_files import clear_spectra, spectra_directory

    store = cache()
    count, spectra = store.clear(), clear_spectra()
    if as_json:
        say_json({"path": str(store.path), "cleared": count, "spectra": spectra}, indent=None)
        return
    say(f"{store.path}: {count} entries gone")
    say(f"{spectra_directory()}: spectra of {spectra} experts gone")
