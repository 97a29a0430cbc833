"""An expert directory: PEFT loads it as it is, glider computes the same, and every fault names expert and file."""

import json
import pickle
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from glider.errors import ExpertError, GliderError
from glider.experts.card import EmbedderIdentity, ExpertCard
from glider.experts.expert import EXPERT_FILES, Expert, write_expert
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptFormat
from glider.files.disk import sha256
from glider.files.tensor_file import TensorFile
from glider.inference.base_model import BaseModel, load_base
from glider.layers.attach import attach
from glider.routing.base import routers

Q = "model.layers.0.self_attn.q_proj"
A = f"base_model.model.{Q}.lora_A.weight"
B = f"base_model.model.{Q}.lora_B.weight"

Edit = Callable[..., None]


@pytest.fixture(scope="module")
def llama(llama_directory: Path) -> BaseModel:
    return load_base(str(llama_directory))


@pytest.fixture(scope="module")
def pristine(
    tmp_path_factory: pytest.TempPathFactory,
    llama: BaseModel,
    random_expert: Callable[..., Expert],
    embedder_identity: EmbedderIdentity,
) -> Path:
    path = tmp_path_factory.mktemp("pristine") / "ex7"
    return random_expert(path, llama, embedder=embedder_identity).directory


@pytest.fixture
def directory(pristine: Path, tmp_path: Path) -> Path:
    """A copy of a sound expert, free to be damaged."""
    return shutil.copytree(pristine, tmp_path / "experts" / "ex7")


