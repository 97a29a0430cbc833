"""What an older glider wrote opens in this one, with the same answers; what a newer one wrote says what to upgrade."""

import json
import shutil
from pathlib import Path

import pytest

from glider.experts.expert import Expert
from glider.experts.pool import Pool
from glider.inference.spec import load

V01 = Path(__file__).parents[1] / "fixtures" / "v0.1"


@pytest.fixture
def base(tmp_path: Path, save_byte_tokenizer) -> Path:
    """The tiny base of the fixtures, with a tokenizer."""
    directory = shutil.copytree(V01 / "base", tmp_path / "tiny-0.1")
    save_byte_tokenizer(directory)
    return directory


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the pool that version 0.1 wrote."""
    return shutil.copytree(V01 / "pool", tmp_path / "pool")


@pytest.mark.parametrize("memory", [None, "1000"], ids=["whole", "in little memory"])
def test_a_pool_of_version_0_1_answers_as_it_did(old: Path, base: Path, memory: str | None) -> None:
    expected = json.loads((V01 / "expected.json").read_text("utf8"))
    model = load(str(base), old, expert_memory=memory)
    (answer,) = model.generate([expected["prompt"]], max_new_tokens=8)
    assert list(answer.token_ids) == expected["token_ids"]
    scores = {score.choice: score.log_likelihood for score in model.score(expected["prompt"], ["yes", "no"])}
    assert scores == pytest.approx(expected["log_likelihoods"], abs=1e-3)


def test_an_expert_of_version_0_1_opens_whole() -> None:
    expert = Expert.open(V01 / "pool" / "reviews")
    expert.verify()
    assert expert.card.training["versions"] == {"glider": "0.1.0"}
    assert expert.instruction is not None and expert.profile is not None
    assert all(site.has_gate for site in expert.sites.values())


def test_a_pool_of_version_0_1_grows(old: Path) -> None:
    pool = Pool.open(old)
    assert pool.names == ["reviews", "places"] and pool["places"].directory.name == "trivia"
    grown = pool.remove("reviews").add("reviews")
    assert grown.names == ["places", "reviews"]
    Pool.open(old).verify()
