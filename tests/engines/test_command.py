"""`glider generate --engine vllm` as a user types it."""

import json
import subprocess
import sys

import pytest

from glider.inference.spec import load

from .conftest import needs_vllm

pytestmark = [*needs_vllm, pytest.mark.slow]
FITS = "Put the concepts together to form a sentence: dog, beach, ball."


def test_the_command_answers_as_transformers_does() -> None:
    """Nothing compiles the model for one prompt: that took minutes."""
    words = ["generate", FITS, "--pool", "demo", "--max-new-tokens", "12", "--engine", "vllm", "--json"]
    ran = subprocess.run([sys.executable, "-m", "glider", *words], capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    reply = json.loads(ran.stdout[ran.stdout.index("{") :])
    [expected] = load(pool="demo").generate([FITS], max_new_tokens=12)
    assert (reply["text"], reply["verdict"]) == (expected.text, expected.verdict) == (expected.text, "fits")
