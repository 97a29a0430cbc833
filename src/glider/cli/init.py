"""`glider init`: what somebody has, as a plan that `glider pool build` carries out."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from glider.cli.terminal import experts_text
from glider.config import EMBEDDED_BASE
from glider.errors import ConfigError
from glider.files.opening import from_home
from glider.files.replacing import is_directory
from glider.printable import dump_json, printable, visible
from glider.terminal import say

ROWS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet")
HEAD = "# What `glider pool build` makes a pool of. Paths are relative to this file.\n"
BUDGET = (
    "defaults: {{minutes: {:g}}}  # of training for each expert; without it 1,000 steps an adapter, 100 for gates\n"
)


def register(app: typer.Typer, name: str, text: str) -> None:
    app.command(name, help=text)(init)


def init(
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", help="Directory of a PEFT adapter, of several, or a hub id (repeatable)."),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Hub id or path of the base model. Default: what the adapters name.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help="Rows of a task, or a directory of such files, named as the adapters (repeatable)."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The plan to write.")] = Path("pool.yaml"),
    pool: Annotated[str, typer.Option("--pool", help="Where the pool shall lie; for the next command.")] = "my-pool",
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", min=0.01, help="Longest training of each expert. Default: 1,000 steps, 100 for gates."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a plan that is there.")] = False,
) -> None:
    """Write a pool.yaml of the adapters, the base and the data you have, and say what to run next.

    On a terminal it asks, where neither --adapter nor --data says what you have. Rows are matched with adapters by
    name: `tone.jsonl` belongs to `tone`; rows without an adapter are an expert to be trained.
    """
    if os.path.lexists(out) and not force:
        raise ConfigError(f"a new file at {out}", "one that is there", "Give another --out, or --force.")
    if base == "":
        raise ConfigError("the base model's hub id or path (--base)", "none", "Write it, or leave the option out.")
    asks = sys.stdin.isatty() and not adapter and not data
    if asks:
        adapter = _ask("PEFT adapters (directories or hub ids, with spaces between; none: train from rows)")
        data = _ask("Rows of their tasks (files or directories; none: queries are matched with the adapters alone)")
    adapters, files = _adapters(adapter or []), _files(data or [])
    if not adapters and not files:
        remedy = "Give --adapter DIRECTORY, --data ROWS, or both."
        raise ConfigError("adapters or rows to make experts of", "neither", remedy)
    model = base or _named_base(adapters) or EMBEDDED_BASE
    if asks and base is None:
        model = typer.prompt("Base model (hub id or path)", default=model, err=True)
    if is_directory(from_home(model)) and not (from_home(model) / "config.json").exists():
        remedy = "Give the directory of a model, or a hub id."
        raise ConfigError(f"a base model in {model}", "no config.json there", remedy)
    experts = _experts(adapters, files, out.absolute().parent)
    _write(out, _text(model, experts, minutes))
    say(f"{out}: {experts_text(len(experts))} on {model}")
    trained = [expert["name"] for expert in experts if "adapter" not in expert]
    if adapters and trained:
        say(f"rows without an adapter of their name, so experts to be trained: {', '.join(trained)}")
    if minutes is None and trained:
        say("An adapter is trained for 1,000 steps, which take long on a CPU; --minutes 10 bounds it for each expert.")
    _say_next(out, experts, pool)


def _ask(question: str) -> list[str]:
    return typer.prompt(question, default="", show_default=False, err=True).split()


def _adapters(texts: list[str]) -> dict[str, str]:
    """Adapters by name; a directory without an adapter of its own stands for those in it."""
    from glider.experts.peft_format import ADAPTER_CONFIG_FILE

    adapters: dict[str, str] = {}
    for text in texts:
        place = from_home(text)
        if place.is_file():
            raise ConfigError("the directory of an adapter", f"the file {text}", "Give the directory that PEFT saved.")
        single = not place.is_dir() or (place / ADAPTER_CONFIG_FILE).exists()
        places = [place] if single else sorted(file.parent for file in place.glob(f"*/{ADAPTER_CONFIG_FILE}"))
        if not places:
            deeper = sorted(str(file.parent) for file in place.glob(f"*/*/{ADAPTER_CONFIG_FILE}"))
            got = f"no {ADAPTER_CONFIG_FILE}" + (f" there, but in {', '.join(deeper[:4])}" if deeper else "")
            remedy = "Give --adapter for each of them, or the directory they are in." if deeper else "Check the path."
            raise ConfigError(f"PEFT adapters in {place}", got, remedy)
        if single and not place.exists() and text.count("/") != 1:
            raise ConfigError(
                f"an adapter at {text}", "no such directory", "Check the path, or give a hub id owner/name."
            )
        for one in places:
            if one.name in adapters:
                raise ConfigError("adapters of different names", f"{one.name} twice", "Rename one of the directories.")
            adapters[one.name] = str(one) if one.exists() else text
    return adapters


def _files(texts: list[str]) -> dict[str, Path]:
    """Files of rows by the name of their task."""
    files: dict[str, Path] = {}
    for text in texts:
        place = from_home(text)
        inside = sorted(file for file in place.iterdir() if file.name.endswith(ROWS)) if place.is_dir() else [place]
        for file in inside:
            if not file.is_file():
                raise ConfigError(f"rows at {file}", "no such file", "Check the path.")
            files[file.name.removesuffix(".gz").rsplit(".", 1)[0]] = file
    return files


def _named_base(adapters: dict[str, str]) -> str | None:
    """The base that the adapters name, where they agree and somebody can find it; the embedded one by its name."""
    from glider.demo.base import BASE_ID, converted_place
    from glider.experts.peft_format import ADAPTER_CONFIG_FILE
    from glider.files.json_text import read_json

    named = set()
    for place in adapters.values():
        if (file := Path(place) / ADAPTER_CONFIG_FILE).exists():
            try:
                named.add(_base_in(read_json(file)))
            except (ValueError, AttributeError, RecursionError) as fault:
                raise ConfigError(f"an adapter's settings in {file}", str(fault), "Mend the file.") from fault
    embedded = (BASE_ID, str(converted_place()))  # PEFT writes down the path that it was loaded from
    named = {EMBEDDED_BASE if name in embedded else name for name in named} - {""}
    if len(named) > 1:
        bases = ", ".join(sorted(named)[:4])
        raise ConfigError("adapters of one base model", bases, "Give --base, and leave out the adapters of others.")
    return named.pop() if named else None


def _base_in(settings: Any) -> str:
    """The base that an adapter's settings name, or no text; `ValueError` for what is no name on one line."""
    name = settings.get("base_model_name_or_path") or ""
    if not isinstance(name, str) or len(name) > 4096 or (name and visible(name).splitlines() != [name]):
        raise ValueError(f"base_model_name_or_path {printable(str(name), 60)!r}, which is no name")
    return name


