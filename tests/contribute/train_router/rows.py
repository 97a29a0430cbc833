"""Rows of a pool's tasks, and settings that train on them in a moment."""

from typing import Any

from glider.contribute.settings import RouterTraining
from glider.data.rows import Row

WORDS = {"e0": "red green", "e1": "seven eight", "e2": "do re mi"}
Q = "model.layers.0.self_attn.q_proj"


def rows_of(count: int = 8) -> dict[str, list[Row]]:
    return {
        name: [
            Row.model_validate({"input": f"the {name} {name}{i} and {words}", "output": words[: 2 + i % 3]})
            for i in range(count)
        ]
        for name, words in WORDS.items()
    }


def settings(**more: Any) -> RouterTraining:
    return RouterTraining(**{"steps": 4, "batch_size": 4, "codes": 5, "centroids": 2, **more})
