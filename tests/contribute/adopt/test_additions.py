"""Gates, descriptions and profiles come after the import, and the adapter stays as it is."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glider.config import EMBEDDED_EMBEDDER
from glider.contribute.adopt import add_description, adopt, make_gates, make_profile
from glider.contribute.protocol import train_expert
from glider.errors import (
    BaseModelError,
    ConfigError,
    DataError,
    EmbedderError,
    ExpertError,
    GliderWarning,
    RouterError,
)
from glider.experts.expert import Expert
from glider.experts.pool import Pool
from glider.routing.base import routers

from ...commands import CommandResult
from .adapters import ADAPTER_FILES, Edit, content, quick, routed_logits

EMBEDDER = "all-MiniLM-L6-v2"


def test_gates_come_afterwards_and_the_adapter_stays(expert: Expert, llama_directory: Path, data: Path):
    before = content(expert.directory)
    gated = make_gates(expert.directory, data, str(llama_directory), quick())
    assert content(expert.directory) == before
    assert all(site.has_gate for site in gated.sites.values())
    assert any((gate := gated.gate(site)) is not None and gate.abs().max() > 0 for site in gated.sites)
    assert sorted(file.name for file in expert.directory.iterdir()) == sorted(
        [*ADAPTER_FILES, "card.json", "glider.safetensors"]
    )
    assert [file.name for file in expert.directory.parent.iterdir()] == ["ex"]
    assert gated.card.training["gates"]["step"] == 4
    assert gated.card.training["imported_from"] == "adapter"
    assert gated.card.examples
    unchanged = {"training": {}, "examples": ()}
    assert gated.card.model_copy(update=unchanged) == expert.card.model_copy(update=unchanged)


def test_the_same_data_gives_the_same_gates(expert: Expert, llama_directory: Path, data: Path, tmp_path: Path):
    twin = shutil.copytree(expert.directory, tmp_path / "twin" / "ex")
    make_gates(expert.directory, data, str(llama_directory), quick())
    torch.randn(3)
    make_gates(twin, data, str(llama_directory), quick())
    assert content(twin, ("glider.safetensors",)) == content(expert.directory, ("glider.safetensors",))


def test_settings_that_only_training_needs_are_not_run(
    expert: Expert, llama_directory: Path, data: Path, edit_json: Edit
):
    """A stranger's `target_modules` is a regular expression that may take for ever, and his dropout is his own."""
    plain = shutil.copytree(expert.directory, expert.directory.parent / "plain" / "ex")
    edit_json(expert.directory / "adapter_config.json", target_modules="(.+)+x", lora_dropout=0.5)
    script = (
        "import sys\nfrom glider.contribute.adopt import make_gates\n"
        "from glider.contribute.settings import TrainConfig\n"
        "make_gates(*sys.argv[1:4], TrainConfig.model_validate_json(sys.argv[4]))\n"
    )
    settings = quick().model_dump_json()
    arguments = [str(expert.directory), str(data), str(llama_directory), settings]
    subprocess.run([sys.executable, "-c", script, *arguments], timeout=600, check=True)
    make_gates(plain, data, str(llama_directory), quick())
    assert content(expert.directory, ("glider.safetensors",)) == content(plain, ("glider.safetensors",))


def test_gates_can_be_trained_again(expert: Expert, llama_directory: Path, data: Path):
    first = make_gates(expert.directory, data, str(llama_directory), quick())
    old = content(first.directory, ("glider.safetensors",))
    second = make_gates(expert.directory, data, str(llama_directory), quick(seed=1))
    assert content(second.directory, ("glider.safetensors",)) != old
    assert second.card.training["gates"]["config"]["seed"] == 1


def test_gates_for_another_base_are_refused(expert: Expert, other_llama_directory: Path, data: Path):
    before = content(expert.directory, (*ADAPTER_FILES, "card.json", "glider.safetensors"))
    with pytest.raises(BaseModelError, match="ex"):
        make_gates(expert.directory, data, str(other_llama_directory), quick())
    assert content(expert.directory, (*ADAPTER_FILES, "card.json", "glider.safetensors")) == before


def test_bad_rows_leave_the_expert_as_it_is(expert: Expert, llama_directory: Path, tmp_path: Path):
    before = content(expert.directory, (*ADAPTER_FILES, "card.json", "glider.safetensors"))
    (tmp_path / "bad.jsonl").write_text('{"input": 1}\n', "utf8")
    with pytest.raises(DataError):
        make_gates(expert.directory, tmp_path / "bad.jsonl", str(llama_directory), quick())
    assert content(expert.directory, (*ADAPTER_FILES, "card.json", "glider.safetensors")) == before
    assert [file.name for file in expert.directory.parent.iterdir()] == ["ex"]


@pytest.mark.parametrize("order", ["gates first", "description first"])
def test_gates_and_description_do_not_undo_each_other(expert: Expert, llama_directory: Path, data: Path, order: str):
    before = content(expert.directory)
    steps: list[Callable[[], Expert]] = [
        lambda: make_gates(expert.directory, data, str(llama_directory), quick()),
        lambda: add_description(expert.directory, "Say x.", EMBEDDER),
    ]
    for step in steps if order == "gates first" else steps[::-1]:
        made = step()
    assert content(expert.directory) == before
    assert all(site.has_gate for site in made.sites.values())
    assert made.card.description == "Say x."
    assert made.instruction is not None
    assert made.instruction.norm().item() == pytest.approx(1.0, abs=1e-4)
    assert "gates" in made.card.training


