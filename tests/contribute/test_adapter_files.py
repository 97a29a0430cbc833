"""What lies beside the pairs of an adapter, and what of it is said rather than passed over."""

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from glider.contribute.adapter_tokenizer import TEMPLATE_FILE, TOKENIZER_FILE, TOKENS_FILE
from glider.contribute.adopt import adopt, import_adapter
from glider.contribute.lora import lora_config
from glider.contribute.protocol import train_expert
from glider.errors import BaseModelError, ExpertError, GliderWarning
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptFormat
from glider.inference.base_model import load_base
from glider.inference.spec import load

from ..conftest import byte_tokenizer
from .adopt.adapters import quick, save_adapter

Edit = Callable[..., None]
IDS = torch.randint(3, 259, (2, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def adapter(llama_directory: Path, tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", load_base(str(llama_directory)), target_modules=["q_proj", "up_proj"])


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A tiny GPT-2, whose linear layers are transposed ones."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3, bos_token_id=None,
        eos_token_id=1, pad_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    GPT2LMHeadModel(config).eval().save_pretrained(tmp_path / "gpt2")
    byte_tokenizer(chat=False).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def saved(directory: Path, base: Path, targets: Any, **settings: Any) -> Path:
    """A real PEFT adapter as PEFT saves it by default, whose pairs are not zero."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": targets, "task_type": "CAUSAL_LM", **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT speaks of tied weights and of saving embeddings
        peft = get_peft_model(load_base(str(base)).model, LoraConfig(**options))
        draw = torch.Generator().manual_seed(3)
        for name, value in peft.named_parameters():
            if "lora_" in name:
                value.data = torch.randn(value.shape, generator=draw) / value.shape[-1] ** 0.5
        peft.save_pretrained(str(directory))
    return directory


@torch.no_grad()
def by_peft(base: Path, adapter: Path) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load_base(str(base)).model, str(adapter)).eval()(input_ids=IDS).logits


def routed(base: Path, adapter: Path, tmp_path: Path) -> Any:
    pool = Pool.create(tmp_path / "pool", load_base(str(base)).identity)
    import_adapter(adapter, str(base), pool.path / "ex")
    pool.add("ex")
    return load(str(base), pool.path, router="single:ex")


def told(source: Path, base: Path) -> list[str]:
    """What importing warns of."""
    out = source.parent / "told"
    shutil.rmtree(out, ignore_errors=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import_adapter(source, str(base), out)
    return [str(one.message) for one in caught if issubclass(one.category, GliderWarning)]


def test_an_ordinary_adapter_is_imported_without_a_word(adapter: Path, llama_directory: Path):
    assert told(adapter, llama_directory) == []


def test_another_base_than_the_settings_name_is_told(adapter: Path, llama_directory: Path, edit_json: Edit):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="someone/other-model-13b")
    assert any("someone/other-model-13b" in text and "tiny-llama" in text for text in told(adapter, llama_directory))


def test_unknown_settings_are_told_unless_empty(adapter: Path, llama_directory: Path, edit_json: Edit):
    edit_json(adapter / "adapter_config.json", use_newlora=True, newlora_scale=3.0, older=False, none=None)
    (text,) = told(adapter, llama_directory)
    assert "newlora_scale=3.0, use_newlora=True" in text
    assert "older" not in text


def test_a_pair_that_changes_nothing_is_told(adapter: Path, llama_directory: Path, edit_tensors: Edit):
    def clear(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if "q_proj.lora_B" in name:
                tensors[name].zero_()

    edit_tensors(adapter / "adapter_model.safetensors", clear)
    (text,) = told(adapter, llama_directory)
    assert "2 of 4 sites" in text
    assert "q_proj" in text


def test_target_modules_without_a_pair_are_told(
    adapter: Path, llama_directory: Path, edit_json: Edit, edit_tensors: Edit
):
    edit_json(adapter / "adapter_config.json", target_modules=["q_proj", "up_proj", "o_proj"])
    (text,) = told(adapter, llama_directory)
    assert "o_proj" in text
    edit_json(adapter / "adapter_config.json", target_modules=["q_proj", "up_proj"])
    lost = "base_model.model.model.layers.1.mlp.up_proj.lora_{}.weight"
    edit_tensors(adapter / "adapter_model.safetensors", lambda t: [t.pop(lost.format(part)) for part in "AB"])
    (text,) = told(adapter, llama_directory)
    assert "model.layers.1.mlp.up_proj" in text


def test_an_adapters_own_chat_template_is_kept_and_used(adapter: Path, llama_directory: Path, tmp_path: Path):
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}<|im_end|>"
    (adapter / TEMPLATE_FILE).write_text(template)
    (adapter / TOKENIZER_FILE).write_text('{"eos_token": "<|im_end|>"}')
    (adapter / TOKENS_FILE).write_text('{"<|im_end|>": 259}')
    tokens, end, form = told(adapter, llama_directory)
    assert "'<|im_end|>'" in tokens
    assert "ends texts with '<|im_end|>', the base with '<eos>': which the base's tokenizer lacks" in end
    assert "chat template" in form
    pool = Pool.create(tmp_path / "pool", load_base(str(llama_directory)).identity)
    with pytest.warns(GliderWarning):
        expert = import_adapter(adapter, str(llama_directory), pool.path / "ex")
    assert expert.card.prompt == PromptFormat(kind="chat", template=template)
    pool.add("ex")
    model = load(str(llama_directory), pool.path, router="single:ex")
    (ids,) = model.encoder.rows(["hello"], False, 1)
    assert model.tokenizer.decode(ids) == "[user] hello<|im_end|>"


def test_the_bases_own_template_is_not_told(adapter: Path, llama_directory: Path):
    shutil.copy(llama_directory / TEMPLATE_FILE, adapter / TEMPLATE_FILE)
    assert told(adapter, llama_directory) == []


def test_an_output_layer_is_a_site_and_the_copy_beside_it_is_left_out(llama_directory: Path, tmp_path: Path):
    """PEFT saves the base's weight with a pair on `lm_head`; the expert has the pair alone, and PEFT's outputs."""
    source = saved(tmp_path / "adapter", llama_directory, ["lm_head", "q_proj"])
    copied = "base_model.model.lm_head.base_layer.weight"
    assert copied in load_file(source / "adapter_model.safetensors")
    model = routed(llama_directory, source, tmp_path)
    (expert,) = model.pool
    assert "lm_head" in expert.sites
    assert copied in expert.card.training["left_out"]
    with torch.no_grad(), model.routing(["x", "y"]):
        got = model.model(input_ids=IDS).logits
    torch.testing.assert_close(got, by_peft(llama_directory, source), rtol=1e-4, atol=1e-4)
    alone = model.generate(["a", "some longer question"], max_new_tokens=6)
    assert [one.text for one in model.generate_batch(["a", "some longer question"], max_new_tokens=6)] == [
        one.text for one in alone
    ]
    assert model.generate(["a", "some longer question"], max_new_tokens=6, trace=True)[0].usage == {"ex": 1.0}
    (plain,), (beside, _) = (
        model.score_many(prompts, [["yes", "no"]] * len(prompts))[0] for prompts in (["a"], ["a", "some longer one"])
    )
    assert [one.log_likelihood for one in beside] == pytest.approx([one.log_likelihood for one in plain], abs=1e-4)


def test_adopting_again_knows_the_adapter_whose_copy_was_left_out(llama_directory: Path, tmp_path: Path):
    source = saved(tmp_path / "adapter", llama_directory, ["lm_head"])
    first = adopt(source, str(llama_directory), tmp_path / "ex", quick())
    again = adopt(source, str(llama_directory), tmp_path / "ex", quick())
    assert first.card == again.card


@pytest.mark.parametrize("fault", ["trained", "resized"])
def test_embeddings_that_are_not_the_bases_are_refused(
    llama_directory: Path, tmp_path: Path, edit_tensors: Edit, fault: str
):
    source, name = saved(tmp_path / "adapter", llama_directory, ["lm_head"]), "lm_head.base_layer.weight"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        key = f"base_model.model.{name}"
        rows = torch.cat([tensors[key], tensors[key][:1]])
        tensors[key] = tensors[key] + 0.01 if fault == "trained" else rows

    edit_tensors(source / "adapter_model.safetensors", change)
    wanted = "it was trained" if fault == "trained" else r"\[260, 32\].*another number of tokens"
    with pytest.raises(ExpertError, match=wanted) as raised:
        import_adapter(source, str(llama_directory), tmp_path / "ex")
    assert str(source / "adapter_model.safetensors") in str(raised.value)


def test_a_transposed_linear_layer_is_one(gpt2: Path, tmp_path: Path):
    """GPT-2's Conv1D computes x W + b with W (in, out): a pair on it is B A x as on any linear layer."""
    source = saved(tmp_path / "adapter", gpt2, ["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    wanted = by_peft(gpt2, source)
    model = routed(gpt2, source, tmp_path)
    with torch.no_grad(), model.routing(["x", "y"]):
        torch.testing.assert_close(model.model(input_ids=IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    model.fold()
    with torch.no_grad():
        torch.testing.assert_close(model.model(input_ids=IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    again = load_base(str(gpt2))
    rebuilt = PeftModel.from_pretrained(
        again.model, str(model.pool["ex"].directory), config=lora_config(model.pool["ex"], again.model)
    )
    with torch.no_grad():
        torch.testing.assert_close(rebuilt.eval()(input_ids=IDS).logits, wanted, rtol=1e-5, atol=1e-5)


def test_an_expert_is_trained_on_transposed_layers(gpt2: Path, tmp_path: Path):
    rows = "".join(json.dumps({"input": f"say {i}", "output": "x"}) + "\n" for i in range(24))
    (tmp_path / "rows.jsonl").write_text(rows)
    config = quick(steps=2, gate_steps=2, rank=2)
    expert = train_expert(tmp_path / "rows.jsonl", str(gpt2), tmp_path / "ex", config)
    assert {name.rpartition(".")[2] for name in expert.sites} == {"c_attn", "c_proj", "c_fc"}
    assert all(site.has_gate for site in expert.sites.values())


def test_the_links_of_a_hub_cache_are_followed_within_it_alone(adapter: Path, llama_directory: Path, tmp_path: Path):
    """What a download into the hub's cache leaves is all links, to blobs of the same repository."""
    repository = tmp_path / "hub" / "models--u--lora"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / file, repository / "blobs" / file)
        (snapshot / file).symlink_to(f"../../blobs/{file}")
    expert = import_adapter(snapshot, str(llama_directory), tmp_path / "ex")
    assert not any(file.is_symlink() for file in expert.directory.iterdir())
    (snapshot / "adapter_config.json").unlink()
    (snapshot / "adapter_config.json").symlink_to(adapter / "adapter_config.json")
    with pytest.raises(ExpertError, match="link out"):
        import_adapter(snapshot, str(llama_directory), tmp_path / "other")


def test_a_pool_in_a_hub_cache_is_taken(adapter: Path, llama_directory: Path, tmp_path: Path):
    pool = Pool.create(tmp_path / "pool", load_base(str(llama_directory)).identity)
    import_adapter(adapter, str(llama_directory), pool.path / "ex")
    pool.add("ex")
    repository = tmp_path / "hub" / "models--u--pool"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc"
    (snapshot / "ex").mkdir(parents=True)
    for number, file in enumerate([pool.path / "pool.json", *(pool.path / "ex").iterdir()]):
        shutil.copy(file, repository / "blobs" / str(number))
        (snapshot / file.relative_to(pool.path)).symlink_to(repository / "blobs" / str(number))
    cached = Pool.open(snapshot)
    cached.verify()
    assert cached.names == ["ex"]


def test_refusals_name_the_files_that_were_given(adapter: Path, llama_directory: Path, edit_json: Edit):
    edit_json(adapter / "adapter_config.json", r=3)
    with pytest.raises(ExpertError) as raised:
        import_adapter(adapter, str(llama_directory), adapter.parent / "ex")
    assert f"{adapter / 'adapter_config.json'} says" in str(raised.value)
    assert ".ex." not in str(raised.value)


def test_refusals_of_variants_say_what_would_work(adapter: Path, llama_directory: Path, edit_json: Edit):
    config = adapter / "adapter_config.json"
    edit_json(config, target_parameters=["mlp.experts.gate_up_proj"])
    with pytest.raises(ExpertError, match=r"MoE.*without target_parameters: its target_modules \(q_proj, up_proj\)"):
        import_adapter(adapter, str(llama_directory), adapter.parent / "ex")
    for targets in (["input_linear"], None):  # JetMoE's experts: no linear layers, and PEFT takes no pair on them
        edit_json(config, target_modules=targets)
        with pytest.raises(ExpertError, match="on target_modules that are linear layers: down_proj, gate_proj, k_proj"):
            import_adapter(adapter, str(llama_directory), adapter.parent / "ex")
    edit_json(config, target_parameters=None, use_dora=True)
    with pytest.raises(ExpertError, match=r"DoRA scales the base's output too.*use_dora=False"):
        import_adapter(adapter, str(llama_directory), adapter.parent / "ex")


_BROUGHT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": _BROUGHT}, {"name": "rag"}]}),
        ("tokenizer_config.json", {"chat_template": _BROUGHT}),
        ("chat_template.json", {"chat_template": _BROUGHT}),
    ],
)
def test_a_template_is_found_in_every_form(adapter: Path, llama_directory: Path, file: str, content: Any):
    (adapter / file).write_text(json.dumps(content))
    assert any("kept in the card" in text for text in told(adapter, llama_directory))
    with pytest.warns(GliderWarning):
        expert = import_adapter(adapter, str(llama_directory), adapter.parent / "expert")
    assert expert.card.prompt == PromptFormat(kind="chat", template=_BROUGHT)


def test_templates_of_which_none_is_the_default_are_told(adapter: Path, llama_directory: Path):
    named = [{"name": "rag", "template": _BROUGHT}]
    (adapter / TOKENIZER_FILE).write_text(json.dumps({"chat_template": named}))
    assert any("none of them the default" in text for text in told(adapter, llama_directory))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("added_tokens.json", {"<|im_end|>": 259}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"259": {"content": "<|im_end|>"}}}),
        ("tokenizer_config.json", {"extra_special_tokens": ["<|im_end|>"]}),
        ("special_tokens_map.json", {"additional_special_tokens": [{"content": "<|im_end|>"}]}),
        ("tokenizer.json", {"version": "1.0", "added_tokens": [{"id": 259, "content": "<|im_end|>"}], "model": {}}),
    ],
)
def test_tokens_that_the_base_lacks_are_found_in_every_file(
    adapter: Path, llama_directory: Path, file: str, content: Any
):
    (adapter / file).write_text(json.dumps(content))
    assert any("'<|im_end|>'" in text and "plain text" in text for text in told(adapter, llama_directory))


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_another_end_of_texts_is_told(adapter: Path, llama_directory: Path, file: str):
    (adapter / file).write_text(json.dumps({"eos_token": "<unk>"}))
    assert any("ends texts with '<unk>'" in text for text in told(adapter, llama_directory))
    (adapter / file).write_text(json.dumps({"eos_token": "<eos>"}))
    assert told(adapter, llama_directory) == []


@pytest.mark.parametrize("lay", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir], ids=range(3))
def test_a_template_that_is_no_regular_file_is_told_and_not_read(adapter: Path, llama_directory: Path, lay: Any):
    lay(adapter / TEMPLATE_FILE)
    assert any("chat_template.jinja is not used: " in text for text in told(adapter, llama_directory))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("base_model.model.model.embed_tokens.lora_embedding_A", "LoRA of an embedding.*target_modules"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "magnitude of DoRA"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", "bias that was trained"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", "model in memory.*save_pretrained"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "a name without base_model.model"),
        ("base_model.model.model.norm.weight", "another kind"),
    ],
)
def test_a_tensor_that_is_no_pair_is_refused_by_what_it_is(
    adapter: Path, llama_directory: Path, edit_tensors: Edit, name: str, told: str
):
    """All of them were "the file is damaged"."""
    edit_tensors(adapter / "adapter_model.safetensors", lambda tensors: tensors.update({name: torch.ones(4)}))
    with pytest.raises(ExpertError, match=told):
        import_adapter(adapter, str(llama_directory), adapter.parent / "expert")


