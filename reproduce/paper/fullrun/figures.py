"""The paper's figures 2 and 3 at full size: numbers as JSON, for `glider report paper`, and a picture of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fullrun.plan import Cell
from glider.experts.pool import Pool
from glider.files.disk import write_json
from glider.inference.spec import ModelSpec
from glider.report.global_scores import TaskFile, pool_scores
from glider.report.routing_map import routing_map
from glider.report.scores_figure import draw_scores
from glider.routing.global_part import DESCRIPTIONS
from glider.routing.specification import router_from


def draw(cell: Cell, spec: Mapping[str, Any], rows: Sequence[Path], queries: Mapping[str, str], numbers: Path) -> Path:
    """Write the numbers of a figure's cell, and its picture beside them; returns the picture.

    `queries` are the published ones of the tasks, which stand for the rows' own in the global term.
    """
    files, picture = [TaskFile(path) for path in rows], numbers.with_suffix(".png")
    numbers.parent.mkdir(parents=True, exist_ok=True)
    if cell.figure == "scores":
        pool = Pool.open(Path(spec["pool"]))
        scores = pool_scores(
            pool, DESCRIPTIONS, files, profiles=False, descriptions=queries, rows=cell.rows or 1
        ).model_copy(update={"p": cell.method.settings["p"]})
        write_json(numbers, scores.model_dump(mode="json"))
        return draw_scores(scores, picture)
    model = ModelSpec(router=router_from(cell.method.router, cell.method.settings), **spec).load()
    routed = routing_map(model, cell.method.router, files, descriptions=queries, rows=cell.rows or 1)
    routed.write(numbers)
    return routed.draw(picture)