def inputs(model: Any) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 259, (2, 11), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, **({"decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else {})}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(**inputs(model)).logits


def randomise(peft_model: Any, seed: int = 3) -> None:
    """PEFT starts with B = 0; an adapter that does something is a stronger test."""
    chance = torch.Generator().manual_seed(seed)
    for name, value in peft_model.named_parameters():
        if "lora_" in name:
            value.data = torch.randn(value.shape, generator=chance) / value.shape[1] ** 0.5


def refused(directory: Path, file: str) -> str:
    """The message of the `ExpertError` that opening raises, which must name the expert and the file."""
    with pytest.raises(ExpertError) as raised:
        Expert.open(directory)
    assert directory.name in str(raised.value)
    assert file in str(raised.value)
    return str(raised.value)


def unsound(expert: Expert, file: str, hashes: dict[str, str] | None = None) -> str:
    """The message of the `ExpertError` that `verify` raises, which must name the expert and the file."""
    with pytest.raises(ExpertError) as raised:
        expert.verify(hashes)
    assert expert.name in str(raised.value)
    assert file in str(raised.value)
    return str(raised.value)


def test_peft_and_glider_compute_the_same_from_one_directory(base_directory: Path, make_pool: Callable[..., Pool]):
    pool = make_pool(base_directory, experts=2)
    model = load_base(str(base_directory)).model
    plain = logits(model)

    attached = attach(model, pool, routers.create("single:e1"))
    by_glider = logits(model)
    attached.detach()
    by_peft = logits(PeftModel.from_pretrained(model, str(pool["e1"].directory)).eval())

    assert (by_peft - plain).abs().max() > 0.1
    torch.testing.assert_close(by_glider, by_peft, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_alphas_by_pattern_compute_the_same(llama_directory: Path, tmp_path: Path, rslora: bool):
    base = load_base(str(llama_directory))
    card = ExpertCard(name="e0", task="e0", base=base.identity, prompt=PromptFormat(kind="chat"))
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules="all-linear",
        rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.(up|down)_proj": 8},
        alpha_pattern={"v_proj": 11, r"^model\.layers\.0\.mlp\.gate_proj": 3},
        use_rslora=rslora,
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(load_base(str(llama_directory)).model, config).eval()
    randomise(peft_model)
    by_peft = logits(peft_model)

    pool = Pool.create(tmp_path / "pool", base.identity)
    lora = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    write_expert(pool.path / "e0", card, peft_model.peft_config["default"], lora, {}, None, torch.float32)
    attach(base.model, pool.add("e0"), routers.create("single:e0"))

    torch.testing.assert_close(logits(base.model), by_peft, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_what_is_read(
    llama: BaseModel, tmp_path: Path, embedder_identity: EmbedderIdentity, dtype: torch.dtype
):
    a, b, gate = torch.randn(4, 32), torch.randn(32, 4), torch.randn(32)
    instruction = torch.randn(embedder_identity.dimension)
    card = ExpertCard(
        name="e0", task="t", base=llama.identity, prompt=PromptFormat(kind="chat"), embedder=embedder_identity
    )
    config = LoraConfig(r=4, lora_alpha=2, target_modules=[Q], task_type="CAUSAL_LM")
    write_expert(tmp_path / "e0", card, config, {A: a, B: b}, {Q: gate}, instruction, dtype)

    expert = Expert.open(tmp_path / "e0")
    read_a, read_b = expert.factors(Q)
    read_gate, read_instruction = expert.gate(Q), expert.instruction
    assert read_gate is not None and read_instruction is not None
    for read, written in ((read_a, a), (read_b, b), (read_gate, gate)):
        assert read.dtype == dtype
        assert torch.equal(read, written.to(dtype))
    assert torch.equal(read_instruction, instruction)
    assert expert.scaling(Q) == 0.5
    assert expert.card == card
    assert set(EXPERT_FILES) <= {file.name for file in (tmp_path / "e0").iterdir()}


def test_bfloat16_is_the_default_storage_and_halves_the_file(llama: BaseModel, tmp_path: Path):
    card = ExpertCard(name="e0", task="t", base=llama.identity, prompt=PromptFormat(kind="chat"))
    config = LoraConfig(r=4, target_modules=[Q])
    pair = {A: torch.randn(4, 32), B: torch.randn(32, 4)}
    expert = write_expert(tmp_path / "e0", card, config, pair, {}, None)
    assert expert.factors(Q)[0].dtype == torch.bfloat16


def test_writing_twice_gives_the_same_bytes(
    llama: BaseModel, tmp_path: Path, random_expert: Callable[..., Expert], embedder_identity: EmbedderIdentity
):
    for parent in ("one", "two"):
        random_expert(tmp_path / parent / "e0", llama, embedder=embedder_identity)
    for file in EXPERT_FILES:
        assert (tmp_path / "one/e0" / file).read_bytes() == (tmp_path / "two/e0" / file).read_bytes(), file


def test_an_expert_without_gates_or_description_says_so(
    llama: BaseModel, tmp_path: Path, random_expert: Callable[..., Expert]
):
    expert = random_expert(tmp_path / "e0", llama, gates=False)
    assert expert.gate(Q) is None
    assert expert.instruction is None
    assert not any(site.has_gate for site in expert.sites.values())


@pytest.mark.parametrize("file", EXPERT_FILES)
def test_a_missing_file_is_named(directory: Path, file: str):
    (directory / file).unlink()
    assert file in refused(directory, file)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "glider.safetensors"])
def test_truncated_tensors_are_refused(directory: Path, file: str, kept: int):
    content = (directory / file).read_bytes()
    (directory / file).write_bytes(content[:kept])
    refused(directory, file)


@pytest.mark.parametrize("file", ["adapter_config.json", "card.json"])
@pytest.mark.parametrize("damage", [b"", b'{"r": 4', b"\xff\xfe\x00", b"[1, 2]", b"null"])
def test_damaged_json_is_refused(directory: Path, file: str, damage: bytes):
    (directory / file).write_bytes(damage)
    refused(directory, file)


def test_changed_bytes_of_the_same_size_fail_their_hash(directory: Path):
    from glider.files.disk import sha256

    hashes = {file: sha256(directory / file) for file in EXPERT_FILES}
    Expert.open(directory).verify(hashes)
    path = directory / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    expert = Expert.open(directory)
    assert hashes[path.name][:12] in unsound(expert, path.name, hashes)


def test_a_file_that_vanished_after_opening_is_named(directory: Path):
    expert = Expert.open(directory)
    (directory / "card.json").unlink()
    unsound(expert, "card.json", {"card.json": "0" * 64})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3e38, -3e38])
