"""A pool's embedder is known by what it computes; another one under its name is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from glider.errors import EmbedderError
from glider.experts.card import EmbedderIdentity
from glider.instructions.embedders import Embedder, load_embedder, load_for

IDENTITY = EmbedderIdentity(embedder="m", prefix="q: ", dimension=4, probe=(0.1, -0.2, 0.3))


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder()


def test_an_identity_matches_itself(embedder: Embedder):
    assert embedder.identity.matches(embedder.identity)
    assert embedder.identity.matches(EmbedderIdentity.model_validate_json(embedder.identity.model_dump_json()))
    assert load_for(embedder.identity).identity == embedder.identity


def test_one_embedder_is_loaded_once(embedder: Embedder):
    assert load_for(embedder.identity) is embedder


@pytest.mark.parametrize("shift", [0.0, 0.009, -0.009])
def test_a_probe_within_tolerance_matches(shift: float):
    other = IDENTITY.model_copy(update={"probe": (0.1, -0.2 + shift, 0.3)})
    assert IDENTITY.matches(other) and other.matches(IDENTITY)


@pytest.mark.parametrize(
    "change",
    [
        {"probe": (0.1, -0.189, 0.3)},
        {"probe": (0.1, -0.211, 0.3)},
        {"probe": (0.1, -0.2)},
        {"probe": (0.1, -0.2, 0.3, 0.0)},
        {"probe": (0.1, -0.2, float("nan"))},
        {"embedder": "n"},
        {"prefix": ""},
        {"dimension": 5},
    ],
    ids=str,
)
def test_another_embedder_does_not_match(change: dict[str, Any]):
    other = IDENTITY.model_copy(update=change)
    assert not IDENTITY.matches(other)
    assert not other.matches(IDENTITY)


def test_no_embedder_does_not_match():
    assert not IDENTITY.matches(None)


def test_an_identity_with_another_probe_is_refused(embedder: Embedder):
    other = tuple(-value for value in embedder.identity.probe)
    with pytest.raises(EmbedderError, match=embedder.name):
        load_for(embedder.identity.model_copy(update={"probe": other}))


def test_an_identity_of_another_width_is_refused(embedder: Embedder):
    with pytest.raises(EmbedderError, match="100 wide"):
        load_for(embedder.identity.model_copy(update={"dimension": 100}))


@pytest.mark.parametrize("name", ["nobody/no-such-embedder", "/no/such/directory"])
def test_a_missing_embedder_is_named(name: str):
    with pytest.raises(EmbedderError, match=name):
        load_embedder(name)


def test_vectors_have_unit_length_and_the_width_of_the_identity(embedder: Embedder):
    vectors = embedder.embed(["Translate to French.", "Add two numbers.", "x" * 5000])
    assert vectors.shape == (3, embedder.identity.dimension)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3), rtol=1e-4, atol=1e-4)


def test_a_text_embeds_the_same_alone_and_in_a_batch(embedder: Embedder):
    texts = ["Short.", "A much longer sentence that makes the batch be padded.", "Third"]
    alone = torch.cat([embedder.embed([text]) for text in texts])
    torch.testing.assert_close(embedder.embed(texts), alone, rtol=1e-4, atol=1e-4)


def test_similar_texts_have_similar_vectors(embedder: Embedder):
    one, near, far = embedder.embed(["Is the review positive?", "Classify the sentiment.", "Multiply two integers."])
    assert one @ near > one @ far + 0.1


def test_a_prefix_goes_before_every_text_and_makes_another_identity(embedder: Embedder):
    prefixed = load_embedder(prefix="query: ")
    torch.testing.assert_close(prefixed.embed(["Hi"]), embedder.embed(["query: Hi"]))
    assert prefixed.identity.prefix == "query: "
    assert not prefixed.identity.matches(embedder.identity)


def test_a_library_that_refuses_a_model_without_a_word_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The first line of a text that has none was an IndexError."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", refuse)
    with pytest.raises(EmbedderError, match="got OSError"):
        load_embedder(f"sentence-transformers:{tmp_path}")
