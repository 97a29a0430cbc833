"""Routers that are trained, over experts of unlike ranks and sites, of a decoder-only and an encoder-decoder model."""

from pathlib import Path
from typing import Any

import pytest

from glider.contribute.settings import RouterTraining
from glider.contribute.train_router import train_router
from glider.data.rows import Row
from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel, load_base
from glider.routing.specification import parsed, router_from
from glider.testing import check_router

KINDS = {kind: (kind,) for kind in ("mindskip", "task-moe")}
KINDS |= {kind: (kind, f"glider+{kind}") for kind in ("joint", "vq")}
KINDS |= {kind: (f"glider(global={kind})",) for kind in ("ariadne", "lorauter")}
KINDS |= {"seqr": ("seqr(norms=calibrated)",)}
SETTINGS = RouterTraining(steps=2, batch_size=4, codes=5, centroids=2)


@pytest.fixture(params=["llama", pytest.param("t5", marks=pytest.mark.slow)])
def base_directory(request: pytest.FixtureRequest) -> Path:
    """Both tiny bases in turn, the second in the slow tests."""
    return request.getfixturevalue(f"{request.param}_directory")


@pytest.fixture
def pool(base_directory: Path, make_pool, grow_pool) -> Pool:
    """Ranks 4, 4, 2, scalings 0.125 and 1; the last expert adapts half of the sites."""
    pool = make_pool(base_directory, 2, profile=True, alpha=0.5)
    half: dict[str, Any] = {"seed": 7, "rank": 2, "alpha": 2.0, "sites": pool.sites[::2], "profile": True}
    return grow_pool(pool, base_directory, "half", **half)


@pytest.fixture
def base(base_directory: Path) -> BaseModel:
    return load_base(str(base_directory))


def rows_of(pool: Pool) -> dict[str, list[Row]]:
    return {
        name: [Row.model_validate({"input": f"the {name}{i} and", "output": "do re mi"[: 2 + i]}) for i in range(6)]
        for name in pool.names
    }


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_trained_router_goes_through_the_kit(base: BaseModel, pool: Pool, kind: str) -> None:
    trained = train_router(base, pool, kind, rows_of(pool), SETTINGS)
    for text in KINDS[kind]:
        check_router(router_from(*parsed(text)), trained, base)


def test_skipped_attention_is_for_decoders_alone(base: BaseModel, pool: Pool) -> None:
    if not base.model.config.is_encoder_decoder:
        trained = train_router(base, pool, "mindskip-attention", rows_of(pool), SETTINGS)
        check_router(router_from("mindskip-attention", {}), trained, base)
        return
    with pytest.raises(RouterError):
        train_router(base, pool, "mindskip-attention", rows_of(pool), SETTINGS)
