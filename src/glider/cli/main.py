"""The command line: one file per noun, imported only when named, so that help is instant."""

import os
import sys
from importlib import import_module

import typer

COMMANDS = {
    "init": ("glider.cli.init", "Ask what you have, and write a pool.yaml."),
    "demo": ("glider.cli.demo", "Answer a dozen prompts with the embedded pool."),
    "generate": ("glider.cli.generate", "Answer a prompt with a routed pool."),
    "serve": ("glider.cli.serve", "Serve pools by OpenAI's API, with a page beside it."),
    "vllm-args": ("glider.cli.vllm_args", "Print the arguments with which `vllm serve` serves a pool."),
    "explain": ("glider.cli.explain", "Show, token by token, which experts a prompt uses."),
    "compare": ("glider.cli.compare", "Score several routers on your own rows."),
    "evaluate": (
        "glider.cli.evaluate",
        "Evaluate routers on sets of tasks. If it is interrupted, the same command continues where it stopped.",
    ),
    "report": ("glider.cli.report", "Draw a pool, and make the tables of an evaluation."),
    "lm-eval": ("glider.cli.lm_eval", "Run lm-evaluation-harness with a routed pool."),
    "lm-eval-tasks": ("glider.cli.lm_eval_tasks", "Make JSON Lines tasks of lm-evaluation-harness."),
    "pool": ("glider.cli.pool", "Look at and change pools of experts."),
    "routers": ("glider.cli.routers", "List the routing methods and global signals there are."),
    "cache": ("glider.cli.cache", "Show and clear cached descriptions, embeddings and spectra."),
    "doctor": ("glider.cli.doctor", "Show versions, threads, and which kernel runs and why."),
    "expert": ("glider.cli.expert", "Make and inspect experts."),
}

COMPLETING = "_GLIDER_COMPLETE"  # set by a shell that asks what may follow a word


def build(noun: str | None) -> typer.Typer:
    """The application with the commands of one noun in full, all others by name and help line only."""
    app = typer.Typer(
        name="glider",
        help="A pool of independently trained LoRA experts, routed per token as one model.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_global_options)
    for name, (module, text) in COMMANDS.items():
        if name == noun:
            import_module(module).register(app, name, text)
        else:
            app.command(name, help=text)(_not_loaded)
    return app


def main() -> None:
    """Run the command line. A `GliderError` is one line and exit code 2; --debug shows the traceback."""
    from glider.terminal import named_streams

    with named_streams():
        _run()


def _run() -> None:
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--debug", "--quiet")]
    noun = next((argument for argument in _words(arguments) if not argument.startswith("-")), None)
    from glider.cli.terminal import plain_warnings
    from glider.errors import GliderError, refused_by_system
    from glider.terminal import be_quiet

    be_quiet("--quiet" in sys.argv)
    plain_warnings()
    try:
        _require_characters(arguments)
        build(noun)(arguments, prog_name="glider")
    except GliderError as fault:
        if debug:
            raise
        _fail(str(fault), fault.exit_code)
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as fault:
        if debug or fault.strerror is None:
            raise
        _fail(refused_by_system(fault), 2)
    except Exception as fault:
        if debug or COMPLETING not in os.environ:
            raise
        got = f"what gives {type(fault).__name__}: {fault}"
        _fail(f"wanted the variables by which a shell asks for completions; got {got}. Unset {COMPLETING}.", 2)


def _require_characters(arguments: list[str]) -> None:
    """Raise `ConfigError` for bytes that are no UTF-8: what is stored, sent or tokenized could not hold them."""
    from glider.errors import ConfigError

    for argument in arguments:
        try:
            argument.encode("utf8")
        except UnicodeEncodeError as fault:
            remedy = "Rename the file, or write the text in UTF-8."
            raise ConfigError("arguments in UTF-8", ascii(argument)[:120], remedy) from fault


def _words(arguments: list[str]) -> list[str]:
    """The words of the command: a shell that asks for completions puts them into a variable."""
    if COMPLETING not in os.environ:
        return arguments
    typed = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS") or ""
    return typed.split()[1:]


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    from glider.terminal import say

    say(f"glider: {line}", error=True)
    raise SystemExit(code)


def _not_loaded() -> None:
    raise AssertionError("only the named command runs")


def _print_version(requested: bool) -> None:
    if requested:
        from glider import __version__

        print(__version__)
        raise typer.Exit


def _global_options(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Show the version and exit."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks."),
    quiet: bool = typer.Option(False, "--quiet", help="Show no progress; results, warnings and errors alone."),
) -> None:
    pass


if __name__ == "__main__":
    main()
