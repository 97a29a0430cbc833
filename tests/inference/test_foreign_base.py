"""A base model's directory that a stranger wrote: an adapter's settings may name it. None of its code runs."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glider.contribute.examples import encode_rows
from glider.data.rows import Row
from glider.engines.vllm.offline import Requests
from glider.errors import BaseModelError, QueryError
from glider.experts.prompt_format import PromptFormat
from glider.inference.base_model import base_of_loaded, load_base
from glider.inference.base_outline import outline_base
from glider.inference.prompts import PromptEncoder
from glider.inference.spec import ModelSpec

CONFIG, TOKENIZER, WHOLE = "config.json", "tokenizer_config.json", "tokenizer.json"


@pytest.fixture
def base(llama_directory: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama_directory, tmp_path / "base")


@pytest.fixture
def yes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A prompt that comes in by a pipe, as of `yes | glider generate`."""
    reader, writer = os.pipe()
    os.write(writer, b"y\n" * 20)
    os.close(writer)
    with os.fdopen(reader) as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        yield


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf8")) | values), "utf8")


def with_code(base: Path, file: str, **values: Any) -> Path:
    """Let a directory bring code that leaves a mark where it is run; returns the mark's place."""
    mark = base.parent / "mark"
    code = f"open({str(mark)!r}, 'w').close()\nfrom transformers import LlamaConfig\nclass C(LlamaConfig):\n    pass\n"
    (base / "code.py").write_text(code, "utf8")
    change(base / file, **values)
    return mark


@pytest.mark.usefixtures("yes")
@pytest.mark.parametrize(
    ("file", "values"),
    [
        (CONFIG, {"auto_map": {"AutoConfig": "code.C"}, "model_type": "unheard"}),
        (TOKENIZER, {"auto_map": {"AutoTokenizer": ["code.C", None]}, "tokenizer_class": "UnheardTokenizer"}),
    ],
)
def test_no_code_of_a_base_runs_whatever_stdin_says(base: Path, file: str, values: dict[str, Any]) -> None:
    """Transformers asks on stdin whether it is to run: a `y` that was meant as a prompt was the answer."""
    mark = with_code(base, file, **values)
    for opening in (load_base, outline_base, lambda place: Requests.of_spec(ModelSpec(base=place, pool="demo"))):
        try:
            opening(str(base))
        except BaseModelError as fault:
            assert "custom code" in str(fault)
    assert not mark.exists()
    with pytest.raises(BaseModelError, match="custom code"):
        load_base(str(base))


def test_a_loaded_model_brings_no_code_by_its_tokenizer(base: Path, yes: None) -> None:
    model = load_base(str(base)).model
    mark = with_code(base, TOKENIZER, auto_map={"AutoTokenizer": ["code.C", None]}, tokenizer_class="UnheardTokenizer")
    with pytest.raises(BaseModelError, match="a tokenizer for the model"):
        base_of_loaded(model)
    assert not mark.exists()


@pytest.mark.parametrize(
    "values",
    [
        {"model": None},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(" * 5000}, "behavior": "Isolated", "invert": False}},
        {"normalizer": {"type": "Unheard"}},
        {"added_tokens": [{"id": -1}]},
    ],
)
def test_a_tokenizer_that_its_library_refuses_is_an_error_of_ours(base: Path, values: dict[str, Any]) -> None:
    """The library raises `Exception` itself, which was a traceback."""
    change(base / WHOLE, **values)
    with pytest.raises(BaseModelError, match="the tokenizer of a transformers model"):
        load_base(str(base))
    assert outline_base(str(base)) is None


@pytest.mark.parametrize("values", [{"num_attention_heads": 0}, {"pad_token_id": 10**9}, {"hidden_act": "unheard"}])
def test_settings_that_make_no_model_are_an_error_of_ours(base: Path, values: dict[str, Any]) -> None:
    """A `ZeroDivisionError` and an `AssertionError` were tracebacks."""
    change(base / CONFIG, **values)
    with pytest.raises(BaseModelError, match=r"a transformers model at .*Error: "):
        load_base(str(base))
    assert outline_base(str(base)) is None


@pytest.mark.parametrize(
    ("file", "values"),
    [
        (CONFIG, {"n_positions": 10**9}),
        (CONFIG, {"max_position_embeddings": 1e12}),
        (CONFIG, {"relative_attention_num_buckets": 10**11}),
        (CONFIG, {"num_labels": 10**10}),
        ("generation_config.json", {"num_beams": 10**6}),
        ("generation_config.json", {"num_return_sequences": 10**6}),
    ],
)
def test_tables_and_beams_beyond_any_models_are_refused_at_once(base: Path, file: str, values: dict[str, Any]) -> None:
    """Tables asked for hundreds of gigabytes, and a million beams did not end."""
    change(base / file, **values)
    for opening in (load_base, outline_base):
        with pytest.raises(BaseModelError, match=f"{next(iter(values))} of at most "):
            opening(str(base))


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**9},
        {"num_attention_heads": 10**12, "num_key_value_heads": 10**12},
        {"text_config": {"num_local_experts": 10**9}},
        {"num_hidden_layers": 4_999},
    ],
)
def test_settings_of_more_parts_than_any_model_has_are_refused_at_once(base: Path, values: dict[str, Any]) -> None:
    """A thousand million layers took half a minute and half a gigabyte, and went on."""
    change(base / CONFIG, **values)
    for opening in (load_base, outline_base, lambda place: Requests.of_spec(ModelSpec(base=place, pool="demo"))):
        with pytest.raises(BaseModelError, match=r"at most [15]000"):
            opening(str(base))


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "gpt_neo", "max_position_embeddings": 200_000},
        {"model_type": "gpt_bigcode", "n_positions": 2**20},
        {"model_type": "openai-gpt", "n_positions": 40_000, "n_layer": 12},
        {"model_type": "gpt_neo", "max_position_embeddings": 8192, "num_layers": 1000},
    ],
)
def test_masks_beyond_any_models_are_refused_at_once(base: Path, values: dict[str, Any]) -> None:
    """These families make one of positions by positions for each layer: gigabytes, and minutes."""
    change(base / CONFIG, **values)
    for opening in (load_base, outline_base):
        with pytest.raises(BaseModelError, match="masks of at most"):
            opening(str(base))


