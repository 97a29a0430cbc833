"""Makes an expert of an existing adapter: imports it unchanged, then adds gates and a description.

Nothing is retrained, and the adapter's own files are kept byte for byte.
"""

import os
import warnings
from pathlib import Path
from typing import Any, Literal

import torch

from glider.calibration.threshold import MINIMUM_QUERIES
from glider.config import EMBEDDED_BASE
from glider.contribute.adapter_files import named_as, require_pairs, require_sizes, tell_oddities, without_base_weights
from glider.contribute.adapter_tokenizer import TEXT_FILES, prompt_of
from glider.contribute.gates import gated
from glider.contribute.mean_gates import mean_gates
from glider.contribute.profile import profile_of
from glider.contribute.protocol import (
    EncodedTask,
    StageTick,
    arithmetic_of,
    read_task,
    require_new,
    require_text,
    run_stage,
    training_state,
    versions,
)
from glider.contribute.settings import TrainConfig
from glider.demo.base import BASE_ID
from glider.errors import DataError, ExpertError, GliderWarning
from glider.experts.base_identity import require_same_base
from glider.experts.card import CARD_FILE, DescriptionOrigin, ExpertCard
from glider.experts.expert import Expert
from glider.experts.peft_format import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    base_name,
    parse_key,
    read_layout,
)
from glider.experts.profile import EMBEDDED, HELD_BACK, PREFIX
from glider.experts.prompt_format import PromptFormat
from glider.experts.sites import GATE, GLIDER_WEIGHTS_FILE, INSTRUCTION
from glider.files.disk import copy_file, copy_tree, new_directory, refuse_links_out, save_tensors, sha256, write_json
from glider.files.headers import read_header
from glider.files.opening import UnfitFile, from_home
from glider.inference.base_model import BaseModel
from glider.inference.base_outline import outline_base
from glider.inference.spec import BaseSpec
from glider.instructions.embedders import load_embedder, load_for
from glider.layers.widths import linear_layers, linear_widths
from glider.shapes import Tensor

GateMaking = Literal["trained", "mean"]
_MEAN_ROWS = 256
ADAPTER_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE)


def adopt(
    source: Path | str,
    base: str | BaseSpec | None,
    out: Path | str,
    config: TrainConfig,
    *,
    data: Path | str | None = None,
    description: str | None = None,
    task: str | None = None,
    licence: str | None = None,
    report: StageTick = lambda stage, progress, steps: None,
) -> Expert:
    """Make a whole expert of a PEFT LoRA adapter, with one load of its base model.

    Arguments:
        source: Directory of the adapter, or its hub id.
        base: The base model; by default (None, or a spec that names none) the one that the adapter's settings name.
        out: The expert's directory. Called again with the same arguments after an interruption, it goes on there.
        config: How gates are trained, rows split and texts embedded.
        data: Rows of the adapter's task, for its gates and its profile; None: it gets neither.
        description: One sentence naming the task; None: the rows' own definition, where they have one.
        task, licence: For the card.
        report: Receives each step of training.

    Returns: the expert.

    Raises: as `import_adapter`, `make_gates`, `add_description` and `make_profile` do.
    """
    out, directory = Path(out), _adapter_directory(source)
    if os.path.lexists(out) and not _is_of(out, directory):
        require_new(out)
    if description is not None:
        require_text(description)
    loaded = base if data is None else _base_for(directory, base)
    if not out.exists():
        import_adapter(source, loaded, out, task=task, licence=licence)
    expert = Expert.open(out)
    if data is None:
        return (
            expert
            if description is None
            else add_description(out, description, config.embedder, config.embedder_prefix)
        )
    assert isinstance(loaded, BaseModel)
    if "gates" not in expert.card.training:
        expert = make_gates(out, data, loaded, config, report)
    if description is None:
        description = read_task(data, config).definition
    if description is not None:
        expert = add_description(out, description, config.embedder, config.embedder_prefix)
    if config.validation:
        expert = make_profile(out, data, loaded, config)
    return expert


