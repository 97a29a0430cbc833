"""Several prompts with several choices in one batch: each scores as it does alone."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from glider.errors import QueryError
from glider.experts.prompt_format import PromptFormat
from glider.inference.base_model import load_base
from glider.inference.model import RoutedModel
from glider.inference.queries import Query
from glider.inference.spec import load

from ..conftest import byte_tokenizer
from ..families.sweep import tiny

PROMPTS = ["is it so?", "a much longer question about something else entirely", "why?"]
SIZES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
]
CHOICES = [["yes", "no", "perhaps not"], ["x"], ["because", "1 2 3"]]


@pytest.fixture(params=["glider", "phatgoose", "tasklevel", "base"])
def model(request, base_directory: Path, make_pool) -> RoutedModel:
    return load(str(base_directory), make_pool(base_directory).path, router=request.param)


def test_a_batch_scores_as_the_prompts_one_by_one(model: RoutedModel) -> None:
    together, _ = model.score_many(PROMPTS, CHOICES)
    for prompt, choices, scores in zip(PROMPTS, CHOICES, together, strict=True):
        alone = model.score(prompt, choices)
        assert [score.choice for score in scores] == choices
        assert [score.tokens for score in scores] == [score.tokens for score in alone]
        torch.testing.assert_close(
            torch.tensor([score.log_likelihood for score in scores]),
            torch.tensor([score.log_likelihood for score in alone]),
            atol=2e-3,
            rtol=1e-4,
        )


def test_each_row_keeps_its_own_global_term(base_directory: Path, make_pool) -> None:
    model = load(str(base_directory), make_pool(base_directory).path, p=-1.0)
    queries = [Query(PROMPTS[0], description="Answer yes or no."), Query(PROMPTS[0], description="Translate a poem.")]
    (first, second), condition = model.score_many(queries, [["yes"], ["yes"]])
    assert condition is not None and len(condition.alpha) == 2
    assert first[0].log_likelihood != pytest.approx(second[0].log_likelihood, abs=1e-3)
    assert second[0].log_likelihood == pytest.approx(model.score(queries[1], ["yes"])[0].log_likelihood, abs=2e-3)


@pytest.mark.parametrize("router", ["base", "phatgoose", "glider"])
@pytest.mark.parametrize("descriptions", [("Count.", "Count.", "Count."), ("Count.", "Sing.", "Count.")])
def test_a_common_beginning_runs_once_where_rows_route_alike(
    llama_directory: Path, make_pool, router: str, descriptions: tuple[str, ...]
) -> None:
    model = load(str(llama_directory), make_pool(llama_directory).path, router=router)
    begin = "the same forty letters that every prompt begins with: "
    texts = [begin + end for end in ("one", "and a longer one", "I")]
    queries = [Query(text, description=told) for text, told in zip(texts, descriptions, strict=True)]
    alone = [model.score(query, choices) for query, choices in zip(queries, CHOICES, strict=True)]
    model.score_many(queries, CHOICES)  # what the model may share is tried
    rows: list[tuple[int, int]] = []
    hook = model.model.get_input_embeddings().register_forward_hook(lambda _, told, __: rows.append(told[0].shape))
    together, _ = model.score_many(queries, CHOICES)
    hook.remove()
    shared = router != "glider" or len(set(descriptions)) == 1
    assert [count for count, _ in rows] == ([1, 3, 6] if shared else [3, 6])
    if shared:
        assert rows[0][1] >= len(begin) and rows[0][1] + rows[1][1] == max(
            len(model.prompt.prompt_ids(model.tokenizer, text)) for text in texts
        )
    for scores, ones in zip(together, alone, strict=True):
        wanted = torch.tensor([score.log_likelihood for score in ones])
        got = torch.tensor([score.log_likelihood for score in scores])
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("room", [-20, 1, 20, 400])
def test_a_common_beginning_within_a_sliding_window(
    llama_directory: Path, tmp_path: Path, make_pool, room: int
) -> None:
    """What lies between a short row and the beginning counts in the window, and so does what follows."""
    begin = "the same forty letters that every prompt begins with: "
    texts = [begin + end for end in ("I", "one", "and a longer one that ends later")]
    choices = [["yes", "a choice of many letters, that fill what room the window has left"], ["x"], ["because"]]
    base = load_base(str(llama_directory))
    longest = max(len(PromptFormat.of(base.model, base.tokenizer).prompt_ids(base.tokenizer, text)) for text in texts)
    told = shutil.copytree(llama_directory, tmp_path / "mistral")
    sizes = {name: getattr(base.model.config, name) for name in SIZES}
    torch.manual_seed(0)
    mistral = MistralForCausalLM(MistralConfig(**sizes, initializer_range=0.3, sliding_window=longest + room))
    mistral.eval().save_pretrained(told)
    model = load(str(told), make_pool(told).path, router="phatgoose")
    alone = [model.score(text, [choice]) for text, several in zip(texts, choices, strict=True) for choice in several]
    together, _ = model.score_many(texts, choices)
    got = [score.log_likelihood for scores in together for score in scores]
    assert got == pytest.approx([score.log_likelihood for (score,) in alone], abs=1e-3)


def test_a_row_without_choices_is_refused(llama_directory: Path, make_pool) -> None:
    model = load(str(llama_directory), make_pool(llama_directory).path, router="base")
    with pytest.raises(QueryError, match="at least one choice"):
        model.score_many(PROMPTS[:2], [["a"], []])


def test_a_decoder_that_begins_with_padding_sees_its_beginning(tmp_path: Path, make_pool) -> None:
    """T5Gemma without a cache hides tokens that are the padding one; with a cache, as in `generate`, it does not."""
    base = tmp_path / "t5gemma"
    tiny("t5gemma", "seq2seq").save_pretrained(base)
    byte_tokenizer(chat=False).save_pretrained(base)
    model = load(str(base), make_pool(base).path, router="base", prompt=PromptFormat(kind="raw"))
    ids, target = model.encoder.rows([PROMPTS[0]], False, 0), model.prompt.target_ids(model.tokenizer, "yes")
    with torch.no_grad(), model.routing(PROMPTS[0]):
        logits = model.model(input_ids=torch.tensor(ids), decoder_input_ids=torch.tensor([[0, *target[:-1]]])).logits
    wanted = float(logits[0].log_softmax(-1)[range(len(target)), target].sum())
    assert model.score(PROMPTS[0], ["yes"])[0].log_likelihood == pytest.approx(wanted, abs=2e-3)
