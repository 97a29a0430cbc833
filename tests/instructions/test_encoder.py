"""The direct forward pass gives the vectors of sentence-transformers, and is refused where it would not."""

from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from glider.demo.base import embedder_directory
from glider.instructions.embedders import load_embedder
from glider.instructions.encoder import BATCH, Encoder, encoder_of

TEXTS = [
    "",
    "  Two   spaces,\nand a line. ",
    "Ünïcode, 漢字 and 🦊",
    "Translate to French.",
    "[SEP] [MASK] [CLS] are tokens",
    "A sentence of some words that says little. " * 100,
    *(f"Text number {i} " + "grows " * i for i in range(2 * BATCH)),
]


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    return SentenceTransformer(str(embedder_directory()), device="cpu")


@pytest.fixture(scope="module")
def encoder(model: SentenceTransformer) -> Encoder:
    encoder = encoder_of(model)
    assert encoder is not None
    return encoder


def by_model(model: SentenceTransformer, texts: list[str]) -> torch.Tensor:
    return model.encode(texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)


def test_vectors_are_those_of_the_model(model: SentenceTransformer, encoder: Encoder) -> None:
    torch.testing.assert_close(encoder(TEXTS), by_model(model, TEXTS), rtol=0, atol=1e-6)


def test_a_text_alone_has_the_vector_it_has_in_a_batch(encoder: Encoder) -> None:
    alone = torch.cat([encoder([text]) for text in TEXTS])
    torch.testing.assert_close(encoder(TEXTS), alone, rtol=0, atol=1e-6)


def test_no_texts_have_no_vectors(encoder: Encoder) -> None:
    assert encoder([]).shape == (0, 384)


def test_the_embedded_embedder_runs_it() -> None:
    assert isinstance(load_embedder()._encode, Encoder)


def test_vectors_can_be_used_under_gradients() -> None:
    vectors = load_embedder().embed(["Add two numbers."])
    weight = torch.ones(384, requires_grad=True)
    (vectors @ weight).sum().backward()
    assert weight.grad is not None


def change_pooling(model: Any) -> None:
    model[1] = type(model[1])(384, pooling_mode="cls")


def change_prompt(model: Any) -> None:
    model.prompts, model.default_prompt_name = {"query": "query: "}, "query"


def change_dtype(model: Any) -> None:
    model.bfloat16()


def change_function(model: Any) -> None:
    model[0].auto_model.config.hidden_act = "relu"


@pytest.mark.parametrize("change", [change_pooling, change_prompt, change_dtype, change_function])
def test_another_computation_is_left_to_the_model(change: Any) -> None:
    model = SentenceTransformer(str(embedder_directory()), device="cpu")
    change(model)
    assert encoder_of(model) is None
