"""`glider pool calibrate`: what a pool decides by, chosen and stored."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from glider.cli.arguments import JsonOption, KeyOption, PoolPath
from glider.cli.pool_ls import unsure_lines
from glider.cli.signature import telling_signature
from glider.cli.task_rows import rows_of_tasks
from glider.errors import ConfigError, DataError
from glider.inference.spec import BaseSpec, ModelSpec
from glider.terminal import say, say_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from glider.data.rows import Row
    from glider.experts.pool import Calibration, Pool
    from glider.experts.thresholds import Thresholds
    from glider.verdicts.background import Background

UnsureBy = Literal["tokens", "signal", "descriptions", "base"]
_MANY = 0.1  # of everyday requests no strangers: 2 % are wanted


def calibrate(
    path: PoolPath,
    spec: BaseSpec,
    signal: Annotated[
        str, typer.Option("--signal", help="Global signal: examples, ensemble, instruction, or an installed one.")
    ] = "examples",
    default: Annotated[bool, typer.Option("--default/--no-default", help="Use this signal from now on.")] = True,
    data: Annotated[
        str | None, typer.Option("--data", help="Rows of each expert's task ({name}), to choose gamma and beta by.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Use the rows of this split only.")] = "val",
    background: Annotated[
        Path | None,
        typer.Option("--background", help="Rows of requests that belong to no expert, beside those of the package."),
    ] = None,
    unsure_by: Annotated[
        UnsureBy | None,
        typer.Option(
            "--unsure-by",
            help="What chooses the experts of an unsure query. tokens: each of its tokens by itself (with a "
            "description it mixes the three nearest to that); signal, descriptions: it mixes the three nearest by the "
            "signal, or by descriptions, its own text where it brings none; base: none, the base model answers it "
            "alone. Default: as stored, or tokens.",
        ),
    ] = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose what a pool decides by, and store it with the pool.

    From the queries that its experts keep held back: the threshold p of alpha, and the thresholds of the verdicts
    (fits, unsure, stranger).

    With --data also gamma and beta, by the loss of four rows of each expert, with and without it in the pool.
    """
    from glider.calibration.verdict import choose_thresholds
    from glider.experts.pool import Pool

    pool = Pool.open(path, key)
    strangers = pool.background if background is None else _background_with(background)
    rows = None if data is None else rows_of_tasks(data, pool.names, split)
    thresholds = choose_thresholds(pool, strangers, **_of_the_unsure(pool, unsure_by))
    stored = _threshold(pool, signal)
    if rows is not None:
        if stored is None:
            raise ConfigError("a threshold p, for --data to choose gamma and beta beside", "none", "Leave out --data.")
        stored = _constants(pool.with_calibration(signal, stored), signal, rows, spec)
    with telling_signature(path):  # nothing is stored before all of it is chosen
        if stored is not None:
            pool = pool.calibrate(signal, stored, default)
        pool = pool.set_verdicts(thresholds, strangers)
    verdicts = pool.index.verdicts
    assert verdicts is not None
    if as_json:
        constants = {} if stored is None else stored.model_dump(mode="json")
        say_json({**constants, "verdicts": verdicts.model_dump(mode="json")})
        return
    _say(pool, signal, stored, verdicts)
    if len(pool) == 1 and unsure_by == "descriptions":
        say("glider: one expert leaves descriptions nothing to choose; they do where a second one joins", error=True)


def _say(pool: "Pool", signal: str, stored: "Calibration | None", verdicts: "Thresholds") -> None:
    """Tell what was chosen, and how good it is."""
    if stored is not None:
        quality = f"balanced accuracy {stored.balanced_accuracy:.3f}, AUC {stored.auc:.3f}, {stored.queries} queries"
        constants = f"p = {stored.p:g}, gamma = {stored.gamma:g}, beta = {stored.beta:g}"
        say(f"{pool.path}: {signal}, {constants} ({quality}, {stored.source})")
    of_the_unsure = unsure_lines(verdicts, len(pool))
    for line in [*expected_lines(verdicts), *of_the_unsure]:
        say(line)
    compared = bool(of_the_unsure) and verdicts.nearest_by == "descriptions"
    silent = [expert.name for expert in pool if expert.instruction is None] if compared else []
    if silent:
        say(f"glider: no unsure query gets {', '.join(silent)}, without a description", error=True)


