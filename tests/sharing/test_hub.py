"""Experts and pools through a hub: the real client against a stand-in server. Never run against the real hub."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from peft import PeftModel
from safetensors.torch import load, save

from glider.errors import ConfigError, ExpertError, GliderError, PoolError
from glider.experts.card import ExpertCard
from glider.experts.expert import EXPERT_FILES, Expert
from glider.experts.index import BACKGROUND_FILE
from glider.experts.pool import POOL_FILE, Pool
from glider.inference.base_model import BaseModel, load_base
from glider.sharing.hub import pull_expert, pull_pool, push_expert, push_pool
from glider.sharing.model_card import expert_model_card
from glider.sharing.signature import SIGNATURE_FILE, generate_keys, sign_pool
from glider.verdicts.background import Background, shipped
from glider.verdicts.thresholds import Thresholds

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's, of its HTTP library

Q = "model.layers.0.self_attn.q_proj"
REPO = "someone/thing"


@pytest.fixture(scope="module")
def llama(llama_directory: Path) -> BaseModel:
    return load_base(str(llama_directory))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, llama: BaseModel, random_expert: Any) -> Pool:
    """A pool of two experts, not to be changed."""
    pool = Pool.create(tmp_path_factory.mktemp("pristine") / "pool", llama.identity)
    for i in range(2):
        random_expert(pool.path / f"e{i}", llama, seed=i, sites=[Q])
        pool = pool.add(f"e{i}")
    return pool


@pytest.fixture
def pool(pristine: Pool, tmp_path: Path) -> Pool:
    return Pool.open(shutil.copytree(pristine.path, tmp_path / "source"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a pull goes: the only thing in its directory."""
    (tmp_path / "pulled").mkdir()
    return tmp_path / "pulled" / "thing"


