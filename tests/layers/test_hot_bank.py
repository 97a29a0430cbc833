"""Experts in limited memory: the same outputs, no more than so many at once, the coldest one goes."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from glider.errors import ConfigError, ExpertError
from glider.experts.pool import Pool
from glider.inference.base_model import BaseModel, load_base
from glider.inference.spec import load, memory_limit
from glider.layers.attach import Attached, Storage, attach
from glider.layers.caches import cache_after, with_cache
from glider.layers.hot_bank import HotBank
from glider.layers.kernels.native import extension
from glider.routing.base import Decision
from glider.routing.methods.phatgoose import Phatgoose

IDS = torch.randint(3, 250, (2, 19), generator=torch.Generator().manual_seed(0))
RANKS = (2, 4, 3, 4, 1, 4)
KERNELS = ["reference", "torch", pytest.param("native", marks=pytest.mark.skipif(not extension(), reason="not built"))]


@pytest.fixture(scope="module")
def base(llama_directory: Path) -> BaseModel:
    return load_base(str(llama_directory))


@pytest.fixture(scope="module")
def pool(base: BaseModel, random_expert: Any, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Six experts of several ranks; the fourth adapts some sites only."""
    directory = tmp_path_factory.mktemp("hot") / "pool"
    pool = Pool.create(directory, base.identity)
    for i, rank in enumerate(RANKS):
        sites = None if i != 3 else ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"]
        random_expert(directory / f"e{i}", base, rank=rank, seed=i, sites=sites, dtype=torch.bfloat16)
        pool = pool.add(f"e{i}")
    return pool


def size_of_one(pool: Pool) -> int:
    """Bytes of one expert of the largest rank at every site, in bfloat16."""
    shapes = {name: site for expert in pool for name, site in expert.sites.items()}
    return sum(2 * max(RANKS) * (site.in_features + site.out_features) for site in shapes.values())


def banks(attached: Attached) -> list[HotBank]:
    return [module for module in attached.model.modules() if isinstance(module, HotBank)]


@torch.inference_mode()
def passes(attached: Attached) -> list[torch.Tensor]:
    """Logits of a prefill of two rows, and of three single tokens after it."""
    first = attached.model(IDS, use_cache=True)
    found, cache = [first.logits], cache_after(first)
    for token in (7, 90, 33):
        step = attached.model(torch.full((2, 1), token), **with_cache(attached.model, cache), use_cache=True)
        found.append(step.logits)
    return found


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("places", [1, 2, 5])
def test_outputs_do_not_depend_on_the_memory(base: BaseModel, pool: Pool, kernel: str, places: int) -> None:
    whole = attach(base.model, pool, Phatgoose(), Storage(kernel=kernel))
    wanted = passes(whole)
    whole.detach()
    hot = attach(base.model, pool, Phatgoose(), Storage(kernel=kernel, expert_memory=places * size_of_one(pool)))
    try:
        assert {len(bank.A) for bank in banks(hot)} == {places}
        for got, told in zip(passes(hot), wanted, strict=True):
            torch.testing.assert_close(got, told, atol=2e-4, rtol=2e-4)
        assert hot.expert_memory is not None and hot.expert_memory.reads > len(banks(hot)) * places
    finally:
        hot.detach()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_trace_sees_the_decision_and_not_the_places(base: BaseModel, pool: Pool, kernel: str) -> None:
    from glider.layers.trace import Trace

    traces = []
    for memory in (None, 2 * size_of_one(pool)):
        attached = attach(base.model, pool, Phatgoose(), Storage(kernel=kernel, expert_memory=memory))
        trace = Trace(pool.names, None, torch.ones_like(IDS, dtype=torch.bool))
        with torch.inference_mode(), attached.routing(None, recorder=trace):
            attached.model(IDS)
        attached.detach()
        traces.append(trace)
    first, second = traces
    assert second.kernels == first.kernels
    # rounding of one site's output may reorder near ties at a later one; the first site has the same inputs
    assert torch.equal(second.calls[0].decision.experts, first.calls[0].decision.experts)


def test_memory_for_all_of_them_holds_all_of_them(base: BaseModel, pool: Pool) -> None:
    attached = attach(base.model, pool, Phatgoose(), Storage(expert_memory=len(pool) * size_of_one(pool)))
    try:
        assert banks(attached) == [] and attached.expert_memory is None
    finally:
        attached.detach()


