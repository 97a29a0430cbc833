"""On the bare base the harness's own model and ours give the same, whatever the base's tokenizer does to texts."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from glider.errors import QueryError
from glider.evaluation.lm_eval_model import GliderLM

TOKENS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "yes",
    "no",
    "is",
    "it",
    "▁it",
    "▁yes",
    "▁",
    " yes",
    "##es",
    "()",
    *"Isitoyen?A:( ).\n",
]
VOCABULARY = {token: number for number, token in enumerate(dict.fromkeys(TOKENS))}
CONTEXTS = ["", "Is it so?", "Is it so? ", "A: (", " it", "<s>it", "</s>it", " \n"]
CHOICES = [" yes", "yes", ")", "es", "</s>"]


def unigram() -> Tokenizer:
    pieces = [(token, -float(number)) for token, number in VOCABULARY.items()]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=VOCABULARY["<unk>"]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return tokenizer


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return tokenizer


def stripping() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(VOCABULARY, [("(", ")")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Strip()
    return tokenizer


SETTINGS = [{"max_gen_toks": 6}, {"max_gen_toks": "6", "until": "e"}]
# the tokenizer, its special tokens, what it adds
KINDS: dict[str, tuple[Callable[[], Tokenizer], dict[str, str], str]] = {
    "unigram": (unigram, {"bos_token": "<s>", "eos_token": "</s>"}, "$A"),
    "unigram that begins": (unigram, {"bos_token": "<s>", "eos_token": "</s>"}, "<s> $A"),
    "unigram that ends": (unigram, {"eos_token": "</s>"}, "$A </s>"),
    "wordpiece that begins and ends": (wordpiece, {"bos_token": "<s>", "eos_token": "</s>"}, "<s> $A </s>"),
    "spaces stripped": (stripping, {"eos_token": "</s>"}, "$A"),
}  # fmt: skip


@pytest.fixture
def base(llama_directory: Path, tmp_path: Path) -> Callable[[Tokenizer, dict[str, str], str], Path]:
    """The tiny Llama with another tokenizer."""

    def make(tokenizer: Tokenizer, special: dict[str, str], template: str) -> Path:
        named = [(token, VOCABULARY[token]) for token in special.values()]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", **special)
        directory = shutil.copytree(llama_directory, tmp_path / "other")
        fast.save_pretrained(directory)
        (directory / "chat_template.jinja").unlink(missing_ok=True)
        assert len(AutoTokenizer.from_pretrained(directory)) == len(VOCABULARY)
        return directory

    return make


def answer(model: Any, kind: Any, *arguments: Any) -> Any:
    """A request's result; the harness's own model has assertions for what it cannot score."""
    try:
        return getattr(model, kind)([Instance(kind, {}, arguments, 0, ("t", 0, 1))], disable_tqdm=True)[0]
    except AssertionError:
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_answers_are_the_harness_own(base: Any, make_pool: Any, kind: str) -> None:
    make, special, template = KINDS[kind]
    directory = base(make(), special, template)
    ours = GliderLM(base=str(directory), pool=str(make_pool(directory).path), router="base")
    theirs = HFLM(pretrained=str(directory), device="cpu", dtype="float32")  # pyright: ignore
    compared = 0
    for context, choice in itertools.product(CONTEXTS, CHOICES):
        if (wanted := answer(theirs, "loglikelihood", context, choice)) is not None:
            value, greedy = answer(ours, "loglikelihood", context, choice)
            assert (value, greedy) == (pytest.approx(wanted[0], abs=2e-3), wanted[1]), (context, choice)
            compared += 1
    assert compared >= 30
    for text in ("Is it so?", " it", "<s>it", "</s>it", "it " * 300):
        wanted = answer(theirs, "loglikelihood_rolling", text)
        assert answer(ours, "loglikelihood_rolling", text) == pytest.approx(wanted, rel=1e-4), text
    for context, settings in itertools.product(
        CONTEXTS[1:4], ({"max_gen_toks": 6}, {"max_gen_toks": "6", "until": "e"})
    ):
        wanted = answer(theirs, "generate_until", context, {"until": [], **settings})
        assert answer(ours, "generate_until", context, {"until": [], **settings}) == wanted, (context, settings)


def test_a_text_without_a_context_needs_a_token_before_it(base: Any, make_pool: Any) -> None:
    directory = base(wordpiece(), {}, "$A")
    ours = GliderLM(base=str(directory), pool=str(make_pool(directory).path), router="base")
    assert answer(ours, "loglikelihood", "Is it so?", "yes")[0] < 0
    for kind, more in (
        ("loglikelihood", ("yes",)),
        ("loglikelihood_rolling", ()),
        ("generate_until", ({"until": []},)),
    ):
        with pytest.raises(QueryError, match="a token of begin or end"):
            answer(ours, kind, *(("yes",) if kind == "loglikelihood_rolling" else ("", *more)))


@pytest.mark.parametrize(
    "settings", [{"max_gen_toks": "many"}, {"until": 3}, {"until": [""]}, {"until": ""}, {"temperature": [1]}]
)
def test_settings_of_a_task_that_are_of_another_type_are_refused(base: Any, make_pool: Any, settings: Any) -> None:
    directory = base(unigram(), {"eos_token": "</s>"}, "$A")
    ours = GliderLM(base=str(directory), pool=str(make_pool(directory).path), router="base")
    with pytest.raises(QueryError, match="Mend the task"):
        answer(ours, "generate_until", "Is it so?", settings)
    with pytest.raises(QueryError, match=r"max_length 40\. Name max_gen_toks"):
        answer(ours, "generate_until", "Is it so?", {"max_length": 40})
    assert len(ours.tokenizer(answer(ours, "generate_until", "Is it so?", {"max_gen_toks": None}))["input_ids"]) <= 260
