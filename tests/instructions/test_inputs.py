"""What is read in a query's own text."""

from hypothesis import given
from hypothesis import strategies as st

from glider.instructions.inputs import EDGE, EDGE_CHARACTERS, edges, ngrams


def test_ngrams_are_the_words_and_their_neighbours_once() -> None:
    once, twice = ngrams("The cat."), ngrams("the CAT .")
    assert len(once) == 6  # three words or signs, two pairs, one triple
    assert once.equal(twice)
    assert set(ngrams("the cat").tolist()) < set(once.tolist())
    assert len(ngrams("the the the")) == 3


def test_hashes_are_the_same_on_every_machine() -> None:
    assert ngrams("cat").tolist() == [0x9E5E43A8]


@given(st.text(max_size=200))
def test_hashes_are_sorted_distinct_32_bit_and_never_zero(text: str) -> None:
    grams = ngrams(text).tolist()
    assert grams == sorted(set(grams))
    assert all(0 < gram < 1 << 32 for gram in grams)


def test_of_a_long_text_both_ends_count() -> None:
    words = [f"w{i}" for i in range(4 * EDGE)]
    text = " ".join(words)
    known = set(ngrams(text).tolist())
    assert set(ngrams(" ".join(words[:EDGE])).tolist()) <= known
    assert set(ngrams(" ".join(words[-EDGE:])).tolist()) <= known
    assert not set(ngrams(words[2 * EDGE]).tolist()) & known
    assert edges(text).startswith(text[:EDGE_CHARACTERS]) and edges(text).endswith(text[-EDGE_CHARACTERS:])
    assert len(edges(text)) < 2 * EDGE_CHARACTERS + 10
    assert edges("short") == "short"
