"""Rows as people keep them."""

import gzip
import json
import subprocess
import sys
import tracemalloc
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glider.config import repeated
from glider.data.parquet_footer import values_of_columns
from glider.data.records import columns_of
from glider.data.records import records as table_records
from glider.data.rows import Row, read_rows, split_rows
from glider.errors import DataError
from glider.files.opening import UnfitFile

PAIRS = [("What, then?", 'a "quoted"\nanswer'), ("two", "b")]


def pairs(path: Path, **settings: Any) -> list[tuple[str, str]]:
    return [(row.input, row.output) for row in read_rows(path, **settings)]


def records(question: str = "input", answer: str = "output") -> list[dict[str, str]]:
    return [{question: one, answer: other} for one, other in PAIRS]


def write(path: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    if kind in ("csv", "tsv"):
        cut = "," if kind == "csv" else "\t"
        quoted = [['"' + str(cell).replace('"', '""') + '"' for cell in row.values()] for row in rows]
        text = "\n".join(cut.join(cells) for cells in [list(rows[0]), *quoted]) + "\n"
    else:
        text = json.dumps(rows, indent=1) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, "utf8") if path.suffix != ".gz" else path.write_bytes(gzip.compress(text.encode()))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_form_of_file_gives_the_same_rows(tmp_path: Path, kind: str):
    assert pairs(write(tmp_path / f"rows.{kind}", kind, records())) == PAIRS
    named = write(tmp_path / f"named.{kind}", kind, records("question", "answer"))
    assert pairs(named, columns=columns_of("input=question, output=answer")) == PAIRS
    with pytest.raises(DataError, match="no column text"):
        read_rows(named, columns={"input": "text"})
    if kind != "parquet":
        assert pairs(write(tmp_path / f"rows.{kind}.gz", kind, records())) == PAIRS


def test_lines_that_are_named_json_are_lines(tmp_path: Path):
    assert pairs(write(tmp_path / "rows.json", "jsonl", records())) == PAIRS


def test_an_instruction_beside_the_input_is_part_of_it(tmp_path: Path):
    """Rows in Alpaca's form; the instruction was left out without a word."""
    rows = [
        {"instruction": "Translate.", "input": "chat", "output": "cat"},
        {"instruction": "Name a colour.", "input": "", "output": "red"},
        {"instruction": "Name a tree.", "output": "oak"},
    ]
    wanted = [("Translate.\n\nchat", "cat"), ("Name a colour.", "red"), ("Name a tree.", "oak")]
    assert pairs(write(tmp_path / "rows.jsonl", "jsonl", rows)) == wanted
    rows[2] = {"instruction": "Name a tree.", "input": "", "output": "oak"}
    for kind in ("json", "csv", "parquet"):
        assert pairs(write(tmp_path / f"rows.{kind}", kind, rows)) == wanted
    file = write(tmp_path / "rows.jsonl", "jsonl", rows[:1])
    assert pairs(file, columns=columns_of("input=input,output=output")) == [("chat", "cat")]  # as the columns say