def _threshold(pool: "Pool", signal: str) -> "Calibration | None":
    """p of a signal; None, with a message, where the pool has one expert, or an expert has no profile while those of
    others suffice for verdicts."""
    from glider.calibration.automatic import has_queries
    from glider.calibration.threshold import calibrate as choose
    from glider.errors import RouterError
    from glider.progress import Bars, counter

    if len(pool) == 1:
        say(f"glider: no p for a pool of one expert: {pool.names[0]} is judged by its margin alone", error=True)
        return None
    try:
        with Bars() as bars:
            return choose(pool, signal, report=counter(bars, "Leaving out one expert at a time"))
    except RouterError as fault:
        if all(expert.profile is not None for expert in pool) or not has_queries(pool):
            raise
        say(f"glider: no p, the verdicts alone: {fault}", error=True)
        return None


def _background_with(path: Path) -> "Background":
    from glider.batch.prompts import read_prompts
    from glider.verdicts.background import JUDGED, Background, shipped

    requests = [row.query(None).text for row in read_prompts(path, {})]
    empty = next((place for place, request in enumerate(requests, start=1) if not request.strip()), None)
    if empty is not None:
        raise DataError(f"requests with text in {path}", f"an empty one (request {empty})", "Leave it out.")
    return shipped().joined(Background.of([requests], JUDGED))


def _of_the_unsure(pool: "Pool", unsure_by: UnsureBy | None) -> dict[str, Any]:
    """What an unsure query gets, as it is stored, but for what is given."""
    from glider.experts.thresholds import MIXED, SHARE

    stored = pool.index.verdicts
    settings = {} if stored is None else stored.model_dump(include={"experts", "share", "nearest_by"})
    if stored is not None:
        settings["described"] = stored.mixed(described=True)
    if unsure_by is None:
        return settings
    experts, share = settings.get("experts") or MIXED, settings.get("share") or SHARE
    if unsure_by == "base":
        return {"experts": experts, "share": 0.0, "nearest_by": "signal", "described": None}
    if unsure_by == "tokens":
        return {"experts": 0, "share": share, "nearest_by": "signal", "described": None}
    return {"experts": experts, "share": share, "nearest_by": unsure_by, "described": None}


def expected_lines(verdicts: "Thresholds") -> list[str]:
    """What the verdicts are expected to get wrong, and how that is known."""
    abstained, strange = verdicts.false_abstention, verdicts.false_acceptance
    lines = [f"verdicts: a query whose margin over everyday requests is below {verdicts.stranger:g} is a stranger"]
    if abstained is not None:
        lines.append(
            f"  of the experts' own queries {abstained:.1%} are called strangers ({verdicts.queries} held back)"
        )
    if strange is not None:
        lines.append(
            f"  of everyday requests {strange:.1%} are not ({verdicts.strangers}, each judged without its kind)"
        )
        if strange > _MANY:
            lines += [
                "  so many, since an expert's rows read like them: let rows and queries say what to do",
                "  (`Friendly or rude? ...`), or add requests that the base must go on answering (--background)",
            ]
    return lines


def _constants(pool: "Pool", signal: str, rows: "Mapping[str, Sequence[Row]]", spec: BaseSpec) -> "Calibration":
    """The calibration of a signal with gamma and beta chosen by rows; `pool` has it already, if only in memory."""
    from glider.calibration.strength import choose_constants
    from glider.cli.terminal import quiet_libraries
    from glider.inference.alpha_loss import alpha_loss
    from glider.progress import Bars, counter

    quiet_libraries()
    model_spec = ModelSpec(**spec.model_dump(), pool=str(pool.path), signal=signal)
    pool.verify()
    model = model_spec.over(model_spec.load_base_of(pool), pool)
    with Bars() as bars:
        report = counter(bars, "Trying gamma and beta")
        return choose_constants(pool.names, alpha_loss(model), rows, pool.index.calibrations[signal], report=report)