def import_adapter(
    source: Path | str,
    base: str | BaseSpec | BaseModel | None,
    out: Path | str,
    *,
    task: str | None = None,
    licence: str | None = None,
    prompt: PromptFormat | None = None,
) -> Expert:
    """Make an expert of a PEFT LoRA adapter (a directory or a hub id), without gates and without description.

    Without a `base` it is the one that the adapter's settings name.

    Raises `PoolError` for a name that no pool takes, `ExpertError` for anything that is more or less than plain LoRA on
    linear layers of the base: DoRA, biases, `modules_to_save`, sites the base does not have, pickled weights, values
    that are not finite. What is allowed and seldom meant is a `GliderWarning`: another base than the settings name,
    unknown settings, a B of zeros, target modules without a pair, a chat template and tokens of the adapter's own. The
    template goes into the card.
    """
    out = Path(out)
    require_new(out)
    directory = _adapter_directory(source)
    loaded = _base_of_import(directory, base)
    # what is no plain LoRA is told as that
    require_sizes(directory / ADAPTER_WEIGHTS_FILE, read_layout(directory, linear_layers(loaded.model)), loaded)
    with new_directory(out) as partial, named_as(partial, directory):
        for file in ADAPTER_FILES:
            _copy(directory / file, partial / file)
        left_out = without_base_weights(partial / ADAPTER_WEIGHTS_FILE, directory, loaded)
        require_pairs(partial / ADAPTER_WEIGHTS_FILE, directory)
        origin = {"imported_from": Path(source).name if from_home(source).exists() else str(source)}
        if left_out:
            origin |= {"left_out": left_out, "adapter_sha256": sha256(directory / ADAPTER_WEIGHTS_FILE)}
        card = ExpertCard(
            name=out.name,
            task=task or out.name,
            licence=licence,
            base=loaded.identity,
            prompt=prompt or prompt_of(directory, loaded),
            training=origin,
        )
        save_tensors({}, partial / GLIDER_WEIGHTS_FILE, {"format": "pt"})
        write_json(partial / CARD_FILE, card.model_dump(mode="json"))
        expert = Expert.open(partial)
        _require_sites(expert, loaded)
        expert.verify()
        tell_oddities(directory, expert, loaded)
    return Expert.open(out)


def make_gates(
    directory: Path | str,
    data: Path | str,
    base: str | BaseSpec | BaseModel,
    config: TrainConfig,
    report: StageTick = lambda stage, progress, steps: None,
    how: GateMaking = "trained",
) -> Expert:
    """Add gates to an expert whose LoRA exists; the LoRA is unchanged.

    "trained" is the second step of the protocol; "mean" takes each site's mean input over the first 256 training rows
    (PHATGOOSE's ablation), without training. Arrow's vectors are no gates: a singular vector's sign means nothing, so
    that the router `arrow` compares by absolute value.
    """
    expert = Expert.open(directory)
    expert.verify()
    task_data = read_task(data, config)
    loaded = _loaded(base)
    require_same_base(expert.card.base, loaded.identity, f"the expert {expert.name}")
    encoded = task_data.encode(loaded, expert.card.prompt, config)
    origin = {"data_sha256": task_data.sha256, "base": loaded.identity.hash, "config": config.content}
    origin |= arithmetic_of(loaded)
    with training_state(expert.directory, {**origin, "how": how}) as state:
        if how == "mean":
            gates = mean_gates(loaded, encoded.train[:_MEAN_ROWS], expert.sites)
            record: dict[str, Any] = {"how": how}
        else:
            gates, record = _train_gates(expert, loaded, encoded, config, state, report)
        training = {**expert.card.training, "gates": {**origin, **encoded.counts, **record, "versions": versions()}}
        examples = expert.card.examples or task_data.sample(config)
        card = expert.card.model_copy(update={"training": training, "examples": examples})
        vectors = {site + GATE: gate.to("cpu", torch.bfloat16) for site, gate in gates.items()}
        return _replace(expert, card, {**expert.vectors, **vectors})


