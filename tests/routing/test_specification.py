"""Routers from plain settings."""

import pytest

from glider.errors import RouterError
from glider.routing.select import TopK, TopP
from glider.routing.specification import router_from


def test_plain_settings_make_the_router() -> None:
    assert router_from("glider", {"p": 0.63}).p == 0.63  # pyright: ignore
    assert router_from("glider", {"top_k": 3}).select == TopK(3)  # pyright: ignore
    assert router_from("phatgoose", {"top_p": 0.5}).select == TopP(0.5)  # pyright: ignore
    assert router_from("retrieval", {"top_k": 2}).k == 2  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("nothing", {}, "nothing"),
        ("glider", {"temper": 1}, "temper"),
        ("glider", {"top_k": 1, "top_p": 0.5}, "both"),
        ("merge", {"top_k": 1}, "selects experts"),
    ],
)
def test_faults_name_what_is_wrong(name: str, settings: dict, told: str) -> None:
    with pytest.raises(RouterError, match=told):
        router_from(name, settings)
