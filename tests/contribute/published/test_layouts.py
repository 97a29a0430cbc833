"""Both layouts of the published checkpoints are read alike, and their embeddings."""

from pathlib import Path

import pytest
import torch

from glider.contribute.published_format import (
    NOMIC,
    T0_TASKS,
    OfficialExpert,
    open_checkpoint,
    read_embeddings,
)
from glider.errors import ExpertError
from glider.experts.card import EmbedderIdentity

from .checkpoints import NAMES, Tensors, save_glider, save_phatgoose


def same(one: OfficialExpert, other: OfficialExpert) -> bool:
    assert one.name == other.name and one.rank == other.rank
    assert list(one.lora) == list(other.lora) and list(one.gates) == list(other.gates)
    pairs = [(one.lora[key], other.lora[key]) for key in one.lora]
    pairs += [(one.gates[key], other.gates[key]) for key in one.gates]
    return all(torch.equal(*pair) for pair in pairs)


def test_published_order() -> None:
    assert len(set(T0_TASKS)) == 36
    assert (T0_TASKS[0], T0_TASKS[3], T0_TASKS[-1]) == ("p3agnews", "p3samsum", "p3dbpedia14")


def test_both_layouts_hold_the_same_experts(experts: list[Tensors], tmp_path: Path) -> None:
    by_file = open_checkpoint(save_glider(experts, tmp_path / "glider"), NAMES)
    at_once = open_checkpoint(save_phatgoose(experts, tmp_path / "best.pt"), NAMES)
    assert (by_file.layout, at_once.layout) == ("glider", "phatgoose")
    assert by_file.names == at_once.names == NAMES
    assert all(same(one, other) for one, other in zip(by_file.experts(), at_once.experts(), strict=True))


def test_files_are_taken_in_the_order_of_their_names(experts: list[Tensors], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_glider(experts, tmp_path / "glider"))
    assert list(checkpoint.names) == sorted(NAMES)
    assert [expert.name for expert in checkpoint.experts(without=["p3xsum"])] == ["p3agnews", "p3yelp"]


def test_one_file_is_one_expert(experts: list[Tensors], tmp_path: Path) -> None:
    file = save_glider(experts, tmp_path / "glider") / "p3yelp_best.pt"
    assert open_checkpoint(file).names == ("p3yelp",)
    assert open_checkpoint(file, ["mine"]).names == ("mine",)


def test_a_file_of_36_experts_has_the_published_order(tmp_path: Path) -> None:
    part = {"A": torch.ones(1, 4), "B": torch.ones(4, 1), "gate": torch.ones(4)}
    site = "base_model.model.encoder.x"
    keys = {"A": "lora_A.default.weight", "B": "lora_B.default.weight", "gate": "lora_gate.default"}
    experts = [{f"{site}.{keys[p]}": number * value for p, value in part.items()} for number in range(36)]
    checkpoint = open_checkpoint(save_phatgoose(experts, tmp_path / "best.pt"))
    read = {expert.name: float(expert.gates["encoder.x"][0]) for expert in checkpoint.experts()}
    assert tuple(read) == T0_TASKS
    assert read["p3samsum"] == 3


def test_files_from_before_torch_1_6_are_read_too(experts: list[Tensors], tmp_path: Path) -> None:
    directory = save_glider(experts, tmp_path / "glider")
    new, old = directory / "p3xsum_best.pt", tmp_path / "p3xsum_best.pt"
    torch.save(experts[0], old, _use_new_zipfile_serialization=False)
    assert same(next(open_checkpoint(old).experts()), next(open_checkpoint(new).experts()))


def test_embeddings_of_one_and_of_two_wordings(tmp_path: Path) -> None:
    one, two = torch.randn(768), torch.randn(2, 768)
    torch.save({"p3yelp": one, "bbsnarks": two}, tmp_path / "nomic.pt")
    read = read_embeddings(tmp_path / "nomic.pt")
    assert torch.equal(read["p3yelp"], one[None]) and torch.equal(read["bbsnarks"], two)


@pytest.mark.parametrize(
    "bad", [torch.randn(767), torch.randn(1, 2, 768), torch.full((768,), torch.nan), torch.ones(())]
)
def test_other_embeddings_are_refused(bad: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"p3yelp": bad}, tmp_path / "nomic.pt")
    with pytest.raises(ExpertError, match=r"p3yelp of shape"):
        read_embeddings(tmp_path / "nomic.pt")


def test_an_unknown_probe_matches_by_name_prefix_and_dimension() -> None:
    known = NOMIC.model_copy(update={"probe": (0.1, 0.2)})
    assert NOMIC.matches(known) and known.matches(NOMIC) and NOMIC.matches(NOMIC)
    for change in ({"embedder": "other"}, {"prefix": "q: "}, {"dimension": 767}):
        other: EmbedderIdentity = known.model_copy(update=change)
        assert not NOMIC.matches(other) and not other.matches(NOMIC)


def test_a_checkpoint_from_before_archives_is_read(tmp_path: Path) -> None:
    names = {"base_model.model.encoder.a" + key: value for key, value in _one_site().items()}
    torch.save(names, tmp_path / "a_best.pt", _use_new_zipfile_serialization=False)
    (expert,) = open_checkpoint(tmp_path / "a_best.pt").experts()
    assert torch.equal(expert.gates["encoder.a"], names["base_model.model.encoder.a.lora_gate.default"])


def _one_site() -> Tensors:
    shapes = {".lora_A.default.weight": (2, 4), ".lora_B.default.weight": (4, 2), ".lora_gate.default": (4,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}
