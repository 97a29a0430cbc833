"""The front end: what a prompt is asked by, and what steers it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glider.engines.vllm.arguments import plugin_settings
from glider.engines.vllm.front import Front, FrontRequest, turns_in
from glider.engines.vllm.rows import Row
from glider.inference.spec import ModelSpec
from glider.routing.condition import Condition, Settled
from glider.serve.errors import ApiError
from glider.serve.schemas import Steering
from glider.serve.steering import Way

from .prompts import FITS, STRANGER, UNSURE


def test_select_names_the_expert_of_what_fits_and_the_base_for_strangers(select: Front) -> None:
    chosen = [select.choose(FrontRequest(Way("routed"), text)) for text in (FITS, STRANGER, UNSURE)]
    assert [(one.verdict, one.expert) for one in chosen] == [
        *(("fits", "common_gen"), ("stranger", None), ("unsure", "rotten_tomatoes")),
    ]
    assert all(one.row is None and one.salt is None for one in chosen)
    base = Front(plugin_settings(ModelSpec(), "select", unsure="base"))
    assert base.choose(FrontRequest(Way("routed"), UNSURE)).expert is None
    assert base.choose(FrontRequest(Way("routed"), FITS)).expert == "common_gen"


def test_select_follows_names_and_steering(select: Front) -> None:
    def expert(text: str, way: Way | None = None, **steering: Any) -> str | None:
        return select.choose(FrontRequest(way or Way("routed"), text, steering=Steering(**steering))).expert

    assert expert(STRANGER, Way("single", expert="paws")) == "paws"
    assert expert(FITS, Way("base")) is None
    assert expert(FITS, verdict="base") is None
    assert expert(STRANGER, verdict="route") in select.names
    assert expert(FITS, exclude=["common_gen"]) not in (None, "common_gen")
    assert expert(FITS, experts=["paws"]) == "paws"
    with pytest.raises(ApiError, match="weights of experts need --mode route"):
        select.steering({"experts": {"paws": 0.5, "trec": 0.5}})


def test_route_settles_routes_and_bares_as_the_library_does(route: Front) -> None:
    chosen = {text: route.choose(FrontRequest(Way("routed"), text)) for text in (FITS, STRANGER, UNSURE)}
    assert chosen[FITS].row == Row((), (route.names.index("common_gen"),), (1.0,))
    assert chosen[STRANGER].row is None and chosen[STRANGER].salt is None
    assert chosen[UNSURE].row is not None and len(chosen[UNSURE].row.term) == len(route.names)
    steering = Steering(description="Say what a text is about.")
    described = route.choose(FrontRequest(Way("routed"), UNSURE, steering=steering))
    assert described.verdict == "unsure" and described.row is not None and len(described.row.experts) == 3
    forced = route.choose(FrontRequest(Way("routed"), STRANGER, steering=Steering(verdict="route")))
    assert forced.row is not None and len(forced.row.term) == len(route.names) and forced.verdict == "stranger"


def test_a_router_that_differs_in_its_term_is_served_beside(route: Front) -> None:
    local = route.choose(FrontRequest(route.way("demo:phatgoose"), FITS))
    assert local.row == Row() and local.salt != route.choose(FrontRequest(Way("routed"), FITS)).salt
    with pytest.raises(ApiError) as refused:
        route.choose(FrontRequest(route.way("demo:arrow"), FITS))
    assert refused.value.status == 400
    with pytest.raises(ApiError) as unknown:
        route.way("nobody")
    assert unknown.value.status == 404


def test_of_a_chat_the_users_turns_are_asked(route: Front) -> None:
    turns = turns_in(
        [
            {"role": "user", "content": FITS},
            {"role": "assistant", "content": "A dog and a ball."},
            {"role": "user", "content": [{"type": "text", "text": "Why?"}, {"type": "image_url"}]},
        ]
    )
    assert turns[-1] == ("user", "Why?")
    chosen = route.choose(FrontRequest(Way("routed"), "Why?", turns=turns))
    assert chosen.verdict == "fits"  # the follow-up stays with what it follows


@pytest.mark.parametrize("told", [{"verdict": "maybe"}, {"nothing": 1}, {"trace": True}, "base"])
def test_steering_that_cannot_be_followed_is_a_400(route: Front, told: Any) -> None:
    with pytest.raises(ApiError) as refused:
        route.steering(told)
    assert refused.value.status == 400


@pytest.mark.parametrize("weight", [1e300, -1e39, 1e38, -11.0, 1e-46])
def test_weights_beyond_what_layers_compute_are_a_400(route: Front, weight: float) -> None:
    """Large ones left NaN in the cache, which changed others' answers; the base answered those beyond float32."""
    with pytest.raises(ApiError) as refused:
        route.choose(FrontRequest(Way("routed"), FITS, steering=route.steering({"experts": {"paws": weight}})))
    assert refused.value.status == 400 and str(refused.value.param).startswith("glider.experts")


def test_token_ids_beyond_every_tokenizers_are_a_400(route: Front) -> None:
    """The tokenizer raised an error of its own."""
    with pytest.raises(ApiError) as refused:
        route.text_of([3, 1 << 40], None)
    assert refused.value.status == 400


def test_select_has_the_likeliest_by_words_where_no_score_is_known() -> None:
    """Of an unsure query that could not be embedded all scores are zero, and the pool's first expert answered it."""
    names: Any = SimpleNamespace(names=["a", "b", "c", "d"])
    settled = Settled(torch.tensor([[2, 1, 0]]), torch.zeros(1, 3))
    condition = Condition(1, torch.zeros(1, 4), torch.full((1,), 3.0), settled=settled, verdicts=("unsure",))
    assert Front.nearest(names, condition, False) == "c"
    scores = torch.zeros(1, 4)
    scores[0, 2] = -torch.inf  # left out by the request
    assert Front.nearest(names, replace(condition, global_scores=scores), False) == "b"
    scores = torch.tensor([[-torch.inf, -torch.inf, -torch.inf, 0.0]])
    assert Front.nearest(names, replace(condition, global_scores=scores), False) == "d"