def test_what_changes_nothing_or_is_left_out_by_the_settings_is_told(
    adapter: Path, llama_directory: Path, edit_json: Edit, edit_tensors: Edit
):
    config, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    for change, wanted in (
        ({"lora_alpha": 0}, "changes nothing at 4 of 4 sites .*alpha is zero"),
        ({"task_type": "SEQ_CLS"}, "trained for SEQ_CLS"),
        ({"target_modules": ["q_proj"]}, "leave out, and PEFT with them: 2 sites .*up_proj"),
        ({"exclude_modules": ["q_proj"]}, "leave out, and PEFT with them: 2 sites .*q_proj"),
        ({"layers_to_transform": [0]}, "leave out, and PEFT with them: 2 sites .*layers.1"),
    ):
        before = config.read_text("utf8")
        edit_json(config, **change)
        assert any(re.search(wanted, text) for text in told(adapter, llama_directory)), change
        config.write_text(before, "utf8")
    edit_json(config, target_modules=["q_proj", "up_proj", "v_proj"], exclude_modules=["v_proj"])
    assert not any("no pair" in text for text in told(adapter, llama_directory))
    zeros = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    edit_tensors(weights, lambda tensors: tensors.update({zeros: torch.zeros_like(tensors[zeros])}))
    assert any("at 1 of 4 sites" in text and "A is zero" in text for text in told(adapter, llama_directory))


@pytest.mark.parametrize("template", ["{% for", "{{ 'x'|no_such_filter }}"])
def test_a_template_that_cannot_be_used_is_told_at_once(adapter: Path, llama_directory: Path, template: str):
    """It was kept in the card, and failed with every prompt."""
    (adapter / TEMPLATE_FILE).write_text(template)
    assert any("a chat template that is not used" in text for text in told(adapter, llama_directory))


def test_a_place_without_an_adapter_is_told(adapter: Path, llama_directory: Path, edit_json: Edit):
    for source, wanted in (
        (adapter / "adapter_config.json", "the directory of an adapter"),
        (llama_directory, "neither"),
    ):
        with pytest.raises(ExpertError, match=wanted):
            import_adapter(source, str(llama_directory), adapter.parent / "expert")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="/no/such/base")
    with pytest.raises(BaseModelError, match="/no/such/base; got no such directory"):
        import_adapter(adapter, None, adapter.parent / "expert")
