"""How fast does the protocol's loop train a LoRA, against a plain PEFT loop on the same rows?

    python benchmarks/training.py ROWS.jsonl.gz [--steps 4] [--pairs 5] [--rank 8] [--json out.json]

Both train the same adapter on the same base in float32, AdamW, the same rows. The plain loop takes rows in random
order, tokenises as it goes, pads on the right and lets the model compute logits and loss from `labels`. Pairs are
interleaved; printed are tokens/s without padding, the ratio of each pair and their spread. Before the pairs both loops
take the very same batches, and their losses must agree.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from glider.cli.terminal import exit_code
from glider.contribute.examples import Batches, EncodedRow, encode_rows
from glider.contribute.loop import Loop
from glider.contribute.lora import add_lora, lora_parameters
from glider.contribute.settings import Schedule
from glider.data.rows import Row, read_rows, split_rows
from glider.experts.prompt_format import PromptFormat
from glider.files.disk import write_json
from glider.inference.base_model import BaseModel, load_base

RATE, ALPHA, SEED, MAX_TOKENS = 5e-3, 1.0, 0, 160


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of our loop")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    base = load_base(arguments.base)
    prompt = PromptFormat.of(base.model, base.tokenizer)
    size = arguments.batch_size
    rows, _ = split_rows(read_rows(arguments.data), 0, SEED)
    rows = [row for row in rows if encode_rows([row], base.tokenizer, prompt, MAX_TOKENS)[0]][: arguments.steps * size]
    encoded, _ = encode_rows(rows, base.tokenizer, prompt, MAX_TOKENS)
    random_order = [rows[i : i + size] for i in range(0, len(rows), size)]
    same = [encoded[i : i + size] for i in range(0, len(rows), size)]
    tokens = sum(map(len, encoded))

    plain_losses = plain_loop(base, prompt, random_order, arguments.rank)
    our_losses = our_loop(base, same, len(same), arguments)
    print("loss of each step, plain:", *(f"{loss:.4f}" for loss in plain_losses))
    print("loss of each step, ours: ", *(f"{loss:.4f}" for loss in our_losses), flush=True)
    pairs = []
    for pair in range(1, arguments.pairs + 1):
        began = time.perf_counter()
        plain_loop(base, prompt, random_order, arguments.rank)
        middle = time.perf_counter()
        our_loop(base, Batches(encoded, size, SEED), len(same), arguments)
        plain, ours = tokens / (middle - began), tokens / (time.perf_counter() - middle)
        pairs.append({"plain": plain, "ours": ours, "ratio": ours / plain})
        print(f"pair {pair}: plain {plain:.0f} tokens/s, ours {ours:.0f}, ratio {ours / plain:.2f}", flush=True)
    ratios = sorted(pair["ratio"] for pair in pairs)
    print(f"ratio: median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}")
    if arguments.json:
        settings = json.loads(json.dumps(vars(arguments), default=str))
        losses = {"plain": plain_losses, "ours": our_losses}
        write_json(arguments.json, {"settings": settings, "losses": losses, "pairs": pairs})


@contextmanager
def fresh_lora(base: BaseModel, rank: int) -> Iterator[Any]:
    """A new adapter on the base, taken off at the end."""
    peft_model = add_lora(base.model, rank, ALPHA, "all-linear", SEED)
    try:
        yield peft_model
    finally:
        peft_model.unload()


def plain_loop(base: BaseModel, prompt: PromptFormat, batches: Sequence[Sequence[Row]], rank: int) -> list[float]:
    """The loop one writes first."""
    with fresh_lora(base, rank) as model:
        optimiser = torch.optim.AdamW(lora_parameters(model).values(), lr=RATE, weight_decay=0.0)
        losses = []
        for rows in batches:
            prompts = [prompt.prompt_ids(base.tokenizer, row.input) for row in rows]
            targets = [prompt.target_ids(base.tokenizer, row.output) for row in rows]
            width = max(len(p) + len(t) for p, t in zip(prompts, targets, strict=True))
            ids = torch.full((len(rows), width), base.tokenizer.pad_token_id)
            labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
            for i, (p, t) in enumerate(zip(prompts, targets, strict=True)):
                ids[i, : len(p) + len(t)] = torch.tensor(p + t)
                labels[i, len(p) : len(p) + len(t)] = torch.tensor(t)
                mask[i, : len(p) + len(t)] = 1
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(lora_parameters(model).values(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
        return losses


def our_loop(
    base: BaseModel, batches: "Batches | Sequence[list[EncodedRow]]", steps: int, arguments: argparse.Namespace
) -> list[float]:
    """The protocol's loop, with the learning rate constant from the first step as in the plain one."""
    schedule = Schedule(steps=steps, learning_rate=RATE, warmup_ratio=0.0, clip_norm=1.0, minutes=None, validations=1)
    losses: list[float] = []
    autocast = arguments.precision == "bfloat16"
    with fresh_lora(base, arguments.rank) as model, tempfile.TemporaryDirectory() as folder:
        state, pad_id = Path(folder) / "state.safetensors", base.tokenizer.pad_token_id
        loop = Loop(model, lora_parameters(model), schedule, pad_id, state, autocast=autocast, seed=SEED)
        loop.run(batches, [], lambda progress: losses.append(progress.loss))  # pyright: ignore[reportArgumentType]
    return losses


if __name__ == "__main__":
    sys.exit(exit_code(main))
