"""What shortlists leave out could not have been kept: inputs chosen against their bounds, and against float32's range.

A decision by shortlist is compared with that of one token by itself without any, whose products are summed in the same
order as those of what a shortlist scores again: the experts are the same, whatever float32 makes of the scores.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glider.layers.kernels import native
from glider.layers.kernels.native import NativeSite
from glider.routing.base import Decision, Site
from glider.routing.linear import LinearScores, LinearTopK
from glider.routing.scores import standardise

from .cases import random_case

extension = native.extension()
pytestmark = pytest.mark.skipif(extension is None, reason=f"no native kernel: {native.why_absent()}")
ISAS = extension.isas() if extension is not None else []


def decide(
    x: torch.Tensor,
    rows: torch.Tensor,
    k: int,
    term: torch.Tensor | None,
    shortlist: bool,
    told: LinearScores | None = None,
    absent: torch.Tensor | None = None,
) -> Decision:
    experts, width = rows.shape
    site = Site("s", torch.zeros(experts, dtype=torch.bool) if absent is None else absent, {})
    linear = LinearTopK(told or LinearScores(rows), k, True)
    return NativeSite.deciding(width, site, linear, shortlist).decide(x, min(k, experts), term)


def assert_same(x: torch.Tensor, rows: torch.Tensor, k: int, term: torch.Tensor | None = None, **scoring) -> None:
    got = decide(x, rows, k, term, True, **scoring)
    for t in range(len(x)):
        alone = decide(x[t : t + 1], rows, k, term, False, **scoring)
        assert got.weights[t].isnan().any() == alone.weights.isnan().any()
        counts = torch.maximum(got.weights[t], alone.weights[0]) > 1e-30
        assert torch.equal(got.experts[t][counts], alone.experts[0][counts]), t


def values(kind: str, chance: torch.Generator, *shape: int) -> torch.Tensor:
    made = torch.randn(*shape, generator=chance)
    if kind == "of many sizes":
        return made * 10 ** (40 * torch.rand(*shape, generator=chance) - 20)
    if kind == "far from two bfloat16":
        return made.sign() * (1 + 2**-8 - 2**-17 - 2**-23)
    if kind == "integers":
        return (2 * made).round()
    if kind == "cancelling":
        pairs = made[..., 1::2]
        noise = 1 + 1e-6 * torch.randn(pairs.shape, generator=chance)
        made[..., 1::2] = -made[..., ::2][..., : pairs.shape[-1]] * noise
    return made * {"tiny": 1e-25, "huge": 1e30}.get(kind, 1.0)


@pytest.mark.parametrize("name", ISAS)
@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    tokens=st.sampled_from([1, 5, 16, 32, 33, 65]),
    experts=st.sampled_from([2, 48, 192, 209]),
    width=st.sampled_from([1, 15, 32, 33, 320]),
    k=st.sampled_from([1, 3, 9, 200]),
    of_tokens=st.sampled_from(["normal", "of many sizes", "far from two bfloat16", "cancelling", "tiny", "huge"]),
    of_rows=st.sampled_from(["normal", "far from two bfloat16", "integers", "cancelling", "tiny"]),
    apart=st.sampled_from([None, 0.0, 1e-7, 1e-5, 1e-3]),
    alpha=st.sampled_from([None, 0.0, 3.0, 1e4, 1e6]),
    scored=st.sampled_from([(1.0, False, False), (8.0, True, False), (2.0, False, True)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 999),
)
def test_a_shortlist_has_the_decision_without(
    name: str,
    tokens: int,
    experts: int,
    width: int,
    k: int,
    of_tokens: str,
    of_rows: str,
    apart: float | None,
    alpha: float | None,
    scored: tuple[float, bool, bool],
    dtype: torch.dtype,
    seed: int,
) -> None:
    assert extension is not None
    if tokens > 16 and (name != "amx" or experts < 192):
        tokens = 16  # more are scored in float32 at once, in another order
    chance = torch.Generator().manual_seed(seed)
    x, rows = values(of_tokens, chance, tokens, width).to(dtype), values(of_rows, chance, experts, width)
    if apart is not None:
        rows = rows[:1] * (1 + apart * torch.randn(experts, width, generator=chance))
    absent = torch.rand(experts, generator=chance) < 0.2
    absent[seed % experts] = False
    rows[absent] = 0
    term = None if alpha is None else alpha * torch.randn(1, experts, generator=chance)
    before = extension.isa()
    extension.use_isa(name)
    try:
        assert_same(x, rows, k, term, told=LinearScores(rows, *scored), absent=absent)
    finally:
        extension.use_isa(before)


def test_small_terms_that_long_sums_lose(isa: str) -> None:
    """28,672 columns: what follows the first value is half an ulp of it a tile, and lost there, not where lanes sum."""
    width, tile = 28672, 2.0**-24 / 32
    small = (0.98 * torch.tensor(tile).sqrt()).bfloat16().float()
    token = torch.full((width,), float(small))
    token[:32] = 0
    token[0] = 1
    rows = torch.zeros(192, width)
    rows[3], rows[2] = token, -token
    rows[2, 0] = 1 + 7e-5  # above, until all of the rest is taken off
    x = token.expand(32, width).contiguous()
    assert decide(x[:1], rows, 1, None, False).experts.item() == 3
    assert_same(x, rows, 1)


def test_a_global_term_that_scores_are_rounded_to(isa: str) -> None:
    """A million: scores are multiples of 1/16, so that bounds of products say little of those of sums."""
    for seed in range(20):
        chance = torch.Generator().manual_seed(seed)
        rows, x = torch.randn(60, 16, generator=chance) / 64, torch.randn(16, 16, generator=chance)
        assert_same(x, rows, 1, torch.full((1, 60), 1e6))


@pytest.mark.parametrize("size", [1e-23, 1e19, 1e30])
@pytest.mark.parametrize(("tokens", "experts"), [(2, 60), (64, 200)])
def test_tokens_whose_squares_float32_does_not_hold(size: float, tokens: int, experts: int, isa: str) -> None:
    chance = torch.Generator().manual_seed(0)
    rows, x = torch.randn(experts, 64, generator=chance) / 8, size * torch.randn(tokens, 64, generator=chance)
    assert not decide(x, rows, 2, None, True).weights.isnan().any()
    assert_same(x, rows, 2)
    assert_same(x, rows, 2, torch.zeros(1, experts))


@pytest.mark.parametrize("size", [1e5, 1e12, 1e18])
def test_a_large_constant_token_scores_zero(size: float, isa: str) -> None:
    x, rows = torch.full((2, 37), size), torch.randn(4, 37, generator=torch.Generator().manual_seed(0))
    assert (standardise(x) == 0).all()
    weights = decide(x, rows, 4, None, False, LinearScores(rows, 6.0, True)).weights
    torch.testing.assert_close(weights, torch.full((2, 4), 0.25), atol=1e-5, rtol=0)


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="the layer norm of PyTorch 2.6 gives NaN there")
def test_a_token_whose_variance_overflows_scores_zero(isa: str) -> None:
    chance = torch.Generator().manual_seed(0)
    x, rows = 1e25 * torch.randn(2, 37, generator=chance), torch.randn(60, 37, generator=chance)
    assert (standardise(x) == 0).all()
    for shortlist in (False, True):
        assert decide(x, rows, 2, None, shortlist, LinearScores(rows, 6.0, True)).experts.tolist() == [[0, 1]] * 2


@pytest.mark.parametrize("together", [False, True])
def test_codes_at_the_end_of_float32_range(together: bool, isa: str) -> None:
    """Beyond the largest bfloat16 they are finite, and beyond float32 infinite: nothing is subtracted from infinity."""
    case = random_case(1, tokens=32, experts=1 if together else 2, rank=16, width=16, out=33, dtype=torch.bfloat16)
    bank, x = case.bank, torch.zeros(32, 16, dtype=torch.bfloat16)
    bank.A[:], bank.B[:], bank.scaling[:] = 0, 0, 1
    bank.A[:, 0, 0], bank.A[:, 0, 1], bank.B[:, :, 0] = 1, 2.0**-8 * 0.875, 0.5
    x[:, :2] = 3.3895e38  # the largest
    x[16:, 2], bank.A[:, 0, 2] = 3.3895e38, 1
    experts = torch.zeros(32, 1, dtype=torch.long) if together else torch.arange(32)[:, None] % 2
    y = torch.zeros(32, 33, dtype=torch.bfloat16)
    NativeSite(bank, case.site, None).apply(y, x, Decision(experts, torch.ones(32, 1)))
    largest = torch.full((16, 33), 1.7e38).bfloat16()
    torch.testing.assert_close(y[:16], largest)
    assert (y[16:] == torch.inf).all()
