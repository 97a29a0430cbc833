"""Every reader of files that a stranger may have written, with the files that it reads."""

import gzip
import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from kill_root import byte_tokenizer
from transformers import AutoModelForCausalLM

from glider.batch.prompts import read_prompts
from glider.contribute.adopt import import_adapter
from glider.contribute.build import PoolPlan
from glider.contribute.published_format import open_checkpoint, read_embeddings
from glider.contribute.states import like, read_state, restoring, write_state
from glider.data.rows import read_rows
from glider.errors import RouterError
from glider.evaluation.run_plan import RunPlan, read_descriptions
from glider.experts.card import ExpertCard
from glider.experts.expert import Expert
from glider.experts.index import parsed_index, read_pool_file, write_index
from glider.experts.peft_format import base_name, read_layout
from glider.experts.pool import Pool
from glider.experts.router_files import put_router, read_router
from glider.files.opening import read_bytes, sha256
from glider.files.tensor_file import TensorFile
from glider.inference.base_model import BaseModel, load_base
from glider.layers.attach import Storage, attach
from glider.report.cells import Results
from glider.report.paper import _read
from glider.report.report_plan import ReportPlan
from glider.report.routing_map import RoutingMap
from glider.routing.signals.base import signals
from glider.routing.specification import router_from
from glider.serve.keys import Keys
from glider.sharing.signature import generate_keys, sign_pool
from glider.verdicts.background import Background
from glider.verdicts.contest import Contest

V01 = Path(__file__).parents[1] / "fixtures" / "v0.1"
_LARGEST = 16 << 20  # bytes
_ROUTED = 0.1  # of the accepted pools
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer_config.json")
_ADAPTER += ("added_tokens.json", "special_tokens_map.json", "chat_template.json", "tokenizer.json")


@dataclass(frozen=True)
class Reader:
    """What reads a directory in which one of `files` was changed."""

    files: tuple[str, ...]
    read: Callable[[Path, random.Random], object]
    directory: Path
    prepare: Callable[[Path, random.Random], None] = lambda path, chance: None  # after the change


def readers(seeds: Path) -> dict[str, Reader]:
    """All of them by name; what they read is made under `seeds`, if it is not there yet."""
    old, new, signed, trained, files = (seeds / name for name in ("old", "new", "signed", "trained", "files"))
    if not (seeds / "adapter").exists():
        shutil.rmtree(seeds, ignore_errors=True)  # of a version that had fewer of them
        partial = seeds.with_name(f"{seeds.name}.making")
        shutil.rmtree(partial, ignore_errors=True)
        _make_seeds(partial)
        partial.rename(seeds)
    expert = ("card.json", "adapter_config.json", "adapter_model.safetensors", "glider.safetensors")
    pool = ("pool.json", *(f"{name}/{file}" for name in ("reviews", "trivia") for file in expert))
    loaded = load_base(str(seeds / "base"))
    base = AutoModelForCausalLM.from_pretrained(V01 / "base").eval()

    def opened(path: Path, chance: random.Random) -> None:
        made = Pool.open(path)
        made.verify(adapters=chance.random() < 0.7)
        for name in ("examples", "hidden", "ensemble", "instruction"):
            with suppress(RouterError):
                signals.create(name).prepare(made)
        if chance.random() < _ROUTED:
            _route(base, made, chance)

    return {
        "pool of format 1": Reader(pool, opened, old, _resign),
        "pool of format 2": Reader(pool, opened, new, _resign),
        "signed pool": Reader(("pool.json", "pool.json.sig", "key.pub", *pool[1:]), _signed, signed),
        "expert": Reader(expert, _expert, old / "reviews"),
        "card": Reader(("card.json",), lambda path, chance: ExpertCard.read(path), old / "reviews"),
        "layout": Reader(("adapter_config.json",), _layout, old / "reviews"),
        "rows": Reader(("rows.jsonl",), lambda path, chance: read_rows(path / "rows.jsonl", "test"), files),
        "packed rows": Reader(("rows.jsonl.gz",), lambda path, chance: read_rows(path / "rows.jsonl.gz"), files),
        "descriptions": Reader(("told.json",), lambda path, chance: read_descriptions(path / "told.json"), files),
        "pool plan": Reader(("pool.yaml",), lambda path, chance: PoolPlan.read(path / "pool.yaml"), files),
        "run": Reader(("run.yaml",), lambda path, chance: RunPlan.read(path / "run.yaml"), files),
        "report": Reader(("report.yaml",), lambda path, chance: ReportPlan.read(path / "report.yaml"), files),
        "results": Reader(("results/a.json",), lambda path, chance: Results.read(path / "results"), files),
        "table": Reader(("rows.csv",), lambda path, chance: read_rows(path / "rows.csv"), files),
        "prompts": Reader(("rows.jsonl",), lambda path, chance: read_prompts(path / "rows.jsonl", {}), files),
        "routing map": Reader(("routing.json",), _map, files),
        "state": Reader(("state.safetensors",), _state, files),
        "adapter": Reader(_ADAPTER, lambda path, chance: _import(path, loaded), seeds / "adapter"),
        "background": Reader(("background.safetensors",), _background, files),
        "trained router": Reader(("pool.json", "routers/vq.safetensors"), _trained, trained, _resign_router),
        "server's keys": Reader(("keys.json",), lambda path, chance: Keys.read(str(path / "keys.json"), ["p"]), files),
        "checkpoint": Reader(("t_best.pt",), lambda path, chance: _checkpoint(path / "t_best.pt"), files),
        "embeddings": Reader(("nomic.pt",), lambda path, chance: read_embeddings(path / "nomic.pt"), files),
    }


