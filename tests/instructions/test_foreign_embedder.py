"""A card may name an embedder by a path or a hub id: its files are a stranger's."""

import json
import os
import shutil
from pathlib import Path

import pytest

from glider.errors import BaseModelError, EmbedderError
from glider.instructions.embedders import load_embedder

MARK = "foreign-code-ran"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "embedder"
    place.mkdir()
    (place / "foreign.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / MARK)!r}).touch()\n")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "foreign.Module"}]
    (place / "modules.json").write_text(json.dumps(modules), "utf8")
    return place


def test_modules_of_a_directory_are_refused_before_the_library_looks_at_them(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions below 6 import them without a question."""

    def opened(*_: object, **__: object) -> None:
        (directory.parent / MARK).touch()

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", opened)
    with pytest.raises(EmbedderError, match="no foreign code"):
        load_embedder(str(directory))
    assert not (directory.parent / MARK).exists()


@pytest.mark.parametrize("content", ["{}", '"x"', "[1]", '[{"type": 3}]', "[" * 200, "[{}"])
def test_modules_of_another_form_are_an_error_of_ours(directory: Path, content: str) -> None:
    (directory / "modules.json").write_text(content, "utf8")
    with pytest.raises(EmbedderError):
        load_embedder(str(directory))


def test_what_the_library_trips_over_is_an_error_of_ours(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No modules at all, or an empty name, was a traceback."""
    (directory / "modules.json").write_text("[]", "utf8")
    with pytest.raises(EmbedderError, match="sentence-transformers model"):
        load_embedder(str(directory))
    monkeypatch.chdir(directory)
    with pytest.raises(EmbedderError, match="sentence-transformers model"):
        load_embedder("")


def test_a_pipe_in_an_embedders_directory_is_told_and_not_waited_for(directory: Path) -> None:
    shutil.rmtree(directory)
    (directory / "1_Pooling").mkdir(parents=True)
    os.mkfifo(directory / "1_Pooling" / "config.json")
    with pytest.raises(BaseModelError, match="a pipe or a device"):
        load_embedder(str(directory))


def test_a_directory_of_many_more_is_not_walked_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card may name any directory, the root of the file system too."""
    for number in range(200):
        (tmp_path / str(number)).mkdir()
    seen: list[Path] = []
    monkeypatch.setattr("glider.inference.base_model.require_plain_files", seen.append)
    with pytest.raises(EmbedderError):
        load_embedder(f"sentence-transformers:{tmp_path}")
    assert 0 < len(seen) <= 64
