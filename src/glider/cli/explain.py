"""`glider explain`: token by token, which experts, with which weights, at which sites."""

from fnmatch import fnmatch
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glider.cli.arguments import (
    SKIPPED,
    DescriptionOption,
    ExamplesOption,
    JsonOption,
    TruncateOption,
    load_model,
    make_query,
    read_prompt,
    tell_unused,
)
from glider.cli.options import with_settings
from glider.cli.terminal import BASE_ALONE, plain_table, verdict_text
from glider.errors import QueryError, RouterError
from glider.inference.spec import ModelSpec
from glider.terminal import console, say_json

if TYPE_CHECKING:
    from glider.inference.model import RoutedModel
    from glider.layers.trace import Trace


def register(app: typer.Typer, name: str, text: str) -> None:
    app.command(name, help=text)(with_settings(ModelSpec, "spec", SKIPPED)(explain))


def explain(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    spec: ModelSpec,
    description: DescriptionOption = None,
    examples: ExamplesOption = None,
    sites: Annotated[str, typer.Option("--sites", help="Only sites whose name fits, such as '*.q_proj'.")] = "*",
    truncate: TruncateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show, token by token, which experts a prompt uses, with which weights, at which sites.

    A site is a layer that experts adapt. The table has each token's experts over the chosen sites, and the query's
    verdict where the pool has verdicts: fits, unsure or stranger. JSON has every site by itself.
    """
    text = read_prompt(prompt)
    query = make_query(text, description, examples)
    model = load_model(spec)
    if not model.experts:
        raise RouterError(
            "a router that uses experts", str(spec.router), "Explain glider, phatgoose or another method."
        )
    tokens, trace = model.trace(query, truncate=truncate)
    selected = [site for site in trace.sites if fnmatch(site, sites)]
    if not selected:
        raise QueryError("sites that fit " + sites, "none", f"Sites look like {trace.sites[0]}.")
    if as_json:
        say_json(_as_json(model, text, tokens, trace, selected), indent=None)
    else:
        _print_table(model, tokens, trace, selected)


def _as_json(model: "RoutedModel", text: str, tokens: list[str], trace: "Trace", sites: list[str]) -> dict[str, Any]:
    decisions = {}
    for call in trace.calls:
        if call.site in sites:
            experts = [[trace.experts[i] for i in row] for row in call.decision.experts.tolist()]
            weights = [[round(weight, 4) for weight in row] for row in call.decision.weights.tolist()]
            decisions[call.site] = [
                dict(zip(names, values, strict=True)) for names, values in zip(experts, weights, strict=True)
            ]
    return {"prompt": text, "tokens": tokens, **_global(model, trace), "sites": decisions}


def _global(model: "RoutedModel", trace: "Trace") -> dict[str, Any]:
    condition = trace.condition
    described = condition.described[0] if condition is not None and condition.described else None
    fields = {
        "description": described and described.text,
        "fault": described and described.fault,
        "verdict": condition.verdicts[0] or None if condition is not None and condition.verdicts else None,
    }
    if condition is None or condition.global_scores is None or condition.alpha is None:
        return {"global_scores": {}, "alpha": None, **fields}
    scores = condition.global_scores[0].tolist()
    return {
        "global_scores": dict(zip(model.experts, (round(score, 4) for score in scores), strict=True)),
        "alpha": condition.alpha[0].item(),
        **fields,
    }


def _print_table(model: "RoutedModel", tokens: list[str], trace: "Trace", sites: list[str]) -> None:
    import torch

    terminal = console()
    calls = [call for call in trace.calls if call.site in sites and len(call.decision.experts) == len(tokens)]
    if not calls:
        raise QueryError("sites that see the prompt's tokens", f"only others in {sites[0]} ...", "Widen --sites.")
    shares = torch.stack([trace.weights(call)[0] for call in calls]).mean(dim=0)  # (tokens, E)
    guidance = _global(model, trace)
    tell_unused(guidance["fault"])
    if guidance["verdict"] is not None:
        bare = trace.condition is not None and bool(trace.condition.bare_rows[0])
        terminal.print("verdict " + verdict_text(guidance["verdict"], bare))
    if guidance["alpha"] is not None:
        ranked = sorted(guidance["global_scores"].items(), key=lambda item: -item[1])
        terminal.print("global  " + "  ".join(f"{name} {score:.2f}" for name, score in ranked))
        terminal.print(f"alpha   {guidance['alpha']:g}")
    table = plain_table("token", f"experts over {len(calls)} sites (share of weight)")
    for token, share in zip(tokens, shares, strict=True):
        order = share.argsort(descending=True)[:4].tolist()
        shown = "  ".join(f"{trace.experts[i]} {share[i]:.2f}" for i in order if share[i] >= 0.05)
        table.add_row(repr(token), shown or BASE_ALONE)
    terminal.print(table)
