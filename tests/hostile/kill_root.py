"""What the killed commands work on: a base model, a pool, rows, a plan, a run, results, keys."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

import glider.contribute.adopt
import glider.sharing.signature
from glider.contribute.settings import TrainConfig
from glider.experts.membership import add_expert

V01 = Path(__file__).parents[1] / "fixtures" / "v0.1"
TEMPORARY = "temporary"  # stands for the system's own directory of temporary files, which the system clears


def make_root(root: Path) -> None:
    """A base model, a pool of two experts and one beside it, rows, a plan, a run, a key."""
    shutil.copytree(V01 / "base", root / "base")
    byte_tokenizer().save_pretrained(root / "base")
    shutil.copytree(V01 / "pool", root / "pool")
    shutil.copytree(V01 / "pool" / "reviews", root / "pool" / "extra")
    card = root / "pool" / "extra" / "card.json"
    card.write_text(card.read_text("utf8").replace('"name": "reviews"', '"name": "extra"'), "utf8")
    rows = [
        {"input": f"say {i} words", "output": "x", "choices": ["x", "y"], "split": "train" if i < 16 else "val"}
        for i in range(36)
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    shutil.copytree(V01 / "pool" / "reviews", root / "pool" / "bare")
    for file in ("card.json", "glider.safetensors"):
        (root / "pool" / "bare" / file).unlink()
    (root / TEMPORARY).mkdir()
    (root / "tasks").mkdir()
    for name in ("reviews", "places"):
        shutil.copy(root / "rows.jsonl", root / "tasks" / f"{name}.jsonl")
    _make_published(root)
    _make_results(root / "results")
    for name in ("reviews", "trivia"):  # of more rows than the fixture's
        settings = TrainConfig(validation=20)
        glider.contribute.adopt.make_profile(root / "pool" / name, root / "rows.jsonl", str(root / "base"), settings)
        add_expert(root / "pool", name)
    plan = {
        "base": str(root / "base"),
        "experts": [{"name": "made", "adapter": "pool/trivia", "description": "Name places."}],
    }
    (root / "plan.yaml").write_text(json.dumps(plan), "utf8")
    run = {"pool": "pool", "base": str(root / "base"), "split": None, "routers": ["base", "phatgoose"]}
    (root / "run.yaml").write_text(json.dumps({**run, "sets": {"s": {"tasks": ["rows.jsonl"]}}}), "utf8")
    glider.sharing.signature.generate_keys(root / "key", root / "key.pub")


def _make_published(root: Path) -> None:
    """A tiny T5, and two experts as the published checkpoints have them."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 259}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1))
    model.save_pretrained(root / "t5")
    byte_tokenizer().save_pretrained(root / "t5")
    site = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_"
    (root / "published").mkdir()
    for name in ("one", "two"):
        pair = {f"{site}A.default.weight": torch.randn(2, 32), f"{site}B.default.weight": torch.randn(32, 2)}
        torch.save({**pair, f"{site}gate.default": torch.randn(32)}, root / "published" / f"{name}_best.pt")


def _make_results(folder: Path) -> None:
    """Cells of two routers, and the numbers of a picture."""
    for router, scores in (("base", (1.0, 0.0)), ("phatgoose", (1.0, 1.0))):
        rows = [{"place": place, "score": score} for place, score in enumerate(scores)]
        config = {"base": "tiny", "dtype": "float32", "task": {"split": None}}
        head = {"format": 1, "key": router, "router": router, "set": "near", "task": "a", "guess": 0.5}
        tail = {"config": config, "hashes": {"pool": "ab" * 32, "data": "cd"}, "versions": {"torch": "2"}}
        (folder / router / "near").mkdir(parents=True)
        (folder / router / "near" / "a.json").write_text(json.dumps({**head, "results": rows, **tail}), "utf8")
    task = {"task": "a", "group": "near", "rows": 1, "own": None, "weights": [[0.5, 0.5]]}
    routing = {"format": 1, "router": "r", "experts": ["a", "b"], "sites": ["s"], "tasks": [task]}
    (folder / "routing.json").write_text(json.dumps(routing), "utf8")


def byte_tokenizer() -> Any:
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    vocabulary |= {letter: 3 + i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
