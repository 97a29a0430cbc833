"""Pools whose unsure queries get the experts with the nearest descriptions."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import glider.inference.queries as queries
from glider.calibration.verdict import choose_thresholds, renewed_thresholds
from glider.cli.main import build
from glider.errors import EndpointError, GliderWarning, MissingDependency, PoolError, RouterError
from glider.experts.pool import Pool
from glider.inference.queries import Query
from glider.inference.spec import load
from glider.verdicts.kinship import Kinship

from .conftest import BETWEEN, STRANGER, own_query

PROMPTS = [own_query(0), STRANGER, BETWEEN, Query(BETWEEN, description="Write a headline for the news.")]
VERDICTS = ("fits", "stranger", "unsure", "unsure")


@pytest.fixture
def described(llama_directory: Path, calibrated) -> Pool:
    """Five experts with descriptions, calibrated to mix by them."""
    pool = calibrated(llama_directory, 5)
    return pool.set_verdicts(choose_thresholds(pool, nearest_by="descriptions"))


def test_unsure_queries_get_the_nearest_by_description_and_the_others_what_they_had(
    described: Pool, llama_directory: Path
) -> None:
    model = load(str(llama_directory), described.path)
    condition = model.condition(PROMPTS)
    by_words = load(
        str(llama_directory), described.set_verdicts(choose_thresholds(described, nearest_by="signal")).path
    ).condition(PROMPTS)
    model.set_router("loraretriever(by=descriptions)")
    nearest = model.condition(PROMPTS).global_scores
    assert condition.verdicts == by_words.verdicts == VERDICTS
    assert nearest is not None and condition.settled is not None and by_words.settled is not None
    for row in (2, 3):
        assert condition.settled.experts[row].tolist() == nearest[row].topk(3).indices.tolist()
        assert condition.settled.weights[row].tolist() == pytest.approx([1 / 3] * 3)
    assert condition.settled.experts[2].tolist() != condition.settled.experts[3].tolist()
    for row in (0, 1):
        assert torch.equal(condition.settled.experts[row], by_words.settled.experts[row])
        assert torch.equal(condition.settled.weights[row], by_words.settled.weights[row])


def test_only_unsure_queries_are_embedded(described: Pool, llama_directory: Path, monkeypatch) -> None:
    model, embedded = load(str(llama_directory), described.path), []
    embed = queries.embed_texts

    def noted(texts, *rest):
        embedded.extend(texts)
        return embed(texts, *rest)

    monkeypatch.setattr(queries, "embed_texts", noted)
    model.condition([own_query(0), STRANGER])
    assert embedded == []
    model.condition([own_query(0), BETWEEN, Query(BETWEEN, verdict="route")])
    assert embedded == [BETWEEN]


def test_a_query_that_cannot_be_embedded_has_its_experts_by_the_signal(
    described: Pool, llama_directory: Path, monkeypatch
) -> None:
    model = load(str(llama_directory), described.path)
    fault = EndpointError("an answer", "none", "Start it.")
    monkeypatch.setattr(queries, "embed_texts", lambda *_: ({}, fault))
    with pytest.warns(GliderWarning, match="given experts by the signal, not by descriptions"):
        condition = model.condition([BETWEEN])
    assert condition.settled is not None and condition.verdicts == ("unsure",)
    by_signal = described.set_verdicts(choose_thresholds(described, nearest_by="signal"))
    wanted = load(str(llama_directory), by_signal.path).condition([BETWEEN]).settled
    assert wanted is not None and torch.equal(condition.settled.experts, wanted.experts)


def test_an_expert_without_a_description_is_nobodys_kin() -> None:
    chance = torch.Generator().manual_seed(0)
    known = [torch.randn(4, generator=chance), None, torch.randn(4, generator=chance)]
    kinship = Kinship.of(known)
    assert kinship is not None and Kinship.of([None, None]) is None
    scores = kinship.scores(torch.stack([known[0] * 3, torch.zeros(4)]))
    assert scores[0, 0].item() == pytest.approx(1.0) and scores[0, 1].item() == -torch.inf
    assert bool(scores[1].isnan().all())


def test_a_description_that_only_an_unsure_query_uses_says_so(
    llama_directory: Path, described: Pool, grow_pool
) -> None:
    pool = grow_pool(described, llama_directory, "silent", embedder=None, profile=True)
    [reading] = load(str(llama_directory), pool.path).condition([PROMPTS[3]]).described
    assert "not used but for the experts of an unsure query" in str(reading.fault)


def test_fewer_described_experts_than_are_mixed_share_the_whole(llama_directory: Path, calibrated, grow_pool) -> None:
    pool = calibrated(llama_directory, 3)
    for name in ("f0", "f1"):
        pool = grow_pool(pool, llama_directory, name, embedder=None, seed=9, profile=True)
    pool = pool.set_verdicts(choose_thresholds(pool, experts=5, nearest_by="descriptions"))
    condition = load(str(llama_directory), pool.path).condition([BETWEEN])
    assert condition.verdicts == ("unsure",) and condition.settled is not None
    weights = dict(zip(condition.settled.experts[0].tolist(), condition.settled.weights[0].tolist(), strict=True))
    assert weights == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3, 3: 0, 4: 0})


def test_a_pool_without_descriptions_is_refused(llama_directory: Path, calibrated) -> None:
    pool = calibrated(llama_directory, 3, embedder=None)
    with pytest.raises(PoolError, match="with a description"):
        choose_thresholds(pool, nearest_by="descriptions")
    stored = choose_thresholds(pool, experts=3).model_copy(update={"nearest_by": "descriptions"})
    with pytest.raises(RouterError, match="--unsure-by signal"):
        load(str(llama_directory), pool.set_verdicts(stored).path)


def test_descriptions_that_have_nothing_to_choose_are_refused(described: Pool) -> None:
    with pytest.raises(PoolError, match="--unsure-by signal"):
        choose_thresholds(described, experts=0, nearest_by="descriptions")
    index = described.path / "pool.json"
    content = json.loads(index.read_text("utf8"))
    content["verdicts"] |= {"nearest_by": "signal", "experts": 0}
    content["verdicts"]["nearest_by"] = "descriptions"
    index.write_text(json.dumps(content), "utf8")
    with pytest.raises(PoolError, match="experts is 0"):
        Pool.open(described.path)


def test_what_is_stored_stays_where_an_expert_without_a_description_joins(
    llama_directory: Path, described: Pool, grow_pool
) -> None:
    silent = grow_pool(described, llama_directory, "silent", embedder=None, profile=True)
    assert choose_thresholds(silent).nearest_by == "signal"
    assert renewed_thresholds(silent).index.verdicts.nearest_by == "descriptions"


def test_without_the_embedders_package_the_signal_decides_and_it_is_told(
    described: Pool, llama_directory: Path, monkeypatch
) -> None:
    model = load(str(llama_directory), described.path)

    def missing(*_):
        raise MissingDependency("some-package", "embed texts", "pip install it")

    monkeypatch.setattr(queries, "embed_texts", missing)
    with pytest.warns(GliderWarning, match="by the signal, not by descriptions: .*some-package.*pip install it"):
        condition = model.condition([BETWEEN])
    assert condition.verdicts == ("unsure",) and condition.settled is not None
    assert condition.settled.weights[0].tolist() == pytest.approx([1 / 3] * 3)
    with pytest.raises(MissingDependency):
        load(str(llama_directory), described.path, strict=True).condition([BETWEEN])


def test_the_command_stores_the_choice_and_later_ones_keep_it(
    described: Pool, llama_directory: Path, grow_pool
) -> None:
    def stored(*arguments: str) -> str:
        result = CliRunner().invoke(build("pool"), ["pool", "calibrate", str(described.path), "--json", *arguments])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["verdicts"]["nearest_by"]

    assert [stored("--unsure-by", "signal"), stored(), stored("--unsure-by", "descriptions"), stored()] == [
        "signal",
        "signal",
        "descriptions",
        "descriptions",
    ]
    grown = grow_pool(Pool.open(described.path), llama_directory, "late", seed=5, profile=True)
    assert grown.index.verdicts.nearest_by == "descriptions"
