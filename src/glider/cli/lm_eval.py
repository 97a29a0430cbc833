"""`glider lm-eval`: the command line of lm-evaluation-harness, with a routed pool among its models."""

import typer


def register(app: typer.Typer, name: str, text: str) -> None:
    app.command(
        name,
        help=text,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(lm_eval)


def lm_eval(context: typer.Context) -> None:
    """All arguments are the harness's: `--model glider --model_args pool=demo,router=glider --tasks arc_easy`."""
    from glider.cli.terminal import quiet_libraries

    quiet_libraries()
    from glider.evaluation.lm_eval_model import main

    main(context.args)