def test_a_turn_may_be_given_as_parts_of_text(tmp_path: Path):
    parts = [{"type": "text", "text": "What "}, {"type": "text", "text": "now?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]
    assert pairs(write(tmp_path / "rows.jsonl", "jsonl", [{"messages": turns}])) == [("What now?", "a")]
    turns[0]["content"] = [{"type": "image", "url": "x"}]
    with pytest.raises(DataError, match="of text"):
        read_rows(write(tmp_path / "rows.jsonl", "jsonl", [{"messages": turns}]))


def test_columns_of_one_name_are_refused(tmp_path: Path):
    (tmp_path / "rows.csv").write_text("input,output,input\na,b,c\n")
    with pytest.raises(DataError, match="'input' twice"):
        read_rows(tmp_path / "rows.csv")


def test_a_header_of_many_columns_is_looked_through_once(tmp_path: Path):
    """Each name was counted among all: 60,000 of them took more than a minute."""
    compared = 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    names = [Name(f"column {i}") for i in range(1000)]
    assert repeated(names) == [] and compared < 2 * len(names)
    assert repeated([*names, "column 7", "column 3", "column 3"]) == ["column 3", "column 7"]
    (tmp_path / "rows.csv").write_text(",".join(f"c{i}" for i in range(20_000)) + "\na,b\n")
    with pytest.raises(DataError, match="as many cells as columns"):
        read_rows(tmp_path / "rows.csv")


def test_prompts_with_completions_and_chats_are_rows(tmp_path: Path):
    chats = [
        {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": other}]}
        for one, other in PAIRS
    ]
    turns = [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in chats]
    for rows in (records("prompt", "completion"), chats, turns):
        assert pairs(write(tmp_path / "rows.jsonl", "jsonl", rows)) == PAIRS
    system = {"role": "system", "content": "Be brief."}
    told = [{"messages": [system, *chats[0]["messages"]]}]
    assert pairs(write(tmp_path / "rows.jsonl", "jsonl", told)) == [(f"Be brief.\n\n{PAIRS[0][0]}", PAIRS[0][1])]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "x"}]},
        {"messages": [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]},
        {"messages": "x"},
        {"messages": [{"role": "user"}]},
        {"prompt": "x"},
        {"question": "x", "answer": "y"},
        {"input": "x"},
        {"input": "x", "output": float("nan")},
        [1],
    ],
    ids=str,
)
def test_what_is_no_row_is_refused_with_its_place(tmp_path: Path, row: Any):
    path = write(tmp_path / "rows.jsonl", "jsonl", [{"input": "a", "output": "b"}, row])
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        read_rows(path)


def test_cells_of_a_table_may_be_lists_and_faults_name_the_line(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text('input,output,choices,split\na,b,"[""b"", ""c""]",train\n"x\ny",c,,val\n')
    first, second = read_rows(path)
    assert (first.choices, first.split, second.input, second.choices) == (("b", "c"), "train", "x\ny", None)
    assert pairs(path, split="val") == [("x\ny", "c")]
    path.write_text("input,output\na,b\nc\n")
    with pytest.raises(DataError, match=r"rows\.csv:3"):
        read_rows(path)
    path.with_suffix(".parquet").write_bytes(b"nothing of the kind")
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="Parquet"):
        read_rows(path.with_suffix(".parquet"))


def test_a_cell_that_is_nested_too_deeply_is_a_text(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text('input,output,choices\n"' + "[" * 100_000 + '",b,\n')
    assert read_rows(path)[0].input == "[" * 100_000
    path.write_text('input,output,choices\na,b,"' + "[" * 100_000 + '"\n')
    with pytest.raises(DataError, match="choices"):
        read_rows(path)


def test_a_name_that_stands_twice_in_a_row_is_refused(tmp_path: Path):
    """The last one would count, and the first be gone without a word."""
    from glider.batch.prompts import read_prompts

    path = tmp_path / "rows.jsonl"
    path.write_text('{"input": "a", "output": "b", "input": "c"}\n')
    for read in (read_rows, lambda file: read_prompts(file, {})):
        with pytest.raises(DataError, match="'input' twice"):
            read(path)
    path.write_text('{"input": "a", "z": [' + "[]," * 60_000 + "1]}\n")
    with pytest.raises(DataError, match="more than 50000 members"):
        read_prompts(path, {})


@pytest.mark.parametrize("text", ["input", "input=", "what=x", "input=a,input=b"])
def test_columns_of_another_form_are_refused(text: str):
    with pytest.raises(DataError, match="input=question"):
        columns_of(text)


def test_a_small_file_that_becomes_enormous_is_refused(tmp_path: Path):
    """Each form is bounded while it is read: these would be gigabytes."""
    import gzip

    line = b"x" * (1 << 20)
    with gzip.open(tmp_path / "rows.csv.gz", "wb") as file:
        file.write(b"input,output\n")
        for _ in range(400):
            file.write(line + b"," + b"y\n")
    with gzip.open(tmp_path / "endless.csv.gz", "wb") as file:
        file.write(b"input,output\n")
        for _ in range(64):
            file.write(line)
    with gzip.open(tmp_path / "rows.json.gz", "wb") as file:
        file.write(b"[")
        for _ in range(400):
            file.write(line)
    for name in ("rows.csv.gz", "endless.csv.gz", "rows.json.gz"):
        assert (tmp_path / name).stat().st_size < 1 << 20
        with pytest.raises(DataError, match=r"once expanded|a line of more than|field larger"):
            read_rows(tmp_path / name)


def test_a_parquet_file_that_becomes_enormous_is_refused(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"input": ["x" * (1 << 20)] * 2000, "output": ["y"] * 2000})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "rows.parquet", compression="zstd")
    assert (tmp_path / "rows.parquet").stat().st_size < 1 << 20
    with pytest.raises(DataError, match="once expanded"):
        read_rows(tmp_path / "rows.parquet")


