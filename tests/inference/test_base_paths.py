"""A base that was given by a path is found there again, from wherever its pool is opened."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from glider.cli.main import main
from glider.errors import BaseModelError, ConfigError, GliderWarning
from glider.experts.pool import Pool
from glider.inference.base_model import base_of_loaded, load_base, local_path
from glider.inference.base_outline import outline_base
from glider.inference.spec import base_of, load
from glider.sharing.hub import push_pool


@pytest.fixture
def base(llama_directory: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama_directory, tmp_path / "models" / "mine")


@pytest.fixture
def pool(make_pool: Any, base: Path) -> Pool:
    return make_pool(base)


def test_a_pool_finds_its_base_by_the_path_from_everywhere(
    pool: Pool, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(pool.path, tmp_path / "elsewhere" / "pool")
    monkeypatch.chdir(tmp_path / "elsewhere")
    opened = Pool.open("pool")
    assert opened.index.base.path == str(base)
    assert opened.index.base.model_id == "mine"
    model = load(pool=Path(moved), router="base")
    assert model.generate(["hi"], max_new_tokens=2)[0].token_ids


def test_a_relative_path_is_kept_whole(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base.parent)
    for given in ("mine", "./mine", "../models/mine"):
        loaded = load_base(given)
        assert (loaded.identity.path, loaded.identity.model_id) == (str(base), "mine")
        assert base_of_loaded(loaded.model, loaded.tokenizer).identity.path == str(base)
        outline = outline_base(given)
        assert outline is not None
        assert outline.identity == loaded.identity
    monkeypatch.chdir(base)
    assert load_base(".").identity.path == str(base)
    assert local_path("someone/a-model") is None


def test_a_link_is_kept_as_a_link(base: Path) -> None:
    link = base.parent / "current"
    link.symlink_to("mine")
    assert local_path(str(link)) == str(link)


def test_a_directory_that_is_gone_is_told_with_the_way_out(
    pool: Pool, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(BaseModelError, match=f"which was at {base}.*no such directory.*--base"):
        load(pool=pool.path, router="base")
    with pytest.raises(SystemExit) as ended:
        monkeypatch.setattr("sys.argv", ["glider", "generate", "--pool", str(pool.path), "hi"])
        main()
    assert ended.value.code == 2
    assert "no such directory" in capsys.readouterr().err
    assert load(str(moved), pool.path, router="base").generate(["hi"], max_new_tokens=1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").symlink_to(moved)
    assert base_of(Pool.open(pool.path)) == "mine"  # a directory of the same name, beside the user


def test_where_a_base_lies_is_no_part_of_what_it_is(base: Path, tmp_path: Path) -> None:
    one, other = load_base(str(base)), load_base(str(shutil.copytree(base, tmp_path / "copy")))
    assert one.identity.path != other.identity.path
    assert one.identity.hash == other.identity.hash


def test_a_pool_of_before_that_names_no_path_is_read_as_it_was(pool: Pool) -> None:
    file = pool.path / "pool.json"
    index = json.loads(file.read_text("utf8"))
    del index["base"]["path"]
    file.write_text(json.dumps(index), "utf8")
    assert base_of(Pool.open(pool.path)) == "mine"


def test_pushing_tells_of_the_path_in_the_files(pool: Pool, base: Path, tmp_path: Path) -> None:
    with pytest.warns(GliderWarning, match=f"name the directory of the base model, {base}"):
        push_pool(pool, str(tmp_path / "pushed"))


def test_the_embedded_base_has_a_name_and_no_path() -> None:
    assert local_path("smollm2-135m") is None


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json", "notes.md"])
def test_a_pipe_in_a_models_directory_is_not_waited_for(base: Path, file: str) -> None:
    (base / file).unlink(missing_ok=True)
    os.mkfifo(base / file)
    for read in (load_base, outline_base):
        with pytest.raises(BaseModelError, match=f"{file}, a pipe or a device"):
            read(str(base))


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"model_type": []}', '{"model_type": "llama", "num_attention_heads": "x"}']
)
def test_a_configuration_of_another_form_is_no_model(base: Path, text: str) -> None:
    (base / "config.json").write_text(text)
    with pytest.raises(BaseModelError, match="a transformers model at"):
        load_base(str(base))


@pytest.mark.parametrize("text", ["[]", "3", '{"chat_template": 3, "added_tokens_decoder": 4}'])
def test_settings_of_a_tokenizer_of_another_form_are_no_model(base: Path, text: str) -> None:
    (base / "tokenizer_config.json").write_text(text)
    with pytest.raises(BaseModelError, match="a transformers model at"):
        load_base(str(base))


@pytest.mark.parametrize(
    ("place", "told"),
    [("no/such/base", "no such directory"), ("{base}/config.json", "a file.*Give the directory")],
)
def test_a_path_that_leads_to_no_base_is_told_as_one(base: Path, place: str, told: str) -> None:
    with pytest.raises(BaseModelError, match=told):
        load_base(place.format(base=base))


def test_a_device_that_is_not_here_is_refused_in_a_line(
    pool: Pool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch says so by an AssertionError where it was built without the device."""
    monkeypatch.setattr("sys.argv", ["glider", "generate", "hi", "--pool", str(pool.path), "--device", "cuda:99"])
    with pytest.raises(SystemExit) as ended:
        main()
    err = capsys.readouterr().err
    assert ended.value.code == 2 and "got cuda:99: " in err and "Give cpu" in err and err.count("\n") == 1, err


def test_a_model_stays_where_it_is_if_the_device_is_not_here(pool: Pool) -> None:
    model = load(pool=pool.path)
    with pytest.raises(ConfigError, match="got cuda:99: "):
        model.to("cuda:99")
    with pytest.raises(ConfigError, match="got cuda:99: "):
        model.to(device="cuda:99")
    assert model.generate(["hi"], max_new_tokens=2)[0].token_ids


def test_a_model_of_peft_is_refused_with_how_to_get_its_base(pool: Pool, base: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(load_base(str(base)).model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(BaseModelError, match=r"got PeftModel.*model\.unload\(\)"):
        load(adapted, pool.path)


def test_a_base_without_a_tokenizer_is_told_so(base: Path) -> None:
    for file in base.glob("*token*"):
        file.unlink()
    with pytest.raises(BaseModelError, match=r"wanted the tokenizer of a .*save_pretrained\(DIRECTORY\)"):
        load_base(str(base))
