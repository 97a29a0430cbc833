"""A model on this machine as describer: by directory, as GGUF, and when it cannot be used."""

import os
from pathlib import Path

import pytest

from glider.instructions.cache import Cache
from glider.instructions.describers import Task, describe_tasks, load_describer

TASK = Task((("2 + 2", "4"), ("3 + 4", "7"), ("1 + 1", "2")))


def test_both_architectures_write(base_directory: Path):
    """Random weights write nonsense, which is all that is asked of them here."""
    local = load_describer(f"local:{base_directory}", max_new_tokens=12)
    (written,) = local.write(["Describe the task."])
    assert written.fault is None and written.text is not None and 0 < written.tokens_out <= 12
    assert local.write(["Describe the task."]) == [written]  # greedy
    assert local.name == f"local:{base_directory.name}"
    ticks: list[int] = []
    local.write(["One.", "Two."], ticks.append)
    assert ticks == [1, 2]


def test_a_prompt_beyond_the_context_is_a_fault(llama_directory: Path):
    long = Task((("2 + 2 " * 20, "4"), *TASK.examples[1:]))
    (told,) = describe_tasks(load_describer(f"local:{llama_directory}"), [long])
    assert told.text is None and "reads 512 tokens" in (told.fault or "")


@pytest.mark.parametrize("name", ["/no/such/model", "/no/such/model.gguf", "nobody/no-such-model"])
def test_a_missing_model_is_a_fault(name: str):
    (told,) = describe_tasks(load_describer(f"local:{name}"), [TASK])
    assert told.text is None and name.rpartition("/")[2] in (told.fault or "")


def test_a_pipe_is_no_model(tmp_path: Path):
    pytest.importorskip("gguf")
    os.mkfifo(tmp_path / "model.gguf")
    (told,) = describe_tasks(load_describer(f"local:{tmp_path / 'model.gguf'}"), [TASK])
    assert told.text is None and "no regular file" in (told.fault or "")


def test_a_changed_model_is_asked_again(llama_directory: Path, tmp_path: Path, store: Cache):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(llama_directory, copy)
    local = load_describer(f"local:{copy}")
    before = local.makes
    assert load_describer(f"local:{copy}").makes == before
    (copy / "model.safetensors").touch()
    assert local.makes != before


@pytest.mark.slow
def test_the_embedded_model_describes_a_task():
    (told,) = describe_tasks(load_describer("local:smollm2-135m"), [TASK])
    assert told.fault is None and told.text and told.tokens_out > 3
