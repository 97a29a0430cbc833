"""A default that changed must not let a result made by the old one pass for the new one's."""

from typing import Any

import pytest

from glider.evaluation.run_plan import cell_key
from glider.routing.specification import known_settings

HASHES = {"pool": "p", "base": "b", "data": "d"}


def key(router: str, **settings: Any) -> str:
    return cell_key({"router": {"router": router, "settings": settings}, "task": {"name": "t"}}, HASHES)


RENEWED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("merge", {"method": "ties"}, {"method": "ties", "trim": "vector"}),
    ("lorahub", {"budget": 9}, {"budget": 9, "population": 20, "composition": "factors", "scale": "rows"}),
    ("loraretriever", {"k": 2}, {"k": 2, "by": "samples"}),
    ("lorahub", {"weights": {"e0": 1.0}}, {"weights": {"e0": 1.0}, "composition": "factors"}),
]


@pytest.mark.parametrize(("router", "given", "known"), RENEWED, ids=str)
def test_a_changed_default_is_part_of_what_a_result_is_known_by(
    router: str, given: dict[str, Any], known: dict[str, Any]
) -> None:
    assert known_settings(router, given) == known
    assert key(router, **given) == key(router, **known)


def test_a_setting_that_is_given_stays() -> None:
    assert known_settings("merge", {"method": "ties", "trim": "site"}) == {"method": "ties", "trim": "site"}
    assert key("merge", method="ties", trim="site") != key("merge", method="ties")


def test_results_of_routers_without_a_changed_default_stay_known() -> None:
    """The hashes are those of the version before."""
    assert key("merge")[:16] == "cfe082522cf0628b"
    assert key("glider", p=0.6)[:16] == "5a3ba9fff676273d"
    assert key("single:e0")[:16] == "60654d78e9d13c5e"
    assert known_settings("nobody", {"k": 1}) == {"k": 1}
