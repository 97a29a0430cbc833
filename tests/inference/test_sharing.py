"""Scores and losses are those of a plain pass over each row alone, whatever a model makes of padding and caches."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from glider.contribute.examples import EncodedRow
from glider.contribute.targets import target_logits
from glider.errors import QueryError
from glider.experts.prompt_format import PromptFormat
from glider.inference.base_model import load_base
from glider.inference.model import RoutedModel
from glider.inference.sharing import Sharing
from glider.inference.spec import load

from ..conftest import byte_tokenizer
from ..families.sweep import tiny
from .odd_models import MODELS

PROMPTS = ["x" * 120 + end for end in ("a question", "b a longer question about things", "c z")]
CHOICES = ["yes it is", "no", "7"]


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


def test_what_a_decoder_is_forced_to_write_first_stands_before_answers(tmp_path: Path, make_pool) -> None:
    """BART's settings force <s>: answers were scored and trained at a place where `generate` never writes them."""
    base = mbart(tmp_path)
    settings = transformers.GenerationConfig.from_pretrained(base)
    settings.forced_bos_token_id = 9
    settings.save_pretrained(base)
    model = load(str(base), make_pool(base).path, router="base")
    asked, target = (model.prompt.prompt_ids(model.tokenizer, "hi"), model.prompt.target_ids(model.tokenizer, "no"))
    with torch.no_grad():
        fed = torch.tensor([[5, 9, *target[:-1]]])
        logits = model.model(input_ids=torch.tensor([asked]), decoder_input_ids=fed).logits[0, 1:].log_softmax(-1)
        got, labels = target_logits(model.base.model, [EncodedRow(asked, target)] * 2, 0, torch.device("cpu"))
    wanted = sum(logits[i, token].item() for i, token in enumerate(target))
    assert model.score("hi", ["no", "yes it is so"])[0].log_likelihood == pytest.approx(wanted, abs=1e-4)
    several, _ = model.score_many(["hi", "a longer question"], [["no", "yes"], ["x"]])
    assert several[0][0].log_likelihood == pytest.approx(wanted, abs=1e-4)
    loss = torch.nn.functional.cross_entropy(got[0], labels[0], ignore_index=-100, reduction="sum")
    assert got.shape[:2] == labels.shape and -loss.item() == pytest.approx(wanted, abs=1e-4)
    [answer] = model.generate(["hi"], max_new_tokens=3)
    assert answer.token_ids[0] == 9


def test_a_configuration_may_map_numbers_to_numbers(routed: Callable[[str], RoutedModel]) -> None:
    """Aria's maps sizes of pictures; looking for the names of windows in it failed every padded batch."""
    model = routed("llama")
    model.model.config.patch_to_query = {1225: 128, 4900: 256}
    alone = [model.generate([prompt], max_new_tokens=4)[0] for prompt in ("a", "a longer one")]
    assert model.generate(["a", "a longer one"], max_new_tokens=4) == alone


def test_blocks_that_padding_would_move_are_seen_in_rows_past_them() -> None:
    """DeepSeek-V4 compresses blocks of 128 tokens: a short row beside a long one told nothing of it."""
    pytest.importorskip("transformers.models.deepseek_v4")
    model = tiny("deepseek_v4", "causal")
    draw = torch.Generator().manual_seed(0)
    lengths = (175, 137)
    rows = [EncodedRow(torch.randint(3, 240, (n,), generator=draw).tolist(), [7, 8, 9]) for n in lengths]
    with torch.no_grad():
        logits, labels = target_logits(model, rows, 0, torch.device("cpu"))
        wanted = [_row_loss(model, row) for row in rows]
    got = torch.nn.functional.cross_entropy(logits.mT, labels, ignore_index=-100, reduction="none").sum(dim=1)
    assert got.tolist() == pytest.approx(wanted, abs=1e-3)
    assert not Sharing(model).allows("padding", 178)


def test_an_answer_has_as_many_tokens_as_the_decoder_has_places(tmp_path: Path, make_pool) -> None:
    """One more was an `IndexError` of the embedding of places."""
    base = mbart(tmp_path)
    settings = transformers.GenerationConfig.from_pretrained(base)
    settings.forced_bos_token_id = 9
    settings.save_pretrained(base)
    model = load(str(base), make_pool(base).path, router="base")
    [answer] = model.generate(["hi"], max_new_tokens=256, min_new_tokens=256)
    assert len(answer.token_ids) == 256
    assert model.score("hi", ["a" * 254])[0].tokens == 255  # its end, and what is forced before it
    for ask in (
        lambda: model.generate(["hi"], max_new_tokens=257),
        lambda: model.generate_batch(["hi"], max_new_tokens=257),
        lambda: list(model.stream("hi", max_new_tokens=257)),
        lambda: model.score("hi", ["a" * 255]),
    ):
        with pytest.raises(QueryError, match="an answer of at most 256 tokens; got 257"):
            ask()
