"""Anybody's LoRA becomes an expert: it computes what PEFT computes, and its own files never change."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from glider.cli.main import main
from glider.config import EMBEDDED_EMBEDDER
from glider.contribute.adopt import add_description, adopt, import_adapter, make_gates, make_profile
from glider.contribute.lora import lora_config
from glider.contribute.protocol import train_expert
from glider.contribute.settings import TrainConfig
from glider.errors import (
    BaseModelError,
    ConfigError,
    DataError,
    EmbedderError,
    ExpertError,
    GliderError,
    GliderWarning,
    RouterError,
)
from glider.experts.expert import Expert
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptFormat
from glider.inference.base_model import BaseModel, load_base
from glider.layers.attach import attach
from glider.routing.base import routers

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
EMBEDDER = "all-MiniLM-L6-v2"

Edit = Callable[..., None]

LLAMA = {
    "list": {"target_modules": ["q_proj", "v_proj"]},
    "regex": {"target_modules": r".*\.layers\.1\..*\.(up|down)_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "rank and alpha patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 5},
        "alpha_pattern": {"q_proj": 32, "down_proj": 3},
    },
    "rslora": {"target_modules": ["q_proj", "o_proj"], "use_rslora": True, "rank_pattern": {"o_proj": 7}},
    "one layer only": {
        "target_modules": ["q_proj", "gate_proj"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
    },
}  # fmt: skip
T5 = {
    "list": {"target_modules": ["q", "v"]},
    "regex": {"target_modules": r"decoder\..*\.EncDecAttention\.(q|o)"},
    "all-linear": {"target_modules": "all-linear"},
    "rank and alpha patterns": {
        "target_modules": ["q", "wi_0", "wo"],
        "rank_pattern": {"wo": 1},
        "alpha_pattern": {"wi_0": 0.5},
    },
    "rslora": {"target_modules": ["k", "wi_1"], "use_rslora": True},
}
KINDS = [("llama", kind) for kind in LLAMA] + [("t5", kind) for kind in T5]


def save_adapter(directory: Path, base: BaseModel, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """A real PEFT adapter whose B is not zero; the base's modules are restored."""
    task = "SEQ_2_SEQ_LM" if base.model.config.is_encoder_decoder else "CAUSAL_LM"
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": task, **settings})
    peft_model = get_peft_model(base.model, config)
    chance = torch.Generator().manual_seed(3)
    for name, value in peft_model.named_parameters():
        if "lora_" in name:
            value.data = (torch.randn(value.shape, generator=chance) / value.shape[-1] ** 0.5).to(dtype)
    peft_model.save_pretrained(str(directory), save_embedding_layers=False)
    peft_model.unload()
    return directory


