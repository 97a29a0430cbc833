"""What the benchmarks of clusters share: a tiny base model, a plan of tiny experts, a cluster on this machine."""

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DEATHS = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}  # a killed node is dead in two seconds
STORE = 100 << 20  # bytes of a node's object store


def tiny_base(directory: Path, width: int = 32) -> Path:
    """A random Llama of two layers, with a tokenizer of one token a byte."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    vocabulary |= {letter: 3 + i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    fast.save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=width,
        intermediate_size=3 * width // 2,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def plan_of(root: Path, base: Path, names: Sequence[str], steps: int, rows: int = 16) -> Path:
    """A plan of one expert for each name."""
    settings = {"rank": 2, "steps": steps, "gate_steps": 2, "batch_size": 4, "validation": 4}
    experts = []
    for name in names:
        lines = [json.dumps({"input": f"say {name} {i}", "output": name}) + "\n" for i in range(rows)]
        (root / f"{name}.jsonl").write_text("".join(lines), "utf8")
        experts.append({"name": name, "data": f"{name}.jsonl"})
    path = root / "plan.yaml"
    path.write_text(yaml.safe_dump({"base": str(base), "defaults": settings, "experts": experts}), "utf8")
    return path


@contextmanager
def cluster_of(nodes: int) -> Iterator[Any]:
    """A head that runs nothing and nodes of one CPU; this process is a driver of it."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False, "_system_config": DEATHS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            add_node(cluster)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster: Any) -> Any:
    """One more node of one CPU."""
    return cluster.add_node(num_cpus=1, object_store_memory=STORE)


def kill(node: Any) -> None:
    """SIGKILL to every process of a node and to its workers."""
    pids = [info.process.pid for kind in node.all_processes.values() for info in kind]
    for pid in list(pids):
        with suppress(psutil.NoSuchProcess):
            pids += [child.pid for child in psutil.Process(pid).children(recursive=True)]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.all_processes.clear()
