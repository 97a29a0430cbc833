"""The profile: made, stored beside the gates, read back, distrusted."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glider.errors import ExpertError
from glider.experts.expert import Expert
from glider.experts.profile import MOST_GRAMS, PREFIX, Profile
from glider.instructions.inputs import ngrams


def profile(embedded: int | None = None) -> Profile:
    texts = ["is the movie good", "is the movie bad", "was it a good movie?"]
    held_back = ["a good movie", "x"]
    vectors = (None, None) if embedded is None else (torch.randn(3, embedded), torch.randn(2, embedded))
    return Profile.of([ngrams(text) for text in texts], [ngrams(text) for text in held_back], *vectors)


def test_counts_are_of_inputs_and_hashes_come_back() -> None:
    grams, counts = profile().known
    known = dict(zip(grams.tolist(), counts.tolist(), strict=True))
    assert known[ngrams("movie").item()] == 3
    assert known[ngrams("good").item()] == 2
    assert grams.equal(grams.sort().values)
    assert [query.tolist() for query in profile().queries] == [ngrams("a good movie").tolist(), ngrams("x").tolist()]


def test_beyond_the_room_the_rare_ones_go() -> None:
    common = torch.arange(1, 1001)
    rare = torch.arange(10_000, 10_000 + MOST_GRAMS)
    grams, counts = Profile.of([common, torch.cat([common, rare])], []).known
    assert len(grams) == MOST_GRAMS
    assert grams[:1000].equal(common) and (counts[:1000] == 2).all()


def test_stored_and_read_back(tmp_path: Path, pool_with_profiles) -> None:
    expert = pool_with_profiles()["e0"]
    again = Expert.open(expert.directory).profile
    assert again is not None and expert.profile is not None
    for name, tensor in expert.profile.tensors().items():
        assert again.tensors()[name].equal(tensor)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(PREFIX + "counts"), "without counts"),
        (lambda t: t.update({PREFIX + "counts": torch.ones(3, dtype=torch.uint8)}), r"\(3,\) counts"),
        (lambda t: t.update({PREFIX + "taste": torch.ones(3)}), "profile.taste"),
        (lambda t: t.update({PREFIX + "grams": torch.ones(3, 3, dtype=torch.int32)}), "profile.grams"),
        (lambda t: t.update({PREFIX + "held_back_inputs": torch.ones(1, 384)}), "rows of held_back_inputs"),
        (lambda t: t.update({PREFIX + "inputs": torch.ones(7)}), r"width \(384,\)"),
    ],
    ids=["no counts", "fewer counts", "unknown", "axes", "other rows", "other embedder"],
)
def test_what_is_no_profile_is_refused(pool_with_profiles, change, message: str) -> None:
    file = pool_with_profiles()["e0"].directory / "glider.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ExpertError, match=message):
        Expert.open(file.parent)
