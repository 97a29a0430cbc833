"""The contributor's protocol: data -> expert (GLIDER, section 4.1)."""

import hashlib
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import glider
from glider.contribute.checkpointing import checkpointed
from glider.contribute.examples import Batches, EncodedRow, encode_rows
from glider.contribute.gates import gated
from glider.contribute.loop import Loop, Progress
from glider.contribute.lora import add_lora, lora_parameters
from glider.contribute.profile import profile_of
from glider.contribute.settings import TrainConfig
from glider.data.records import columns_of
from glider.data.rows import Row, read_rows, rows_digest, split_rows
from glider.errors import ConfigError, DataError, ExpertError
from glider.experts.card import NAME, Example, ExpertCard
from glider.experts.expert import Expert, write_expert
from glider.experts.membership import require_future
from glider.experts.profile import Profile
from glider.experts.prompt_format import PromptFormat
from glider.files.disk import canonical_json, work_directory, write_json
from glider.files.held import alone_in, empty, held
from glider.files.opening import read_text
from glider.files.replacing import is_directory
from glider.inference.base_model import BaseModel
from glider.inference.spec import BaseSpec
from glider.instructions.embedders import load_embedder

_LARGEST_MARKER = 1 << 10  # bytes

Stage = Literal["lora", "gates"]
StageTick = Callable[[str, Progress, int], None]
"""Receives the stage ("lora", "gates"), its progress, and its number of steps."""


def train_expert(
    data: Path | str,
    base: str | BaseSpec,
    out: Path | str,
    config: TrainConfig,
    *,
    description: str | None = None,
    task: str | None = None,
    licence: str | None = None,
    report: StageTick = lambda stage, progress, steps: None,
) -> Expert:
    """Train an expert from rows and write it to `out`.

    A run that was killed goes on where it stopped when called again with the same arguments; its state lies beside
    `out` in `.<name>.training`.

    Arguments:
        data: Rows of the task, in a file of any form that `read_rows` takes.
        base: The base model by its id or path, or with its arithmetic and device.
        out: The expert's new directory; its name is the expert's name.
        config: How LoRA and gates are trained.
        description: One sentence naming the task; by default the rows' own definition.
        task, licence: For the card.
        report: Told of each step: the stage, its progress, its number of steps.

    Returns: the expert.

    Raises: `DataError` for bad rows, `ExpertError` if `out` exists (a complete expert of these rows is said to be one),
    `BaseModelError` where there is no such base.
    """
    out = Path(out)
    if description is not None:
        require_text(description)
    if out.exists():
        _require_incomplete(out, rows_digest(data), config)
    require_new(out)
    task_data = read_task(data, config)
    description = description or task_data.definition
    embedder = load_embedder(config.embedder, config.embedder_prefix) if description else None
    loaded = BaseSpec.of(base).load_base()
    prompt = PromptFormat.of(loaded.model, loaded.tokenizer)
    encoded = task_data.encode(loaded, prompt, config)
    origin = {"data_sha256": task_data.sha256, "base": loaded.identity.hash, "config": config.content}
    origin |= arithmetic_of(loaded)
    profile = profile_of(task_data.train, task_data.validation, embedder, loaded, config.seed, config.stored)
    with training_state(out, origin) as state:
        peft_model, gates, record = _train(loaded, encoded, config, state, report)
        card = ExpertCard(
            name=out.name,
            task=task or out.name,
            description=description,
            examples=task_data.sample(config),
            licence=licence,
            base=loaded.identity,
            prompt=prompt,
            embedder=embedder.identity if embedder else None,
            training={**origin, **encoded.counts, **record, "versions": versions()},
        )
        instruction = embedder.embed([description])[0] if embedder and description else None
        return _write(out, card, peft_model, gates, instruction, profile)


@dataclass(frozen=True)
class EncodedTask:
    """Token ids of a task's rows, and how many rows were too long."""

    train: list[EncodedRow]
    validation: list[EncodedRow]
    too_long: int

    @property
    def counts(self) -> dict[str, int]:
        """For the training record."""
        return {"rows": len(self.train), "rows_too_long": self.too_long}


@dataclass(frozen=True)
class TaskData:
    """A task's rows, split, and the hash of their file."""

    sha256: str
    train: list[Row]
    validation: list[Row]

    @property
    def definition(self) -> str | None:
        """The rows' own description of the task."""
        return next((row.definition for row in self.train if row.definition), None)

    def encode(self, loaded: BaseModel, prompt: PromptFormat, config: TrainConfig) -> EncodedTask:
        """Tokenise; raises `DataError` if every row is too long."""
        train, too_long = encode_rows(self.train, loaded.tokenizer, prompt, config.max_tokens, loaded.model)
        validation, _ = encode_rows(self.validation, loaded.tokenizer, prompt, config.max_tokens, loaded.model)
        if not train:
            raise DataError(
                f"rows of at most {config.max_tokens} tokens", f"{too_long} rows, all longer", "Raise --max-tokens."
            )
        return EncodedTask(train, validation, too_long)

    def sample(self, config: TrainConfig) -> tuple[Example, ...]:
        """The examples that go into the card."""
        sample = random.Random(config.seed).sample(self.train, min(config.examples, len(self.train)))
        return tuple(Example(input=row.input, output=row.output) for row in sample)


def read_task(data: Path | str, config: TrainConfig) -> TaskData:
    """Read and split a task's rows."""
    train, validation = split_rows(read_rows(data, columns=columns_of(config.columns)), config.validation, config.seed)
    return TaskData(rows_digest(data), train, validation)


