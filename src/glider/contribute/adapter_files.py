"""What lies in an adapter's directory, told apart before it becomes an expert: pairs, copies of the base's weights; and
what a reader should know of it."""

import math
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from glider.errors import ExpertError, GliderWarning
from glider.experts.expert import Expert
from glider.experts.peft_format import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    LoraLayout,
    parse_key,
    unknown_settings,
)
from glider.experts.site_patterns import BadPattern, endings, named_sites, whole_matches
from glider.files.disk import read_json, save_tensors
from glider.files.headers import read_header
from glider.inference.base_model import BaseModel
from glider.layers.widths import linear_layers, linear_widths

_PREFIX = "base_model.model."
_LAYERS = "layers_to_transform"
_LARGE = 64 << 20  # bytes of a tensor that is looked at before it is copied
_STRANGERS = (  # a part of a tensor's name, what it is, and what to do
    ("lora_embedding_", "LoRA of an embedding, which looks rows up", "Leave the embedding out of target_modules."),
    ("lora_magnitude_vector", "a magnitude of DoRA, which is more than B A x", "Train it with use_dora=False."),
    (".default.weight", "a name of PEFT's model in memory", "Save it by PEFT's save_pretrained."),
    (".bias", "a bias that was trained", "Train it with bias='none' and lora_bias=False."),
)


@contextmanager
def named_as(partial: Path, directory: Path) -> Iterator[None]:
    """Let faults of the files in a directory that vanishes name those that the user gave."""
    try:
        yield
    except ExpertError as fault:
        parts = (text.replace(str(partial), str(directory)) for text in (fault.wanted, fault.got, fault.remedy))
        raise ExpertError(*parts) from fault


def warn(text: str) -> None:
    """Tell what an adapter is imported in spite of."""
    warnings.warn(text, GliderWarning, stacklevel=4)


def without_base_weights(path: Path, source: Path, loaded: BaseModel) -> list[str]:
    """Leave out of an adapter's file the weights that are the base's own; returns their names.

    PEFT saves an embedding or output layer whole beside its pair (`save_embedding_layers`). Raises `ExpertError` where
    they are not the base's: trained, or of a vocabulary that was resized. `source` is what messages call the file.
    """
    header = read_header(path)
    copies = [name for name in header.shapes if parse_key(name) is None and _owner(name, loaded.model) is not None]
    if not copies:
        return []
    file = source / ADAPTER_WEIGHTS_FILE
    with safe_open(path, framework="pt") as tensors:
        for name in copies:
            _require_equal(name, tensors.get_tensor(name), _owner(name, loaded.model), file)
        remaining = {name: tensors.get_tensor(name) for name in header.shapes if name not in copies}
    path.unlink()
    save_tensors(remaining, path, {"format": "pt"})
    return copies


def require_sizes(path: Path, layout: LoraLayout, loaded: BaseModel) -> None:
    """Raise `ExpertError` for a large tensor beyond what this base has place for: a file of holes takes no place on its
    disk, and its copy all of it."""
    header = read_header(path)
    rank = max((layout.rank, *layout.rank_pattern.values()))
    for name, (_, length) in header.places.items():
        if length < _LARGE:
            continue
        values, most = math.prod(header.shapes[name]), _most_values(name, rank, loaded.model)
        if values > most:
            expected = (
                f"at most {most} values in {name} of {path}, as its rank and {loaded.identity.model_id} have them"
            )
            raise ExpertError(expected, f"{values}", "The adapter is for another base model, or damaged.")


def _most_values(name: str, rank: int, model: nn.Module) -> int:
    if (parsed := parse_key(name)) is None:
        return 0 if (owner := _owner(name, model)) is None else owner.numel()
    try:
        widths = linear_widths(model.get_submodule(parsed[0]))
    except AttributeError:
        widths = None
    return 0 if widths is None else rank * widths[0 if parsed[1] == "A" else 1]


def require_pairs(path: Path, source: Path) -> None:
    """Raise `ExpertError` for a file with more than LoRA pairs, by what the first other tensor is."""
    for name in read_header(path).shapes:
        if parse_key(name) is not None:
            continue
        known = (rest for part, *rest in _STRANGERS if part in name)
        what, remedy = next(known, ["a tensor of another kind, or of another name than PEFT's", ""])
        if not name.startswith(_PREFIX):
            what, remedy = f"a name without {_PREFIX}", "Save it by PEFT's save_pretrained."
        expected = f"LoRA pairs on linear layers alone in {source / ADAPTER_WEIGHTS_FILE}"
        raise ExpertError(expected, f"{name}: {what}", remedy or "Retrain it with LoRA pairs alone.")


