"""Scores and losses are those of a plain pass over each row alone, whatever a model makes of padding and caches."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from glider.contribute.adopt import import_adapter
from glider.contribute.examples import EncodedRow
from glider.contribute.targets import target_logits
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptFormat
from glider.inference.base_model import load_base
from glider.inference.model import RoutedModel
from glider.inference.sharing import Sharing
from glider.inference.spec import load

from ..conftest import byte_tokenizer

_TOKENS = {"vocab_size": 259, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.3}
_LLAMA = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=1024, **_TOKENS,
)  # fmt: skip
_NO_DROPOUT = {"attention_dropout": 0.0, "embed_dropout": 0.0, "resid_dropout": 0.0}
MODELS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "llama": ("LlamaConfig", _LLAMA, ["q_proj"]),
    "mpt": ("MptConfig", dict(d_model=32, n_layers=2, n_heads=4, max_seq_len=1024, **_TOKENS), ["Wqkv"]),
    "gpt_neo": (
        "GPTNeoConfig",
        dict(hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=100,
             max_position_embeddings=1024, **_NO_DROPOUT, **_TOKENS),
        ["q_proj"],
    ),
    "llama4": (
        "Llama4TextConfig",
        dict(_LLAMA, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, num_experts_per_tok=1,
             attention_chunk_size=16, no_rope_layers=[1, 0], layer_types=["chunked_attention", "full_attention"],
             use_qk_norm=False),
        ["q_proj", "o_proj"],
    ),
    "jamba": (
        "JambaConfig",
        dict(_LLAMA, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
             num_experts=2, num_experts_per_tok=1, mamba_d_state=8, mamba_d_conv=4, mamba_dt_rank=4,
             use_mamba_kernels=False),
        ["q_proj"],
    ),
    "lfm2": (
        "Lfm2Config",
        dict(_LLAMA, block_auto_adjust_ff_dim=False, block_ff_dim=48, layer_types=["conv", "full_attention"],
             conv_L_cache=3),
        ["q_proj"],
    ),
    "mamba": (
        "MambaConfig", dict(hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=4, **_TOKENS),
        ["in_proj", "x_proj"],
    ),
}  # fmt: skip
PROMPTS = ["x" * 120 + end for end in ("a question", "b a longer question about things", "c z")]
CHOICES = ["yes it is", "no", "7"]
_mamba = pytest.mark.filterwarnings("ignore:.*fast path.*")


@pytest.fixture
def base_of(tmp_path: Path) -> Callable[[str], Path]:
    """A tiny random model of a family, saved with a tokenizer."""

    def make(name: str) -> Path:
        settings, sizes, _ = MODELS[name]
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, settings)(**sizes)).eval()
        directory = tmp_path / name
        model.save_pretrained(directory)
        byte_tokenizer(chat=False).save_pretrained(directory)
        return directory

    return make


@pytest.fixture
def routed(base_of: Callable[[str], Path], tmp_path: Path) -> Callable[[str], RoutedModel]:
    """A tiny random model of a family under one imported adapter."""

    def make(name: str) -> RoutedModel:
        base = base_of(name)
        loaded = load_base(str(base))
        peft = get_peft_model(loaded.model, LoraConfig(r=4, target_modules=MODELS[name][2], task_type="CAUSAL_LM"))
        draw = torch.Generator().manual_seed(1)
        for key, value in peft.named_parameters():
            if "lora_" in key:
                value.data = 0.5 * torch.randn(value.shape, generator=draw) / value.shape[-1] ** 0.5
        peft.save_pretrained(tmp_path / "adapter")
        pool = Pool.create(tmp_path / "pool", loaded.identity)
        import_adapter(tmp_path / "adapter", str(base), pool.path / "ex")
        pool.add("ex")
        return load(str(base), pool.path, router="single:ex", prompt=PromptFormat(kind="raw"))

    return make


def plain(model: RoutedModel, prompt: str, choice: str) -> float:
    """The log-likelihood by one pass over prompt and choice, without padding and without a cache."""
    asked = model.prompt.prompt_ids(model.tokenizer, prompt)
    target = model.prompt.target_ids(model.tokenizer, choice)
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([asked + target]), use_cache=False).logits[0].log_softmax(-1)
    return sum(logits[len(asked) - 1 + i, token].item() for i, token in enumerate(target))


@pytest.mark.parametrize("name", MODELS)
def test_every_batch_scores_as_a_plain_pass_over_each_row(routed: Callable[[str], RoutedModel], name: str) -> None:
    model = routed(name)
    wanted = [[plain(model, prompt, choice) for choice in CHOICES] for prompt in PROMPTS]
    together, _ = model.score_many(PROMPTS, [CHOICES] * len(PROMPTS))
    for prompt, row, values in zip(PROMPTS, together, wanted, strict=True):
        assert [score.log_likelihood for score in row] == pytest.approx(values, abs=1e-4)
        assert [one.log_likelihood for one in model.score(prompt, CHOICES)] == pytest.approx(values, abs=1e-4)
        assert model.score(prompt, CHOICES[:1])[0].log_likelihood == pytest.approx(values[0], abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "mpt", "gpt_neo", "llama4", "mamba", "lfm2"])
def test_the_loss_of_a_batch_is_that_of_its_rows(base_of: Callable[[str], Path], name: str) -> None:
    base = load_base(str(base_of(name)))
    form = PromptFormat(kind="raw")
    rows = [
        EncodedRow(form.prompt_ids(base.tokenizer, prompt), form.target_ids(base.tokenizer, target))
        for prompt, target in zip(PROMPTS, CHOICES, strict=True)
    ]
    with torch.no_grad():
        logits, labels = target_logits(base.model, rows, 0, torch.device("cpu"))
        wanted = [_row_loss(base.model, row) for row in rows]
    got = torch.nn.functional.cross_entropy(logits.mT, labels, ignore_index=-100, reduction="none").sum(dim=1)
    assert got.tolist() == pytest.approx(wanted, abs=1e-3)


def _row_loss(model: Any, row: EncodedRow) -> float:
    logits = model(input_ids=torch.tensor([row.prompt + row.target]), use_cache=False).logits[0].log_softmax(-1)
    return -sum(logits[len(row.prompt) - 1 + i, token].item() for i, token in enumerate(row.target))


def test_what_may_be_shared_is_found_on_the_model(base_of: Callable[[str], Path]) -> None:
    def allowed(name: str, length: int) -> dict[str, bool]:
        sharing = Sharing(load_base(str(base_of(name))).model)
        return {kind: sharing.allows(kind, length) for kind in ("padding", "cache", "padded cache", "prefix")}  # pyright: ignore

    every = dict.fromkeys(["padding", "cache", "padded cache", "prefix"], True)
    assert allowed("llama", 200) == every
    assert allowed("gpt_neo", 50) == every  # within its window of 100
    assert allowed("gpt_neo", 200) == {**every, "prefix": False}
    assert allowed("mpt", 200)["prefix"] is False
    assert allowed("llama4", 200)["prefix"] is False
    assert allowed("jamba", 200)["cache"] is False
    assert allowed("mamba", 200)["cache"] is False


def test_nothing_is_shared_beyond_the_length_that_is_tried(base_of: Callable[[str], Path]) -> None:
    model = load_base(str(base_of("llama"))).model
    widths: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: widths.append(inputs[0].shape[1]))
    sharing = Sharing(model)
    assert sharing.allows("cache", 100)
    assert max(widths) == 128
    tried = len(widths)
    assert sharing.allows("cache", 128) and len(widths) == tried  # known
    assert sharing.allows("cache", 129) and max(widths) == 256
    assert not sharing.allows("cache", 10**6)
    hook.remove()


def test_a_trial_leaves_the_model_as_it_was(base_of: Callable[[str], Path]) -> None:
    model = load_base(str(base_of("llama"))).model
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert Sharing(model).allows("prefix", 64)
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)


def mbart(tmp_path: Path) -> Path:
    """An encoder-decoder whose own shift begins with the last token, and whose padding is not 0."""
    torch.manual_seed(0)
    settings = transformers.MBartConfig(
        vocab_size=259, pad_token_id=0, eos_token_id=1, bos_token_id=2, decoder_start_token_id=5, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_position_embeddings=256, dropout=0.0, init_std=0.3,
    )  # fmt: skip
    transformers.AutoModelForSeq2SeqLM.from_config(settings).eval().save_pretrained(tmp_path / "mbart")
    byte_tokenizer(chat=False).save_pretrained(tmp_path / "mbart")
    return tmp_path / "mbart"


def test_a_decoder_begins_as_generate_has_it(tmp_path: Path, make_pool) -> None:
    base = mbart(tmp_path)
    model = load(str(base), make_pool(base).path, router="base")
    asked, target = (model.prompt.prompt_ids(model.tokenizer, "hi"), model.prompt.target_ids(model.tokenizer, "no"))
    fed = torch.tensor([[5, *target[:-1]]])
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([asked]), decoder_input_ids=fed).logits[0].log_softmax(-1)
    wanted = sum(logits[i, token].item() for i, token in enumerate(target))
    for choices in (["no"], ["no", "yes it is so"]):
        assert model.score("hi", choices)[0].log_likelihood == pytest.approx(wanted, abs=1e-4)
    several, _ = model.score_many(["hi", "a longer question"], [["no", "yes"], ["x"]])
    assert several[0][0].log_likelihood == pytest.approx(wanted, abs=1e-4)
    rows: Sequence[EncodedRow] = [EncodedRow(asked, target), EncodedRow(asked * 2, target * 2)]
    with torch.no_grad():
        got, labels = target_logits(load_base(str(base)).model, rows, 0, torch.device("cpu"))
    loss = torch.nn.functional.cross_entropy(got[0], labels[0], ignore_index=-100, reduction="sum")
    assert -loss.item() == pytest.approx(wanted, abs=1e-4)
