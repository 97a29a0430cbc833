"""Downloads, against a server of this machine written from the hub's documentation, with faults that a hub may have.

Nothing here has met the hub: field names, layouts and answers are those of its documentation.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from fullrun.hub import CONVERTED, LONGEST_WAIT, TRIES, Hub
from fullrun.parquet_rows import ParquetRows, batches_of
from fullrun.plan import Lengths, P3Source, TaskSet
from fullrun.sources import FromHub, task_rows
from glider.errors import DataError

from .hub_stand_in import Stand, a_page, broken, busy, fine, serving, short, without_ranges

P3 = "bigscience/P3"


@pytest.fixture
def stand() -> Iterator[Stand]:
    with serving() as stand:
        yield stand


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def hub(stand: Stand, waits: list[float]) -> Hub:
    return Hub(stand.endpoint, waits.append)


def p3_rows(count: int) -> list[dict[str, Any]]:
    """In P3's documented fields."""
    return [
        {
            "inputs": [3, i],
            "inputs_pretokenized": f"Is {i} even? {'x' * 200}{i * 7919 % 1009}",
            "targets": [4],
            "targets_pretokenized": "\nyes" if i % 2 == 0 else "\nno",
            "answer_choices": ["yes", "no"],
        }
        for i in range(count)
    ]


def packed(rows: list[dict[str, Any]], group: int = 50) -> bytes:
    """A Parquet file with some row groups."""
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), out, row_group_size=group, compression="none")
    return out.getvalue()


def copied(stand: Stand, **files: bytes) -> None:
    """The hub's copy of P3's config `d_t`: files by their split's folder."""
    stand.files[P3, "main"] = {"data/d_t/validation.tfrecord": b"0"}
    stand.files[P3, CONVERTED] = {f"d_t/{name.replace('__', '/')}.parquet": data for name, data in files.items()}


def test_the_split_that_is_used_is_fetched_and_no_other(stand: Stand, hub: Hub, tmp_path: Path) -> None:
    rows = p3_rows(30)
    copied(
        stand, train__0000=packed(p3_rows(900)), validation__0000=packed(rows[:20]), validation__0001=packed(rows[20:])
    )
    fetch = FromHub(tmp_path, hub)
    found = fetch(P3, "d_t", "validation")
    assert (
        len(found) == 30
        and [found[i] for i in (0, 20, 29)] == [rows[0], rows[20], rows[29]]
        and found[28:] == rows[28:]
    )
    with pytest.raises(IndexError):
        found[30]
    assert stand.fetched("d_t/train/0000.parquet") == 0
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet")) == [
        f"bigscience--P3/d_t/validation/000{i}.parquet" for i in (0, 1)
    ]
    asked = len(stand.asked)
    assert list(fetch(P3, "d_t", "validation")) == rows and len(stand.asked) == asked  # nothing is asked for twice


def test_the_first_rows_of_a_split_cost_their_row_groups(stand: Stand, hub: Hub, tmp_path: Path) -> None:
    rows, whole = p3_rows(900), packed(p3_rows(900))
    copied(stand, train__0000=whole)
    assert FromHub(tmp_path, hub)(P3, "d_t", "train", 60) == rows[:60]
    assert 0 < stand.fetched("train/0000.parquet") < len(whole) / 2
    assert not list(tmp_path.rglob("*.parquet*"))


def test_the_authors_own_files_go_before_the_copy(stand: Stand, hub: Hub, tmp_path: Path) -> None:
    rows = p3_rows(4)
    stand.files["a/sole", "main"] = {
        "data/test-00000-of-00001.parquet": packed(rows),
        "data/testing-00000-of-00001.parquet": packed(rows[:1]),
    }
    stand.files["a/several", "main"] = {"one/test-00000-of-00001.parquet": packed(rows[:2]), "two/test-0.parquet": b""}
    stand.files["a/copied", "main"] = {"script.py": b"raise"}
    stand.files["a/copied", CONVERTED] = {"default/test/0000.parquet": packed(rows[:3])}
    fetch = FromHub(tmp_path, hub)
    assert list(fetch("a/sole", None, "test")) == rows
    assert list(fetch("a/several", "one", "test")) == rows[:2]
    assert list(fetch("a/copied", None, "test")) == rows[:3]
    stand.files["a/unclear", "main"] = {"script.py": b"raise"}
    stand.files["a/unclear", CONVERTED] = {f"{name}/test/0000.parquet": packed(rows) for name in "xy"}
    with pytest.raises(DataError, match=r"one config of a/unclear; got x, y"):
        fetch("a/unclear", None, "test")