def arithmetic_of(base: BaseModel) -> dict[str, str]:
    """In what a base model is kept, where that is not float32: a run begun in one does not go on in another."""
    dtype = str(base.model.dtype).removeprefix("torch.")
    return {} if dtype == "float32" else {"dtype": dtype}


def require_new(out: Path) -> None:
    """Raise `ExpertError` unless `out` can become an expert's directory, `PoolError` if no pool could."""
    if os.path.lexists(out):
        raise ExpertError(f"a new directory at {out}", "an existing one", "Remove it or give another --out.")
    if re.fullmatch(NAME, out.name) is None:
        raise ExpertError("a name of letters, digits, '.', '_' and '-'", repr(out.name), "Give another --out.")
    require_future(out)


def _require_incomplete(out: Path, data_sha256: str, config: TrainConfig) -> None:
    """Raise `ExpertError` that says so where `out` is the very expert that is to be trained."""
    try:
        training = ExpertCard.read(out).training
    except ExpertError:
        return  # whatever it is, it is in the way
    if training.get("data_sha256") == data_sha256 and training.get("config") == config.content:
        _forget_state(out, training)
        expected, got = f"an expert at {out} that is still to be trained", "a complete one, of these rows and settings"
        raise ExpertError(expected, got, "Nothing is left to do; use it, or give another --out.")


def require_text(description: str) -> None:
    """Raise `ExpertError` for a description that says nothing."""
    if not description.strip():
        raise ExpertError(
            "a description: one sentence that names the task", "an empty one", "Write it, or leave it out."
        )


def run_stage(
    stage: Stage,
    peft_model: Any,
    parameters: Mapping[str, torch.nn.Parameter],
    task: EncodedTask,
    config: TrainConfig,
    pad_id: int,
    state: Path,
    report: StageTick,
) -> dict[str, Any]:
    """Train `parameters` in place by the schedule of a stage, resuming from `state`. Returns its record."""
    schedule = config.schedule(stage)
    seed = config.seed + (stage == "gates")
    state_file, autocast = state / f"{stage}.safetensors", config.precision == "bfloat16"
    loop = Loop(peft_model, parameters, schedule, pad_id, state_file, autocast=autocast, seed=seed)
    batches = Batches(task.train, config.batch_size, seed)
    with checkpointed(peft_model, config.checkpointing):
        done = loop.run(batches, task.validation, lambda progress: report(stage, progress, schedule.steps))
    return {name: value for name, value in vars(done).items() if name != "loss"}


@contextmanager
def training_state(out: Path, origin: Mapping[str, Any]) -> Iterator[Path]:
    """Where the state of this very run lies, thrown away when it ends well or belongs to a run with other settings.

    Raises `ConfigError` while another process is at work there.
    """
    place = work_directory(out.parent / f".{out.name}.training")
    key = hashlib.sha256(canonical_json(origin).encode()).hexdigest()
    with alone_in(place):
        with held(place) as state:
            marker = state / "run.json"
            if not _is_of(marker, key):
                empty(state)
                write_json(marker, {"run": key})
            yield state
            empty(state)
        place.rmdir()


def _forget_state(out: Path, training: Mapping[str, Any]) -> None:
    """Remove the state of the training that a complete expert came of: its process was killed before it could."""
    place = out.parent / f".{out.name}.training"
    if not is_directory(place):
        return
    origin = {name: training[name] for name in ("data_sha256", "base", "config", "dtype") if name in training}
    key = hashlib.sha256(canonical_json(origin).encode()).hexdigest()
    with suppress(ConfigError), alone_in(place):  # its process is about to do that
        with held(place) as state:
            marker = state / "run.json"
            if os.path.lexists(marker) and not _is_of(marker, key):
                return  # of other work, which goes on
            empty(state)
        place.rmdir()


def _is_of(marker: Path, key: str) -> bool:
    """Whether a state is that of the run with this key."""
    try:
        return key in read_text(marker, _LARGEST_MARKER, follow=False)
    except (OSError, ValueError):  # none, or none of ours
        return False


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
    loaded: BaseModel, task: EncodedTask, config: TrainConfig, state: Path, report: StageTick
) -> tuple[Any, dict[str, torch.Tensor], dict[str, Any]]:
    """Both stages. Returns the PEFT model, the gates and the training record."""
    peft_model = add_lora(loaded.model, config.rank, config.alpha, config.target_modules, config.seed)
    pad_id = loaded.tokenizer.pad_token_id
    lora = lora_parameters(peft_model)
    record = {"lora": run_stage("lora", peft_model, lora, task, config, pad_id, state, report)}
    with gated(peft_model) as gates:
        record["gates"] = run_stage("gates", peft_model, gates, task, config, pad_id, state, report)
    return peft_model, {site: gate.detach() for site, gate in gates.items()}, record


def _write(
    out: Path, card: ExpertCard, peft_model: Any, gates: dict[str, torch.Tensor], instruction: Any, profile: Profile
) -> Expert:
    from peft import get_peft_model_state_dict

    peft_config = peft_model.peft_config["default"]
    peft_config.base_model_name_or_path = card.base.path or card.base.model_id
    peft_config.inference_mode = True
    lora = get_peft_model_state_dict(peft_model, save_embedding_layers=False)  # no adapter here touches embeddings
    return write_expert(out, card, peft_config, lora, gates, instruction, profile=profile)