def test_another_description_gives_another_embedding(expert: Expert):
    one = add_description(expert.directory, "Say x.", EMBEDDER).instruction
    other = add_description(expert.directory, "Translate into French.", EMBEDDER)
    assert one is not None and other.instruction is not None
    assert not torch.allclose(one, other.instruction)
    assert other.card.description == "Translate into French."


def test_a_missing_embedder_leaves_the_expert_as_it_is(expert: Expert):
    before = content(expert.directory, ("card.json", "glider.safetensors"))
    with pytest.raises(EmbedderError, match="nobody/no-such"):
        add_description(expert.directory, "Say x.", "nobody/no-such")
    assert content(expert.directory, ("card.json", "glider.safetensors")) == before


def test_the_router_says_what_an_expert_lacks_and_how_to_get_it(
    expert: Expert, llama_directory: Path, data: Path, tmp_path: Path
):
    with pytest.raises(RouterError, match=r"gate.*ex.*glider expert gates"):
        routed_logits(expert, llama_directory, tmp_path / "bare", "glider")
    gated = make_gates(expert.directory, data, str(llama_directory), quick())
    with pytest.raises(RouterError, match=r"(?i)instruction.*ex.*glider expert describe"):
        routed_logits(gated, llama_directory, tmp_path / "gated", "glider")
    whole = add_description(expert.directory, "Say x.", EMBEDDER)
    assert torch.isfinite(routed_logits(whole, llama_directory, tmp_path / "whole", "phatgoose")).all()
    routers.create("glider").prepare(Pool.open(tmp_path / "whole"))


def test_mean_gates_are_the_mean_inputs_and_need_no_training(expert: Expert, llama_directory: Path, data: Path):
    adapter = content(expert.directory)
    made = make_gates(expert.directory, data, str(llama_directory), quick(), how="mean")
    assert content(expert.directory) == adapter
    assert all(site.has_gate for site in made.sites.values())
    assert made.card.training["gates"]["how"] == "mean"
    site = next(iter(made.sites))
    mean = torch.as_tensor(made.gate(site)).clone()
    trained = make_gates(expert.directory, data, str(llama_directory), quick())
    assert not torch.equal(mean, torch.as_tensor(trained.gate(site)))


def test_gates_over_gates_say_so(
    expert: Expert, llama_directory: Path, data: Path, glider: Callable[..., CommandResult]
):
    for said in (False, True):
        ended = glider("expert", "gates", expert.directory, data, "--base", llama_directory, "--how", "mean")
        assert ended.code == 0, ended.err
        assert (", in place of 4," in ended.out) == said


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_description_is_refused(adapter: Path, expert: Expert, llama_directory: Path, data: Path, text: str):
    before = content(expert.directory, ("card.json", "glider.safetensors"))
    out = expert.directory.with_name("new")
    for call in (
        lambda: add_description(expert.directory, text, "all-minilm-l6-v2"),
        lambda: adopt(adapter, str(llama_directory), out, quick(), description=text),
        lambda: train_expert(data, str(llama_directory), out, quick(), description=text),
    ):
        with pytest.raises(ExpertError, match="an empty one"):
            call()
    assert content(expert.directory, ("card.json", "glider.safetensors")) == before
    assert not out.exists()


def test_a_profile_without_validation_rows_holds_some_back(expert: Expert, llama_directory: Path, data: Path):
    with pytest.warns(GliderWarning, match="8 rows are held back, where a pool is calibrated on 16"):
        profile = make_profile(expert.directory, data, str(llama_directory), quick(validation=0)).profile
    assert profile is not None
    assert len(profile.queries) == 8
    assert len(profile.known[0]) > 0


def test_a_profile_says_how_many_rows_it_needs(expert: Expert, llama_directory: Path, tmp_path: Path):
    (tmp_path / "two.jsonl").write_text('{"input": "a", "output": "b"}\n' * 2, "utf8")
    with pytest.raises(DataError, match=r"at least 3 rows.*48 are enough.*got 2"):
        make_profile(expert.directory, tmp_path / "two.jsonl", str(llama_directory), quick())


def test_a_profile_stores_as_many_inputs_as_are_asked_for(expert: Expert, llama_directory: Path, data: Path):
    base = str(llama_directory)
    with pytest.raises(ConfigError, match=r"an embedder for 5 stored inputs.*glider expert describe"):
        make_profile(expert.directory, data, base, quick(stored=5))
    add_description(expert.directory, "Say it.", EMBEDDED_EMBEDDER)
    profile = make_profile(expert.directory, data, base, quick(stored=5)).profile
    assert profile is not None and profile.stored_inputs is not None and profile.inputs is not None
    assert profile.stored_inputs.shape == (5, profile.inputs.shape[0])
    assert profile.stored_inputs.float().norm(dim=-1).allclose(torch.ones(5), atol=1e-2)
    with pytest.raises(DataError, match=r"400 training rows to store; got \d+\."):
        make_profile(expert.directory, data, base, quick(stored=400))
    assert make_profile(expert.directory, data, base, quick()).profile.stored_inputs is None  # pyright: ignore
