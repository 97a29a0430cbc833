"""Model cards that are pushed along, the commands, and a folder in the hub's place."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from glider.errors import ConfigError, ExpertError, PoolError
from glider.experts.card import ExpertCard
from glider.experts.pool import Pool
from glider.files.disk import copy_file
from glider.sharing import places
from glider.sharing.hub import pull_expert, pull_pool, push_expert, push_pool
from glider.sharing.model_card import expert_model_card
from glider.sharing.signature import SIGNATURE_FILE

from .repositories import REPO, content

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's, of its HTTP library


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
    with pytest.raises(ConfigError, match="name of a new file"):
        signature.keygen(Path())  # was a traceback


def test_a_folder_is_shared_as_a_repository_is(pool: Pool, tmp_path: Path) -> None:
    folder = tmp_path / "shared" / "ours"
    assert push_pool(pool, str(folder)) == str(folder)
    assert set(content(folder)) - {"README.md"} == set(content(pool.path))
    assert str(tmp_path) not in (folder / "README.md").read_text("utf8")
    assert pull_pool(str(folder), tmp_path / "thing").names == pool.names
    assert content(tmp_path / "thing") == content(pool.path)
    push_expert(pool["e0"], str(tmp_path / "one"))
    assert pull_expert(str(tmp_path / "one"), tmp_path / "e0").name == "e0"


@pytest.mark.parametrize(
    "name", ["pool.json", "e0/card.json", "e0/adapter_config.json", "e0/adapter_model.safetensors"]
)
def test_a_file_of_holes_is_refused_before_it_is_copied(
    pool: Pool, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes no place where it lies, and took the disk of whoever pulled it."""
    folder, copied = tmp_path / "ours", list[int]()
    push_pool(pool, str(folder))
    os.truncate(folder / name, 1 << 33)

    def watched(source: Path, target: Path) -> None:
        copied.append(source.stat().st_size)
        if copied[-1] < 1 << 30:
            copy_file(source, target)

    monkeypatch.setattr(places, "copy_file", watched)
    with pytest.raises((PoolError, ExpertError), match=str(1 << 33)):
        pull_pool(str(folder), tmp_path / "thing")
    if name != "pool.json":
        with pytest.raises(ExpertError, match=str(1 << 33)):
            pull_expert(str(folder / "e0"), tmp_path / "thing")
    assert max(copied, default=0) < 1 << 30 and not (tmp_path / "thing").exists()


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


def test_what_is_no_signature_is_not_pushed(pool: Pool, tmp_path: Path) -> None:
    """A pipe in its place was a traceback, and would have been waited for by the hub's client."""
    (pool.path / SIGNATURE_FILE).mkdir()
    with pytest.raises(PoolError, match="a signature in"):
        push_pool(pool, str(tmp_path / "folder"))
    assert not (tmp_path / "folder").exists()