def memory_of_a_refusal(pyarrow: Any, table: Any, directory: Path) -> int:
    """Most bytes that Arrow holds until a file of the table is refused."""
    settings = {"compression": "zstd", "dictionary_pagesize_limit": 1 << 30, "store_schema": False}
    pytest.importorskip("pyarrow.parquet").write_table(table, directory / "rows.parquet", **settings)
    usual = pyarrow.default_memory_pool()
    counting = pyarrow.proxy_memory_pool(usual)
    pyarrow.set_memory_pool(counting)
    try:
        with pytest.raises(DataError, match="once expanded"):
            read_rows(directory / "rows.parquet")
    finally:
        pyarrow.set_memory_pool(usual)
    return counting.max_memory()


def test_a_text_of_a_parquet_file_that_stands_in_all_rows_is_not_copied_before_it_is_counted(tmp_path: Path):
    """A file of two kilobytes took four gigabytes."""
    pyarrow = pytest.importorskip("pyarrow")
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 200, "int32"), ["x" * (16 << 20)])
    table = pyarrow.table({"input": texts, "output": ["y"] * 200})
    assert (16 << 20) < memory_of_a_refusal(pyarrow, table, tmp_path) < (200 << 20)


def nested(pyarrow: Any, form: str, items: Any, rows: int) -> Any:
    """Items in a column of rows: in lists, in objects within lists, or in maps."""
    places = pyarrow.array(range(0, len(items) + 1, len(items) // rows), "int32")
    if form == "lists":
        return pyarrow.ListArray.from_arrays(places, items)
    if form == "objects":
        return pyarrow.ListArray.from_arrays(places, pyarrow.StructArray.from_arrays([items], ["content"]))
    keys = pyarrow.array(["k"] * len(items))
    return pyarrow.MapArray.from_arrays(places, keys, items)


@pytest.mark.parametrize("form", ["lists", "objects", "maps"])
def test_a_text_within_lists_of_a_parquet_file_is_not_copied_before_it_is_counted(tmp_path: Path, form: str):
    """A file of a kilobyte took two gigabytes."""
    pyarrow = pytest.importorskip("pyarrow")
    items = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 64 * 28, "int32"), ["x" * (1 << 20)])
    table = pyarrow.table({"input": ["q"] * 64, "output": ["a"] * 64, "choices": nested(pyarrow, form, items, 64)})
    assert memory_of_a_refusal(pyarrow, table, tmp_path) < (64 << 20)


def test_a_list_of_countless_items_is_refused_before_it_is_read(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    numbers = pyarrow.array(np.zeros(40_000_000, np.int8))
    table = pyarrow.table({"input": ["q"], "output": ["a"], "choices": nested(pyarrow, "lists", numbers, 1)})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "rows.parquet", compression="zstd")
    del numbers, table
    with pytest.raises(DataError, match="once expanded"):
        read_rows(tmp_path / "rows.parquet")


