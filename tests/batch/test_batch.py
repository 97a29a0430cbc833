"""A file of prompts becomes a file of answers: those of `generate`, whole, in order, and none twice."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from glider.batch import run as run_module
from glider.batch.answering import Answering
from glider.batch.prompts import read_prompts
from glider.errors import DataError
from glider.experts.pool import Pool
from glider.files.held import empty
from glider.files.held import held as held_directory
from glider.inference.queries import Query
from glider.inference.spec import load
from glider.jobs.run import only_writer

from ..commands import CommandResult, run_command

Glider = Callable[..., CommandResult]


@pytest.fixture
def pool(make_pool: Callable[..., Pool], llama_directory: Path) -> Pool:
    return make_pool(llama_directory)


@pytest.fixture
def glider(
    pool: Pool, llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Glider:
    """`glider("rows.jsonl", "answers.jsonl", ...)` answers a file: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    shared = ["--pool", pool.path, "--base", llama_directory, "--max-new-tokens", 4, "--batch-size", 2]

    def run(data: str, out: str, *more: object) -> CommandResult:
        return run_command(("generate", "--data", data, "--out", out, *shared, *more), monkeypatch, capsys)

    return run


def write(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf8")
    return rows


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf8").splitlines()]


def test_answers_are_those_of_generate(glider: Glider, pool: Pool, llama_directory: Path, tmp_path: Path):
    chat = [{"role": "user", "content": "sort 3 1 2"}]
    rows = [
        {"input": "hello there", "id": 7},
        {"prompt": "hi", "description": "Greet."},
        {"messages": [*chat, {"role": "assistant", "content": "not read"}]},
        {"input": "and 5", "output": "not read either", "definition": "Count."},
        {"prompt": chat},
    ]
    write(tmp_path / "rows.jsonl", rows)
    assert glider("rows.jsonl", "answers.jsonl") == (0, "answers.jsonl: done\n", "")
    told = lines(tmp_path / "answers.jsonl")
    assert [answer["row"] for answer in told] == [0, 1, 2, 3, 4] and told[0]["id"] == "7"
    queries = [
        Query("hello there"),
        Query("hi", "Greet."),
        Query.chat(chat),
        Query("and 5", "Count."),
        Query.chat(chat),
    ]
    model = load(str(llama_directory), pool.path)
    for answer, query in zip(told, queries, strict=True):
        (wanted,) = model.generate([query], max_new_tokens=4)
        assert answer["text"] == wanted.text and answer["finish_reason"] == wanted.finish_reason
        assert answer["alpha"] == wanted.alpha and answer["fault"] == wanted.fault
        scores = wanted.global_scores
        assert answer["expert"] == (max(scores, key=lambda name: scores[name]) if scores else None)
    assert sorted(path.name for path in tmp_path.iterdir() if "answer" in path.name) == [
        "answers.jsonl",
        "answers.jsonl.run.json",
    ]


def test_examples_of_the_task_are_given_with_every_row(glider: Glider, tmp_path: Path):
    write(tmp_path / "rows.jsonl", [{"input": "hello there"}, {"prompt": "hi", "description": "Greet."}])
    write(tmp_path / "pairs.jsonl", [{"input": "good morning", "output": "good morning to you"}])
    assert glider("rows.jsonl", "answers.jsonl", "--examples", "pairs.jsonl")[0] == 0
    faults = [answer["fault"] for answer in lines(tmp_path / "answers.jsonl")]
    assert "a describer would read them" in faults[0] and "the query brings its description" in faults[1]


def test_what_is_done_is_not_done_again(glider: Glider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "rows.jsonl", [{"input": f"say {i}"} for i in range(7)])
    assert glider("rows.jsonl", "whole.jsonl")[0] == 0
    plain, asked = Answering.chunk, []

    def stopping(self: Answering, rows: Any) -> Any:
        asked.append([row.row for row in rows])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return plain(self, rows)

    monkeypatch.setattr(Answering, "chunk", stopping)
    assert glider("rows.jsonl", "answers.jsonl")[0] == 130
    assert not (tmp_path / "answers.jsonl").exists()
    assert glider("rows.jsonl", "answers.jsonl")[:2] == (0, "answers.jsonl: done\n")
    assert asked == [[0, 1], [2, 3], [4, 5], [4, 5], [6]]
    assert (tmp_path / "answers.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert glider("rows.jsonl", "answers.jsonl")[1] == "answers.jsonl: unchanged\n"
    assert len(asked) == 5


def test_answers_that_are_in_place_are_known_to_whoever_comes_next(
    glider: Glider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stopped as soon as they were there, before their record, the same command took them for others."""
    write(tmp_path / "rows.jsonl", [{"input": "a"}, {"input": "b"}])
    plain = run_module.BatchRun._write

    def stopping(self: run_module.BatchRun, place: Path, chunks: Any) -> None:
        plain(self, place, chunks)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module.BatchRun, "_write", stopping)
        assert glider("rows.jsonl", "answers.jsonl")[0] == 130
    assert glider("rows.jsonl", "answers.jsonl")[:2] == (0, "answers.jsonl: unchanged\n")


@pytest.mark.parametrize("emptied", [False, True])
def test_the_chunks_of_a_process_killed_once_the_answers_were_there_go(
    glider: Glider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emptied: bool
):
    """Its directory of chunks stayed for ever: the next run said `unchanged`."""
    write(tmp_path / "rows.jsonl", [{"input": "a"}, {"input": "b"}, {"input": "c"}])

    def stopping(place: Path) -> None:
        if emptied:
            empty(place)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "empty", stopping)
        assert glider("rows.jsonl", "answers.jsonl")[0] == 130
    work = tmp_path / ".answers.jsonl.answering"
    assert work.is_dir() and len(lines(tmp_path / "answers.jsonl")) == 3
    with held_directory(work) as place, only_writer(place):  # another process is at its end
        assert glider("rows.jsonl", "answers.jsonl")[:2] == (0, "answers.jsonl: unchanged\n")
        assert work.is_dir()
    assert glider("rows.jsonl", "answers.jsonl")[:2] == (0, "answers.jsonl: unchanged\n")
    assert not work.exists()


ANYHOW = ("nothing", "half", "a pipe", "zeros")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("answers.jsonl", how) for how in (*ANYHOW, "a line less", "a line more", "no text", "a list", "no UTF-8")),
        *(("answers.parquet", how) for how in ANYHOW),
    ],
)
def test_answers_that_somebody_changed_are_no_answers(glider: Glider, tmp_path: Path, name: str, damage: str):
    """Cut short they were a traceback, or `unchanged`; a pipe in their place was waited for without end."""
    write(tmp_path / "rows.jsonl", [{"input": f"say {i}"} for i in range(3)])
    assert glider("rows.jsonl", name)[0] == 0
    out = tmp_path / name
    content = out.read_bytes()
    rows = content.splitlines(keepends=True)
    out.unlink()
    if damage == "a pipe":
        os.mkfifo(out)
    elif damage == "zeros":
        out.symlink_to("/dev/zero")
    else:
        texts = {"nothing": b"", "half": content[: len(content) // 2], "a line less": b"".join(rows[:-1])}
        texts |= {"a line more": content + rows[-1], "no text": content.replace(b'"text"', b'"txet"')}
        out.write_bytes({**texts, "a list": b"[1]\n" * 3, "no UTF-8": b"\xff\n"}[damage])
    code, _, err = glider("rows.jsonl", name)
    assert code == 2 and err.startswith("glider: wanted the answers to 3 rows in") and err.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[", "{}", "[1, 2]", '[{"row": 0}]', "other rows", "another text"])
def test_a_chunk_that_is_no_answers_is_answered_anew(
    glider: Glider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
):
    """A damaged one was a traceback at every run."""
    write(tmp_path / "rows.jsonl", [{"input": "a"}, {"input": "b"}, {"input": "c"}])
    with monkeypatch.context() as patch:
        patch.setattr(run_module.BatchRun, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert glider("rows.jsonl", "answers.jsonl")[0] == 130
    chunk = next((tmp_path / ".answers.jsonl.answering").rglob("00000000.json"))
    if content == "other rows":
        content = chunk.with_name("00000001.json").read_text("utf8")
    elif content == "another text":
        whole = json.loads(chunk.read_text("utf8"))
        whole["answers"][0]["text"] = "damaged"
        content = json.dumps(whole)
    chunk.write_text(content)
    assert glider("rows.jsonl", "answers.jsonl")[:2] == (0, "answers.jsonl: done\n")
    answers = lines(tmp_path / "answers.jsonl")
    assert [answer["row"] for answer in answers] == [0, 1, 2] and answers[0]["text"] != "damaged"


def test_answers_of_other_settings_are_not_overwritten(glider: Glider, tmp_path: Path):
    write(tmp_path / "rows.jsonl", [{"input": "a"}, {"input": "b"}])
    assert glider("rows.jsonl", "answers.jsonl")[0] == 0
    before = (tmp_path / "answers.jsonl").read_bytes()
    code, _, err = glider("rows.jsonl", "answers.jsonl", "--router", "phatgoose")
    assert code == 2 and "give another --out" in err
    write(tmp_path / "rows.jsonl", [{"input": "c"}])
    assert glider("rows.jsonl", "answers.jsonl")[0] == 2
    assert (tmp_path / "answers.jsonl").read_bytes() == before


def test_a_record_that_is_no_object_is_nobodys(glider: Glider, tmp_path: Path):
    write(tmp_path / "rows.jsonl", [{"input": "a"}])
    (tmp_path / "answers.jsonl").write_text("{}\n")
    (tmp_path / "answers.jsonl.run.json").write_text("[]")
    code, _, err = glider("rows.jsonl", "answers.jsonl")
    assert code == 2 and "give another --out" in err


def test_a_damaged_record_sends_nobody_to_remove_good_answers(glider: Glider, tmp_path: Path):
    """Of a wrong number of rows it was said that the answers were wrong, and were to be removed."""
    write(tmp_path / "rows.jsonl", [{"input": "a"}, {"input": "b"}])
    assert glider("rows.jsonl", "answers.jsonl")[0] == 0
    file = tmp_path / "answers.jsonl.run.json"
    record = json.loads(file.read_text("utf8"))
    file.write_text(json.dumps(record | {"rows": 1}))
    assert glider("rows.jsonl", "answers.jsonl")[:2] == (0, "answers.jsonl: unchanged\n")
    assert json.loads(file.read_text("utf8")) == record


@pytest.mark.parametrize("what", ["a file", "a directory", "a pipe"])
def test_what_lies_in_the_place_of_the_record_is_left(glider: Glider, tmp_path: Path, what: str):
    """A user's file was overwritten; of others it was told once all prompts had been answered."""
    write(tmp_path / "rows.jsonl", [{"input": "a"}])
    place = tmp_path / "answers.jsonl.run.json"
    {"a file": lambda: place.write_text("mine"), "a directory": place.mkdir, "a pipe": lambda: os.mkfifo(place)}[what]()
    before = place.lstat()
    code, _, err = glider("rows.jsonl", "answers.jsonl")
    assert code == 2 and "wanted the record of earlier answers at answers.jsonl.run.json" in err
    assert place.lstat() == before and not (tmp_path / ".answers.jsonl.answering").exists()


def test_a_link_to_nothing_is_not_replaced(glider: Glider, tmp_path: Path):
    """It may lead to a disk that is not there at the moment."""
    write(tmp_path / "rows.jsonl", [{"input": "a"}])
    (tmp_path / "answers.jsonl").symlink_to("nowhere")
    assert glider("rows.jsonl", "answers.jsonl")[0] == 2
    assert (tmp_path / "answers.jsonl").readlink() == Path("nowhere")


def test_what_was_begun_with_other_settings_is_not_gone_on_with(
    glider: Glider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / "rows.jsonl", [{"input": f"say {i}"} for i in range(4)])
    write_whole = run_module.BatchRun._write
    monkeypatch.setattr(run_module.BatchRun, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert glider("rows.jsonl", "answers.jsonl", "--max-new-tokens", "2")[0] == 130
    monkeypatch.setattr(run_module.BatchRun, "_write", write_whole)
    assert glider("rows.jsonl", "answers.jsonl")[0] == 0
    assert glider("rows.jsonl", "fresh.jsonl")[0] == 0
    assert (tmp_path / "answers.jsonl").read_bytes() == (tmp_path / "fresh.jsonl").read_bytes()


def test_a_row_that_cannot_be_answered_has_its_fault_and_the_others_their_answers(glider: Glider, tmp_path: Path):
    write(tmp_path / "rows.jsonl", [{"input": "hello"}, {"input": "x" * 900}, {"input": "hi"}])
    code, out, _ = glider("rows.jsonl", "answers.jsonl")
    assert code == 1 and "1 rows without an answer" in out
    first, second, third = lines(tmp_path / "answers.jsonl")
    assert first["text"] is not None and third["text"] is not None and second["text"] is None
    assert "--truncate" in second["fault"] or "truncate" in second["fault"]
    write(tmp_path / "short.jsonl", [{"input": "hello"}])
    glider("short.jsonl", "alone.jsonl")
    assert lines(tmp_path / "alone.jsonl")[0]["text"] == first["text"]


def test_parquet_in_and_out(glider: Glider, tmp_path: Path):
    rows = [{"question": f"say {i}"} for i in range(3)]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert glider("rows.parquet", "answers.parquet", "--map", "input=question")[0] == 0
    write(tmp_path / "rows.jsonl", [{"input": row["question"]} for row in rows])
    assert glider("rows.jsonl", "answers.jsonl")[0] == 0
    assert pyarrow.parquet.read_table(tmp_path / "answers.parquet").to_pylist() == [
        {name: answer[name] for name in pyarrow.parquet.read_schema(tmp_path / "answers.parquet").names}
        for answer in lines(tmp_path / "answers.jsonl")
    ]
    assert glider("rows.parquet", "answers.parquet", "--map", "input=question")[1] == "answers.parquet: unchanged\n"


def test_drawn_answers_do_not_depend_on_where_a_run_was_stopped(
    glider: Glider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / "rows.jsonl", [{"input": "say"} for _ in range(4)])
    drawn = ("--temperature", "3", "--seed", "5")
    assert glider("rows.jsonl", "whole.jsonl", *drawn)[0] == 0
    assert len({answer["text"] for answer in lines(tmp_path / "whole.jsonl")}) > 1
    plain = Answering.chunk

    def stopping(self: Answering, rows: Any) -> Any:
        if rows[0].row == 2:
            raise KeyboardInterrupt
        return plain(self, rows)

    monkeypatch.setattr(Answering, "chunk", stopping)
    assert glider("rows.jsonl", "answers.jsonl", *drawn)[0] == 130
    monkeypatch.setattr(Answering, "chunk", plain)
    assert glider("rows.jsonl", "answers.jsonl", *drawn)[0] == 0
    assert (tmp_path / "answers.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "none"),
        ('{"text": "a"}', "only text"),
        ("[1]", "no object"),
        ('{"input": 3}', "prompt"),
        ("{", "no JSON"),
    ],
)
def test_what_is_no_prompt_is_named(tmp_path: Path, content: str, fault: str):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match=fault):
        read_prompts(tmp_path / "rows.jsonl", {})


def test_half_a_command_is_refused(
    glider: Glider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    write(tmp_path / "rows.jsonl", [{"input": "a"}])
    for words in (["a prompt", "--data", "rows.jsonl", "--out", "x"], ["--data", "rows.jsonl"], ["--out", "x"], []):
        assert run_command(("generate", *words), monkeypatch, capsys).code == 2
    assert glider("rows.jsonl", "x.jsonl", "--workers", "2")[0] == 2


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_an_instruction_is_asked_with_its_input_as_it_is_in_training(tmp_path: Path, name: str):
    rows = [("Translate.", "chat"), ("Name a tree.", "")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"instruction": a, "input": b}) + "\n" for a, b in rows))
    (tmp_path / "rows.csv").write_text("instruction,input\n" + "".join(f"{a},{b}\n" for a, b in rows))
    asked = [row.prompt for row in read_prompts(tmp_path / name, {})]
    assert asked == ["Translate.\n\nchat", "Name a tree."]
    assert read_prompts(tmp_path / name, {"input": "instruction"})[0].prompt == "Translate."


def test_a_cell_is_a_chat_or_a_text(tmp_path: Path):
    (tmp_path / "rows.csv").write_text('prompt\n"[3, 1]"\n"[{""role"": ""user"", ""content"": ""Hi""}]"\n')
    asked = [row.prompt for row in read_prompts(tmp_path / "rows.csv", {})]
    assert asked == ["[3, 1]", [{"role": "user", "content": "Hi"}]]


def test_a_full_disk_leaves_no_record_of_answers_that_are_not_there(
    glider: Glider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`answers.jsonl.run.json` stayed behind."""
    write(tmp_path / "rows.jsonl", [{"input": "hello there"}])

    def write_nothing(path: Path, _: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_file", write_nothing)
        code, _, err = glider("rows.jsonl", "answers.jsonl")
    assert code == 2 and "wanted to use answers.jsonl; got: No space left" in err
    assert not (tmp_path / "answers.jsonl.run.json").exists()
    assert glider("rows.jsonl", "answers.jsonl") == (0, "answers.jsonl: done\n", "")
