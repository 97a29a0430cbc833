"""A base whose linear layers are quantised: it is called, never read, so experts are added to what it gives."""

import copy
from pathlib import Path

import pytest
import torch

import glider
from glider.calibration.automatic import calibrated
from glider.errors import RouterError
from glider.inference.model import RoutedModel

# left out of the development environment: with it transformers writes to the stderr of every command
pytest.importorskip("torchao", reason="torchao is not installed", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
PROMPTS = ["the e0 e01 of e02", "the e1 and e12 of e13", "What is the capital of Egypt?"]


@pytest.fixture
def pool(pool_with_profiles) -> Path:
    return calibrated(pool_with_profiles()).path


def quantised(llama_directory: Path, pool: Path, **settings) -> RoutedModel:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    model = glider.load(
        str(llama_directory), pool, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()), **settings
    )
    assert "Int8" in type(model.model.model.layers[0].mlp.up_proj.weight).__name__
    return model


def with_the_same_values(model: RoutedModel, llama_directory: Path, pool: Path, **settings) -> RoutedModel:
    """The same in float32: the quantised weights' values in plain tensors."""
    plain = glider.load(str(llama_directory), pool, **settings)
    state = {name: weight.dequantize() for name, weight in model.model.state_dict().items()}
    plain.model.load_state_dict(copy.deepcopy(state))
    return plain


def logits(model: RoutedModel, verdict: str | None) -> torch.Tensor:
    inputs = model.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    with torch.inference_mode(), model.routing([glider.Query(text, verdict=verdict) for text in PROMPTS]):
        return model.model(**inputs).logits[inputs["attention_mask"].bool()]


@pytest.mark.parametrize("kernel", ["native", "torch", "reference"])
def test_experts_are_added_to_what_the_quantised_layers_give(llama_directory: Path, pool: Path, kernel: str) -> None:
    model = quantised(llama_directory, pool, kernel=kernel)
    plain = with_the_same_values(model, llama_directory, pool, kernel=kernel)
    for verdict in (None, "route", "base"):
        torch.testing.assert_close(logits(model, verdict), logits(plain, verdict), atol=2e-4, rtol=2e-4)
    bare = logits(model, "base")
    assert (bare - logits(model, "route")).abs().max() > 1e-3
    inputs = model.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    with torch.inference_mode(), model.attached.bare():
        assert torch.equal(bare, model.model(**inputs).logits[inputs["attention_mask"].bool()])


def test_packed_passes_and_scores(llama_directory: Path, pool: Path) -> None:
    model = quantised(llama_directory, pool)
    alone = [model.generate([text], max_new_tokens=4)[0].token_ids for text in PROMPTS]
    assert [answer.token_ids for answer in model.generate_batch(PROMPTS, max_new_tokens=4)] == alone
    scores, plain = (
        [score.log_likelihood for score in one.score(PROMPTS[0], [" yes", " no"])]
        for one in (model, with_the_same_values(model, llama_directory, pool))
    )
    assert scores == pytest.approx(plain, abs=1e-3)


def test_nothing_is_folded_into_quantised_weights(llama_directory: Path, pool: Path) -> None:
    model = quantised(llama_directory, pool, router="single:e0")
    before = logits(model, None)
    with pytest.raises(RouterError, match="quantised"):
        model.fold()
    assert torch.equal(before, logits(model, None))