def test_lists_and_objects_of_a_parquet_file_are_read_whatever_way_they_are_stored(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    rows = [
        {
            "input": text,
            "output": "y",
            "choices": [text, "n"] if number % 3 else None,
            "messages": [{"role": "user", "content": text, "parts": [{"of": [text]}]}] * (number % 3),
            "bytes": text.encode(),
            "numbers": [1, None],
        }
        for number, text in enumerate(["\u00fc", "ab", ""] * 400)
    ]
    table = pyarrow.Table.from_pylist(rows).append_column(
        "map", pyarrow.array([[("k", "v")]] * 1200, pyarrow.map_("string", "string"))
    )
    expected = [{name: one for name, one in row.items() if one is not None} for row in table.to_pylist()]
    small = {"dictionary_pagesize_limit": 8, "data_page_size": 64, "write_batch_size": 10}
    for settings in ({}, {"use_dictionary": False}, {"row_group_size": 7}, small, {"store_schema": False}):
        pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "rows.parquet", **settings)
        assert [record for _, record in table_records(tmp_path / "rows.parquet")] == expected


def test_texts_of_a_parquet_file_are_read_whatever_way_they_are_stored(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    rows = [{"input": text, "output": answer} for text in ("\u00fc", "ab", "") for answer in ("y", None, "ab")] * 300
    for kind in ("string", "large_string"):
        for settings in ({}, {"use_dictionary": False}, {"row_group_size": 7}):
            table = pyarrow.table({name: pyarrow.array([row[name] for row in rows], kind) for name in rows[0]})
            pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "rows.parquet", **settings)
            read = [record for _, record in table_records(tmp_path / "rows.parquet")]
            assert read == [{name: value for name, value in row.items() if value is not None} for row in rows]


def test_a_json_array_of_many_members_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("glider.data.records.MOST_MEMBERS", 1000)
    (tmp_path / "rows.json").write_text('[{"input": [' + "0," * 2000 + "0]}]", "utf8")
    with pytest.raises(DataError, match="more than 1000 members"):
        read_rows(tmp_path / "rows.json")


def test_cells_that_look_like_lists_are_texts_where_texts_are_read(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text('question,input,output,choices\nq,"[3, 1]","[""a""]","[""[\\""a\\""]"", ""b""]"\n')
    (row,) = read_rows(path)
    assert (row.input, row.output, row.choices) == ("[3, 1]", '["a"]', ('["a"]', "b"))


def test_fields_beyond_a_row_may_hold_anything(tmp_path: Path):
    pyarrow, moment = pytest.importorskip("pyarrow"), datetime(2024, 5, 1, tzinfo=timezone.utc)
    more = {"when": moment, "picture": b"\xff", "price": Decimal("1.2")}
    path = write(tmp_path / "rows.parquet", "parquet", [row | more for row in records()])
    assert pairs(path) == PAIRS
    with pytest.raises(DataError, match="row 1; got Object of type bytes"):
        read_rows(path, columns={"input": "picture"})
    names, columns = ["input", "output", "input"], [pyarrow.array([letter]) for letter in "abc"]
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns, names=names), path)
    with pytest.raises(DataError, match="'input' twice"):
        read_rows(path)


def test_what_would_be_left_out_of_a_row_is_refused(tmp_path: Path):
    call = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [{}]}]}
    for row, told in ((call, "calls tools"), ({"instruction": ["Do"], "input": "a", "output": "b"}, "of type list")):
        with pytest.raises(DataError, match=told):
            read_rows(write(tmp_path / "rows.jsonl", "jsonl", [row]))
    row = {"input": "q", "output": "a", "references": ["z"], "right": ["a", "b"], "split": "Test"}
    path = write(tmp_path / "rows.jsonl", "jsonl", [row])
    assert read_rows(path, columns=columns_of("targets=right"))[0].accepted == ("a", "b")
    with pytest.raises(DataError, match=r"of split test in .* got none, but the splits Test"):
        read_rows(path, "test")