def test_settings_that_cannot_be_read_are_told_with_their_file(base: Path) -> None:
    (base / CONFIG).write_text("[" * 200_000)
    with pytest.raises(BaseModelError, match=r"config\.json"):
        load_base(str(base))


def test_settings_without_a_form_are_refused_for_vllm_too(base: Path) -> None:
    change(base / CONFIG, num_attention_heads=0)
    with pytest.raises(BaseModelError, match="the base model"):
        Requests.of_spec(ModelSpec(base=str(base), pool="demo"))


@pytest.mark.parametrize(
    ("file", "values"),
    [
        (TOKENIZER, {"model_max_length": "x"}),
        ("generation_config.json", {"eos_token_id": 1.5}),
        ("generation_config.json", {"eos_token_id": [1, "x"]}),
        ("generation_config.json", {"stop_strings": True}),
        ("generation_config.json", {"top_k": ["eos"]}),
        ("generation_config.json", {"temperature": "warm"}),
        ("generation_config.json", {"penalty_alpha": [1, 2]}),
        ("generation_config.json", {"decoder_start_token_id": 1e308}),
        ("generation_config.json", {"assistant_early_exit": [None]}),
        ("generation_config.json", {"output_hidden_states": "no"}),
        ("generation_config.json", {"num_beams": 0}),
        ("generation_config.json", {"num_beams": -1}),
        ("generation_config.json", {"prefill_chunk_size": 0}),
        ("generation_config.json", {"exponential_decay_length_penalty": [1]}),
        ("generation_config.json", {"exponential_decay_length_penalty": {"a": 1}}),
        ("generation_config.json", {"encoder_no_repeat_ngram_size": 10**6}),
    ],
)
def test_what_is_no_number_is_told_when_the_base_is_loaded(base: Path, file: str, values: dict[str, Any]) -> None:
    """Each was a traceback at the first prompt."""
    (base / file).touch()
    (base / file).write_text((base / file).read_text("utf8") or "{}")
    change(base / file, **values)
    with pytest.raises(BaseModelError, match=" as "):
        load_base(str(base))


@pytest.mark.parametrize(
    "values",
    [
        {"output_hidden_states": "None"},
        {"output_hidden_states": {"a": 1}},
        {"output_hidden_states": 1.5},
        {"return_dict": False},
        {"sliding_window": "None"},
        {"sliding_window": [4]},
        {"sliding_window": 1.5},
        {"num_hidden_layers": -1},
    ],
)
def test_a_setting_that_each_pass_looks_at_is_told_when_the_base_is_loaded(base: Path, values: dict[str, Any]) -> None:
    """Each was a traceback at the first prompt, or of the trials before it."""
    change(base / CONFIG, **values)
    with pytest.raises(BaseModelError, match=f" as {next(iter(values))} of the base"):
        load_base(str(base))


def test_a_token_that_the_base_lacks_is_refused_before_it_is_looked_up(base: Path) -> None:
    """A tokenizer with more tokens than the embedding has rows was an `IndexError`, on a GPU the end of the process."""
    (base / "added_tokens.json").write_text(json.dumps({"hello": 10**9}), "utf8")
    loaded = load_base(str(base))
    encoder = PromptEncoder(PromptFormat(kind="plain"), loaded.tokenizer, loaded.model)
    assert encoder.rows(["good day"], False, 1)
    row = Row(input="say hello", output="x", references=None)
    for encode in (
        lambda: encoder.rows(["say hello"], False, 1),
        lambda: encoder.targets(["x", "hello"]),
        lambda: encode_rows([row], loaded.tokenizer, encoder.prompt, 512, loaded.model),
    ):
        with pytest.raises(QueryError, match="which only its tokenizer knows"):
            encode()