def _train_gates(
    expert: Expert, loaded: BaseModel, task: EncodedTask, config: TrainConfig, state: Path, report: StageTick
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from peft import PeftModel

    from glider.contribute.lora import lora_config

    if config.minutes is not None:  # the whole budget is the gates': no LoRA is trained
        config = config.model_copy(update={"minutes": config.minutes / config.gate_share})
    plain: Any = lora_config(expert, loaded.model)  # a stranger's settings are not run: his regex might take for ever
    peft_model = PeftModel.from_pretrained(loaded.model, str(expert.directory), config=plain).train()
    with gated(peft_model) as gates:
        record = run_stage("gates", peft_model, gates, task, config, loaded.tokenizer.pad_token_id, state, report)
    peft_model.eval().unload()  # the base is as it was
    return {site: gate.detach() for site, gate in gates.items()}, record


def add_description(
    directory: Path | str, description: str, embedder: str, prefix: str = "", origin: DescriptionOrigin | None = None
) -> Expert:
    """Add a description to an expert, with its author and its embedding; everything else stays.

    Profile embeddings of another embedder are removed.
    """
    expert = Expert.open(directory)
    require_text(description)
    embedding = load_embedder(embedder, prefix)
    card = expert.card.model_copy(
        update={"description": description, "described_by": origin, "embedder": embedding.identity}
    )
    foreign = {PREFIX + part for part in EMBEDDED} if not embedding.identity.matches(expert.card.embedder) else set()
    vectors = {name: vector for name, vector in expert.vectors.items() if name not in foreign}
    return _replace(expert, card, {**vectors, INSTRUCTION: embedding.embed([description])[0]})


def make_profile(
    directory: Path | str, data: Path | str, base: str | BaseSpec | BaseModel, config: TrainConfig
) -> Expert:
    """Add a profile to an expert, from rows of its task; everything else stays.

    Its embeddings are by the expert's own embedder; without one the profile has none. Where no rows validate (few of
    them, or `validation` 0) a third of the training rows is held back, 24 at most. Raises `DataError` for fewer than 3,
    and for fewer rows, or no embedder, where inputs are to be stored.
    """
    expert = Expert.open(directory)
    task = read_task(data, config)
    training, held_back = task.train, task.validation or task.train[: min(HELD_BACK, len(task.train) // 3)]
    if not held_back:
        expected = f"at least 3 rows, a third held back to calibrate a pool on ({3 * MINIMUM_QUERIES} are enough)"
        raise DataError(expected, f"{len(task.train)} in {data}", "Give more rows.")
    if not task.validation:
        training = training[len(held_back) :]
    if not task.validation and len(held_back) < MINIMUM_QUERIES:
        text = f"{len(held_back)} rows are held back, where a pool is calibrated on {MINIMUM_QUERIES} of each expert"
        warnings.warn(f"{text}: it has no part in the threshold then. Give more rows.", GliderWarning, stacklevel=2)
    embedder = load_for(expert.card.embedder) if expert.card.embedder else None
    loaded = _loaded(base)
    require_same_base(expert.card.base, loaded.identity, f"the expert {expert.name}")
    profile = profile_of(training, held_back, embedder, loaded, config.seed, config.stored)
    vectors = {name: vector for name, vector in expert.vectors.items() if not name.startswith(PREFIX)}
    return _replace(expert, expert.card, {**vectors, **profile.tensors()})


def _replace(expert: Expert, card: ExpertCard, vectors: dict[str, Tensor]) -> Expert:
    """The same adapter files with another card and other vectors, put in place at once."""
    with new_directory(expert.directory) as partial:
        copy_tree(expert.directory, partial)  # what else lies there stays too
        for file in (GLIDER_WEIGHTS_FILE, CARD_FILE):
            (partial / file).unlink()  # a link would be written through
        vectors = {name: vector.contiguous() for name, vector in vectors.items()}
        save_tensors(vectors, partial / GLIDER_WEIGHTS_FILE, {"format": "pt"})
        write_json(partial / CARD_FILE, card.model_dump(mode="json"))
        Expert.open(partial).verify()
    return Expert.open(expert.directory)


def _loaded(base: str | BaseSpec | BaseModel) -> BaseModel:
    return base if isinstance(base, BaseModel) else BaseSpec.of(base).load_base()


def _base_for(adapter: Path, base: str | BaseSpec | BaseModel | None) -> BaseModel:
    """The base model given, or the one that an adapter's settings name."""
    return base if isinstance(base, BaseModel) else _named_base(adapter, base).load_base()


def _base_of_import(adapter: Path, base: str | BaseSpec | BaseModel | None) -> BaseModel:
    """The same for an import, which compares weights only where the adapter has copies of some."""
    if isinstance(base, BaseModel):
        return base
    spec = _named_base(adapter, base)
    plain = spec.base is not None and spec == BaseSpec(base=spec.base)
    outline = outline_base(spec.base) if plain and spec.base is not None and _pairs_alone(adapter) else None
    return outline or spec.load_base()


def _named_base(adapter: Path, base: str | BaseSpec | None) -> BaseSpec:
    spec = BaseSpec.of(base)
    if spec.base is not None:
        return spec
    named = base_name(adapter)
    return spec.model_copy(update={"base": EMBEDDED_BASE if named == BASE_ID else named})


def _pairs_alone(adapter: Path) -> bool:
    return all(parse_key(name) is not None for name in read_header(adapter / ADAPTER_WEIGHTS_FILE).shapes)


def _adapter_directory(source: Path | str) -> Path:
    path = from_home(source)
    if not path.exists():
        snapshot = _download(str(source))  # its files are links within the hub's own cache
        if not (snapshot / ADAPTER_WEIGHTS_FILE).exists():
            raise ExpertError(
                f"{ADAPTER_WEIGHTS_FILE} in the repository {source}",
                "none",
                "If it has adapter_model.bin, a pickle: save it again with PEFT, which writes safetensors.",
            )
        return snapshot
    if not path.is_dir():
        raise ExpertError("the directory of an adapter", f"the file {path}", "Give the directory that PEFT saved.")
    refuse_links_out(path, ADAPTER_FILES)
    if not any((path / file).exists() for file in ADAPTER_FILES):
        expected = f"{ADAPTER_CONFIG_FILE} and {ADAPTER_WEIGHTS_FILE} in {path}"
        raise ExpertError(expected, "neither", "Give a directory that PEFT saved.")
    if not (path / ADAPTER_WEIGHTS_FILE).exists() and (path / "adapter_model.bin").exists():
        raise ExpertError(
            f"{ADAPTER_WEIGHTS_FILE} in {path}",
            "adapter_model.bin, a pickle",
            "Save it again with PEFT's save_pretrained, which writes safetensors; pickles are not opened.",
        )
    return path


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    from glider.sharing.hub_faults import hub_faults_as

    expected = f"an adapter in the directory {repository}, which is not there, or in a hub's repository of that name"
    with hub_faults_as(expected, ExpertError):
        return Path(snapshot_download(repository, allow_patterns=[*ADAPTER_FILES, *TEXT_FILES]))


def _is_of(out: Path, directory: Path) -> bool:
    """Whether an expert was imported from an adapter, as far as the files tell."""
    if _digest(out / ADAPTER_CONFIG_FILE) != _digest(directory / ADAPTER_CONFIG_FILE):
        return False
    source = _digest(directory / ADAPTER_WEIGHTS_FILE)
    if _digest(out / ADAPTER_WEIGHTS_FILE) == source:
        return True
    return (out / CARD_FILE).exists() and ExpertCard.read(out).training.get("adapter_sha256", "") == source


def _digest(file: Path) -> str | None:
    try:
        return sha256(file) if file.is_file() else None
    except (OSError, UnfitFile) as fault:
        raise ExpertError(f"the file {file}", str(fault), "Get the adapter anew.") from fault


def _copy(source: Path, target: Path) -> None:
    remedy = "Give a directory that PEFT saved."
    try:
        copy_file(source, target)
    except FileNotFoundError:
        raise ExpertError(f"the file {source}", "no such file", remedy) from None
    except ValueError as fault:
        raise ExpertError(f"the file {source}", str(fault), remedy) from fault


def _require_sites(expert: Expert, loaded: BaseModel) -> None:
    for name, site in expert.sites.items():
        try:
            module = loaded.model.get_submodule(name)
        except AttributeError:
            module = None
        got = linear_widths(module)
        if got != (site.in_features, site.out_features):
            widths = "" if got is None else f" {got[0]} -> {got[1]}"
            raise ExpertError(
                f"a linear module {site.in_features} -> {site.out_features} at {name} of {loaded.identity.model_id}",
                "no such module" if module is None else f"{type(module).__name__}{widths}",
                _other_class(name, loaded.model) if module is None else "The adapter is for another base model.",
            )


def _other_class(name: str, model: Any) -> str:
    """What to do about a site that the base lacks: the class of its text alone has it under another name."""
    _, layers, rest = name.partition("layers.")
    other = next((one for one in linear_layers(model) if layers and one.endswith(f".{layers}{rest}")), None)
    if other is None:
        return "The adapter is for another base model."
    kind = type(model).__name__
    return f"The base is loaded as {kind}, where it would be {other}: train the adapter on that class."
