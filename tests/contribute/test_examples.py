"""Rows of a task: read with their faults named, split, tokenised, batched and padded."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glider.contribute.examples import Batches, EncodedRow, collate, encode_rows
from glider.data.rows import Row, read_rows, split_rows
from glider.errors import DataError
from glider.experts.prompt_format import PromptFormat
from glider.inference.base_model import BaseModel, load_base

PAD = 0
Ids = st.lists(st.integers(1, 250), min_size=1, max_size=12)
Encoded = st.builds(EncodedRow, prompt=Ids, target=Ids)


@pytest.fixture(scope="module")
def llama(llama_directory: Path) -> BaseModel:
    return load_base(str(llama_directory))


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf8")
    return path


def rows_of(count: int, **fields: Any) -> list[Row]:
    return [Row(input=f"in {i}", output=f"out {i}", **fields) for i in range(count)]


def of_length(*lengths: int) -> list[EncodedRow]:
    """Rows of these lengths, each with prompt tokens of its own."""
    return [EncodedRow([i + 1] * (length - 1), [7]) for i, length in enumerate(lengths)]


def test_rows_are_read_with_all_their_fields(tmp_path: Path):
    row = {"input": "é", "output": "b", "choices": ["a", "b"], "references": ["b"], "definition": "d", "split": "val"}
    row |= {"id": "x-1", "template": "plain"}
    (read,) = read_rows(write(tmp_path / "x.jsonl", row))
    assert json.loads(read.model_dump_json()) == row


def test_targets_are_references_by_another_name(tmp_path: Path):
    rows = {"input": "a", "output": "b", "targets": ["b", "c"]}, {"input": "a", "output": "b"}
    assert [row.accepted for row in read_rows(write(tmp_path / "x.jsonl", *rows))] == [("b", "c"), ("b",)]


def test_further_fields_and_empty_lines_are_ignored(tmp_path: Path):
    path = write(tmp_path / "x.jsonl", {"input": "a", "output": "b", "id": 3}, "", "  ", {"input": "c", "output": "d"})
    assert [row.input for row in read_rows(path)] == ["a", "c"]


def test_gzipped_rows_are_the_same_rows(tmp_path: Path):
    plain = write(tmp_path / "x.jsonl", {"input": "é", "output": "b"})
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert read_rows(tmp_path / "x.jsonl.gz") == read_rows(plain)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"input": "a"}, "output"),
        ({"output": "a"}, "input"),
        ({"input": "", "output": "b"}, "input"),
        ({"input": "a", "output": ""}, "output"),
        ({"input": "a", "output": 3}, "output"),
        ({"input": "a", "output": None}, "output"),
        ('{"input": "a", "outp', "JSON"),
        ("[1, 2]", "Input"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, bad: Any, named: str):
    path = write(tmp_path / "x.jsonl", {"input": "a", "output": "b"}, "", bad, {"input": "c", "output": "d"})
    with pytest.raises(DataError, match=named) as raised:
        read_rows(path)
    assert f"{path}:3" in str(raised.value)


def test_faults_of_a_row_are_reported_together(tmp_path: Path):
    with pytest.raises(DataError, match=r"input.*output"):
        read_rows(write(tmp_path / "x.jsonl", {}))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        read_rows(tmp_path / "absent.jsonl")


def test_a_directory_is_no_data(tmp_path: Path):
    with pytest.raises(DataError, match=tmp_path.name):
        read_rows(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path):
    (tmp_path / "x.jsonl").write_bytes(b'{"input": "\xff", "output": "b"}\n')
    with pytest.raises(DataError, match=r"x\.jsonl"):
        read_rows(tmp_path / "x.jsonl")


@pytest.mark.parametrize("kind", ["plain", "truncated", "damaged body", "damaged checksum"])
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, kind: str):
    text = b"".join(b'{"input": "%d", "output": "b"}\n' % i for i in range(200))
    whole = bytearray(gzip.compress(text))
    if kind == "damaged body":
        whole[20:60] = b"\xff" * 40
    elif kind == "damaged checksum":
        whole[-8] ^= 1
    content = {"plain": text, "truncated": bytes(whole[:-30])}.get(kind, bytes(whole))
    (tmp_path / "x.jsonl.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.jsonl\.gz"):
        read_rows(tmp_path / "x.jsonl.gz")


def test_an_empty_file_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="at least one row"):
        read_rows(write(tmp_path / "x.jsonl"))


def test_one_split_is_read_alone(tmp_path: Path):
    rows = [{"input": str(i), "output": "b", "split": "test" if i % 2 else "train"} for i in range(6)]
    path = write(tmp_path / "x.jsonl", *rows)
    assert [row.input for row in read_rows(path, split="test")] == ["1", "3", "5"]
    with pytest.raises(DataError, match="split val"):
        read_rows(path, split="val")


def test_the_files_own_split_is_kept():
    rows = rows_of(6, split="train") + rows_of(3, split="val") + rows_of(3, split="test")
    train, held_back = split_rows(rows, validation=64, seed=0)
    assert {row.split for row in train} == {"train"}
    assert {row.split for row in held_back} == {"val"}
    assert (len(train), len(held_back)) == (6, 3)


@pytest.mark.parametrize("name", ["val", "validation", "dev"])
def test_every_common_name_of_validation_is_known(name: str):
    _, held_back = split_rows(rows_of(3, split="train") + rows_of(5, split=name), validation=4, seed=0)
    assert len(held_back) == 4


def test_rows_without_one_to_train_on_are_refused():
    with pytest.raises(DataError, match="train"):
        split_rows(rows_of(3, split="test"), validation=1, seed=0)


@given(count=st.integers(1, 60), validation=st.integers(0, 20), seed=st.integers(0, 5))
def test_a_random_split_loses_and_repeats_no_row(count: int, validation: int, seed: int):
    rows = rows_of(count)
    train, held_back = split_rows(rows, validation, seed)
    assert sorted([*train, *held_back], key=rows.index) == rows
    assert len(held_back) == min(validation, count // 10)
    assert (train, held_back) == split_rows(rows, validation, seed)


def test_another_seed_splits_otherwise():
    assert split_rows(rows_of(50), 5, seed=0)[1] != split_rows(rows_of(50), 5, seed=1)[1]


def test_rows_that_are_too_long_are_left_out_and_counted(llama: BaseModel):
    rows = [Row(input="a", output="b" * size) for size in (1, 5, 30, 40)]
    plain = PromptFormat(kind="plain")
    kept, too_long = encode_rows(rows, llama.tokenizer, plain, max_tokens=8)
    assert too_long == 2
    assert [len(row) for row in kept] == [4, 8]


def test_a_row_of_megabytes_is_too_long_before_it_is_tokenized_to_its_end(llama: BaseModel):
    """Its tokens took hundreds of times its size, and half a minute."""
    began = time.perf_counter()
    rows = [
        Row(input="a", output="b"),
        Row(input="xy " * 3_000_000, output="b"),
        Row(input="a", output="b" * 9_000_000),
    ]
    kept, too_long = encode_rows(rows, llama.tokenizer, PromptFormat(kind="plain"), max_tokens=8)
    assert (len(kept), too_long) == (1, 2)
    assert time.perf_counter() - began < 2


def test_encoded_rows_are_those_of_the_prompt_format(llama: BaseModel):
    chat = PromptFormat(kind="chat")
    (row,), _ = encode_rows([Row(input="Hi", output="Ho")], llama.tokenizer, chat, max_tokens=512)
    assert row.prompt == chat.prompt_ids(llama.tokenizer, "Hi")
    assert row.target == chat.target_ids(llama.tokenizer, "Ho")


@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 3),
    asked=st.lists(st.integers(0, 200), max_size=20),
)
def test_a_batch_depends_on_seed_and_index_alone(lengths: list[int], batch_size: int, seed: int, asked: list[int]):
    rows = of_length(*lengths)
    batches = Batches(rows, batch_size, seed)
    for index in asked:
        assert batches[index] == Batches(rows, batch_size, seed)[index]


@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    epoch=st.integers(0, 3),
)
def test_an_epoch_repeats_no_row_and_leaves_out_less_than_a_batch(lengths: list[int], batch_size: int, epoch: int):
    rows = of_length(*lengths)
    batches = Batches(rows, batch_size, seed=0)
    size = min(batch_size, len(rows))
    per_epoch = len(rows) // size
    seen = [row.prompt[0] for i in range(per_epoch) for row in batches[epoch * per_epoch + i]]
    assert len(seen) == len(set(seen)) == per_epoch * size


def test_every_row_is_trained_on_sooner_or_later():
    """With rows that do not divide into batches, none may always be the one that is left out."""
    batches = Batches(of_length(*range(2, 22)), batch_size=16, seed=0)
    assert {row.prompt[0] for i in range(60) for row in batches[i]} == set(range(1, 21))


def test_epochs_and_seeds_have_their_own_order():
    rows = of_length(*range(2, 66))
    one, other = Batches(rows, 8, seed=0), Batches(rows, 8, seed=1)
    first = [one[i] for i in range(8)]
    assert first != [one[8 + i] for i in range(8)]
    assert first != [other[i] for i in range(8)]


def test_rows_of_a_batch_have_similar_lengths():
    lengths = [2 + i % 40 for i in range(640)]
    batches = Batches(of_length(*lengths), 8, seed=0)
    spread = [max(map(len, batches[i])) - min(map(len, batches[i])) for i in range(80)]
    assert sum(spread) / len(spread) < 10


def test_few_rows_make_one_small_batch():
    assert len(Batches(of_length(3, 4, 5), batch_size=16, seed=0)[7]) == 3


@given(rows=st.lists(Encoded, min_size=1, max_size=6))
def test_decoder_rows_are_padded_on_the_left(rows: list[EncodedRow]):
    batch = collate(rows, PAD, encoder_decoder=False)
    width = max(map(len, rows))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(rows), width)
    for i, row in enumerate(rows):
        padding = width - len(row)
        assert batch["input_ids"][i].tolist() == [PAD] * padding + row.prompt + row.target
        assert batch["attention_mask"][i].tolist() == [0] * padding + [1] * len(row)
        assert batch["position_ids"][i].tolist() == [0] * padding + list(range(len(row)))


@given(rows=st.lists(Encoded, min_size=1, max_size=6))
def test_decoder_labels_are_the_targets_at_the_end(rows: list[EncodedRow]):
    batch = collate(rows, PAD, encoder_decoder=False)
    longest = max(len(row.target) for row in rows)
    assert batch["labels"].shape == (len(rows), longest)
    for i, row in enumerate(rows):
        assert batch["labels"][i].tolist() == [-100] * (longest - len(row.target)) + row.target
        here = batch["labels"][i] != -100
        assert torch.equal(batch["labels"][i][here], batch["input_ids"][i, -longest:][here])


@given(rows=st.lists(Encoded, min_size=1, max_size=6))
def test_encoder_decoder_rows_are_padded_on_the_right(rows: list[EncodedRow]):
    batch = collate(rows, PAD, encoder_decoder=True)
    width, longest = max(len(row.prompt) for row in rows), max(len(row.target) for row in rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    for i, row in enumerate(rows):
        padding = width - len(row.prompt)
        assert batch["input_ids"][i].tolist() == row.prompt + [PAD] * padding
        assert batch["attention_mask"][i].tolist() == [1] * len(row.prompt) + [0] * padding
        assert batch["labels"][i].tolist() == row.target + [-100] * (longest - len(row.target))


@given(rows=st.lists(Encoded, min_size=2, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=10)
def test_padding_does_not_change_what_a_decoder_computes(llama: BaseModel, rows: list[EncodedRow]):
    def last(chosen: list[EncodedRow]) -> torch.Tensor:
        batch = collate(chosen, PAD, encoder_decoder=False)
        del batch["labels"]
        return llama.model(**batch).logits[:, -1]

    with torch.no_grad():
        torch.testing.assert_close(last(rows), torch.cat([last([row]) for row in rows]), rtol=1e-4, atol=1e-4)