def test_rows_without_a_split_are_not_left_out_beside_rows_with_one(tmp_path: Path) -> None:
    named = [{**row, "split": "train"} for row in records()]
    path = write(tmp_path / "rows.jsonl", "jsonl", [*named, *records()])
    assert len(read_rows(path)) == 4
    with pytest.raises(DataError, match=r"a `split` for every row in .*, or for none; got 2 of 4 rows without one"):
        read_rows(path, "train")
    assert len(read_rows(write(path, "jsonl", records()), "test")) == 2
    mixed = [Row(input=one, output=other, split=split) for one, other in PAIRS for split in ("train", None)]
    with pytest.raises(DataError, match="2 of 4 rows without one"):
        split_rows(mixed, 1, seed=0)


def test_an_array_takes_at_most_twice_its_size(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", "json", [{"input": str(n) * 2_000, "output": "b"} for n in range(1000)])
    list(table_records(path))
    tracemalloc.start()
    try:
        total = sum(len(row["input"]) for _, row in table_records(path))
        assert tracemalloc.get_traced_memory()[1] < 2.3 * path.stat().st_size
    finally:
        tracemalloc.stop()
    assert total > 5_000_000


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz", "rows.json.gz", "rows.parquet"])
@pytest.mark.parametrize("unit", [b"\n", b'{"input": "a", "output": "b"}\n'], ids=["blank", "rows"])
def test_a_small_file_of_countless_rows_is_refused(tmp_path: Path, name: str, unit: bytes) -> None:
    """69 kB of equal rows took half a gigabyte and 13 s; 65 kB of blank lines, 22 s."""
    path, count = tmp_path / name, 1_100_000 if name == "rows.json.gz" else 110_000
    if name.endswith(".parquet"):
        arrow = pytest.importorskip("pyarrow")
        texts = {part: arrow.array([part] * count) for part in ("input", "output")}
        pytest.importorskip("pyarrow.parquet").write_table(arrow.table(texts), path)
    elif name == "rows.json.gz" and unit != b"\n":
        path.write_bytes(gzip.compress(b"[" + b",".join([unit.strip()] * 110_000) + b"]"))
    else:
        path.write_bytes(gzip.compress((b"input,output\n" if "csv" in name else b"") + unit * count))
    with pytest.raises(DataError, match="in so small a file"):
        read_rows(path)


def test_rows_of_which_each_takes_some_bytes_may_be_many(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"input": f"{i} + {i * i % 7919}", "output": str(i + i)}) + "\n" for i in range(110_000))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert len(read_rows(tmp_path / "rows.jsonl.gz")) == 110_000


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows.jsonl"])
def test_a_file_that_is_not_there_is_called_rows(tmp_path: Path, name: str) -> None:
    """A CSV file was missed as JSON Lines."""
    with pytest.raises(DataError, match=rf"a file of rows at .*{name}; got no such file"):
        read_rows(tmp_path / name)


def odd_columns(pyarrow: Any) -> dict[str, Any]:
    """Columns with values that Arrow has, and Python has not."""
    whole = pyarrow.array([1 << 61] * 3)
    return {
        "days": pyarrow.array([1 << 30] * 3, "int32").cast("date32"),
        "moments": whole.cast(pyarrow.timestamp("us")),
        "zones": pyarrow.array([1] * 3, pyarrow.timestamp("us", "Nowhere/Land")),
        "times": whole.cast(pyarrow.time64("us")),
        "spans": whole.cast(pyarrow.duration("s")),
        "names": pyarrow.StructArray.from_arrays([pyarrow.array([1] * 3)] * 2, names=["a", "a"]),
    }


