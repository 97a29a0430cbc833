"""The routed model in lm-evaluation-harness: the harness's own model on the bare base, ours on the same requests."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

from glider.errors import ConfigError, GliderWarning, QueryError, RouterError
from glider.evaluation.lm_eval_model import GliderLM
from glider.evaluation.lm_eval_tasks import write_tasks
from glider.evaluation.metrics import score_text
from glider.evaluation.run_plan import pool_hash
from glider.experts.prompt_format import PromptFormat
from glider.inference.queries import Query
from glider.inference.spec import load

CONTEXTS = ["Is it so? Answer:", "A much longer question about something else. Answer: ", "Why"]
CHOICES = [" yes", " no, it is not", " 7"]


def requests(kind: Any, *arguments: tuple, task: str = "t") -> list[Instance]:
    return [Instance(kind, {}, args, i, (task, i, 1)) for i, args in enumerate(arguments)]


PAIRS = requests("loglikelihood", *((context, choice) for context in CONTEXTS for choice in CHOICES), ("", "empty"))
TEXTS = requests("loglikelihood_rolling", ("A text of some length.",), ("x" * 700,))


@pytest.fixture
def ours(base_directory: Path, make_pool):
    pool = make_pool(base_directory)

    def make(**arguments: Any) -> GliderLM:
        return GliderLM(base=str(base_directory), pool=str(pool.path), **arguments)

    return make


@pytest.fixture
def theirs(base_directory: Path) -> HFLM:
    return HFLM(pretrained=str(base_directory), device="cpu", batch_size=2, dtype="float32", max_length=512)


def test_the_bare_base_scores_as_the_harness_own_model(ours, theirs: HFLM) -> None:
    got = ours(router="base", batch_size=2).loglikelihood(PAIRS, disable_tqdm=True)
    wanted = theirs.loglikelihood(PAIRS, disable_tqdm=True)
    assert [value for value, _ in got] == pytest.approx([value for value, _ in wanted], abs=5e-3, rel=1e-4)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in wanted]


def test_a_tokenizer_that_begins_texts_scores_as_the_harness_own_model(
    llama_directory: Path, tmp_path: Path, make_pool
) -> None:
    told = shutil.copytree(llama_directory, tmp_path / "begins")
    tokenizer = AutoTokenizer.from_pretrained(told)
    tokenizer.bos_token = tokenizer.eos_token
    begin = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = begin
    tokenizer.save_pretrained(told)
    assert AutoTokenizer.from_pretrained(told)("a")["input_ids"][0] == tokenizer.bos_token_id
    ours = GliderLM(base=str(told), pool=str(make_pool(told).path), router="base")
    theirs = HFLM(pretrained=str(told), device="cpu", dtype="float32")
    for kind, asked in (("loglikelihood", PAIRS), ("loglikelihood_rolling", TEXTS)):
        got, wanted = (getattr(model, kind)(asked, disable_tqdm=True) for model in (ours, theirs))
        flat = [[value if isinstance(value, float) else value[0] for value in values] for values in (got, wanted)]
        assert flat[0] == pytest.approx(flat[1], rel=1e-3), kind
    settings = {"until": [], "max_gen_toks": 6}
    asked = requests("generate_until", *((context, settings) for context in CONTEXTS))
    assert ours.generate_until(asked, disable_tqdm=True) == theirs.generate_until(asked, disable_tqdm=True)


@pytest.fixture
def merging(llama_directory: Path, tmp_path: Path) -> Path:
    """The tiny Llama with a tokenizer that makes one token of "(" and ")"."""
    told = shutil.copytree(llama_directory, tmp_path / "merging")
    content = json.loads((told / "tokenizer.json").read_text("utf8"))
    vocabulary = content["model"]["vocab"]
    gone = next(letter for letter, token in vocabulary.items() if token == 200)
    del vocabulary[gone]
    content["model"] |= {"vocab": {**vocabulary, "()": 200}, "merges": [["(", ")"]]}
    (told / "tokenizer.json").write_text(json.dumps(content), "utf8")
    return told


def test_a_token_that_spans_context_and_continuation_leaves_it_its_own_tokens(merging: Path, make_pool) -> None:
    model = GliderLM(base=str(merging), pool=str(make_pool(merging).path), router="base")
    assert model.tokenizer("()")["input_ids"] == [200]
    pairs = requests("loglikelihood", ("It is (", ")"), ("It is (", "A)"), ("It is (", "B)"))
    for asked in (pairs, pairs[:1]):
        got = model.loglikelihood(asked, disable_tqdm=True)
        inside = model.tokenizer("It is (")["input_ids"], model.tokenizer(")")["input_ids"]
        with torch.no_grad():
            logits = model.routed.model(input_ids=torch.tensor([inside[0]])).logits[0, -1].log_softmax(-1)
        assert got[0][0] == pytest.approx(logits[inside[1][0]].item(), abs=1e-4)
        assert got[0][0] < 0
    with pytest.raises(QueryError, match="a continuation with tokens"):
        model.loglikelihood(requests("loglikelihood", ("It is", "")), disable_tqdm=True)


def test_a_system_turn_that_a_template_refuses_is_left_out(ours) -> None:
    model = ours(router="base")
    model.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}"
    )
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    with pytest.warns(GliderWarning, match="System role not supported"):
        assert model.apply_chat_template(turns) == "<u>hi</u>"
    form = PromptFormat(kind="chat", system="Be brief.")
    with pytest.warns(GliderWarning, match="left out"):
        ids = form.prompt_ids(model.tokenizer, "hi")
    assert ids == model.tokenizer("<u>hi</u>", add_special_tokens=False)["input_ids"]


def test_the_bare_base_reads_texts_as_the_harness_own_model(ours, theirs: HFLM) -> None:
    got = ours(router="base", max_length=512).loglikelihood_rolling(TEXTS, disable_tqdm=True)
    assert got == pytest.approx(theirs.loglikelihood_rolling(TEXTS, disable_tqdm=True), rel=1e-3)


def test_the_bare_base_writes_as_the_harness_own_model(ours, theirs: HFLM) -> None:
    first = theirs.generate_until(requests("generate_until", (CONTEXTS[0], {"until": [], "max_gen_toks": 8})), True)[0]
    stop = first[len(first) // 2 :][:1] or "x"  # a letter it is known to write
    asked = requests(
        "generate_until", *((context, {"until": [stop], "max_gen_toks": 8}) for context in CONTEXTS),
    )  # fmt: skip
    got = ours(router="base", batch_size=2).generate_until(asked, disable_tqdm=True)
    assert got == theirs.generate_until(asked, disable_tqdm=True)
    assert got[0] == first.split(stop)[0]


@pytest.mark.parametrize("context", ["def f():\n", "Is it so? Answer:"])
def test_a_stop_string_does_not_begin_in_the_prompt(ours, theirs: HFLM, context: str) -> None:
    (first,) = theirs.generate_until(requests("generate_until", (context, {"until": [], "max_gen_toks": 8})), True)
    asked = requests("generate_until", (context, {"until": [context[-1] + first[:1]], "max_gen_toks": 8}))
    got = ours(router="base").generate_until(asked, disable_tqdm=True)
    assert got == theirs.generate_until(asked, disable_tqdm=True) == [first]


def test_requests_of_one_context_share_it_and_score_as_alone(ours) -> None:
    model = ours(router="glider", p=-1.0, batch_size=3)
    embeddings = model.routed.model.get_input_embeddings()
    rows: list[int] = []
    model.loglikelihood(PAIRS, disable_tqdm=True)  # what the model may share is tried
    hook = embeddings.register_forward_hook(lambda _, told, __: rows.append(len(told[0])))
    together = model.loglikelihood(PAIRS, disable_tqdm=True)
    hook.remove()
    # three contexts in a pass, their continuations in another; the last context has one, in one pass with it
    assert rows == [3, 9, 1] or model.encoder_decoder  # (T5's halves have embeddings of their own)
    alone = [model.loglikelihood([request], disable_tqdm=True)[0] for request in PAIRS]
    assert [value for value, _ in together] == pytest.approx([value for value, _ in alone], abs=5e-3, rel=1e-4)


def test_the_pools_own_prompt_form_scores_as_the_library(ours) -> None:
    model = ours(prompt="pool")
    scored = model.routed.score(CONTEXTS[0], [choice.strip() for choice in CHOICES])
    got = model.loglikelihood(PAIRS[:3], disable_tqdm=True)
    assert [value for value, _ in got] == pytest.approx([s.log_likelihood for s in scored], abs=2e-3)


def test_a_tasks_description_is_the_query_of_its_requests(ours, tmp_path: Path) -> None:
    told = tmp_path / "descriptions.json"
    told.write_text(json.dumps({"t": "Answer yes or no."}))
    model = ours(prompt="pool", descriptions=str(told), p=-1.0)
    query = Query(CONTEXTS[0], description="Answer yes or no.")
    (wanted,) = model.routed.score(query, ["yes"])
    [(got, _)] = model.loglikelihood(PAIRS[:1], disable_tqdm=True)
    assert got == pytest.approx(wanted.log_likelihood, abs=2e-3)
    assert got != pytest.approx(model.routed.score(CONTEXTS[0], ["yes"])[0].log_likelihood, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "fault", "told"),
    [
        ({"prompt": "own"}, ConfigError, "prompt=own"),
        ({"dtype": "float99"}, ConfigError, "float99"),
        ({"temper": 1}, RouterError, "temper"),
        ({"expert_memory": "8B"}, ConfigError, "one expert .* got 8 bytes"),
    ],
)
def test_faults_of_the_arguments_are_told(ours, arguments: dict, fault: type[Exception], told: str) -> None:
    with pytest.raises(fault, match=told):
        ours(**arguments)


@pytest.mark.slow
def test_the_command_runs_our_tasks_in_the_harness(make_pool, llama_directory, tmp_path, glider) -> None:
    pool = make_pool(llama_directory)
    rows = [{"input": f"is {i} even?", "output": ("yes", "no")[i % 2], "choices": ["yes", "no"]} for i in range(6)]
    texts = [{"input": f"say {i}", "output": f"it is {i}", "split": "test"} for i in range(3)]
    for name, lines in {"even": [{**row, "split": "test"} for row in rows], "say": texts}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    configs, results = tmp_path / "configs", tmp_path / "results"
    files = [str(tmp_path / "even.jsonl"), str(tmp_path / "say.jsonl")]
    model_args = f"base={llama_directory},pool={pool.path},router=glider,prompt=pool,p=0.5"
    commands = [
        ["lm-eval-tasks", *files, "--out", str(configs)],
        ["lm-eval", "--model", "glider", "--model_args", model_args, "--tasks", "even,say", "--include_path",
         str(configs), "--output_path", str(results), "--log_samples", "--batch_size", "4"],  # the harness names a GPU
    ]  # fmt: skip
    ended = [glider(*command) for command in commands]
    assert [one.code for one in ended] == [0, 0]
    (found,) = results.rglob("results_*.json")
    told = json.loads(found.read_text())["results"]
    model = load(str(llama_directory), pool.path, p=0.5)
    right = 0
    for row in rows:
        best = max(model.score(row["input"], row["choices"]), key=lambda choice: choice.log_likelihood)
        right += best.choice == row["output"]
    assert told["even"]["acc,none"] == pytest.approx(right / 6)
    (samples,) = results.rglob("samples_say_*.jsonl")
    answers = [json.loads(line)["filtered_resps"][0] for line in samples.read_text().splitlines()]
    scores = [score_text("rougeL", answer, (row["output"],)) for answer, row in zip(answers, texts, strict=True)]
    assert told["say"]["rougeL,none"] == pytest.approx(sum(scores) / 3)
    config = json.loads(found.read_text())["config"]["glider"]
    assert config["hashes"] == {"pool": pool_hash(pool), "base": pool.index.base.hash}
    assert (config["router"]["router"], config["router"]["p"], config["prompt"]) == ("glider", 0.5, "pool")
    assert config["experts"] == pool.names and "glider-moe" in config["versions"]
    printed = ended[-1].out
    assert "even" in printed and "|Tasks|" in printed.replace(" ", "")


def test_a_task_of_ours_runs_on_another_model_of_the_harness(llama_directory: Path, tmp_path: Path) -> None:
    rows = [{"input": "a?", "output": "b", "choices": ["b", "c", "d"], "targets": ["b", "c"]}, {"input": "e?"}]
    rows[1] |= {"output": "d", "choices": ["b", "c", "d"]}
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_tasks([tmp_path / "two.jsonl"], tmp_path / "configs", split=None)
    told = simple_evaluate(
        model=HFLM(pretrained=str(llama_directory), device="cpu"),
        tasks=["two"],
        task_manager=TaskManager(include_path=str(tmp_path / "configs"), include_defaults=False),
        bootstrap_iters=0,
    )
    assert told is not None
    right = []
    for sample, gold in zip(told["samples"]["two"], ({"b", "c"}, {"d"}), strict=True):
        likelihoods = [float(answer[0]) for answer in sample["filtered_resps"]]
        right.append("bcd"[likelihoods.index(max(likelihoods))] in gold)
    assert told["results"]["two"]["acc,none"] == sum(right) / 2


def test_what_is_done_is_cached_where_the_rest_is_interrupted(ours) -> None:
    """The harness's `--use_cache`."""
    model, kept = ours(router="base"), []
    model.cache_hook = SimpleNamespace(add_partial=lambda kind, args, result: kept.append((kind, args, result)))
    whole = model.loglikelihood(PAIRS, disable_tqdm=True)
    assert sorted(result for _, _, result in kept) == sorted(whole)
    assert all(
        whole[PAIRS.index(request)] == result for request in PAIRS for _, args, result in kept if args == request.args
    )
    kept.clear()
    short = requests("loglikelihood_rolling", *((f"text {i}",) for i in range(6)))
    calls = []

    def break_off(*_: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    hook = model.routed.model.get_output_embeddings().register_forward_pre_hook(break_off)
    for kind, asked in (("loglikelihood", PAIRS), ("loglikelihood_rolling", short)):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            getattr(model, kind)(asked, disable_tqdm=True)
        assert 0 < sum(found == kind for found, _, _ in kept) < len(asked), kind
    hook.remove()


def test_a_continuation_beyond_the_model_is_refused(llama_directory: Path, make_pool) -> None:
    model = GliderLM(base=str(llama_directory), pool=str(make_pool(llama_directory).path), router="base")
    assert model.max_length == 512
    with pytest.raises(QueryError, match="at most 512 tokens"):
        model.loglikelihood(requests("loglikelihood", ("a", " " + "b" * 513)), disable_tqdm=True)


def test_the_limit_of_a_nested_config_is_found(llama_directory: Path, tmp_path: Path, make_pool) -> None:
    told = shutil.copytree(llama_directory, tmp_path / "gemma")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 259, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 2048}
    config = Gemma3Config(
        text_config=text, vision_config={**sizes, "image_size": 28, "patch_size": 14}, image_token_index=258
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(told)
    model = GliderLM(base=str(told), pool=str(make_pool(told).path), router="phatgoose")
    assert model.max_length == model.routed.encoder.context == 2048


def test_contexts_of_generation_are_cut_to_max_length(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory)
    lm = GliderLM(base=str(llama_directory), pool=str(pool.path), router="phatgoose", max_length=24)
    text = "a text of more letters than the model may see"
    settings = {"until": [], "max_gen_toks": 4}

    def ask(context: str) -> str:
        return lm.generate_until([Instance("generate_until", {}, (context, settings), 0)], disable_tqdm=True)[0]

    assert ask(text) == ask("other letters before the end: " + text)
    assert lm.routed.encoder.batch(lm.routed.encoder.rows([text], True, 4))["input_ids"].shape == (1, 20)
    assert isinstance(ask("  "), str)  # nothing but spaces is asked as nothing is


def test_a_task_that_is_not_there_is_told_in_a_line() -> None:
    """It was a traceback of the harness's."""
    from glider.evaluation.lm_eval_model import main as run

    with pytest.raises(ConfigError, match=r"got Tasks not found: no_such_task\. Check --tasks"):
        run(["--model", "glider", "--tasks", "no_such_task"])
