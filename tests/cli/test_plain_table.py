"""Tables on the terminal."""

import pytest
from rich.console import Console

from glider.cli.terminal import plain_table

ROW = "loraretriever(by=descriptions)", "82.4-91.0", "a/path/of/one/word"


@pytest.mark.parametrize("width", [24, 40, 80])
def test_a_narrow_table_leaves_nothing_out(width: int) -> None:
    """An interval of `82.4-91.0` was shown as `82.4-…`."""
    table = plain_table("router", "95 %", "where")
    table.add_row(*ROW)
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().splitlines()
    assert all(len(line) <= width for line in lines)
    shown, given = "".join(lines), "".join([*ROW, "router", "95 %", "where"])
    assert sorted(shown.replace(" ", "")) == sorted(given.replace(" ", ""))