def test_a_killed_download_goes_on_where_it_was(stand: Stand, hub: Hub, tmp_path: Path) -> None:
    content = packed(p3_rows(400))
    copied(stand, validation__0000=content)
    (file,) = hub.parquet(P3, "d_t", "validation")
    place = tmp_path / "file.parquet"

    stand.faults = [fine, fine, a_page]
    with pytest.raises(DataError, match=r"HTTP 200 and 26 bytes"):
        hub.fetch(file, place, part=10_000)
    assert not place.exists() and place.with_name("file.parquet.part").stat().st_size == 20_000
    stand.asked.clear()
    assert hub.fetch(file, place, part=10_000).read_bytes() == content
    assert stand.asked[0][1] == "bytes=20000-29999" and stand.fetched("0000.parquet") == len(content) - 20_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.parquet", "file.parquet.lock"]


def test_what_was_begun_of_another_file_is_thrown_away(stand: Stand, hub: Hub, tmp_path: Path) -> None:
    old, new = packed(p3_rows(40)), packed(p3_rows(41))
    copied(stand, validation__0000=old)
    (file,) = hub.parquet(P3, "d_t", "validation")
    stand.faults = [fine, a_page]
    with pytest.raises(DataError):
        hub.fetch(file, tmp_path / "f", part=1_000)
    with serving() as other:
        copied(other, validation__0000=new)
        later = Hub(other.endpoint)
        (file,) = later.parquet(P3, "d_t", "validation")
        assert later.fetch(file, tmp_path / "f", part=1_000).read_bytes() == new


@pytest.mark.parametrize("fault", [busy, broken])
def test_a_busy_or_broken_answer_is_asked_for_again(
    stand: Stand, hub: Hub, waits: list[float], tmp_path: Path, fault: Callable[..., bool]
) -> None:
    content = packed(p3_rows(10))
    copied(stand, validation__0000=content)
    stand.faults = [fault, fault]
    (file,) = hub.parquet(P3, "d_t", "validation")
    assert hub.fetch(file, tmp_path / "f").read_bytes() == content
    assert waits == ([7.0, 7.0] if fault is busy else [1.0, 2.0])


def test_a_hub_that_stays_busy_is_told(stand: Stand, hub: Hub, waits: list[float], tmp_path: Path) -> None:
    copied(stand, validation__0000=packed(p3_rows(10)))
    stand.faults = [busy] * TRIES
    (file,) = hub.parquet(P3, "d_t", "validation")
    with pytest.raises(DataError, match=rf"HTTP 429, {TRIES} times.*same command goes on"):
        hub.fetch(file, tmp_path / "f")
    assert len(waits) == TRIES - 1

    def for_ever(handler: Any, content: bytes) -> bool:
        handler.answer(429, b"", Retry_After="1e9")
        return True

    stand.faults, waits[:] = [for_ever], []
    hub.fetch(file, tmp_path / "f")
    assert waits == [LONGEST_WAIT]


def test_a_server_without_ranges_is_understood(stand: Stand, hub: Hub, tmp_path: Path) -> None:
    content = packed(p3_rows(300))
    copied(stand, validation__0000=content)
    stand.faults = [without_ranges] * 99
    (file,) = hub.parquet(P3, "d_t", "validation")
    assert hub.fetch(file, tmp_path / "f", part=20_000).read_bytes() == content


@pytest.mark.parametrize(("fault", "got"), [(a_page, "HTTP 200 and 26 bytes"), (short, "HTTP 206 and 10 bytes")])
def test_bytes_that_were_not_asked_for_are_refused(
    stand: Stand, hub: Hub, tmp_path: Path, fault: Callable[..., bool], got: str
) -> None:
    copied(stand, validation__0000=packed(p3_rows(10)))
    stand.faults = [fault]
    with pytest.raises(DataError, match=got):
        FromHub(tmp_path, hub)(P3, "d_t", "validation")


def test_content_of_another_hash_is_refused_and_thrown_away(stand: Stand, hub: Hub, tmp_path: Path) -> None:
    copied(stand, validation__0000=packed(p3_rows(10)))
    stand.claims["d_t/validation/0000.parquet"] = "0" * 64
    with pytest.raises(DataError, match=r"sha256 000000000000.*fetches it anew"):
        FromHub(tmp_path, hub)(P3, "d_t", "validation")
    assert not list(tmp_path.rglob("*.part"))