def _make_seeds(seeds: Path) -> None:
    shutil.copytree(V01 / "pool", seeds / "old")
    shutil.copytree(V01 / "pool", seeds / "new")
    index = parsed_index(read_pool_file(seeds / "new"), seeds / "new" / "pool.json")
    records = [
        record.model_copy(update={"files": Expert.open(seeds / "new" / record.home).record()})
        for record in index.experts
    ]
    write_index(seeds / "new", index.model_copy(update={"experts": tuple(records)}))
    shutil.copytree(seeds / "new", seeds / "signed")
    generate_keys(seeds / "signed" / "key", seeds / "signed" / "key.pub")
    sign_pool(seeds / "signed", seeds / "signed" / "key")
    shutil.copytree(seeds / "new", seeds / "trained")
    put_router(
        Pool.open(seeds / "trained"), "vq", {"codes": torch.ones(3, 4), "experts": torch.ones(3)}, {"steps": 1.0}
    )
    files = seeds / "files"
    (files / "results").mkdir(parents=True)
    rows = [{"input": f"2+{i}", "output": str(i), "choices": [str(i), "x"], "split": "test"} for i in range(6)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (files / "rows.jsonl").write_text(lines, "utf8")
    (files / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    Background.of([["say words", "name a colour"], ["add numbers"]], judged=2).save(files / "background.safetensors")
    keys = {"keys": [{"name": "k", "sha256": "0" * 64, "pools": ["p"], "rights": ["ask"], "max_streams": 1}]}
    (files / "keys.json").write_text(json.dumps(keys), "utf8")
    (files / "told.json").write_text(json.dumps({"a": "Add numbers.", "b": "Name colours."}), "utf8")
    plans: dict[str, Any] = {
        "pool": {"base": "b", "defaults": {"rank": 4}, "experts": [{"name": "e", "data": "rows.jsonl"}]},
        "run": {"routers": ["base", {"router": "glider", "settings": {"top_k": 1}}], "sets": {"s": {"tasks": ["t"]}}},
        "report": {"title": "A report"},
    }
    for name, plan in plans.items():
        (files / f"{name}.yaml").write_text(yaml.safe_dump(plan), "utf8")
    (files / "rows.csv").write_text("input,output,choices\n" + 'say a,b,"[""a"", ""b""]"\n' * 4, "utf8")
    task = {"task": "a", "group": "near", "rows": 1, "own": None, "weights": [[0.5, 0.5]]}
    routing = {"format": 1, "router": "r", "experts": ["a", "b"], "sites": ["s"], "tasks": [task]}
    (files / "routing.json").write_text(json.dumps(routing), "utf8")
    write_state(files / "state.safetensors", {"codes": torch.ones(3, 4)}, {"step": 3, "losses": [0.5, 0.25]})
    _make_adapter(seeds)
    parts = {"format": 1, "key": "k", "router": "r", "set": "s", "task": "t", "config": {}, "hashes": {}}
    (files / "results" / "a.json").write_text(json.dumps({**parts, "results": [{"place": 0, "score": 1.0}]}), "utf8")
    site = "base_model.model.encoder.block.0.layer.0.SelfAttention.q"
    tensors = {f"{site}.lora_A.default.weight": torch.ones(2, 4), f"{site}.lora_B.default.weight": torch.ones(4, 2)}
    torch.save(tensors, files / "t_best.pt")
    torch.save({"t": torch.ones(768)}, files / "nomic.pt")


def _make_adapter(seeds: Path) -> None:
    """A base with a tokenizer, and an adapter with all that may lie beside one."""
    shutil.copytree(V01 / "base", seeds / "base")
    byte_tokenizer().save_pretrained(seeds / "base")
    adapter = seeds / "adapter"
    adapter.mkdir()
    for name in _ADAPTER[:2]:
        shutil.copy(V01 / "pool" / "reviews" / name, adapter)
    shutil.copy(seeds / "base" / "tokenizer.json", adapter)
    (adapter / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}")
    named = [{"name": "default", "template": "{{ messages[0].content }}"}]
    tokens = {"added_tokens_decoder": {"5": {"content": "<new>", "special": True}}, "eos_token": {"content": "<eos>"}}
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": named, **tokens}), "utf8")
    (adapter / "chat_template.json").write_text(json.dumps({"chat_template": named}), "utf8")
    (adapter / "added_tokens.json").write_text(json.dumps({"<more>": 300}), "utf8")
    (adapter / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<s>"]}), "utf8")


def _import(path: Path, base: BaseModel) -> None:
    import_adapter(path, base, path / "made")


def _map(path: Path, chance: random.Random) -> None:
    with suppress(OSError):  # a report looks for the files of its figures first
        _read(RoutingMap, path / "routing.json")


def _state(path: Path, chance: random.Random) -> None:
    with restoring(path / "state.safetensors"), suppress(OSError):  # whoever goes on from one looks for it first
        read_state(path / "state.safetensors", {"codes": like(torch.ones(3, 4))}, {})


def _resign(path: Path, chance: random.Random) -> None:
    """Let the index fit the changed files, most of the time: what hashes refuse at once tells nothing of the rest."""
    if chance.random() < 0.25:
        return
    try:
        index = json.loads(read_bytes(path / "pool.json", _LARGEST))  # it may be a pipe by now, or an endless device
        for record in index["experts"]:
            for name, known in record["files"].items():
                file = path / (record.get("directory") or record["name"]) / name
                if file.stat().st_size > _LARGEST:
                    return
                known |= {"sha256": sha256(file), "size": file.stat().st_size}
                known.pop("tensors", None)
        (path / "pool.json").write_text(json.dumps(index), "utf8")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return  # what was changed is the index itself, or no file any more


def _resign_router(path: Path, chance: random.Random) -> None:
    """Let the record of the trained router fit its file, most of the time."""
    if chance.random() < 0.25:
        return
    try:
        index = json.loads(read_bytes(path / "pool.json", _LARGEST))
        file = path / "routers" / "vq.safetensors"
        if file.stat().st_size > _LARGEST:
            return
        index["routers"]["vq"] |= {"sha256": sha256(file), "size": file.stat().st_size}
        (path / "pool.json").write_text(json.dumps(index), "utf8")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return


def _trained(path: Path, chance: random.Random) -> None:
    made = Pool.open(path)
    made.verify(adapters=False)
    read_router(made, "vq", {"codes": (3, None), "experts": (None,)})


def _background(path: Path, chance: random.Random) -> None:
    background = Background.open(path / "background.safetensors")
    contest = Contest.of([None], background)
    for fold in range(len(background.counts)):
        contest.strangers(fold)


def _route(base: Any, pool: Pool, chance: random.Random) -> None:
    memory = chance.choice((None, 0, 3000))
    router = router_from(chance.choice(("phatgoose", "glider", "merge", "arrow")), {})
    attached = attach(base, pool, router, Storage(None, None, memory))
    try:
        with torch.inference_mode():
            base(torch.tensor([[5, 6, 7]]))
    finally:
        attached.detach()


def _signed(path: Path, chance: random.Random) -> None:
    Pool.open(path, path / "key.pub").verify()


def _expert(path: Path, chance: random.Random) -> None:
    expert = Expert.open(path)
    for site in expert.sites:
        expert.factors(site)
        expert.scaling(site)
    _ = expert.vectors, expert.profile, expert.instruction
    expert.verify()
    for file in ("adapter_model.safetensors", "glider.safetensors"):
        TensorFile(path / file).digests()


def _layout(path: Path, chance: random.Random) -> None:
    layout = read_layout(path)
    for i in range(40):
        layout.scaling(f"model.layers.{i}.self_attn.q_proj")
    base_name(path)


def _checkpoint(path: Path) -> None:
    for expert in open_checkpoint(path).experts():
        _ = expert.has_unit_gates
