"""What was pushed is pulled as it was, to the byte."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from glider.errors import ExpertError, PoolError
from glider.experts.expert import EXPERT_FILES, Expert
from glider.experts.index import BACKGROUND_FILE
from glider.experts.pool import POOL_FILE, Pool
from glider.experts.thresholds import Thresholds
from glider.inference.base_model import load_base
from glider.sharing.hub import pull_expert, pull_pool, push_expert, push_pool
from glider.sharing.signature import SIGNATURE_FILE, generate_keys, sign_pool
from glider.verdicts.background import Background, shipped

from .repositories import REPO, content, refused

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's, of its HTTP library


def test_expert_round_trip_gives_identical_files(hub, pool: Pool, target: Path) -> None:
    url = push_expert(pool["e0"], REPO)
    assert url.startswith(hub.endpoint)
    assert set(hub.files(REPO)) == {*EXPERT_FILES, "README.md"}
    assert not hub.repositories[REPO].private
    pulled = pull_expert(REPO, target)
    assert content(target) == content(pool["e0"].directory)
    assert pulled.name == "e0" and [path.name for path in target.parent.iterdir()] == ["thing"]


def test_pulled_expert_loads_in_peft_with_the_same_outputs(hub, pool: Pool, target: Path, llama_directory) -> None:
    push_expert(pool["e0"], REPO)
    pull_expert(REPO, target)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        outputs = []
        for adapter in (pool["e0"].directory, target):
            model = load_base(str(llama_directory)).model
            plain = model(ids).logits
            outputs.append(PeftModel.from_pretrained(model, str(adapter))(ids).logits)
    assert torch.equal(*outputs) and not torch.allclose(outputs[0], plain)


def test_large_files_go_as_large_files(hub, pool: Pool) -> None:
    push_expert(pool["e0"], REPO)
    assert sorted(call.split("/")[1] for call in hub.calls if call.startswith("PUT")) == ["lfs-object"] * 2
    assert len(hub.repositories[REPO].commits) >= 1
    assert sum("/commit/" in call for call in hub.calls) == 1


def test_revision_is_made_and_pulled(hub, pool: Pool, target: Path) -> None:
    push_expert(pool["e0"], REPO, private=True, revision="v1")
    assert hub.files(REPO) == {} and hub.repositories[REPO].private
    push_expert(pool["e1"], REPO)
    push_expert(pool["e1"], REPO)  # again: the repository exists
    assert pull_expert(REPO, target, revision="v1").name == "e0"


def test_commit_pins_the_content(hub, pool: Pool, target: Path) -> None:
    commit = push_expert(pool["e0"], REPO).rpartition("/")[2]
    push_expert(pool["e1"], REPO)
    assert pull_expert(REPO, target, revision=commit).name == "e0"


def test_damaged_expert_is_not_pushed(hub, pool: Pool, edit_tensors: Callable) -> None:
    edit_tensors(pool["e0"].directory / "adapter_model.safetensors", lambda t: t[next(iter(t))].fill_(float("nan")))
    with pytest.raises(ExpertError, match="NaN"):
        push_expert(Expert.open(pool["e0"].directory), REPO)
    assert hub.calls == []


def test_existing_target_is_left_alone(hub, pool: Pool) -> None:
    push_expert(pool["e0"], REPO)
    before = content(pool.path)
    with pytest.raises(ExpertError, match="an existing one"):
        pull_expert(REPO, pool.path / "e1")
    with pytest.raises(PoolError, match="an existing one"):
        pull_pool(REPO, pool.path)
    assert content(pool.path) == before


def test_pool_round_trip_gives_identical_files(hub, pool: Pool, target: Path) -> None:
    push_pool(pool, REPO)
    assert set(hub.files(REPO)) - {"README.md"} == set(content(pool.path))
    pulled = pull_pool(REPO, target)
    assert content(target) == content(pool.path)
    assert pulled.names == ["e0", "e1"] and [path.name for path in target.parent.iterdir()] == ["thing"]


def test_a_pools_own_background_goes_along(hub, pool: Pool, target: Path) -> None:
    background = shipped().joined(Background.of([["a request of ours", "another one"]], judged=2))
    pool = pool.set_verdicts(Thresholds(stranger=0.4, fits=0.8, names=tuple(pool.names)), background)
    push_pool(pool, REPO)
    pulled = pull_pool(REPO, target)
    assert pulled.background is not None and pulled.index.verdicts == pool.index.verdicts
    assert (target / BACKGROUND_FILE).read_bytes() == (pool.path / BACKGROUND_FILE).read_bytes()


def test_a_renamed_expert_travels_in_the_directory_it_has(hub, pool: Pool, target: Path) -> None:
    """Its name in the pool is no directory; pushing once looked for its files there."""
    renamed = pool.rename("e0", "z")
    push_pool(renamed, REPO)
    assert set(hub.files(REPO)) - {"README.md"} == set(content(pool.path))
    text = hub.files(REPO)["README.md"].decode()
    assert "| z | e0 | not stated |" in text and 'subfolder="e0"' in text
    pulled = pull_pool(REPO, target)
    assert pulled.names == ["z", "e1"] and pulled["z"].directory == target / "e0"
    assert content(target) == content(pool.path)


@pytest.mark.parametrize("home", ["../x", "/etc", "a/b", ".", "e*"])
def test_pool_cannot_place_an_expert_elsewhere(hub, pool: Pool, target: Path, home: str) -> None:
    push_pool(pool, REPO)
    index = json.loads(hub.files(REPO)[POOL_FILE])
    index["experts"][0]["directory"] = home
    extra = {f"{home}/{file}": b"{}" for file in EXPERT_FILES}
    hub.repositories[REPO].commit("main", {POOL_FILE: json.dumps(index).encode(), **extra})
    refused(lambda: pull_pool(REPO, target), target, f"{REPO}/{POOL_FILE}", "experts.0.directory", error=PoolError)


def test_extra_files_are_not_fetched(hub, pool: Pool, target: Path) -> None:
    push_pool(pool, REPO)
    extra = {"train.py": b"import os", "e0/adapter_model.bin": b"pickle", "e2/card.json": b"{}", "../../escaped": b"x"}
    hub.repositories[REPO].commit("main", extra)
    pull_pool(REPO, target)
    assert content(target) == content(pool.path)
    assert not any(call.endswith("/" + name.strip("./")) for call in hub.calls for name in extra if "/resolve/" in call)
    assert list(target.parent.parent.rglob("escaped")) == []


def test_signed_pool_is_pulled_with_its_key(hub, pool: Pool, target: Path, tmp_path: Path) -> None:
    for name in ("mine", "other"):
        generate_keys(tmp_path / name, tmp_path / f"{name}.pub")
    push_pool(pool, "someone/unsigned")
    sign_pool(pool.path, tmp_path / "mine")
    push_pool(pool, REPO)
    other, mine = tmp_path / "other.pub", tmp_path / "mine.pub"
    refused(lambda: pull_pool(REPO, target, require_key=other), target, "another key", REPO, error=PoolError)
    assert not any("/resolve/" in call and "/e0/" in call for call in hub.calls)  # no expert fetched on bad faith
    refused(
        lambda: pull_pool("someone/unsigned", target, require_key=mine),
        target,
        f"someone/unsigned/{SIGNATURE_FILE}",
        error=PoolError,
    )
    pull_pool(REPO, target, require_key=mine)
    assert content(target) == content(pool.path)