def content(directory: Path) -> dict[str, bytes]:
    """Every file but hidden ones (a pool's lock) under its relative name."""
    files = [file for file in directory.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


def refused(pull: Callable[[], Any], target: Path, *parts: str, error: type[GliderError] = ExpertError) -> None:
    """The pull raises `error` with these parts in its message, and there is nothing where it was to go."""
    with pytest.raises(error) as caught:
        pull()
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert list(target.parent.iterdir()) == []


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


@pytest.mark.parametrize(
    ("status", "headers", "got"),
    [
        (404, {"X_Error_Code": "RepoNotFound"}, "no such repository"),
        (404, {"X_Error_Code": "RevisionNotFound"}, "no such revision"),
        (401, {}, "no permission (401)"),
        (403, {"X_Error_Code": "GatedRepo"}, "a gated repository"),
        (403, {}, "no permission (403)"),
        (418, {}, "HTTP status 418"),
        (500, {}, "HTTP status 500: by order of the test"),
    ],
)
def test_refusals_of_the_hub_are_explained(hub, target: Path, status: int, headers: dict, got: str) -> None:
    hub.failures[f"/api/models/{REPO}"] = (status, headers)
    refused(lambda: pull_expert(REPO, target), target, f"wanted to pull {REPO}", got)
    refused(lambda: pull_pool(REPO, target), target, f"wanted to pull {REPO}", got, error=PoolError)


@pytest.mark.parametrize(("at", "status"), [("/tree/", 403), ("/resolve/", 403)])
def test_refusals_half_way_leave_nothing_behind(hub, pool: Pool, target: Path, at: str, status: int) -> None:
    push_expert(pool["e0"], REPO)
    hub.failures[at] = (status, {})
    refused(lambda: pull_expert(REPO, target), target, f"wanted to pull {REPO}", str(status))


def test_push_without_login_says_how_to_log_in(hub, pool: Pool) -> None:
    with pytest.raises(ExpertError, match=r"wanted to push to someone/thing.*401.*hf auth login"):
        push_expert(pool["e0"], REPO, token="hf_wrong")
    with pytest.raises(PoolError, match=r"wanted to push to someone/thing.*401.*hf auth login"):
        push_pool(pool, REPO, token="hf_wrong")
    assert hub.repositories == {}


@pytest.mark.parametrize(("at", "status"), [("/commit/", 403), ("/lfs-object/", 403), ("/preupload/", 404)])
def test_failing_push_is_explained(hub, pool: Pool, at: str, status: int) -> None:
    hub.failures[at] = (status, {})
    with pytest.raises(ExpertError, match=f"wanted to push to {REPO}.*{status}"):
        push_expert(pool["e0"], REPO)


def test_no_network_and_no_name(hub, pool: Pool, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(lambda: pull_expert("not a name", target), target, "not a name")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(lambda: pull_expert(REPO, target), target, "no answer", "HF_ENDPOINT")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(lambda: pull_expert(REPO, target), target, "offline mode", "HF_HUB_OFFLINE")


def test_commit_that_is_a_path_is_refused(hub, pool: Pool, target: Path) -> None:
    push_expert(pool["e0"], REPO)
    hub.repositories[REPO].resolve = lambda revision: ("../../../escaped", hub.files(REPO))
    refused(lambda: pull_expert(REPO, target), target, "escaped")


def test_model_card_says_what_the_card_says(pool: Pool) -> None:
    told = pool["e0"].card.model_dump(mode="json") | {
        "description": "Answers <b>questions</b>\n| about tables.",
        "licence": "Apache-2.0",
        "training": {"rows": 12, "data_sha256": "ab" * 32, "lora": {"best_loss": 1.23456, "curve": [1, 2]}},
        "metrics": {"rougeL": 0.5},
    }
    told["base"]["model_id"] = "maker/base-1b"
    text = expert_model_card(ExpertCard.model_validate(told), REPO)
    data = ModelCard(text).data.to_dict()
    assert (data["library_name"], data["base_model"], data["license"]) == ("peft", "maker/base-1b", "apache-2.0")
    assert {"glider", "lora"} <= set(data["tags"])
    assert "Answers &lt;b&gt;questions&lt;/b&gt; \\| about tables." in text
    assert "| lora.best_loss | 1.235 |" in text and "| rows | 12 |" in text and "| rougeL | 0.5 |" in text
    assert "ab" * 7 not in text and "curve" not in text
    assert f'AutoModelForCausalLM.from_pretrained("maker/base-1b"), "{REPO}")' in text
    assert f"glider expert pull {REPO}" in text


@pytest.mark.parametrize("model_id", ["tiny-llama", "/home/someone/tiny-llama"])
def test_model_card_claims_no_licence_and_no_base_that_is_a_directory(pool: Pool, model_id: str) -> None:
    card = pool["e0"].card
    card = card.model_copy(update={"base": card.base.model_copy(update={"model_id": model_id})})
    text = expert_model_card(card, REPO)
    assert "license" not in text and "base_model" not in text
    assert "/home" not in text and 'from_pretrained("tiny-llama")' in text


def test_pool_model_card_lists_its_experts(hub, pool: Pool, edit_json: Callable) -> None:
    push_pool(pool, REPO)
    text = hub.files(REPO)["README.md"].decode()
    assert "| e0 | e0 | not stated |" in text and "| e1 |" in text and 'subfolder="e0"' in text
    assert ModelCard(text).data.to_dict()["library_name"] == "peft"


def test_commands(hub, pool: Pool, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from glider.cli import hub as commands
    from glider.cli import signature
    from glider.cli.pool import verify

    commands.push_expert(pool["e0"].directory, "someone/e0")
    commands.pull_expert("someone/e0", target)
    signature.keygen(tmp_path / "key")
    signature.sign(pool.path, tmp_path / "key")
    verify(pool.path, tmp_path / "key.pub")
    commands.push_pool(pool.path, REPO, private=True)
    commands.pull_pool(REPO, target.parent / "pool", key=tmp_path / "key.pub")
    printed = capsys.readouterr().out
    assert f"{target}: e0, 1 sites" in printed and f"{target.parent / 'pool'}: 2 experts" in printed
    assert "signed by the owner of" in printed
    with pytest.raises(ConfigError, match="never overwritten"):
        signature.keygen(tmp_path / "key")


def test_a_folder_is_shared_as_a_repository_is(pool: Pool, tmp_path: Path) -> None:
    folder = tmp_path / "shared" / "ours"
    assert push_pool(pool, str(folder)) == str(folder)
    assert set(content(folder)) - {"README.md"} == set(content(pool.path))
    assert str(tmp_path) not in (folder / "README.md").read_text("utf8")
    assert pull_pool(str(folder), tmp_path / "thing").names == pool.names
    assert content(tmp_path / "thing") == content(pool.path)
    push_expert(pool["e0"], str(tmp_path / "one"))
    assert pull_expert(str(tmp_path / "one"), tmp_path / "e0").name == "e0"


def test_a_folder_is_distrusted_as_a_repository_is(pool: Pool, tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    push_pool(pool, str(folder))
    before = content(folder)
    with pytest.raises(PoolError, match="an existing one"):
        push_pool(pool, str(folder))
    assert content(folder) == before
    for change in (lambda: push_pool(pool, "./new", revision="main"), lambda: pull_pool(str(folder), "new", "main")):
        with pytest.raises(PoolError, match="revision"):
            change()
    weights = folder / "e0" / "adapter_model.safetensors"
    weights.rename(tmp_path / "weights")
    with pytest.raises(PoolError, match="none"):
        pull_pool(str(folder), tmp_path / "thing")
    weights.symlink_to(tmp_path / "weights")
    with pytest.raises(PoolError, match="a link"):
        pull_pool(str(folder), tmp_path / "thing")
    weights.unlink()
    weights.write_bytes((tmp_path / "weights").read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises((PoolError, ExpertError)):
        pull_pool(str(folder), tmp_path / "thing")
    assert not (tmp_path / "thing").exists()
