"""What is read in a query's own text."""

import re
import tracemalloc
import zlib

from hypothesis import given
from hypothesis import strategies as st

from glider.instructions.inputs import EDGE, EDGE_CHARACTERS, ORDER, edges, ngrams


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


@given(
    st.lists(
        st.sampled_from(["a", "Σ", "İ", "\u0301", "日", "it's", " ", "  ", "\n", ".", "\x00", "x" * 90]), max_size=40
    )
)
def test_hashes_are_those_of_the_words_written_together(parts: list[str]) -> None:
    for text in ("".join(parts), "".join(parts) * 60):
        words = re.findall(r"\w+|[^\w\s]|\n", text.lower())
        words = [*words[:EDGE], *words[-EDGE:]] if len(words) > 2 * EDGE else words
        grams = {" ".join(words[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(words) - n + 1)}
        assert ngrams(text).tolist() == sorted({zlib.crc32(gram.encode()) or 1 for gram in grams})


def test_a_long_text_takes_little_more_memory_than_it_has() -> None:
    """All its words were listed before those of its ends were taken: a row of 15 MB took 415."""
    for text in ("a b " * 500_000, ".\n" * 1_000_000, "x" * 1_000_000 + " y" * 500_000):
        tracemalloc.start()
        try:
            ngrams(text)
            assert tracemalloc.get_traced_memory()[1] < 3 * len(text)
        finally:
            tracemalloc.stop()
