"""The contributor's protocol: data -> expert (GLIDER, section 4.1)."""

import hashlib
import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

import glider
from glider.base_model import BaseModel, load_base
from glider.contribute.examples import Batches, EncodedRow, Row, encode_rows, read_rows, split_rows
from glider.contribute.gates import gated
from glider.contribute.loop import Loop, Progress
from glider.contribute.lora import add_lora, lora_parameters
from glider.contribute.settings import TrainConfig
from glider.errors import DataError, ExpertError
from glider.experts.card import NAME, Example, ExpertCard
from glider.experts.disk import canonical_json, sha256, write_json
from glider.experts.expert import Expert, write_expert
from glider.experts.prompt_format import PromptFormat
from glider.instructions.embedders import load_embedder

Report = Callable[[str, Progress, int], None]  # stage ("lora", "gates"), progress, steps in all


def train_expert(
    data: Path | str,
    base: str,
    out: Path | str,
    config: TrainConfig,
    *,
    description: str | None = None,
    task: str | None = None,
    licence: str | None = None,
    report: Report = lambda stage, progress, steps: None,
) -> Expert:
    """Train an expert from rows and write it to `out`.

    A run that was killed goes on where it stopped when called again with the same arguments; its state lies beside
    `out` in `.<name>.training`. Raises `DataError` for bad rows, `ExpertError` if `out` exists.
    """
    data, out = Path(data), Path(out)
    if out.exists():
        raise ExpertError(f"a new directory at {out}", "an existing one", "Remove it or give another --out.")
    if re.match(NAME, out.name) is None:
        raise ExpertError("a name of letters, digits, '.', '_' and '-'", repr(out.name), "Give another --out.")
    rows = read_rows(data)
    train_rows, validation_rows = split_rows(rows, config.validation, config.seed)
    description = description or next((row.definition for row in train_rows if row.definition), None)
    embedder = load_embedder(config.embedder, config.embedder_prefix) if description else None
    loaded = load_base(base)
    prompt = PromptFormat.of(loaded.model, loaded.tokenizer)
    train, too_long = encode_rows(train_rows, loaded.tokenizer, prompt, config.max_tokens)
    validation, _ = encode_rows(validation_rows, loaded.tokenizer, prompt, config.max_tokens)
    if not train:
        raise DataError(
            f"rows of at most {config.max_tokens} tokens", f"{too_long} rows, all longer", "Raise --max-tokens."
        )
    origin = {"data_sha256": sha256(data), "base": loaded.identity.hash, "config": config.model_dump(mode="json")}
    state = _state_directory(out, origin)
    peft_model, gates, record = _train(loaded, train, validation, config, state, report)
    card = ExpertCard(
        name=out.name,
        task=task or out.name,
        description=description,
        examples=_sample(train_rows, config),
        licence=licence,
        base=loaded.identity,
        prompt=prompt,
        embedder=embedder.identity if embedder else None,
        training={**origin, "rows": len(train), "rows_too_long": too_long, **record, "versions": versions()},
    )
    instruction = embedder.embed([description])[0] if embedder and description else None
    expert = _write(out, card, peft_model, gates, instruction)
    shutil.rmtree(state)
    return expert


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    import peft
    import transformers

    return {
        "glider": glider.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def _train(
    loaded: BaseModel,
    train: Sequence[EncodedRow],
    validation: Sequence[EncodedRow],
    config: TrainConfig,
    state: Path,
    report: Report,
) -> tuple[Any, dict[str, torch.Tensor], dict[str, Any]]:
    """Both stages. Returns the PEFT model, the gates and the training record."""
    peft_model = add_lora(loaded.model, config.rank, config.alpha, config.target_modules, config.seed)
    pad_id, autocast = loaded.tokenizer.pad_token_id, config.precision == "bfloat16"

    def run(stage: Literal["lora", "gates"], parameters: dict[str, torch.nn.Parameter]) -> dict[str, Any]:
        schedule = config.schedule(stage)
        seed = config.seed + (stage == "gates")
        state_file = state / f"{stage}.safetensors"
        loop = Loop(peft_model, parameters, schedule, pad_id, state_file, autocast=autocast, seed=seed)
        batches = Batches(train, config.batch_size, seed)
        done = loop.run(batches, validation, lambda progress: report(stage, progress, schedule.steps))
        return {name: value for name, value in vars(done).items() if name != "loss"}

    record = {"lora": run("lora", lora_parameters(peft_model))}
    with gated(peft_model) as gates:
        record["gates"] = run("gates", dict(gates))
    return peft_model, {site: gate.detach() for site, gate in gates.items()}, record


def _state_directory(out: Path, origin: dict[str, Any]) -> Path:
    """Where the state of this very run lies; the state of a run with other settings is thrown away."""
    state = out.parent / f".{out.name}.training"
    key = hashlib.sha256(canonical_json(origin).encode()).hexdigest()
    marker = state / "run.json"
    if not marker.exists() or key not in marker.read_text("utf8"):
        shutil.rmtree(state, ignore_errors=True)
        write_json(marker, {"run": key})
    return state


def _sample(rows: Sequence[Row], config: TrainConfig) -> tuple[Example, ...]:
    chosen = random.Random(config.seed).sample(list(rows), min(config.examples, len(rows)))
    return tuple(Example(input=row.input, output=row.output) for row in chosen)


def _write(out: Path, card: ExpertCard, peft_model: Any, gates: dict[str, torch.Tensor], instruction: Any) -> Expert:
    from peft import get_peft_model_state_dict

    peft_config = peft_model.peft_config["default"]
    peft_config.base_model_name_or_path = card.base.model_id
    peft_config.inference_mode = True
    lora = get_peft_model_state_dict(peft_model, save_embedding_layers=False)  # no adapter here touches embeddings
    return write_expert(out, card, peft_config, lora, gates, instruction)
