"""The program of docs/vllm.md runs as it stands there; `vllm serve` of the demo is test_server.py's."""

import re
from pathlib import Path

import pytest

from .conftest import needs_vllm

PAGE = (Path(__file__).parents[2] / "docs" / "vllm.md").read_text("utf8")

pytestmark = [*needs_vllm, pytest.mark.slow]


def test_the_program_runs() -> None:
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names: dict = {}
    try:
        exec(code, names)
        assert names["answer"].text == "A dog and a ball on the beach." and names["answer"].verdict == "fits"
        assert [len(row) for row in names["scores"]] == [2]
    finally:
        if "model" in names:
            names["model"].close()
        cleanup_dist_env_and_memory()