@pytest.mark.parametrize(
    ("file", "key"),
    [("adapter_model.safetensors", B), ("glider.safetensors", f"{Q}.gate"), ("glider.safetensors", "instruction")],
)
def test_weights_that_are_not_finite_are_refused(
    directory: Path, edit_tensors: Edit, file: str, key: str, value: float
):
    edit_tensors(directory / file, lambda tensors: tensors[key].view(-1)[-1:].fill_(value))
    assert key in unsound(Expert.open(directory), file)


def test_pairs_without_a_hash_are_looked_at_now(directory: Path, edit_tensors: Edit):
    key = f"base_model.model.{Q}.lora_A.weight"
    edit_tensors(directory / "adapter_model.safetensors", lambda tensors: tensors[key].fill_(float("nan")))
    with pytest.raises(ExpertError, match="NaN or infinity"):
        Expert.open(directory).verify(adapter=False)


def test_a_gate_of_wrong_shape_is_refused(directory: Path, edit_tensors: Edit):
    edit_tensors(directory / "glider.safetensors", lambda tensors: tensors.update({f"{Q}.gate": torch.zeros(31)}))
    message = refused(directory, "glider.safetensors")
    assert Q in message and "(32,)" in message and "(31,)" in message


@pytest.mark.parametrize(
    "key", ["model.layers.9.self_attn.q_proj.gate", "instructions", Q, "something"], ids=lambda key: key
)
def test_an_unknown_tensor_beside_the_gates_is_refused(directory: Path, edit_tensors: Edit, key: str):
    edit_tensors(directory / "glider.safetensors", lambda tensors: tensors.update({key: torch.zeros(32)}))
    assert key in refused(directory, "glider.safetensors")


def test_an_instruction_that_is_no_vector_is_refused(directory: Path, edit_tensors: Edit):
    edit_tensors(directory / "glider.safetensors", lambda tensors: tensors.update(instruction=torch.zeros(2, 384)))
    refused(directory, "glider.safetensors")


def test_an_instruction_of_another_width_than_its_embedder_is_refused(directory: Path, edit_tensors: Edit):
    edit_tensors(directory / "glider.safetensors", lambda tensors: tensors.update(instruction=torch.ones(5)))
    refused(directory, "glider.safetensors")


@pytest.mark.parametrize(
    "key",
    [
        f"base_model.model.{Q}.lora_magnitude_vector",
        f"base_model.model.{Q}.lora_B.bias",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.lm_head.weight",
    ],
)
def test_an_unknown_tensor_in_the_adapter_is_refused(directory: Path, edit_tensors: Edit, key: str):
    edit_tensors(directory / "adapter_model.safetensors", lambda tensors: tensors.update({key: torch.zeros(32)}))
    assert key in refused(directory, "adapter_model.safetensors")


@pytest.mark.parametrize("key", [A, B])
def test_half_a_pair_is_refused(directory: Path, edit_tensors: Edit, key: str):
    edit_tensors(directory / "adapter_model.safetensors", lambda tensors: tensors.pop(key))
    assert Q in refused(directory, "adapter_model.safetensors")


def test_a_pair_of_two_ranks_is_refused(directory: Path, edit_tensors: Edit):
    edit_tensors(directory / "adapter_model.safetensors", lambda tensors: tensors.update({A: torch.zeros(3, 32)}))
    assert Q in refused(directory, "adapter_model.safetensors")


def test_an_adapter_without_tensors_is_refused(directory: Path, edit_tensors: Edit):
    edit_tensors(directory / "adapter_model.safetensors", lambda tensors: tensors.clear())
    refused(directory, "adapter_model.safetensors")


