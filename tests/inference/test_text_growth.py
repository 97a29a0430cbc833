"""A tokenizer that makes gigabytes of a letter is refused when its base is opened; those of real models are not."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from glider.errors import BaseModelError, QueryError
from glider.inference.base_model import load_base
from glider.inference.base_outline import outline_base
from glider.inference.spec import load
from glider.inference.text_growth import require_bounded_files, require_bounded_tokenizer

WIDE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10_000}
BETWEEN = {"type": "Replace", "pattern": {"Regex": ""}, "content": "a"}


def chain(kind: str, parts: str, step: dict[str, Any], count: int) -> dict[str, Any]:
    return {kind: {"type": "Sequence", parts: [step] * count}}


def table(entry: str) -> dict[str, Any]:
    content = (0).to_bytes(4, "little") + entry.encode() + b"\0"
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}}


def template(count: int) -> dict[str, Any]:
    pieces = [{"Sequence": {"id": "A", "type_id": 0}}] * count
    return {"post_processor": {"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": {}}}


HOSTILE = {
    "one letter becomes 1e12": chain("normalizer", "normalizers", WIDE, 3),
    "one letter becomes 10,000": {"normalizer": WIDE},
    "a letter between any two": chain("normalizer", "normalizers", BETWEEN, 40),
    "sequences in a sequence": chain("normalizer", "normalizers", chain("x", "normalizers", BETWEEN, 8)["x"], 5),
    "each byte a character": chain("pre_tokenizer", "pretokenizers", pre_tokenizers.ByteLevel().__getstate__(), 30),
    "a table": table("a" * 20_000),
    "a template": template(5000),
    "answers": chain("decoder", "decoders", WIDE, 3),
    "a long beginning": {"normalizer": {"type": "Prepend", "prepend": "a" * 1_000_000}},
    "many steps": chain("normalizer", "normalizers", {"type": "NFKC"}, 1000),
    "a long token": {"added_tokens": [{"id": 0, "content": "a" * 5000}]},
    "long words": {"model": {"type": "WordPiece", "vocab": {"a": 0}, "max_input_chars_per_word": 10**9}},
    "steps of no form": {"normalizer": {"type": "Replace", "pattern": {"String": "a"}}},
    "a list of no steps": {"normalizer": [7]},
}


def plain(value: Any) -> Any:
    """The JSON of settings whose steps are partly the library's own bytes."""
    return json.loads(json.dumps(value, default=lambda state: json.loads(state)))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tokenizer_that_makes_texts_longer_without_bound_is_refused(
    llama_directory: Path, tmp_path: Path, name: str
) -> None:
    """`glider generate` never came back from the first."""
    base = Path(shutil.copytree(llama_directory, tmp_path / "base"))
    settings = json.loads((base / "tokenizer.json").read_text("utf8")) | plain(HOSTILE[name])
    (base / "tokenizer.json").write_text(json.dumps(settings), "utf8")
    with pytest.raises(BaseModelError, match="tokenizer"):
        load_base(str(base))
    assert outline_base(str(base)) is None


def test_prompts_of_a_hostile_tokenizer_that_is_loaded_are_refused(llama_directory: Path, make_pool: Callable) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama_directory)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("a", "a" * 10_000)] * 3)
    pool = make_pool(llama_directory, 1)
    with pytest.raises(BaseModelError, match="8000000000000 times"):
        load(load_base(str(llama_directory)).model, str(pool.path), tokenizer=tokenizer)


SPACES = Regex(r"\s+")
GEMMA = [normalizers.Replace(" ", "▁")]
LLAMA = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
ALBERT = [
    normalizers.Replace("``", '"'),
    normalizers.Replace("''", '"'),
    normalizers.NFKD(),
    normalizers.StripAccents(),
    normalizers.Lowercase(),
]
CLIP = [normalizers.NFC(), normalizers.Replace(SPACES, " ")]
SIGLIP = [
    normalizers.Lowercase(),
    normalizers.Replace(SPACES, ""),
    normalizers.Replace(SPACES, " "),
    normalizers.Strip(),
]


@pytest.mark.parametrize("steps", [GEMMA, LLAMA, ALBERT, CLIP, SIGLIP, [normalizers.BertNormalizer()]])
def test_tokenizers_as_models_have_them_are_taken(steps: list[Any], tmp_path: Path) -> None:
    backend = Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(), pre_tokenizers.Metaspace()]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    require_bounded_files(str(tmp_path))
    require_bounded_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_the_table_of_sentencepiece_is_taken() -> None:
    """The longest that NFKC writes for one character has 18."""
    from glider.inference import text_growth

    settings = table("\u0635\u0644\u0649 \u0627\u0644\u0644\u0647 \u0639\u0644\u064a\u0647 \u0648\u0633\u0644\u0645")
    assert text_growth._growth(settings["normalizer"]).times == 18
    require_bounded_tokenizer(object())  # one that is no fast tokenizer has no such steps


UNKNOWN = {"type": "BPE", "vocab": {"<unk>": 0, "b": 1}, "merges": [], "unk_token": "<none>"}
PREFIXED = UNKNOWN | {"vocab": {"a": 0, "b": 1}, "merges": ["a b"], "continuing_subword_prefix": "##"}
NO_TOKENS = {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}
NO_SUCH_TOKEN = NO_TOKENS | {"single": [{"SpecialToken": {"id": "<none>", "type_id": 0}}]}


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"model": UNKNOWN, "added_tokens": []}, QueryError, "not found in the vocabulary"),
        ({"post_processor": NO_SUCH_TOKEN}, QueryError, "no entry found"),  # a panic, which is no `Exception`
        ({"post_processor": NO_TOKENS}, QueryError, "at least one token"),
        ({"model": PREFIXED}, BaseModelError, "slice index"),
    ],
    ids=["unknown", "template", "nothing", "prefix"],
)
def test_a_tokenizer_that_contradicts_itself_is_an_error_of_ours(
    t5_directory: Path, make_pool: Callable, tmp_path: Path, change: dict[str, Any], error: type[Exception], why: str
) -> None:
    pool, base = make_pool(t5_directory, 1), tmp_path / "base"
    shutil.copytree(t5_directory, base)
    settings = json.loads((base / "tokenizer.json").read_text("utf8"))
    (base / "tokenizer.json").write_text(json.dumps(settings | change), "utf8")
    with pytest.raises(error, match=why):
        load(str(base), str(pool.path), router="base").score("What now?", ["a"])
