"""Local and global scores against plain formulas."""

from math import sqrt
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glider.routing.base import Site
from glider.routing.scores import cosine, local_scores, standardise, standardised_gates


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def site_of(gates: torch.Tensor, absent: list[bool] | None = None) -> Site:
    return Site("s", torch.tensor(absent or [False] * len(gates)), {"gates": standardise(gates)})


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 40), st.sampled_from([1e-4, 1.0, 1e3]), st.floats(-5, 5), st.integers(0, 999))
def test_standardise_is_layer_norm(tokens: int, width: int, scale: float, shift: float, seed: int) -> None:
    z = scale * normal(tokens, width, seed=seed) + shift
    wanted = torch.nn.functional.layer_norm(z.double(), (width,), eps=1e-5).float()
    torch.testing.assert_close(standardise(z), wanted, atol=2e-3, rtol=1e-3)


def test_standardise_works_in_float32_on_any_axes() -> None:
    z = normal(2, 3, 16).bfloat16()
    got = standardise(z)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.nn.functional.layer_norm(z.float(), (16,), eps=1e-5))


def test_a_constant_token_standardises_to_zero() -> None:
    assert torch.equal(standardise(torch.full((1, 8), 3.0)), torch.zeros(1, 8))


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(4, 64), st.integers(0, 999))
def test_local_score_is_root_width_times_the_cosine(tokens: int, experts: int, width: int, seed: int) -> None:
    x, gates = normal(tokens, width, seed=seed), normal(experts, width, seed=seed + 1)
    centred = [(z - z.mean(-1, keepdim=True)).double() for z in (x, gates)]
    angle = torch.nn.functional.cosine_similarity(centred[0][:, None], centred[1][None], dim=-1).float()
    torch.testing.assert_close(local_scores(x, site_of(gates), "width"), sqrt(width) * angle, atol=2e-3, rtol=1e-3)
    got = local_scores(x, site_of(gates), "experts")
    torch.testing.assert_close(got, angle / sqrt(experts), atol=2e-3, rtol=1e-3)


def test_local_score_does_not_depend_on_the_gates_length() -> None:
    x, gates = normal(3, 32), normal(2, 32, seed=1)
    scaled = gates * torch.tensor([[100.0], [7.0]])
    torch.testing.assert_close(
        local_scores(x, site_of(scaled), "width"), local_scores(x, site_of(gates), "width"), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("scale", ["width", "experts"])
def test_an_absent_expert_scores_minus_infinity(scale: str) -> None:
    scores = local_scores(normal(4, 8), site_of(normal(3, 8), [False, True, False]), scale)  # pyright: ignore
    assert (scores[:, 1] == -torch.inf).all()
    assert torch.isfinite(scores[:, [0, 2]]).all()


def test_cosine_ignores_the_querys_length() -> None:
    experts = torch.nn.functional.normalize(normal(3, 6), dim=-1)
    got = cosine(5 * experts[:2], experts)
    torch.testing.assert_close(got, experts[:2] @ experts.T)
    assert got.diagonal().tolist() == pytest.approx([1, 1], abs=1e-6)


def test_gates_of_a_pool_stand_in_its_order_with_absent_experts_marked(
    llama_directory: Path, make_pool, grow_pool
) -> None:
    both, first_only = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
    pool = make_pool(llama_directory, 1, sites=[both, first_only])
    pool = grow_pool(pool, llama_directory, "e1", seed=1, sites=[both])
    sites = standardised_gates(pool)
    assert list(sites) == pool.sites
    assert sites[both].absent.tolist() == [False, False]
    assert sites[first_only].absent.tolist() == [False, True]
    for row, expert in enumerate(pool):
        torch.testing.assert_close(sites[both]["gates"][row], standardise(expert.gate(both)))  # pyright: ignore
    assert sites[first_only]["gates"].shape == (2, 48)  # pyright: ignore
