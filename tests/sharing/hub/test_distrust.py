"""What a repository holds is read within bounds and believed only when it fits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from safetensors.torch import load, save

from glider.errors import PoolError
from glider.experts.expert import EXPERT_FILES
from glider.experts.pool import POOL_FILE, Pool
from glider.sharing.hub import pull_expert, pull_pool, push_expert, push_pool

from .repositories import REPO, refused

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's, of its HTTP library


def _nan(files: dict[str, bytes]) -> dict[str, bytes]:
    tensors = load(files["adapter_model.safetensors"])
    tensors[next(iter(tensors))].fill_(float("nan"))
    return {"adapter_model.safetensors": save(tensors, metadata={"format": "pt"})}


def _dropped(files: dict[str, bytes]) -> dict[str, bytes]:
    return {"adapter_model.safetensors": files["adapter_model.safetensors"][:-8]}


def _card(files: dict[str, bytes]) -> dict[str, bytes]:
    return {"card.json": json.dumps({**json.loads(files["card.json"]), "name": "../../escaped"}).encode()}


def _dora(files: dict[str, bytes]) -> dict[str, bytes]:
    name = "adapter_config.json"
    return {name: json.dumps({**json.loads(files[name]), "use_dora": True}).encode()}


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_nan, (f"{REPO}/adapter_model.safetensors", "NaN")),
        (_dropped, (f"{REPO}/adapter_model.safetensors", "damaged")),
        (_card, (f"{REPO}/card.json", "name")),
        (_dora, (f"{REPO}/adapter_config.json", "use_dora")),
    ],
)
def test_tampered_expert_is_refused(hub, pool: Pool, target: Path, damage: Callable, named: tuple[str, ...]) -> None:
    push_expert(pool["e0"], REPO)
    hub.repositories[REPO].commit("main", damage(hub.files(REPO)))
    refused(lambda: pull_expert(REPO, target), target, *named)


def test_missing_file_is_named(hub, pool: Pool, target: Path) -> None:
    push_expert(pool["e0"], REPO)
    del hub.files(REPO)["glider.safetensors"]
    refused(lambda: pull_expert(REPO, target), target, "glider.safetensors", REPO, "got none")
    hub.repositories["someone/empty"] = type(hub.repositories[REPO])("someone/empty")
    refused(lambda: pull_pool("someone/empty", target), target, POOL_FILE, "got none", error=PoolError)


def test_pool_with_one_changed_weight_is_refused(hub, pool: Pool, target: Path) -> None:
    push_pool(pool, REPO)
    name = "e1/adapter_model.safetensors"
    tampered = bytearray(hub.files(REPO)[name])
    tampered[-3] ^= 1
    hub.repositories[REPO].commit("main", {name: bytes(tampered)})
    refused(lambda: pull_pool(REPO, target), target, f"{REPO}/{name}", "sha256")


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", ".", "e*", "e0\n"])
def test_pool_cannot_name_a_path(hub, pool: Pool, target: Path, name: str) -> None:
    push_pool(pool, REPO)
    index = json.loads(hub.files(REPO)[POOL_FILE])
    index["experts"][0]["name"] = name
    extra = {f"{name}/{file}": b"{}" for file in EXPERT_FILES}
    hub.repositories[REPO].commit("main", {POOL_FILE: json.dumps(index).encode(), **extra})
    refused(lambda: pull_pool(REPO, target), target, f"{REPO}/{POOL_FILE}", "experts.0.name", error=PoolError)


def test_pool_cannot_record_a_foreign_file(hub, pool: Pool, target: Path) -> None:
    push_pool(pool, REPO)
    index = json.loads(hub.files(REPO)[POOL_FILE])
    index["experts"][0]["files"]["../../../x"] = {"sha256": "0" * 64, "size": 1}
    hub.repositories[REPO].commit("main", {POOL_FILE: json.dumps(index).encode()})
    refused(lambda: pull_pool(REPO, target), target, "../../../x", error=PoolError)


@pytest.mark.parametrize("name", [POOL_FILE, "e0/card.json", "e0/adapter_config.json", "e0/glider.safetensors"])
def test_a_file_too_large_is_refused_before_it_is_fetched(hub, pool: Pool, target: Path, name: str) -> None:
    """What a hub sends was compared with the record once it had taken the disk."""
    push_pool(pool, REPO)
    hub.sizes[name] = 1 << 33
    hub.calls.clear()
    refused(lambda: pull_pool(REPO, target), target, f"{name} in {REPO}", str(1 << 33), error=PoolError)
    assert not any("/resolve/" in call and call.endswith(name) for call in hub.calls)


def test_links_are_refused(hub, pool: Pool, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No client of today makes links in a local directory; one that did must not let them through."""
    push_expert(pool["e0"], REPO)
    genuine = HfApi.snapshot_download

    def linking(self: HfApi, *arguments: Any, local_dir: Path, **settings: Any) -> Any:
        result = genuine(self, *arguments, local_dir=local_dir, **settings)
        (local_dir / "card.json").rename(local_dir.parent / "elsewhere")
        (local_dir / "card.json").symlink_to(local_dir.parent / "elsewhere")
        return result

    monkeypatch.setattr(HfApi, "snapshot_download", linking)
    refused(lambda: pull_expert(REPO, target), target, "card.json", "a link")


def test_commit_that_is_a_path_is_refused(hub, pool: Pool, target: Path) -> None:
    push_expert(pool["e0"], REPO)
    hub.repositories[REPO].resolve = lambda revision: ("../../../escaped", hub.files(REPO))
    refused(lambda: pull_expert(REPO, target), target, "escaped")
