"""Links that lead out, and what is no file at all."""

from pathlib import Path

import pytest

from glider.experts.expert import EXPERT_FILES, Expert
from glider.experts.pool import Pool

from .forms import refused

# --- links and things that are no files


@pytest.mark.parametrize("file", EXPERT_FILES)
def test_a_pool_refuses_a_file_that_links_out_of_it(pool: Path, tmp_path: Path, file: str):
    (pool / "a" / file).rename(tmp_path / "outside")
    (pool / "a" / file).symlink_to(tmp_path / "outside")
    refused(lambda: Pool.open(pool), str(pool / "a" / file), "link")


def test_a_pool_refuses_an_expert_that_links_out_of_it(pool: Path, tmp_path: Path):
    (pool / "a").rename(tmp_path / "outside")
    (pool / "a").symlink_to(tmp_path / "outside")
    refused(lambda: Pool.open(pool), str(pool / "a"), "link")


def test_adding_refuses_an_expert_that_links_out_of_the_pool(pool: Path, tmp_path: Path):
    index = Pool.open(pool).remove("b").path.joinpath("pool.json").read_bytes()
    (pool / "b").rename(tmp_path / "b")
    (pool / "b").symlink_to(tmp_path / "b")
    refused(lambda: Pool.open(pool).add("b"), str(pool / "b"), "link")
    assert (pool / "pool.json").read_bytes() == index


@pytest.mark.parametrize("file", EXPERT_FILES)
def test_an_expert_refuses_a_file_that_links_out_of_its_directory(pool: Path, tmp_path: Path, file: str):
    """Outside a pool as inside: a downloaded directory must not read what lies elsewhere on this machine."""
    (pool / "a" / file).rename(tmp_path / "outside")
    (pool / "a" / file).symlink_to(tmp_path / "outside")
    refused(lambda: Expert.open(pool / "a"), file, "link")


@pytest.mark.parametrize("file", EXPERT_FILES)
@pytest.mark.parametrize("kind", ["directory", "loop", "dangling"])
def test_what_is_no_file_is_refused(pool: Path, file: str, kind: str):
    place = pool / "a" / file
    place.unlink()
    if kind == "directory":
        place.mkdir()
    else:
        place.symlink_to(place if kind == "loop" else pool / "nowhere")
    refused(lambda: Expert.open(pool / "a"), file)
    refused(lambda: Pool.open(pool), "a")
