"""YAML that stands for more than it says, and files of plans that are no files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from glider.contribute.build import PoolPlan
from glider.data.rows import read_rows
from glider.errors import ConfigError, GliderError
from glider.evaluation.run_plan import RunPlan, read_descriptions
from glider.files.opening import UnfitFile
from glider.files.yaml_text import read_yaml
from glider.inference.queries import Query
from glider.report.cells import Results
from glider.report.report_plan import ReportPlan

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{here}: &{here} [{','.join([f'*{before}'] * 10)}]\n" for before, here in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "laughs": LAUGHS,
    "itself": "a: &a [*a]\n",
    "deep": "[" * 100_000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(200)),
    "many": "[" + "x," * 200_000 + "]",
    "object": "!!python/object/apply:os.system [id]\n",
    "date": "when: 2001-99-99\n",
    "number": "n: " + "9" * 5000 + "\n",
    "float": "n: 1e999999:99\n",
    "hexadecimal": "experts: 0x" + "f" * 9000 + "\n",  # which Python reads, and does not print
    "sixties": "base: " + ":".join(["59"] * 5000) + "\n",
    "tagged": "base: !!int '" + "9" * 4000 + "'\n",
    "key": "? [a]\n: b\n",
    "half": 'a: "\\ud800"\n',
    "control": "a: \x07\n",
    "open": "a: 'x",
    "unknown": "a: *b\n",
    "twice": "sets: {a: 1}\nother: [x]\nsets: {b: 2}\n",
    "twice within": "a: [{b: 1, c: {b: 1}, b: 2}]\n",
}
READERS: dict[str, Callable[[Path], object]] = {
    "pool plan": PoolPlan.read,
    "run": RunPlan.read,
    "report": ReportPlan.read,
    "descriptions": read_descriptions,
    "rows": read_rows,
}


def test_what_plans_write_is_read(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("base: b\nd: &d {rank: 4}\ne: [{<<: *d, name: x}, *d]\nü: 世界\n", "utf8")
    assert read_yaml(tmp_path / "plan.yaml") == {
        "base": "b",
        "d": {"rank": 4},
        "e": [{"rank": 4, "name": "x"}, {"rank": 4}],
        "ü": "世界",
    }


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_one_line(tmp_path: Path, reader: str, text: str) -> None:
    (tmp_path / "plan.yaml").write_text(text, "utf8")
    with pytest.raises(GliderError) as told:
        READERS[reader](tmp_path / "plan.yaml")
    assert "plan.yaml" in str(told.value) and len(str(told.value)) < 3000


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "large", "bytes", "empty"])
def test_what_is_no_fitting_file_is_one_line(tmp_path: Path, reader: str, kind: str) -> None:
    path = tmp_path / "plan.yaml"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "directory":
            path.mkdir()
        case "large":
            path.touch()
            os.truncate(path, 1 << 40)
        case "bytes":
            path.write_bytes(b"\xff\xfe\x00")
        case "empty":
            path.touch()
    if (reader, kind) == ("report", "empty"):
        return  # a report of everything
    with pytest.raises((GliderError, OSError)) as told:
        READERS[reader](path)
    assert not isinstance(told.value, GliderError) or "plan.yaml" in str(told.value)
    assert not isinstance(told.value, OSError) or told.value.filename == str(path)  # the command line's one line


def test_a_row_of_millions_of_members_is_told_before_it_is_built(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"input": "a", "output": "b", "more": [' + "[]," * 1_000_000 + "[]]}", "utf8")
    with pytest.raises(GliderError, match=r"rows\.jsonl:1; got more than 50000 members"):
        read_rows(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"input": "' + "a, [b] " * 100_000 + '", "output": "b"}', "utf8")
    assert len(read_rows(tmp_path / "rows.jsonl")) == 1


@pytest.mark.parametrize("content", ["[" * 100_000, "NaN", '{"a": "\\ud800"}', "[1" + ",1" * 6_000_000 + "]"])
def test_a_hostile_result_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "out" / "set").mkdir(parents=True)
    for place in (tmp_path / "out" / "set" / "x.json", tmp_path / "out" / "x.json"):
        place.write_text(content, "utf8")
    with pytest.raises(GliderError, match=r"x\.json"):
        Results.read(tmp_path / "out")


def test_half_a_character_is_no_query() -> None:
    with pytest.raises(GliderError, match="half of one at place 3"):
        Query("abc\ud800")
    with pytest.raises(GliderError, match="half of one"):
        Query("a", examples=(("in", "\udfff"),))
    assert Query("🎉").text == "🎉"


def test_a_key_file_and_a_run_share_one_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="no regular file"):
        RunPlan.read(tmp_path / "run.yaml")


@pytest.mark.parametrize("text", ["!!bool maybe", "!!timestamp soon", "!!int ''", "!!float ''", "{!!bool a: b}"])
def test_a_value_that_does_not_fit_its_tag_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.yaml").write_text(f"a: {text}", "utf8")
    with pytest.raises(UnfitFile, match="does not fit its tag"):
        read_yaml(tmp_path / "plan.yaml")


def test_a_fault_names_no_string_of_the_parser(tmp_path: Path) -> None:
    """The place was `in "<unicode string>", line 2`, beside the file's name."""
    (tmp_path / "bad.yaml").write_text("a: [\n")
    with pytest.raises(ValueError, match=r"line 2") as fault:
        read_yaml(tmp_path / "bad.yaml")
    assert "unicode string" not in str(fault.value)
