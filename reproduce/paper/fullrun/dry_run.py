"""The plan in print: cells with commands, tasks with rows, models with memory, and what was assumed."""

from typing import Any

from fullrun.estimate import (
    ID_BYTES,
    T5_XL,
    TEXT_BYTES,
    Assumptions,
    base_gb,
    download_gb,
    hours_of,
    memory_gb,
    pool_gb,
    rows_of,
    rows_of_cell,
    set_gb,
    tokens_of,
    tokens_of_row,
)
from fullrun.plan import Plan
from fullrun.training_estimate import print_training, training_json


def plan_json(plan: Plan, assumed: Assumptions) -> dict[str, Any]:
    """The plan with its estimates as plain values."""
    cells = []
    for cell in plan.cells:
        tasks, pool = plan.sets[cell.set], plan.pools[cell.pool]
        tokens = tokens_of(cell, tasks, pool.experts)
        told = {"config": cell.config, "method": cell.label, "router": cell.method.router, "pool": cell.pool}
        told |= {"settings": cell.method.settings, "set": cell.set, "tasks": len(tasks.tasks)}
        told |= {"rows": sum(rows_of_cell(cell, tasks, task) for task in tasks.tasks.values()), "tokens": round(tokens)}
        told |= {} if cell.figure is None else {"figure": cell.figure}
        told |= {"hours": hours_of(tokens, assumed), "published": cell.published, "command": cell.command}
        cells.append(told)
    pools = {
        name: {
            "base": plan.pools[name].base,
            "experts": plan.pools[name].experts,
            "memory_gb": round(memory_gb(plan.pools[name], assumed), 1),
            "download_gb": round(download_gb(plan.pools[name]), 1),
            "pool_gb": round(pool_gb(plan.pools[name]), 1),
        }
        for name in dict.fromkeys(cell.pool for cell in plan.cells)
    }
    sets = {
        name: {
            task_name: {
                "metrics": list(task.metrics),
                "split": "+".join(task.split),
                "rows": rows_of(plan.sets[name], task),
                "tokens_per_row": round(tokens_of_row(task)),
            }
            for task_name, task in plan.sets[name].tasks.items()
        }
        for name in dict.fromkeys(cell.set for cell in plan.cells)
    }
    data = {name: round(set_gb(plan.sets[name]), 1) for name in sets}
    trainings = [training_json(training, assumed) for training in plan.trainings]
    told = {"assumed": assumed.model_dump(), "cells": cells, "pools": pools, "sets": sets, "data_gb": data}
    return told | {"trainings": trainings, "disk_gb": round(_disk_gb(pools, data, trainings), 1)}


def _disk_gb(pools: dict[str, Any], data: dict[str, float], trainings: list[dict[str, Any]]) -> float:
    """All that is downloaded and made: of pools over one base the base once, of trainings too, their data once."""
    told = sum(pool["download_gb"] + pool["pool_gb"] for pool in pools.values()) + sum(data.values())
    bases = [pool["base"] for pool in pools.values()]
    told -= sum(base_gb() for i, base in enumerate(bases) if base in bases[:i])
    for base in dict.fromkeys(training["base"] for training in trainings):
        of_base = [training for training in trainings if training["base"] == base]
        weights = of_base[0]["download_gb"] - of_base[0]["data_gb"]
        told += (0.0 if base in bases else weights) + sum(training["pool_gb"] for training in of_base)
    return told + max((training["data_gb"] for training in trainings), default=0.0)


def print_plan(plan: Plan, assumed: Assumptions) -> None:
    """Print it for a person."""
    told = plan_json(plan, assumed)
    print("A plan. The full run has not been made, and these estimates were not measured on a GPU.\n\nModels")
    for name, pool in told["pools"].items():
        print(f"  {name}: {pool['base']} + {pool['experts']} experts, {pool['memory_gb']} GB of memory,", end=" ")
        print(f"{pool['download_gb']} GB to download, {pool['pool_gb']} GB as a pool")
    for name, tasks in told["sets"].items():
        print(f"\nTasks of {name} ({len(tasks)})")
        for task, one in tasks.items():
            metrics = "+".join(one["metrics"])
            print(f"  {task}: {one['rows']} rows of {one['split']}, {one['tokens_per_row']} tokens a row, {metrics}")
    for name, size in told["data_gb"].items():
        print(f"\nData of {name}: {size} GB at most")
    for training in told["trainings"]:
        print_training(training)
    for config, title in plan.titles.items():
        cells = [cell for cell in told["cells"] if cell["config"] == config]
        if cells:
            print(f"\n{title}")
        for cell in cells:
            hours = "" if cell["hours"] is None else f", {cell['hours']:.1f} h"
            published = "" if cell["published"] is None else f", published {cell['published']:.2f}"
            print(f"  {cell['method']} on {cell['pool']}/{cell['set']}: {cell['rows']} rows,", end=" ")
            print(f"{cell['tokens'] / 1e6:.1f} M tokens{hours}{published}\n    {cell['command']}")
    _print_assumptions(told, assumed)


def _print_assumptions(told: dict[str, Any], assumed: Assumptions) -> None:
    tokens = sum(cell["tokens"] for cell in told["cells"])
    tokens += sum(training["passes"] * training["tokens"] for training in told["trainings"])
    hours = hours_of(tokens, assumed)
    total = "give --throughput for hours" if hours is None else f"{hours:.1f} h at {assumed.throughput:g} tokens/s"
    print(f"\nIn all {len(told['cells'])} cells, {tokens / 1e6:.1f} M tokens: {total}")
    print(f"Disk, with downloads: {told['disk_gb']} GB")
    print("\nAssumed")
    print(f"  base: T5-XL, {T5_XL.base_parameters / 1e6:.1f} M parameters (24 + 24 blocks of width 2048)")
    print(
        f"  expert: {T5_XL.lora_parameters / 1e6:.1f} M of LoRA at rank 16 (16 (D + O) at every linear layer but the",
        end=" ",
    )
    print(f"head) + {T5_XL.gate_parameters / 1e6:.1f} M of gates (D each)")
    print(f"  memory: {assumed.dtype} weights of base and experts + {assumed.activations_gb:g} GB for a batch")
    print("  tokens: rows x (prompt + choices x answer); the oracle for every expert; LoRAHub also its search")
    print("  rows of a split: as its authors document them; lengths: means assumed in sets/*.yaml")
    print("  download: float32, each expert with two copies of the embeddings; an 8B base in bfloat16")
    print(f"  data: {TEXT_BYTES} bytes of text for a token, {ID_BYTES} more in P3, a file for each of its templates;")
    print("  Flan's submixes and natural-instructions by sizes that were not looked up")
    if told["trainings"]:
        print("  training: 20 bytes of what is trained, rows of 512 tokens, blocks of 34 s b h + 5 a s^2 b bytes;")
        print("  forward and backward passes as tokens of the throughput")
