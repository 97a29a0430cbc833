"""At a few tokens a routed layer asks the host for nothing, so that a CUDA graph can hold it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.utils.backend_registration

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="needs a PyTorch that takes a device written in Python",
)


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What `device_without_values.py` saw."""
    path = os.pathsep.join([str(HERE / "kernels"), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, str(HERE / "device_without_values.py")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_few_tokens_are_routed_without_the_host(told: dict[str, Any]) -> None:
    """Up to 16, or of few experts: nothing that needs a value, no copy but of the term and the map, once a batch."""
    assert [told["refused"][case] for case in ("16 x 3", "16 x 900", "17 x 3")] == [""] * 3
    for name, calls in told["routes"].items():
        for call in calls:
            assert "_softmax" in call["operations"]  # the watch saw the router
            assert call["then"] == [], name
            assert bool(call["first"]) == (name == "glider"), name


def test_more_tokens_are_counted_on_the_host(told: dict[str, Any]) -> None:
    """The test above can fail: from 17 tokens the torch kernel counts each expert's, of many or wide ones."""
    assert "bincount" in told["refused"]["17 x 900"]


def test_blocks_of_the_triton_kernel_are_made_without_the_host(told: dict[str, Any]) -> None:
    assert told["blocks"]["copies"] == [] and {"sort", "searchsorted"} <= set(told["blocks"]["operations"])
    assert told["blocks"]["blocks"] == (600 + 31 * 5) // 32