def test_a_truncated_parquet_file_is_told_and_removed(stand: Stand, hub: Hub, tmp_path: Path) -> None:
    """Truncated where it lies on the hub, so that size and hash agree."""
    whole = packed(p3_rows(100))
    copied(stand, validation__0000=whole[: len(whole) // 2], train__0000=whole[: len(whole) // 2])
    fetch = FromHub(tmp_path, hub)
    with pytest.raises(DataError, match=r"a whole Parquet file at .*0000\.parquet"):
        fetch(P3, "d_t", "validation")
    assert not list(tmp_path.rglob("*.parquet"))
    with pytest.raises(DataError, match=r"a whole Parquet file at bigscience/P3/d_t/train"):
        fetch(P3, "d_t", "train", 5)
    (tmp_path / "x.parquet").write_bytes(b"<html>")
    with pytest.raises(DataError, match="a whole Parquet file"):
        list(batches_of([tmp_path / "x.parquet"], ["a"]))
    assert not (tmp_path / "x.parquet").exists()


def test_part_of_a_long_split_is_not_taken_for_the_whole(stand: Stand, hub: Hub, tmp_path: Path) -> None:
    rows = p3_rows(20)
    stand.files[P3, "main"] = {"x": b""}
    stand.files[P3, CONVERTED] = {"d_t/partial-validation/0000.parquet": packed(rows)}
    fetch = FromHub(tmp_path, hub)
    assert fetch(P3, "d_t", "validation", 3) == rows[:3]
    with pytest.raises(DataError, match=r"the whole split validation.*its first 5 GB"):
        fetch(P3, "d_t", "validation")


def p3_task() -> P3Source:
    told: dict[str, Any] = {"source": "p3", "parts": ("d",), "templates": ("t",), "metrics": ("accuracy",)}
    return P3Source(**told, split=("validation",), train=None, available=1, assumed=Lengths(input=1, target=1))


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda row: {k: v for k, v in row.items() if k != "answer_choices"}, "KeyError: 'answer_choices'"),
        (lambda row: row | {"targets_pretokenized": 3}, "AttributeError"),
        (lambda row: row | {"inputs_pretokenized": None}, "AttributeError"),
        (lambda row: {"text": "another data set", "label": 1}, "KeyError: 'inputs_pretokenized'"),
        (lambda row: row | {"answer_choices": ["maybe"]}, r"\d+ of \d+ without"),
    ],
)
def test_rows_of_other_fields_are_told(
    stand: Stand, hub: Hub, tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], got: str
) -> None:
    copied(stand, validation__0000=packed([change(row) for row in p3_rows(20)]))
    tasks = TaskSet(queries="q.pt", tasks={"task": p3_task()})
    with pytest.raises(DataError, match=got):
        task_rows(p3_task(), tasks, FromHub(tmp_path, hub), lambda text, most: text)


def test_a_column_that_is_missing_is_named_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "f.parquet").write_bytes(packed(p3_rows(3)))
    with pytest.raises(DataError, match=r"no task_name among inputs"):
        list(batches_of([tmp_path / "f.parquet"], ["inputs", "task_name"]))
    (batch,) = batches_of([tmp_path / "f.parquet"], ["targets_pretokenized"])
    assert batch[1] == {"targets_pretokenized": "\nno"}
    assert len(ParquetRows([tmp_path / "f.parquet"] * 2)) == 6


def test_a_repository_that_is_not_there_is_told(stand: Stand, hub: Hub) -> None:
    with pytest.raises(DataError, match=r"the list of files of no/where from the hub"):
        hub.files("no/where", "dataset")


@pytest.mark.slow  # huggingface_hub tries for 20 seconds
def test_a_hub_that_does_not_answer_is_told() -> None:
    with pytest.raises(DataError, match=r"the list of files"):
        Hub("http://127.0.0.1:9").files("no/where", "dataset")


def test_a_data_set_without_parquet_is_streamed_split_by_split(
    stand: Stand, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        if args[1] == "gone":
            raise ValueError("BuilderConfig 'gone' not found")
        return ({"i": i} for i in range(9))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    stand.files["a/json", "main"] = {"test.jsonl": b"{}"}
    fetch = FromHub(tmp_path, hub)
    assert fetch("a/json", "rte", "train", 3) == [{"i": 0}, {"i": 1}, {"i": 2}]
    assert len(fetch("a/json", "rte", "test")) == 9
    assert asked == [(("a/json", "rte"), {"split": split, "streaming": True}) for split in ("train", "test")]
    with pytest.raises(DataError, match="a/json \\(gone\\), split test"):
        fetch("a/json", "gone", "test")
