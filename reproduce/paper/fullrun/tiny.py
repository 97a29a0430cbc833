"""The whole procedure on random weights: downloads in the published layout, rows in the hub's fields, both made up.

Nothing here says anything about quality. It shows that import, rows, every router, scoring and resumption work.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from fullrun.notes import noted
from fullrun.plan import Method, Plan, PoolSource, PromptedSource, TaskSet, TaskSource
from fullrun.prompts import Prompt
from fullrun.readers import HubRow
from fullrun.sources import BBH, BIG_BENCH, P3
from fullrun.tiny_training import tiny_training
from glider.files.disk import write_json

_ROWS = 8  # of every made-up split
_MOST = 3  # that are evaluated
_WORDS = ["red", "blue", "green", "stone", "river", "cloud", "dog", "bird", "house", "tree"]


def tiny_plan(plan: Plan, downloads: Path) -> Plan:
    """The plan with a task for each way of scoring in each set, few rows, and tiny pools; writes their downloads.

    Of a training it has a task of each source, and two steps.
    """
    sets = _fewer(plan.sets)
    experts = [*sets["t0-heldin"].tasks]
    assert all(tasks.tasks for tasks in sets.values())
    base = _write_downloads(plan.pools, sets, experts, downloads)
    pools = {}
    for name, pool in plan.pools.items():
        update: dict[str, Any] = {"base": str(base)}
        if pool.checkpoint and pool.embeddings:
            update["experts"] = len(experts)
        pools[name] = pool.model_copy(update=update)
    cells = tuple(replace(cell, method=_cheaper(cell.method), published=None) for cell in plan.cells)
    trainings = tuple(tiny_training(training, downloads) for training in plan.trainings)
    return Plan(pools, sets, cells, plan.titles, trainings)


def _write_downloads(
    pools: Mapping[str, PoolSource], sets: Mapping[str, TaskSet], experts: Sequence[str], downloads: Path
) -> Path:
    """What is downloaded otherwise, written once: another rehearsal beside this one may be reading it. The base."""
    downloads.mkdir(parents=True, exist_ok=True)
    marker, base = downloads / "made-up.json", downloads / "tiny-t5"
    expected = {
        "sets": {name: [tasks.queries, list(tasks.tasks)] for name, tasks in sets.items()},
        "pools": {name: [pool.checkpoint, pool.embeddings, list(pool.without)] for name, pool in pools.items()},
        "experts": list(experts),
    }
    with FileLock(downloads / "made-up.lock"):
        if noted(marker) == expected:
            return base
        write_base(base)
        for tasks in sets.values():
            _write_embeddings(downloads / tasks.queries, [*tasks.tasks, *_kept(downloads / tasks.queries)])
        for pool in pools.values():
            if pool.checkpoint and pool.embeddings:
                _write_checkpoint(downloads / pool.checkpoint, base, [*experts, *pool.without])
                _write_embeddings(downloads / pool.embeddings, experts)
        write_json(marker, expected)
    return base


def made_up(name: str, config: str | None, split: str, most: int | None) -> Sequence[HubRow]:
    """Rows in the documented fields of the data set `name`, the same at every call."""
    chance = random.Random(f"{name} {config} {split}")
    return [_ROW[name](chance) for _ in range(_ROWS if most is None else most)]


def made_up_prompts(directory: str) -> Mapping[str, Prompt]:
    """Any template of a data set: it shows the fields that promptsource's show, in words of its own."""
    jinja, choices = _PROMPTS[directory]
    return _AnyName({"": Prompt("", jinja, choices)})