def tell_oddities(directory: Path, expert: Expert, loaded: BaseModel) -> None:
    """Warn of what is allowed and seldom meant: another base, settings nobody knows, parts that do nothing."""
    config = read_json(directory / ADAPTER_CONFIG_FILE)
    named = config.get("base_model_name_or_path")
    got = loaded.identity.model_id
    if isinstance(named, str) and named and _short(named) not in (_short(got), _short(str(loaded.source or ""))):
        warn(f"{directory} names the base {named[:100]!r}, and is imported for {got}: is it the same model?")
    if settings := unknown_settings(directory):
        warn(f"{directory} has settings that this glider does not know, and leaves out: {', '.join(settings)[:300]}")
    factors = {site: expert.factors(site) for site in expert.sites}
    silent = {
        "B is zero there": [site for site, (_, b) in factors.items() if not bool(b.any())],
        "A is zero there": [site for site, (a, b) in factors.items() if not bool(a.any()) and bool(b.any())],
        "alpha is zero there": [site for site in factors if expert.scaling(site) == 0],
    }
    for reason, sites in silent.items():
        if sites:
            warn(f"{directory} changes nothing at {_some(sites, len(expert.sites))}: {reason}")
    if (task := config.get("task_type")) not in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"):
        warn(f"{directory} was trained for {str(task)[:40]}, which is no writing of text")
    try:
        beside = _left_out(config, expert)
    except BadPattern as fault:
        warn(f"{directory} may have pairs that its own settings leave out, and PEFT with them: they name {fault}")
    else:
        if beside:
            warn(
                f"{directory} has pairs that its own settings leave out, and PEFT with them: {_some(beside)} are taken"
            )
    if config.get("layers_to_transform") is None and isinstance(config.get("target_modules"), list):
        lacking = _without_pair(loaded.model, config["target_modules"], config.get("exclude_modules"), expert)
        if lacking:
            warn(f"{directory} has no pair for {_some(lacking)}, which its target_modules name")


def _without_pair(model: nn.Module, targets: list[Any], excluded: object, expert: Expert) -> list[str]:
    """Linear modules that a list of targets names and the expert has no pair for; names that fit nothing."""
    names = [name for name in targets if isinstance(name, str)]
    left_out = [name for name in excluded if isinstance(name, str)] if isinstance(excluded, list) else []
    if isinstance(excluded, str):
        return []  # a stranger's regular expression is not run
    excluded_sites = named_sites(linear_layers(model), left_out)
    adapted = named_sites(linear_layers(model), names) - excluded_sites
    present = endings([*expert.sites, *excluded_sites])
    absent = [name for name in names if name not in present]
    return absent or [site for site in linear_layers(model) if site in adapted and site not in expert.sites]


def _left_out(config: dict[str, Any], expert: Expert) -> list[str]:
    """Sites of pairs that the settings do not name; raises `BadPattern` for an expression that is not run."""
    targets, excluded = (_choice(config.get(name), expert.sites) for name in ("target_modules", "exclude_modules"))
    layers = config.get(_LAYERS)
    layers = [layers] if isinstance(layers, int) else layers
    numbers = {layer for layer in layers if isinstance(layer, int | float)} if isinstance(layers, list) else None
    beside = []
    for site in expert.sites:
        number = next((int(part) for part in site.split(".") if part.isdigit()), None)
        out = (targets is not None and site not in targets) or site in (excluded or ())
        if out or (numbers is not None and number is not None and number not in numbers):
            beside.append(site)
    return beside


def _choice(setting: object, sites: Collection[str]) -> set[str] | None:
    """Sites that a list of names, or an expression, chooses; None where it is neither."""
    if isinstance(setting, list):
        return named_sites(sites, [name for name in setting if isinstance(name, str)])
    if isinstance(setting, str) and setting and setting.lower() != "all-linear":
        return whole_matches(setting, sites)
    return None


def _owner(name: str, model: nn.Module) -> torch.Tensor | None:
    """The base's weight of which a tensor of an adapter may be a copy."""
    if not name.startswith(_PREFIX):
        return None
    place = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
    outer = {id(layer) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None}  # pyright: ignore
    module, _, part = place.rpartition(".")
    try:
        owner = model.get_submodule(module)
    except AttributeError:
        return None
    return getattr(owner, part, None) if id(owner) in outer and part in ("weight", "bias") else None


def _require_equal(name: str, got: torch.Tensor, expected: Any, file: Path) -> None:
    if got.shape != expected.shape:
        raise ExpertError(
            f"{name} of {list(expected.shape)} in {file}, as the base has it",
            f"{list(got.shape)}: the adapter was trained with another number of tokens",
            "New tokens need embeddings of their own, which cannot be weighed per token; train without resizing.",
        )
    if not got.dtype.is_floating_point:
        raise ExpertError(
            f"floating-point values as {name} in {file}", f"{got.dtype}", "Train LoRA pairs alone, and save them anew."
        )
    base_values = expected.detach().to("cpu", got.dtype).float()
    if not torch.allclose(got.float(), base_values, rtol=2 * torch.finfo(got.dtype).eps, atol=1e-7):
        raise ExpertError(
            f"the base's own weight as {name} in {file}",
            "other values: it was trained, or is another base's",
            "A trained embedding is more than B A x and cannot be routed; train LoRA pairs alone.",
        )


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def _some(names: list[str], of: int | None = None) -> str:
    shown = ", ".join(names[:3])[:200] + (", ..." if len(names) > 3 else "")
    return f"{len(names)} sites ({shown})" if of is None else f"{len(names)} of {of} sites ({shown})"
