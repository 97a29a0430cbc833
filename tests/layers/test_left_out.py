"""Experts that a query leaves out, where some sites have no others."""

from pathlib import Path

import pytest
import torch

from glider.experts.pool import Pool
from glider.inference.base_model import load_base
from glider.inference.model import RoutedModel
from glider.inference.spec import ModelSpec
from glider.routing.condition import Condition
from glider.routing.specification import parsed, router_from


@pytest.fixture
def pool(base_directory: Path, make_pool, grow_pool) -> Pool:
    """`half` adapts half of the sites."""
    pool = make_pool(base_directory, 2)
    return grow_pool(pool, base_directory, "half", seed=7, sites=pool.sites[::2])


def logits(model: RoutedModel, condition: Condition) -> torch.Tensor:
    ids = torch.tensor([[40, 71, 99, 5, 200, 13]])
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if model.model.config.is_encoder_decoder else {})}
    with torch.inference_mode(), model.attached.routing(condition):
        return model.model(**inputs).logits


@pytest.mark.parametrize("kernel", ["reference", "torch", None])
@pytest.mark.parametrize(
    "text", ["phatgoose", "phatgoose(top_k=1,renormalise=false)", "phatgoose(top_p=0.5)", "spectr"]
)
def test_a_site_whose_experts_are_left_out_is_the_bases(
    base_directory: Path, pool: Pool, text: str, kernel: str | None
) -> None:
    base = load_base(str(base_directory))
    alone = ModelSpec(router="single:half").over(base, pool)
    expected = logits(alone, Condition.local(1))
    alone.detach()
    model = ModelSpec(router=router_from(*parsed(text)), kernel=kernel).over(base, pool)
    term = torch.tensor([[-torch.inf, -torch.inf, 0.0]])
    torch.testing.assert_close(logits(model, Condition.of(term, torch.ones(1))), expected, atol=1e-4, rtol=1e-4)