class _AnyName(dict[str, Prompt]):
    """The same template under every name."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Prompt:
        return replace(self[""], name=name)


def _p3(chance: random.Random) -> HubRow:
    choices = chance.sample(_WORDS, 2)
    return {
        "inputs": [3, 1],
        "inputs_pretokenized": f"Which of {' and '.join(choices)} is it?\n{_text(chance)}",
        "targets": [3, 1],
        "targets_pretokenized": f"\n{chance.choice(choices)}",
        "answer_choices": choices,
    }


def _bigbench(chance: random.Random) -> HubRow:
    choices = chance.sample(_WORDS, 3)
    return {
        "idx": chance.randrange(1000),
        "inputs": _text(chance),
        "targets": [choices[0]],
        "multiple_choice_targets": choices,
        "multiple_choice_scores": [1, 0, 0],
    }


def _bbh(chance: random.Random) -> HubRow:
    return {"input": _text(chance), "target": "True"}


def _trec(chance: random.Random) -> HubRow:
    return {"text": _text(chance), "coarse_label": chance.randrange(6), "fine_label": chance.randrange(50)}


def _story(chance: random.Random) -> HubRow:
    sentences = {f"input_sentence_{i}": _text(chance) for i in range(1, 5)}
    return {**sentences, "sentence_quiz1": "It rained.", "sentence_quiz2": "It snowed.", "answer_right_ending": 2}


def _commonsense(chance: random.Random) -> HubRow:
    choices = {"label": list("ABCDE"), "text": chance.sample(_WORDS, 5)}
    return {"id": "1", "question": _text(chance), "question_concept": "it", "choices": choices, "answerKey": "B"}


def _passage(chance: random.Random) -> HubRow:
    """Of ropes, quoref and adversarial_qa."""
    texts = {name: _text(chance) for name in ("background", "situation", "context", "question", "title")}
    return {**texts, "answers": {"text": chance.sample(_WORDS, 2), "answer_start": [0, 4]}}


def _plot(chance: random.Random) -> HubRow:
    known = chance.random() < 0.5
    texts = {name: _text(chance) for name in ("plot", "title", "question")}
    return {**texts, "answers": chance.sample(_WORDS, 2) if known else [], "no_answer": not known}


def _hotpot(chance: random.Random) -> HubRow:
    context = {"title": ["one", "two"], "sentences": [[_text(chance)], [_text(chance)]]}
    facts = {"title": ["one"], "sent_id": [0]}
    return {"question": _text(chance), "answer": chance.choice(_WORDS), "supporting_facts": facts, "context": context}


_ROW = {P3: _p3, BIG_BENCH: _bigbench, BBH: _bbh, "CogComp/trec": _trec, "MoE-UNC/story_cloze": _story}
_ROW |= {"tau/commonsense_qa": _commonsense, "ibm-research/duorc": _plot, "hotpotqa/hotpot_qa": _hotpot}
_ROW |= dict.fromkeys(("allenai/ropes", "allenai/quoref", "UCLNLP/adversarial_qa"), _passage)
_PASSAGE = "{{ question }} {{ situation }} {{ context }} ||| {{ answers.text | choice }}"
_PROMPTS: dict[str, tuple[str, str | None]] = {
    "story_cloze/2016": (
        "{{ input_sentence_1 }} {{ answer_choices | join(' or ') }} ||| {{ answer_choices[answer_right_ending - 1] }}",
        "{{ sentence_quiz1 }} ||| {{ sentence_quiz2 }}",
    ),
    "commonsense_qa": (
        "{{ question }} ||| {{ answer_choices[choices['label'].index(answerKey)] }}",
        "{{ choices.text | join('|||') }}",
    ),
    "duorc/ParaphraseRC": (
        "{{ question }} {{ plot }} ||| {% if no_answer %}None{% else %}{{ answers | choice }}{% endif %}",
        None,
    ),
    "hotpot_qa/fullwiki": ("{{ question }} {{ context.sentences[0][0] }} ||| {{ answer }}", None),
    **dict.fromkeys(("ropes", "quoref", "adversarial_qa/adversarialQA"), (_PASSAGE, None)),
}


def _text(chance: random.Random) -> str:
    return " ".join(chance.choice(_WORDS) for _ in range(6)) + "."


def _fewer(sets: Mapping[str, TaskSet]) -> dict[str, TaskSet]:
    """Of each set the first task of each kind."""
    small = {}
    for set_name, tasks in sets.items():
        kinds, kept = set(), {}
        for name, task in tasks.tasks.items():
            kind = (*kind_of(task), tasks.templates)
            if kind not in kinds:
                kinds.add(kind)
                kept[name] = smaller(task)
        small[set_name] = tasks.model_copy(update={"tasks": kept, "most": _MOST})
    return small


def kind_of(task: TaskSource) -> tuple[Any, ...]:
    """What the steps of a run tell apart: source, metrics, place of few-shot rows, and the names of its configs."""
    ending, parts = getattr(task, "ending", ""), getattr(task, "parts", ())
    return type(task), task.metrics, task.train is None, task.last is None, bool(ending), len(parts) > 1


def smaller(task: TaskSource) -> TaskSource:
    """A task with two templates, short texts and answers."""
    update: dict[str, Any] = {"max_length": 6} if task.max_length else {}
    update |= {"last": _MOST} if task.last else {}
    if hasattr(task, "templates"):
        update["templates"] = task.templates[:2]  # pyright: ignore
    if isinstance(task, PromptedSource):
        update["max_input"] = 64
    return task.model_copy(update=update)


def _cheaper(method: Method) -> Method:
    if method.router != "lorahub":
        return method
    return method.model_copy(update={"settings": {**method.settings, "budget": 3}, "fewshot": 2})


def write_base(path: Path, decoder: bool = False) -> Path:
    """A random T5 of one block a side, or a Llama of two blocks, with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        T5Config,
        T5ForConditionalGeneration,
    )

    if path.exists():
        return path
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocabulary |= {letter: 3 + i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(path)
    sizes: dict[str, Any] = {"vocab_size": 259, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 1}
    sizes |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if not decoder:
            T5ForConditionalGeneration(T5Config(**sizes)).eval().save_pretrained(path)
            return path
        sizes = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 1}
        LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=0)).eval().save_pretrained(path)
    return path


def _write_checkpoint(path: Path, base: Path, names: Sequence[str]) -> None:
    """Random experts as `<task>_best.pt`: LoRA pairs, gates, and the two copies of `embed_tokens`."""
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(base)
    path.mkdir(parents=True, exist_ok=True)
    linear = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"}
    for name in names:
        chance = torch.Generator().manual_seed(sum(map(ord, name)))
        tensors = {
            f"base_model.model.{side}.embed_tokens.weight": model.get_input_embeddings().weight.detach().clone()
            for side in ("encoder", "decoder")
        }
        for site, module in linear.items():
            shapes = {
                "lora_A.default.weight": (4, module.in_features),
                "lora_B.default.weight": (module.out_features, 4),
                "lora_gate.default": (module.in_features,),
            }
            for part, shape in shapes.items():
                tensors[f"base_model.model.{site}.{part}"] = torch.randn(shape, generator=chance)
        torch.save(tensors, path / f"{name}_best.pt")


def _write_embeddings(path: Path, names: Sequence[str]) -> None:
    """Random instruction embeddings, two wordings of each BIG-bench task."""
    chance = torch.Generator().manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    told: Mapping[str, torch.Tensor] = {
        name: torch.randn((2, 768) if name.startswith("bb") else (768,), generator=chance)
        for name in sorted(set(names))
    }
    torch.save(told, path)


def _kept(path: Path) -> list[str]:
    """The tasks of a file that sets share."""
    return list(torch.load(path, weights_only=True)) if path.exists() else []
