"""Every command and every program of docs/describing.md runs, in its order, against the stand-in."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from glider.cli.main import main
from glider.experts.membership import add_expert
from glider.instructions.describers import Task, describe_tasks, describers, load_describer

PAGE = (Path(__file__).parents[2] / "docs" / "describing.md").read_text("utf8")


def test_the_page_runs(endpoint, make_pool, llama_directory: Path, tmp_path: Path, monkeypatch, capsys):
    pool = make_pool(llama_directory, experts=1, name="other")
    pool.path.rename(tmp_path / "pool")
    (tmp_path / "rows.jsonl").write_text('{"input": "a", "output": "b"}\n' * 6)
    (tmp_path / "three.jsonl").write_text('{"input": "a", "output": "b"}\n' * 3)
    monkeypatch.chdir(tmp_path)
    assert {"local", "given"} <= {entry.name for entry in describers}
    # there is no real model to be had here in a second, and random weights write nonsense
    monkeypatch.setitem(describers._entries, "local", describers._entries["given"])
    for line in "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.S)).splitlines():
        line = line.replace("pool/tone", "pool/e0").replace("http://127.0.0.1:8000/v1", endpoint.base_url)
        words = shlex.split(line)
        words += ["--base", str(llama_directory)] if words[1] in ("generate", "explain") else []
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None), (line, capsys.readouterr().err)
        if words[1:3] == ["expert", "describe"]:
            add_expert(tmp_path / "pool", "e0")
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    first = first.replace("http://127.0.0.1:8000/v1", endpoint.base_url)
    exec(first.replace('glider.load(pool="pool"', f'glider.load({str(llama_directory)!r}, "pool"'), {})
    assert capsys.readouterr().out.endswith(f"{endpoint.sentence} None\n")
    exec(second, {})
    (told,) = describe_tasks(load_describer("first-words"), [Task(text="Say whether it is so.")])
    assert told.text == "Say whether it is so."
    del describers._entries["first-words"]
