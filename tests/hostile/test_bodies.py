"""A small run of the server's fuzz loop: every body is answered, or refused in OpenAI's words."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BODIES = Path(__file__).with_name("bodies.py")


@pytest.mark.slow
def test_no_body_is_a_fault_of_the_server(tmp_path: Path) -> None:
    command = [sys.executable, str(BODIES), "--out", str(tmp_path), "--cases", "500", "--seed", "15"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    faults = tmp_path / "faults.jsonl"
    assert ran.returncode == 0, faults.read_text() if faults.exists() else ran.stderr
    ended = json.loads((tmp_path / "done.json").read_text())["ended"]
    assert ended["/v1/chat/completions: 400"] > 50 and ended["/v1/chat/completions: 200"] > 5  # both ways were gone


@pytest.mark.slow
def test_a_fault_is_noted_and_repeated_by_its_number(tmp_path: Path) -> None:
    """With a check that is broken on purpose."""
    script = (
        f"import sys; sys.path.insert(0, {str(BODIES.parent)!r})\n"
        "import bodies\n"
        "bodies._fault = lambda answer: 'a bug'\n"
        "raise SystemExit(bodies.main())\n"
    )
    command = [sys.executable, "-c", script, "--out", str(tmp_path)]
    ran = subprocess.run([*command, "--cases", "3"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and "3 cases, 3 faults" in ran.stdout, ran.stderr
    again = subprocess.run([*command, "--case", "1"], capture_output=True, text=True, check=False)
    assert again.returncode == 1 and "a bug" in again.stdout
