"""Experts are trained, imported and given gates; what is there already is not made again."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from glider.contribute.build import PoolPlan
from glider.experts.expert import EXPERT_FILES, Expert
from glider.experts.pool import Pool
from glider.inference.spec import BaseSpec
from glider.jobs.local import LocalExecutor
from glider.jobs.run import run_jobs

from .drafts import Draft


def test_experts_are_trained_imported_and_given_gates(draft: Draft, adapter: Path):
    description = "Say the first letter."
    draft.plan["experts"] = [
        {"name": "trained", "data": "one.jsonl", "task": "letters", "licence": "CC0-1.0"},
        {"name": "imported", "adapter": "lora"},
        {"name": "both", "adapter": "lora", "data": "two.jsonl", "description": description},
    ]
    assert draft.build() == {"trained": "done", "imported": "done", "both": "done"}
    pool = Pool.open(draft.pool)
    pool.verify()
    assert pool.names == ["trained", "imported", "both"]
    gates = {expert.name: {site.has_gate for site in expert.sites.values()} for expert in pool}
    assert gates == {"trained": {True}, "imported": {False}, "both": {True}}
    assert (pool["trained"].card.task, pool["trained"].card.licence) == ("letters", "CC0-1.0")
    assert pool["both"].card.description == description
    assert pool["both"].instruction is not None and pool["imported"].instruction is None
    for name in ("imported", "both"):
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (draft.pool / name / file).read_bytes() == (adapter / file).read_bytes()
    assert draft.leftovers() == []


@pytest.mark.slow
def test_a_base_is_gone_before_that_of_the_next_expert_is_loaded(draft: Draft):
    def bases() -> int:
        return sum(type(thing) is LlamaForCausalLM for thing in gc.get_objects())

    draft.plan["experts"].append({"name": "three", "data": draft.rows("three")})
    gc.collect()
    before, counts = bases(), []
    gc.disable()  # else it depends on what other objects there are whether a model in a cycle goes
    try:
        draft.build(report=lambda *line: counts.append(bases()))
    finally:
        gc.enable()
    assert max(counts) == before + 1


def test_nothing_is_done_twice(draft: Draft):
    draft.build()
    before = draft.state()
    assert draft.build() == {"one": "unchanged", "two": "unchanged"}
    assert draft.state() == before


@pytest.mark.parametrize(
    "change", ["rows", *(pytest.param(change, marks=pytest.mark.slow) for change in ("settings", "description"))]
)
def test_only_the_expert_that_changed_is_made_again(draft: Draft, change: str):
    draft.build()
    before, one = draft.state(), draft.bytes_of("one")
    if change == "rows":
        draft.rows("two", answer="z")
    elif change == "settings":
        draft.plan["experts"][1]["config"] = {"rank": 3}
    else:
        draft.plan["experts"][1]["description"] = "Say t."
    assert draft.build() == {"one": "unchanged", "two": "done"}
    after = draft.state()
    assert {name for name in after if after[name] != before[name]} <= {
        "pool.json",
        *(f"two/{file}" for file in EXPERT_FILES),
    }
    assert after["two/card.json"] != before["two/card.json"]
    assert draft.bytes_of("one") == one
    Pool.open(draft.pool).verify()
    assert draft.build() == {"one": "unchanged", "two": "unchanged"}


def test_a_changed_adapter_is_imported_again(draft: Draft, adapter: Path, edit_tensors: Callable[..., None]):
    draft.plan["experts"] = [{"name": "ex", "adapter": "lora"}]
    draft.build()
    edit_tensors(adapter / "adapter_model.safetensors", lambda tensors: next(iter(tensors.values())).add_(1))
    assert draft.build() == {"ex": "done"}
    copied = (draft.pool / "ex" / "adapter_model.safetensors").read_bytes()
    assert copied == (adapter / "adapter_model.safetensors").read_bytes()
    Pool.open(draft.pool).verify()


def test_an_expert_whose_files_changed_is_not_called_unchanged(draft: Draft):
    """A rotten file would otherwise join the pool with a fresh hash, as if it had been trained so."""
    draft.build()
    sound = draft.bytes_of("two")
    file = draft.pool / "two" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    told = draft.build()
    assert told["one"] == "unchanged" and told["two"] != "unchanged"
    if told["two"] == "done":
        assert draft.bytes_of("two") == sound


def test_a_new_entry_is_added_and_the_others_stay(draft: Draft):
    draft.build()
    before = draft.state()
    draft.plan["experts"].insert(0, {"name": "new", "data": draft.rows("new")})
    told = draft.build()
    assert told == {"new": "done", "one": "unchanged", "two": "unchanged"}
    after = draft.state()
    assert {name for name in before if after[name] != before[name]} == {"pool.json"}
    assert sorted(Pool.open(draft.pool).names) == ["new", "one", "two"]


def test_a_rebuild_keeps_the_name_an_expert_was_given(draft: Draft):
    draft.build()
    Pool.open(draft.pool).rename("one", "uno")
    assert draft.build() == {"one": "unchanged", "two": "unchanged"}
    assert sorted(Pool.open(draft.pool).names) == ["two", "uno"]


def test_the_device_and_the_threads_are_part_of_an_experts_record(draft: Draft):
    spec = BaseSpec(dtype="bfloat16")
    [one, _] = PoolPlan.read(draft.write()).jobs(draft.root, draft.pool, spec)
    assert one.base == BaseSpec(base=draft.plan["base"], dtype="bfloat16")
    assert one.key != PoolPlan.read(draft.write()).jobs(draft.root, draft.pool)[0].key
    results = list(run_jobs([replace(one, base=BaseSpec(base=draft.plan["base"]), threads=1)], LocalExecutor()))
    assert [result.status for result in results] == ["done"]
    record = Expert.open(draft.pool / "one").card.training["resources"]
    assert record == {"device": "cpu", "threads": 1}


def test_progress_names_every_expert(draft: Draft):
    lines: list[tuple[str, str, float]] = []
    draft.build(report=lambda *line: lines.append(line))
    assert {name for name, _, _ in lines} == {"one", "two"}
    assert all(text and 0 <= share <= 1 for _, text, share in lines)