def content(directory: Path, files: tuple[str, ...] = ADAPTER_FILES) -> dict[str, bytes]:
    return {file: (directory / file).read_bytes() for file in files}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 259, (2, 11), generator=torch.Generator().manual_seed(1))
    return model(input_ids=ids, **({"decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else {})).logits


def routed_logits(expert: Expert, base_directory: Path, pool_directory: Path, router: str) -> torch.Tensor:
    """Through a pool with this expert alone."""
    base = load_base(str(base_directory))
    pool = Pool.create(pool_directory, base.identity)
    shutil.copytree(expert.directory, pool_directory / expert.name)
    attach(base.model, pool.add(expert.name), routers.create(router))
    return logits(base.model)


def refused(source: Path, base: Path, *parts: str, error: type[GliderError] = ExpertError) -> None:
    """Importing raises an error that names all `parts`, and leaves nothing behind."""
    out = source.parent / "out" / "ex"
    with pytest.raises(error) as raised:
        import_adapter(source, str(base), out)
    for part in parts:
        assert part in str(raised.value)
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


@pytest.fixture
def adapter(llama_directory: Path, tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", load_base(str(llama_directory)), target_modules=["q_proj", "up_proj"])


@pytest.fixture
def expert(adapter: Path, llama_directory: Path, tmp_path: Path) -> Expert:
    return import_adapter(adapter, str(llama_directory), tmp_path / "experts" / "ex")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"input": f"say {i}", "output": "x"} for i in range(24)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    return tmp_path / "data.jsonl"


def quick(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"gate_steps": 4, "batch_size": 4, "validation": 4, "learning_rate": 0.05, **changes})


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_an_imported_adapter_computes_what_peft_computes(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, kind: str
):
    base_directory: Path = request.getfixturevalue(f"{family}_directory")
    settings = (LLAMA if family == "llama" else T5)[kind]
    source = save_adapter(tmp_path / "adapter", load_base(str(base_directory)), **settings)
    before = content(source)
    expert = import_adapter(source, str(base_directory), tmp_path / "ex")
    assert content(expert.directory) == before == content(source)

    base = load_base(str(base_directory))
    plain = logits(base.model)
    wanted = logits(PeftModel.from_pretrained(base.model, str(source)).eval())
    got = routed_logits(expert, base_directory, tmp_path / "pool", "single:ex")
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - plain).abs().max() > 0.1

    again = load_base(str(base_directory))  # the settings that gates are trained with
    settings: Any = lora_config(expert, again.model)
    rebuilt = PeftModel.from_pretrained(again.model, str(expert.directory), config=settings).eval()
    torch.testing.assert_close(logits(rebuilt), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_an_adapter_keeps_the_dtype_of_its_file(llama_directory: Path, tmp_path: Path, dtype: torch.dtype):
    source = save_adapter(tmp_path / "adapter", load_base(str(llama_directory)), dtype)
    assert {tensor.dtype for tensor in load_file(source / "adapter_model.safetensors").values()} == {dtype}
    expert = import_adapter(source, str(llama_directory), tmp_path / "ex")
    assert {factor.dtype for site in expert.sites for factor in expert.factors(site)} == {dtype}
    wanted = logits(PeftModel.from_pretrained(load_base(str(llama_directory)).model, str(source)).eval())
    got = routed_logits(expert, llama_directory, tmp_path / "pool", "single:ex")
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_only_the_layers_of_the_adapter_are_sites(llama_directory: Path, tmp_path: Path):
    source = save_adapter(tmp_path / "adapter", load_base(str(llama_directory)), **LLAMA["one layer only"])
    expert = import_adapter(source, str(llama_directory), tmp_path / "ex")
    assert sorted(expert.sites) == ["model.layers.1.mlp.gate_proj", "model.layers.1.self_attn.q_proj"]


def test_the_card_says_where_the_adapter_comes_from(adapter: Path, llama_directory: Path, tmp_path: Path):
    expert = import_adapter(adapter, str(llama_directory), tmp_path / "ex", task="say-x", licence="CC0-1.0")
    card, base = expert.card, load_base(str(llama_directory))
    assert (card.name, card.task, card.licence) == ("ex", "say-x", "CC0-1.0")
    assert card.base == base.identity
    assert card.prompt == PromptFormat.of(base.model, base.tokenizer)
    assert card.training["imported_from"] == "adapter"
    assert (card.description, card.embedder, expert.instruction) == (None, None, None)
    assert not any(site.has_gate for site in expert.sites.values())


def test_an_adapter_of_the_hub_is_remembered_by_its_id(
    adapter: Path, llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The hub's cache calls the directory by a commit hash, which names nothing."""
    snapshot = tmp_path / "cache" / "snapshots" / ("0" * 40)
    shutil.copytree(adapter, snapshot)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repository, **_: str(snapshot))
    expert = import_adapter("somebody/lora", str(llama_directory), tmp_path / "ex")
    assert expert.card.training["imported_from"] == "somebody/lora"


def test_a_repository_of_a_pickle_alone_is_refused(
    llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Only settings and safetensors are fetched, so that nothing else arrives."""
    (tmp_path / "snapshot").mkdir()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repository, **_: str(tmp_path / "snapshot"))
    with pytest.raises(ExpertError, match=r"adapter_model\.safetensors in the repository somebody/lora.*pickle"):
        import_adapter("somebody/lora", str(llama_directory), tmp_path / "ex")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
    ],
    ids=["dora", "modules_to_save", "bias"],
)
def test_more_than_plain_lora_is_refused(llama_directory: Path, tmp_path: Path, settings: dict[str, Any], told: str):
    source = save_adapter(tmp_path / "adapter", load_base(str(llama_directory)), **settings)
    refused(source, llama_directory, told, "adapter_config.json")


def test_an_adapter_of_an_embedding_is_refused(llama_directory: Path, tmp_path: Path):
    source = save_adapter(tmp_path / "adapter", load_base(str(llama_directory)), target_modules=["embed_tokens"])
    refused(source, llama_directory, "adapter_model.safetensors", "lora_embedding")


def test_a_pickle_is_not_opened(adapter: Path, llama_directory: Path):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refused(adapter, llama_directory, "adapter_model.bin", "pickle")


def test_an_adapter_for_another_architecture_is_refused(adapter: Path, t5_directory: Path):
    refused(adapter, t5_directory, "model.layers.0", "tiny-t5", error=GliderError)


def test_an_adapter_of_another_width_is_refused(adapter: Path, llama_directory: Path, edit_tensors: Edit):
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    edit_tensors(adapter / "adapter_model.safetensors", lambda tensors: tensors.update({key: torch.ones(50, 4)}))
    refused(adapter, llama_directory, "32 -> 50", "32 -> 48", error=GliderError)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(adapter: Path, llama_directory: Path, edit_tensors: Edit, value: float):
    edit_tensors(
        adapter / "adapter_model.safetensors", lambda tensors: next(iter(tensors.values()))[0, :1].fill_(value)
    )
    refused(adapter, llama_directory, "adapter_model.safetensors", "finite")


def test_ranks_that_are_not_those_of_the_settings_are_refused(adapter: Path, llama_directory: Path, edit_json: Edit):
    edit_json(adapter / "adapter_config.json", r=5)
    refused(adapter, llama_directory, "rank 5", "rank 4")


@pytest.mark.parametrize("file", ADAPTER_FILES)
def test_a_missing_file_is_named(adapter: Path, llama_directory: Path, file: str):
    (adapter / file).unlink()
    refused(adapter, llama_directory, file)


@pytest.mark.parametrize("file", ADAPTER_FILES)
def test_a_link_out_of_the_adapter_is_refused(adapter: Path, llama_directory: Path, tmp_path: Path, file: str):
    """Otherwise the expert would carry a copy of whatever the stranger pointed at."""
    (adapter / file).rename(tmp_path / "elsewhere")
    (adapter / file).symlink_to(tmp_path / "elsewhere")
    refused(adapter, llama_directory, file, "link")


def test_an_existing_directory_is_not_touched(adapter: Path, llama_directory: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ExpertError, match="existing"):
        import_adapter(adapter, str(llama_directory), tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("name", ["two words", ".hidden", "x" * 200, "ex\n"])
def test_a_bad_name_is_refused(adapter: Path, llama_directory: Path, tmp_path: Path, name: str):
    with pytest.raises(ExpertError, match="a name of"):
        import_adapter(adapter, str(llama_directory), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("hub_id", ["nobody/no-such-adapter", "no/such/thing", "./nowhere", "../../nowhere"])
def test_what_cannot_be_reached_is_one_clear_error(llama_directory: Path, tmp_path: Path, hub_id: str):
    with pytest.raises(ExpertError) as raised:
        import_adapter(hub_id, str(llama_directory), tmp_path / "ex")
    assert hub_id in str(raised.value)
    assert list(tmp_path.iterdir()) == []


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
    subprocess.run([sys.executable, "-c", script, *arguments], timeout=60, check=True)
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


def test_other_files_of_the_directory_stay(expert: Expert):
    (expert.directory / "README.md").write_text("mine")
    add_description(expert.directory, "Say something.", "all-MiniLM-L6-v2")
    assert (expert.directory / "README.md").read_text() == "mine"


def test_an_import_reads_no_weights_that_it_does_not_need(
    adapter: Path, llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = import_adapter(adapter, load_base(str(llama_directory)), tmp_path / "whole" / "ex")
    monkeypatch.setattr("glider.inference.base_model.load_base", None)
    lean = import_adapter(adapter, str(llama_directory), tmp_path / "lean" / "ex")
    files = (*ADAPTER_FILES, "card.json", "glider.safetensors")
    assert content(lean.directory, files) == content(whole.directory, files)


def test_gates_over_gates_say_so(
    expert: Expert, llama_directory: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    command = ["glider", "expert", "gates", str(expert.directory), str(data), "--base", str(llama_directory)]
    for said in (False, True):
        monkeypatch.setattr(sys, "argv", [*command, "--how", "mean"])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert ended.value.code in (0, None), captured.err
        assert (", in place of 4," in captured.out) == said


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
