"""The second real base, Gemma 3 270M: the base of a directory, and links to the task data beside the plans.

    python reproduce/gemma/prepare.py WORK --gguf GEMMA.gguf --tasks TASKS
    glider pool build WORK/pool.yaml --out WORK/pool
    glider pool calibrate WORK/pool
    glider evaluate WORK/evaluation.yaml --out RESULTS

GEMMA.gguf is a file of the pretrained model (not instruction tuned), taken under Gemma's own terms. Nothing of it is
part of this project, nor are the experts that are trained on it. WORK gets `base`, `tasks`, `sets` and the plans.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from glider.cli.terminal import exit_code
from glider.files.disk import copy_file, write_file

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if not (arguments.work / "base").exists():
        convert(arguments.gguf, arguments.work / "base")
    experts = {entry["name"] for entry in yaml.safe_load((HERE / "pool.yaml").read_text("utf8"))["experts"]}
    link(arguments.work / "tasks", arguments.tasks)
    for name in sorted(experts):
        file = f"{name}.jsonl.gz"
        link(arguments.work / "sets" / "held-in" / file, arguments.tasks / "t0_heldin" / file)
    for file in HERE.glob("*.yaml"):
        write_file(arguments.work / file.name, partial(copy_file, file))


def convert(gguf: Path, out: Path) -> None:
    """The model and tokenizer of a GGUF file as a directory of safetensors, in bfloat16."""
    source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    model.to(torch.bfloat16)
    model.hf_quantizer, model.is_quantized = None, False  # the weights are plain numbers now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    part = out.with_name(f"{out.name}.part")
    model.save_pretrained(part)
    AutoTokenizer.from_pretrained(**source).save_pretrained(part)
    part.rename(out)


def link(place: Path, target: Path) -> None:
    """A link at `place`, whatever was there before."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(target.resolve())


if __name__ == "__main__":
    sys.exit(exit_code(main))
