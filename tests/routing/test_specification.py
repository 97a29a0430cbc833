"""Routers from plain settings."""

import pytest

from glider.errors import RouterError
from glider.routing.methods.token_choice import TokenChoice
from glider.routing.select import TopK, TopP
from glider.routing.specification import listed, parsed, router_from


def test_plain_settings_make_the_router() -> None:
    assert router_from("glider", {"p": 0.63}).p == 0.63  # pyright: ignore
    assert router_from("glider", {"top_k": 3}).select == TopK(3)  # pyright: ignore
    assert router_from("phatgoose", {"top_p": 0.5}).select == TopP(0.5)  # pyright: ignore
    assert router_from("retrieval", {"top_k": 2}).k == 2  # pyright: ignore
    assert router_from("glider", {"renormalise": False}).select == TopK(2, False)  # pyright: ignore
    assert router_from("arrow", {"renormalise": False, "top_k": 3}).select == TopK(3, False)  # pyright: ignore
    assert router_from("phatgoose", {"renormalise": True}) == router_from("phatgoose", {})
    token_choice = router_from("token-choice", {"renormalise": True, "top_k": 3})
    assert token_choice == TokenChoice(k=3, renormalise=True)  # a setting of its own


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("nothing", {}, "nothing"),
        ("glider", {"temper": 1}, "temper"),
        (
            "glider",
            {"topk": 1},
            "of abstain, .*, global, .*, top_k, top_p; got topk for glider.*top_k is meant",
        ),
        ("retrieval", {"kk": 1}, "settings of abstain, by, k, .*; got kk for retrieval.*k is meant"),
        ("glidr", {}, "'glidr'. Check the spelling; perhaps glider is meant"),
        ("glider", {"top_k": 1, "top_p": 0.5}, "both"),
        ("merge", {"top_k": 1}, "selects experts"),
        ("glider", {"renormalise": False, "top_p": 0.5}, "both"),
        ("retrieval", {"renormalise": False, "top_k": 2}, "selects experts"),
        ("glider", {"renormalise": "no"}, "true or false"),
    ],
)
def test_faults_name_what_is_wrong(name: str, settings: dict, told: str) -> None:
    with pytest.raises(RouterError, match=told):
        router_from(name, settings)


def test_a_router_is_written_with_its_settings() -> None:
    assert parsed("single:a.b") == ("single:a.b", {})
    assert parsed(" glider( ) ") == ("glider", {})
    assert parsed("merge(method=ties, density=0.3)") == ("merge", {"method": "ties", "density": 0.3})
    assert parsed('lorahub(population=["a", "b"],l1=1e-3)') == ("lorahub", {"population": ["a", "b"], "l1": 1e-3})
    scores = {"a": 1, "b": {"c": 2, "d": [3, 4]}}
    assert parsed('per-task(scores={"a": 1, "b": {"c": 2, "d": [3, 4]}}, k=2)') == (
        "per-task",
        {"scores": scores, "k": 2},
    )
    soup = router_from(*parsed('adaptersoup-task(experts=["a", "b"])'))
    assert soup == router_from("adaptersoup-task", {"experts": ("a", "b")}) and hash(soup)
    assert parsed("multitask:some/where(1)/expert") == ("multitask:some/where(1)/expert", {})
    assert router_from(*parsed("glider(global=examples,top_k=1)")) == router_from(
        "glider", {"global_": "examples", "select": TopK(1)}
    )


def test_a_list_is_parted_outside_parentheses() -> None:
    wanted = ["base", "merge(method=ties,rank=2)", "glider"]
    assert listed("base, merge(method=ties,rank=2),,glider,") == wanted
    assert listed(" , ") == []


@pytest.mark.parametrize(
    "text", ["merge(method=ties", "merge(ties)", "merge(method=)", "merge(=ties)", "merge(rank=1,rank=2)"]
)
def test_a_setting_without_name_or_value_or_given_twice_is_refused(text: str) -> None:
    with pytest.raises(RouterError, match="method=ties"):
        parsed(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("merge(density=thick)", "density"),
        ("merge(method=slerp)", "method.*'mean', 'ties' or 'dare'"),
        ("glider(p=high)", "p: .*number"),
        ("glider+arrow(gamma=high)", "gamma: .*number"),
        ("retrieval(k=1.5)", "k: .*integer"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(text: str, told: str) -> None:
    with pytest.raises(RouterError, match=told):
        router_from(*parsed(text))


@pytest.mark.parametrize("setting", ["gamma=1e39", "gamma=NaN", "beta=-Infinity", "p=NaN"])
def test_constants_that_arithmetic_does_not_bear_are_refused(setting: str):
    with pytest.raises(RouterError, match=setting.partition("=")[0]):
        router_from(*parsed(f"glider({setting})"))