def test_a_rank_that_is_not_the_tensors_rank_is_refused(directory: Path, edit_json: Edit):
    """PEFT refuses it too; computing on would use a wrong scaling silently."""
    edit_json(directory / "adapter_config.json", r=8)
    refused(directory, "adapter")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": 2}, "format"),
        ({"flavour": "sweet"}, "flavour"),
        ({"name": "../x"}, "name"),
        ({"base": None}, "base"),
        ({"prompt": {"kind": "song"}}, "prompt.kind"),
    ],
)
def test_a_card_that_is_not_of_format_1_is_refused(
    directory: Path, edit_json: Edit, change: dict[str, Any], named: str
):
    edit_json(directory / "card.json", **change)
    assert named in refused(directory, "card.json")


def test_faults_of_a_card_are_reported_together(directory: Path, edit_json: Edit):
    edit_json(directory / "card.json", format=0, flavour="sweet")
    message = refused(directory, "card.json")
    assert "format" in message and "flavour" in message


def test_a_broken_expert_is_never_written(llama: BaseModel, tmp_path: Path):
    card = ExpertCard(name="e0", task="t", base=llama.identity, prompt=PromptFormat(kind="chat"))
    pair = {A: torch.full((4, 32), float("nan")), B: torch.zeros(32, 4)}
    with pytest.raises(ExpertError, match="e0"):
        write_expert(tmp_path / "e0", card, LoraConfig(r=4, target_modules=[Q]), pair, {}, None)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_expert_survives_a_broken_one_written_over_it(directory: Path, llama: BaseModel):
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    card = ExpertCard(name="ex7", task="t", base=llama.identity, prompt=PromptFormat(kind="chat"))
    with pytest.raises(GliderError):
        write_expert(directory, card, LoraConfig(r=4, target_modules=[Q]), {A: torch.zeros(4, 32)}, {}, None)
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before
    assert [file.name for file in directory.parent.iterdir()] == ["ex7"]


def test_adapter_settings_list_their_sites_in_order(directory: Path):
    sites = json.loads((directory / "adapter_config.json").read_text("utf8"))["target_modules"]
    assert sites == sorted(sites)
    assert len(sites) == 14


def corrupt(file: Path) -> str:
    """Change a byte of a tensor; returns the sha256 of the file before."""
    before = sha256(file)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    return before


def test_pairs_that_were_read_before_are_verified_at_once(directory: Path) -> None:
    """A router that merges has read all it wants before the pool is verified, and reads nothing later."""
    file = directory / "adapter_model.safetensors"
    hashes = {file.name: corrupt(file)}
    expert = Expert.open(directory)
    expert.factors(Q)
    with pytest.raises(ExpertError, match=r"adapter_model\.safetensors of expert ex7 unchanged"):
        expert.verify(hashes, adapter=False)


def test_threads_that_ask_for_the_first_pair_check_the_file_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = directory / "adapter_model.safetensors"
    expert = Expert.open(directory)
    expert.verify({file.name: sha256(file)}, adapter=False)
    hashed: list[Path] = []

    genuine = TensorFile._pass

    def counted(passed: TensorFile, finite: bool) -> Any:
        hashed.append(passed.path)
        time.sleep(0.05)  # the other threads arrive meanwhile
        return genuine(passed, finite)

    monkeypatch.setattr(TensorFile, "_pass", counted)
    with ThreadPoolExecutor(4) as threads:
        pairs = list(threads.map(lambda _: expert.factors(Q), range(4)))
    assert hashed == [file]
    assert all(torch.equal(a, pairs[0][0]) and torch.equal(b, pairs[0][1]) for a, b in pairs)


def test_an_expert_goes_to_another_process_with_the_check_that_is_due(directory: Path) -> None:
    file = directory / "adapter_model.safetensors"
    expert = Expert.open(directory)
    a, b = expert.factors(Q)
    expert.gate(Q)
    sent = pickle.loads(pickle.dumps(expert))
    assert all(torch.equal(*pair) for pair in zip(sent.factors(Q), (a, b), strict=True))
    unread = Expert.open(directory)
    unread.verify({file.name: corrupt(file)}, adapter=False)
    with pytest.raises(ExpertError, match=r"adapter_model\.safetensors of expert ex7 unchanged"):
        pickle.loads(pickle.dumps(unread)).factors(Q)
