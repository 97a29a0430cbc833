"""Every fault of a plan is named before anything is made."""

import os
from pathlib import Path

import pytest

from glider.contribute.build import PoolPlan
from glider.errors import ConfigError
from glider.experts.pool import Pool

from .drafts import Draft


def faults(draft: Draft) -> str:
    with pytest.raises(ConfigError) as raised:
        PoolPlan.read(draft.write())
    return str(raised.value)


def test_every_fault_of_the_form_is_named(draft: Draft):
    draft.plan["experts"] = [{"name": "../x", "data": "a"}, {"data": "b"}, {"name": "c", "flavour": "sweet"}]
    told = faults(draft)
    for part in ("experts.0.name", "experts.1.name", "experts.2.flavour", "pool.yaml"):
        assert part in told


def test_every_fault_of_the_settings_is_named(draft: Draft):
    draft.plan["experts"] = [
        {"name": "a", "data": "x", "config": {"rank": -1, "steps": "many"}},
        {"name": "b", "data": "x", "config": {"colour": "red"}},
        {"name": "c"},
        {"name": "d", "data": "x"},
        {"name": "d", "data": "y"},
    ]
    told = faults(draft)
    for part in ("a: rank", "steps", "b: colour", "c: neither data nor adapter", "d twice"):
        assert part in told


def test_an_expert_has_no_name_of_the_pools_own_files_nor_one_that_differs_in_capitals(draft: Draft):
    draft.plan["experts"] = [{"name": name, "data": "x"} for name in ("routers", "pool.json", "a", "A")]
    told = faults(draft)
    for part in ("routers, which is a name", "pool.json, which is a name", "A beside a"):
        assert part in told


def test_a_plan_takes_no_place_of_an_expert_whose_name_differs_in_capitals(draft: Draft):
    draft.plan["experts"] = [{"name": "a", "data": draft.rows("a")}]
    assert draft.build() == {"a": "done"}
    draft.plan["experts"] = [{"name": "A", "data": draft.rows("b")}]
    assert "A beside a" in draft.build()["A"]
    assert Pool.open(draft.pool).names == ["a"]


@pytest.mark.parametrize("content", ["", "[1, 2]", "experts: []", "base: [", "experts: {a: 1}", "\x00", "a: *b"])
def test_what_is_no_plan_is_named(tmp_path: Path, content: str):
    (tmp_path / "pool.yaml").write_text(content, "utf8")
    with pytest.raises(ConfigError, match=r"pool\.yaml"):
        PoolPlan.read(tmp_path / "pool.yaml")


def test_an_absent_plan_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere"):
        PoolPlan.read(tmp_path / "nowhere.yaml")


def test_a_plan_runs_no_code(tmp_path: Path):
    (tmp_path / "pool.yaml").write_text(f"experts: !!python/object/apply:os.mkdir [{tmp_path}/made]", "utf8")
    with pytest.raises(ConfigError):
        PoolPlan.read(tmp_path / "pool.yaml")
    assert not (tmp_path / "made").exists()


def test_settings_of_an_expert_go_before_the_defaults(draft: Draft):
    draft.plan["experts"][1]["config"] = {"rank": 3, "minutes": 5}
    draft.build()
    configs = [expert.card.training["config"] for expert in Pool.open(draft.pool)]
    assert [config["rank"] for config in configs] == [2, 3]
    assert [config["minutes"] for config in configs] == [None, 5]


def test_an_adapter_of_holes_is_refused_before_it_is_read(draft: Draft, tmp_path: Path):
    """Its digest took an hour, of a file that took four kilobytes."""
    adapter = tmp_path / "holes"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).touch()
    os.truncate(adapter / "adapter_model.safetensors", 1 << 43)
    draft.plan["experts"] = [{"name": "a", "adapter": str(adapter)}]
    plan = PoolPlan.read(draft.write())
    with pytest.raises(ConfigError, match="the rest holes"):
        _ = plan.jobs(tmp_path, tmp_path / "pool")[0].key