def test_memory_for_less_than_one_is_refused_and_the_model_stays(base: BaseModel, pool: Pool) -> None:
    before = dict(base.model.named_modules())
    with pytest.raises(ConfigError, match=f"one expert \\({size_of_one(pool)} bytes\\) or more; got 100 bytes"):
        attach(base.model, pool, Phatgoose(), Storage(expert_memory=100))
    assert dict(base.model.named_modules()) == before


def decision(*experts: int) -> Decision:
    """One token that keeps these, all with the same weight."""
    return Decision(torch.tensor([experts]), torch.full((1, len(experts)), 1 / len(experts)))


def test_the_coldest_expert_goes(pool: Pool) -> None:
    bank = HotBank("model.layers.0.mlp.up_proj", pool.experts, 3, torch.float32)

    def ask(*experts: int) -> int:
        before = bank.reads
        for _ in bank.parts(decision(*experts)):
            pass
        return bank.reads - before

    assert ask(0, 1) == 2
    assert ask(2) == 1
    assert ask(0, 1) == 0
    assert ask(4) == 1  # over 2, the only one that was not asked for since
    assert ask(0, 1, 4) == 0
    assert ask(2) == 1
    assert ask(0) + ask(5) == 2  # 0 had gone for 2


def test_parts_add_up_to_the_decision(pool: Pool) -> None:
    name = "model.layers.0.mlp.up_proj"
    bank = HotBank(name, pool.experts, 2, torch.float32)
    weights = torch.rand(5, 3, generator=torch.Generator().manual_seed(1))
    weights[2, 1] = 0
    experts = torch.tensor([[0, 1, 2], [5, 4, 3], [1, 0, 5], [2, 4, 0], [3, 3, 1]])
    found = torch.zeros(5, len(pool), bank.A.shape[1], bank.A.shape[2])
    for part in bank.parts(Decision(experts, weights)):
        for token in range(5):
            for place, weight in zip(part.experts[token], part.weights[token], strict=True):
                expert = bank._expert_at[int(place)]
                if weight != 0:
                    found[token, expert] += weight * bank.A[place]
    for token in range(5):
        for expert, weight in zip(experts[token].tolist(), weights[token].tolist(), strict=True):
            a = pool.experts[expert].factors(name)[0].float()
            times = int((experts[token] == expert).sum())
            wanted = weight * pool.experts[expert].scaling(name) * a
            if times == 1:
                torch.testing.assert_close(found[token, expert, : len(a)], wanted)
                assert not found[token, expert, len(a) :].any()


def test_an_expert_that_changed_on_disk_is_refused_when_it_is_first_read(
    base: BaseModel, pool: Pool, llama_directory: Path, tmp_path: Path
) -> None:
    import shutil

    copied = tmp_path / "pool"
    shutil.copytree(pool.path, copied)
    file = copied / "e4" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ExpertError, match="e4"):
        load(str(llama_directory), copied, router="phatgoose")
    model = load(str(llama_directory), copied, router="phatgoose", expert_memory=size_of_one(pool))
    with pytest.raises(ExpertError, match=r"adapter_model\.safetensors of expert e4 unchanged"):
        model.generate(["a longer text that asks for every expert at one site or another"], max_new_tokens=8)


def test_two_threads_share_the_places(base: BaseModel, pool: Pool) -> None:
    whole = attach(base.model, pool, Phatgoose())
    wanted = passes(whole)
    whole.detach()
    hot = attach(base.model, pool, Phatgoose(), Storage(expert_memory=2 * size_of_one(pool)))
    found: list[list[torch.Tensor]] = []
    threads = [threading.Thread(target=lambda: found.extend(passes(hot) for _ in range(3))) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        hot.detach()
    assert len(found) == 6
    for own in found:
        for got, told in zip(own, wanted, strict=True):
            torch.testing.assert_close(got, told, atol=2e-4, rtol=2e-4)


def test_sizes_are_read_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (memory_limit("2GB"), memory_limit("1.5MiB"), memory_limit(700)) == (2_000_000_000, 1_572_864, 700)
    assert memory_limit(None) is None
    monkeypatch.setenv("GLIDER_EXPERT_MEMORY", "3kB")
    assert (memory_limit(None), memory_limit("1kB")) == (3000, 1000)
    for wrong in ("plenty", "2,5GB", "2.5.5GB", "2GB each", "-1", "inf"):
        with pytest.raises(ConfigError, match=f"expert memory in bytes, as 2GB or 500MiB; got '{wrong}'"):
            memory_limit(wrong)
    monkeypatch.setenv("GLIDER_EXPERT_MEMORY", "-1")
    with pytest.raises(ConfigError, match="the variable GLIDER_EXPERT_MEMORY in bytes"):
        memory_limit(None)