def _experts(adapters: dict[str, str], files: dict[str, Path], root: Path) -> list[dict[str, Any]]:
    experts = []
    for name in dict.fromkeys([*adapters, *files]):
        expert: dict[str, Any] = {"name": name}
        if name in adapters:
            expert["adapter"] = _relative(adapters[name], root) if Path(adapters[name]).exists() else adapters[name]
        if name in files:
            expert["data"] = _relative(files[name], root)
        experts.append(expert)
    return experts


def _relative(place: str | Path, root: Path) -> str:
    path = Path(place).absolute()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _text(base: str, experts: list[dict[str, Any]], minutes: float | None) -> str:
    """The plan as YAML whose strings are JSON's, which YAML reads alike."""
    budget = BUDGET.format(10 if minutes is None else minutes)
    lines = [HEAD + ("# " if minutes is None else "") + budget + f"base: {dump_json(base, None)}", "experts:"]
    for expert in experts:
        fields = [f"{key}: {dump_json(value, None)}" for key, value in expert.items()]
        lines += [f"  - {fields[0]}", *(f"    {field}" for field in fields[1:])]
        lines.append("    # description: one sentence, what the task is; without it queries are matched by their words")
    return "\n".join(lines) + "\n"


def _write(out: Path, text: str) -> None:
    """Write a plan; one that cannot be built takes nobody's place."""
    from glider.contribute.build import PoolPlan
    from glider.files.disk import write_file

    def write(partial: Path) -> None:
        partial.write_text(text, "utf8")
        try:
            PoolPlan.read(partial)
        except ConfigError as fault:
            parts = (part.replace(str(partial), str(out)) for part in (fault.wanted, fault.got, fault.remedy))
            raise ConfigError(*parts) from fault

    write_file(out, write)


def _say_next(out: Path, experts: list[dict[str, Any]], pool: str) -> None:
    say(f"next: glider pool build {out} --out {pool}")
    if bare := [expert["name"] for expert in experts if "data" not in expert]:
        say(f"without rows, so without gates: {', '.join(bare)}; give --data for them, or route by the adapters alone:")
        say(f"then: glider generate --pool {pool} --router arrow 'a prompt'")
        return
    say(f"then: glider generate --pool {pool} 'a prompt'")
