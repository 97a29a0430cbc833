"""Every command of docs/experts.md runs, in its order, on a tiny base and with tiny budgets."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from glider.cli.main import main
from glider.inference.base_model import load_base

from ..golden.conftest import inside  # noqa: F401

PAGE = Path(__file__).parents[2] / "docs" / "experts.md"
BUDGET = ["--steps", "2", "--gate-steps", "1", "--rank", "2", "--max-tokens", "80"]


@pytest.mark.slow
def test_every_command_of_the_page_runs(
    tmp_path: Path,
    llama_directory: Path,
    t5_directory: Path,
    random_expert,
    inside: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    _prepare(llama_directory, t5_directory, random_expert, inside)
    page = PAGE.read_text("utf8")
    (plan,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    plan = plan.replace("smollm2-135m", str(llama_directory)).replace("steps: 60, gate_steps: 30", "steps: 2")
    Path("pool.yaml").write_text(plan.replace("config: {gate_steps: 50}", "config: {gate_steps: 1}"))
    blocks = re.findall(r"```sh\n(.*?)```", page, re.S)
    # the page shows the plan before the calibration's pool is needed; pools are built first here
    blocks.sort(key=lambda block: "calibrate" in block)
    ran = 0
    for line in "".join(blocks).splitlines():
        words = shlex.split(line.replace("smollm2-135m", str(llama_directory)))
        assert words[0] == "glider", line
        budget = BUDGET if words[1:3] in (["expert", "train"], ["expert", "gates"]) else []
        monkeypatch.setattr(sys, "argv", [*words, *budget])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None), f"{line}: {capsys.readouterr().err}"
        ran += 1
    assert ran >= 10


def _prepare(llama: Path, t5: Path, random_expert, layout: Path) -> None:
    """What the page says the reader has."""
    texts = ["thank you", "go away", "well done", "shut up"]
    rows = [
        {"input": f"{texts[i % 4]} {i}", "output": ("friendly", "rude")[i % 2], "split": "train"} for i in range(20)
    ]
    held_back = [{**row, "split": "val"} for row in rows]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows + held_back)))
    adapter = random_expert(Path("my-adapter"), load_base(str(llama)), rank=3)
    for file in ("card.json", "glider.safetensors"):
        (adapter.directory / file).unlink()
    model = T5ForConditionalGeneration(T5Config.from_pretrained(layout / "base_t5"))
    model.load_state_dict(torch.load(layout / "base_t5_state_dict.pt", weights_only=True))
    model.save_pretrained("t5-base")
    for file in t5.glob("*token*"):
        shutil.copy(file, "t5-base")
    shutil.copytree(layout / "p3-lora-checkpoints", "p3-lora-checkpoints")
    folder = layout / "gpt-generated-instruction-nomic-embeddings" / "t0-v3" / "checkpoints"
    shutil.copy(folder / "nomic_instruction_embedding.pt", ".")
