"""`glider demo`: the main job, seen working."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glider.cli.terminal import verdict_text
from glider.terminal import console

if TYPE_CHECKING:
    from glider.demo.prompts import DemoPrompt
    from glider.inference.answers import Answer
    from glider.inference.model import RoutedModel

_BAR_WIDTH = 24
_SHOWN_EXPERTS = 3
_LEAST_SHOWN = 0.005


def register(app: typer.Typer, name: str, text: str) -> None:
    app.command(name, help=text)(demo)


def demo(
    picture: Annotated[Path, typer.Option("--picture", help="Where to write the heatmap.")] = Path("heatmap.png"),
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 24,
) -> None:
    """Answer a dozen prompts of different tasks in one mixed batch, and show which experts did it."""

    from glider.cli.terminal import quiet_libraries

    quiet_libraries()
    from glider.demo.base import converted_base
    from glider.demo.prompts import PROMPTS
    from glider.inference.spec import load
    from glider.report.heatmap import draw_heatmap

    shown = console(wrap=False)
    converted_base()  # a first run has a bar of its own, which no other line may stand in
    with console(stderr=True).status("Loading the base model, the embedder and the pool ..."):
        model = load()
    shown.print(
        f"{len(model.experts)} experts ({', '.join(model.experts)}) on {model.pool.index.base.model_id}; "
        f"{len(PROMPTS)} prompts in one batch."
    )
    answers, trace = _answer(model, [prompt.text for prompt in PROMPTS], max_new_tokens)
    for number, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True), start=1):
        _show(shown, number, prompt, answer)
    titles = [f"{p.task}" + ("" if p.expert else " (no expert)") for p in PROMPTS]
    written = draw_heatmap(trace, picture, titles, range(len(PROMPTS)), [prompt.expert for prompt in PROMPTS])
    shown.print(f"\nRouting heatmap (sites x experts): {written.resolve()}")


def _answer(model: "RoutedModel", texts: list[str], max_new_tokens: int) -> tuple[list["Answer"], Any]:
    """Generate with a progress bar that counts written tokens and finished rows."""
    from glider.progress import Bars

    with Bars() as bars:
        bars.update("Answering", 0.0, "reading the prompts")
        written = {"pieces": 0, "ended": 0}

        def progress(piece: Any) -> None:
            written["pieces"] += 1
            written["ended"] += piece.ended
            text = f"{written['pieces']} tokens, {written['ended']} of {len(texts)} answers"
            bars.update("Answering", written["ended"] / len(texts), text)

        return model.generate_traced(texts, max_new_tokens=max_new_tokens, on_piece=progress)


def _show(shown: Any, number: int, prompt: "DemoPrompt", answer: "Answer") -> None:
    from rich.text import Text

    question = " ".join(prompt.text.split())
    question = question if len(question) <= 100 else question[:48] + " ... " + question[-48:]
    home = "its expert: " + prompt.expert if prompt.expert else "no expert in the pool"
    shown.print()
    shown.print(Text.assemble((f"{number:2d}  {prompt.task}", "bold"), " ", (f"({home})", "dim")))
    shown.print(f"    {question}", style="dim")
    shown.print(f"    {' '.join(answer.text.split())}", style="green")
    ranked = sorted(answer.global_scores.items(), key=lambda item: -item[1])[:_SHOWN_EXPERTS]
    scores = "  ".join(f"{name} {score:.2f}" for name, score in ranked)
    shown.print(f"    {verdict_text(answer.verdict)}   global {scores}")
    used = {name: share for name, share in answer.usage.items() if share >= _LEAST_SHOWN}
    for name, share in sorted(used.items(), key=lambda item: -item[1])[:_SHOWN_EXPERTS]:
        shown.print(Text.assemble(f"    {name:>16} ", (bar_of(share), "cyan"), f" {share:.2f}"))


def bar_of(share: float) -> str:
    """A horizontal bar for a share between 0 and 1, in eighths of a character."""
    eighths = round(share * _BAR_WIDTH * 8)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