@pytest.mark.parametrize("name", ["days", "moments", "zones", "times", "spans", "names"])
def test_what_python_has_no_form_for_is_refused(tmp_path: Path, name: str):
    pyarrow, path = pytest.importorskip("pyarrow"), tmp_path / "rows.parquet"
    table = pyarrow.table({"input": ["a"] * 3, "output": ["b"] * 3, "more": odd_columns(pyarrow)[name]})
    pytest.importorskip("pyarrow.parquet").write_table(table, path)
    with pytest.raises(DataError, match="no form for"):
        read_rows(path)


def test_a_text_that_a_parquet_file_does_not_have_is_refused(tmp_path: Path):
    pyarrow, path = pytest.importorskip("pyarrow"), tmp_path / "rows.parquet"
    table = pyarrow.table({"input": ["first", "second", "first"], "output": ["y"] * 3})
    pytest.importorskip("pyarrow.parquet").write_table(table, path, compression="none", write_statistics=False)
    content = bytearray(path.read_bytes())
    place = content.index(b"\x01\x03\x02", content.index(b"second"))  # their numbers, of a bit each: 0, 1, 0
    content[place : place + 3] = b"\x08\x06\x09"  # of eight bits: three times 9
    path.write_bytes(content)
    with pytest.raises(DataError, match="beyond the 2 that are there"):
        read_rows(path)


def test_the_items_of_lists_are_counted_as_pyarrow_counts_them(tmp_path: Path):
    pyarrow, path = pytest.importorskip("pyarrow"), tmp_path / "rows.parquet"
    rows = [{"input": "a", "choices": ["x"] * number, "turns": [{"of": [number]}], "rest": {}} for number in range(9)]
    parquet = pytest.importorskip("pyarrow.parquet")
    for settings in ({}, {"row_group_size": 2}, {"write_page_index": True, "compression": "gzip"}):
        parquet.write_table(pyarrow.Table.from_pylist(rows).drop_columns("rest"), path, **settings)
        known = parquet.read_metadata(path)
        groups = map(known.row_group, range(known.num_row_groups))
        expected = [[group.column(place).num_values for place in range(known.num_columns)] for group in groups]
        assert values_of_columns(path, known.num_columns) == expected
        with pytest.raises(UnfitFile, match="columns"):
            values_of_columns(path, known.num_columns + 1)


def test_statistics_that_do_not_fit_a_column_are_refused(tmp_path: Path):
    """pyarrow ended the process, where it was asked for such a column."""
    pyarrow, path = pytest.importorskip("pyarrow"), tmp_path / "rows.parquet"
    table = pyarrow.table({"input": ["a"] * 3, "output": ["b"] * 3, "choices": [["a"], ["b", "c"], None]})
    pytest.importorskip("pyarrow.parquet").write_table(table, path, store_schema=False)
    content = path.read_bytes()
    begin = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer = content[begin:-8].replace(b"\x19\x46\x02\x00\x00\x06", b"\x19\x56\x02\x00\x00\x06\x00")  # one level more
    assert len(footer) == len(content) - 8 - begin + 1
    path.write_bytes(content[:begin] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    code = "import sys; from glider.data.rows import read_rows; read_rows(sys.argv[1])"
    ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "DataError: wanted Parquet" in ended.stderr


def test_a_parquet_file_of_very_many_columns_is_refused(tmp_path: Path):
    """Each took thirty kilobytes to read, of a file that had three hundred bytes for it."""
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"input": ["a"], "output": ["b"], **{f"c{number}": [1] for number in range(1100)}})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="1102 columns"):
        read_rows(tmp_path / "rows.parquet")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json"])
def test_a_file_of_empty_lines_is_refused(tmp_path: Path, name: str):
    """Thirty megabytes of them took twenty seconds."""
    (tmp_path / name).write_bytes(b"\n" * 1_500_000)
    with pytest.raises(DataError, match="empty lines"):
        read_rows(tmp_path / name)
