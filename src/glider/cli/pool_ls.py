"""`glider pool ls`: a pool at a glance."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glider.cli.arguments import JsonOption, KeyOption, ReadPool, pool_to_read
from glider.cli.terminal import BASE_ALONE, experts_text
from glider.errors import GliderError
from glider.printable import printable
from glider.terminal import console, has_width, say, say_json

if TYPE_CHECKING:
    from glider.experts.gains import Gain
    from glider.experts.index import ExpertRecord, PoolIndex
    from glider.experts.thresholds import Thresholds
    from glider.experts.trust import Trust


def ls(
    path: ReadPool,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the experts of a pool, and what it decides by.

    Each has its size and what it gains, and the pool its thresholds. Gains are those that `glider pool check --store`
    measured; an expert without has a dash. Exit code 2 where an expert is broken, which is told.
    """
    from glider.experts.membership import read_index

    directory, trust = pool_to_read(path, key)
    index = read_index(directory, trust)
    rows = expert_rows(directory, index, trust)
    if as_json:
        say_json({**_facts(index), "experts": rows})
    else:
        _print_pool(rows, index, path)
    for row in rows:
        if row["fault"] is not None:
            say(f"glider: {row['name']}: {row['fault']}", error=True)
    if any(row["fault"] is not None for row in rows):
        raise typer.Exit(2)


def _print_pool(rows: list[dict[str, Any]], index: "PoolIndex", path: str) -> None:
    from rich.table import Table

    shown = console()
    place = f", at {index.base.path}" if index.base.path else ""
    shown.print(f"{experts_text(len(rows))} for {printable(index.base.model_id)} ({index.base.hash}){place}")
    for line in _thresholds(index):
        shown.print(line)
    table = Table(box=None, pad_edge=False, expand=has_width())
    for name in ("expert", "rank", "sites", "gates", "MB", "base", "alone", "gain"):
        table.add_column(name)
    table.add_column("description", ratio=1, no_wrap=True, overflow="ellipsis")  # a line an expert; --json has it whole
    for row in rows:
        sizes = (row["rank"], str(row["sites"]), str(row["gates"]), f"{row['mb']:.1f}")
        table.add_row(row["name"], *sizes, *_gain_texts(row["gain"]), printable(row["description"] or "-", 1000))
    shown.print(table)
    shown.print(f"{sum(row['mb'] for row in rows):.1f} MB in {path}")


def expert_rows(directory: Path, index: "PoolIndex", trust: "Trust") -> list[dict[str, Any]]:
    """A row of the table for each expert; of one that cannot be opened its fault."""
    from glider.experts.gains import read_gains

    gains = read_gains(directory, index)
    return [_row(directory, trust, record, gains.get(record.name)) for record in index.experts]


def _row(directory: Path, trust: "Trust", record: "ExpertRecord", gain: "Gain | None") -> dict[str, Any]:
    from glider.experts.pool import Pool

    measured = None if gain is None else {**gain.model_dump(mode="json"), "difference": gain.difference}
    row: dict[str, Any] = {"name": record.name, "rank": "-", "sites": 0, "gates": 0}
    row |= {"mb": sum(file.size for file in record.files.values()) / 1e6, "gain": measured}
    row |= {"description": None, "fault": None}
    try:
        expert = Pool.open(directory, trust, only=[record.name])[record.name]
    except GliderError as fault:
        return {**row, "fault": str(fault)}
    ranks = sorted({site.rank for site in expert.sites.values()})
    row["rank"] = "-".join(str(rank) for rank in dict.fromkeys((ranks[0], ranks[-1])))
    row |= {"sites": len(expert.sites), "gates": sum(site.has_gate for site in expert.sites.values())}
    return {**row, "description": expert.card.description}


def _gain_texts(gain: dict[str, Any] | None) -> tuple[str, str, str]:
    if gain is None:
        return ("-", "-", "-")
    interval = "" if gain["low"] is None else f" ({100 * gain['low']:+.1f} {100 * gain['high']:+.1f})"
    return (f"{100 * gain['base']:.1f}", f"{100 * gain['alone']:.1f}", f"{100 * gain['difference']:+.1f}{interval}")


def _facts(index: "PoolIndex") -> dict[str, Any]:
    calibrations = {name: one.model_dump(mode="json") for name, one in index.calibrations.items()}
    verdicts = None if index.verdicts is None else index.verdicts.model_dump(mode="json")
    base = {"base": index.base.model_id, "base_path": index.base.path}
    return {**base, "signal": index.signal, "calibrations": calibrations, "verdicts": verdicts}


def _thresholds(index: "PoolIndex") -> list[str]:
    """What the pool decides by, in a line each; a pool that decides nothing says how it would."""
    lines = []
    if index.signal is not None and (constants := index.calibrations.get(index.signal)) is not None:
        lines.append(
            f"signal {index.signal}: alpha = {constants.beta + constants.gamma:g} above p = {constants.p:g}, "
            f"else {constants.beta:g}"
        )
    if (verdicts := index.verdicts) is not None:
        wrong = f"{_share(verdicts.false_abstention)} of the experts' queries and {_share(verdicts.false_acceptance)}"
        lines.append(
            f"verdicts: strangers have a margin below {verdicts.stranger:g}; wrong for {wrong} of everyday ones"
        )
        lines += unsure_lines(verdicts, len(index.experts))
    return lines or ["no thresholds yet: glider pool calibrate chooses them"]


def unsure_lines(verdicts: "Thresholds", experts: int) -> list[str]:
    """What an unsure query gets, where there is a choice or it is the base."""
    if verdicts.leaves_unsure:
        return [f"unsure queries are left to {BASE_ALONE}"]
    if experts == 1:
        return []
    if not verdicts.experts:
        described = min(verdicts.mixed(described=True), experts)
        mixing = f"  with a description, if each expert has one too, they mix {_experts(described)}"
        return ["unsure queries are routed token by token", *([mixing] if described else [])]
    by = "with the nearest descriptions" if verdicts.nearest_by == "descriptions" else "nearest by the signal"
    return [f"unsure queries get the {_experts(min(verdicts.experts, experts))} {by}"]


def _experts(count: int) -> str:
    return "expert" if count == 1 else f"{count} experts"


def _share(value: float | None) -> str:
    return "an unknown share" if value is None else f"{value:.1%}"
