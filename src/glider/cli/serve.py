"""`glider serve`: pools behind OpenAI's API."""

import importlib.util

import typer

from glider.cli.arguments import SKIPPED
from glider.cli.options import with_settings
from glider.inference.spec import ModelSpec
from glider.serve.settings import ServeSettings


def register(app: typer.Typer, name: str, text: str) -> None:
    command = with_settings(ServeSettings, "settings")(with_settings(ModelSpec, "spec", (*SKIPPED, "pool"))(serve))
    app.command(name, help=text)(command)


def serve(spec: ModelSpec, settings: ServeSettings) -> None:
    """Serve pools as models of an OpenAI-compatible API, with a page at / that shows what they do."""
    from glider.errors import MissingDependency

    for package in ("fastapi", "uvicorn", "prometheus_client", "llguidance"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(package, "serve a pool", "pip install 'glider-moe[serve]'")
    from glider.cli.terminal import quiet_libraries
    from glider.serve.server import serve as run

    quiet_libraries()
    run(spec, settings)
