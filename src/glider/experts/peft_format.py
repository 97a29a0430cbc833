"""PEFT's adapter files, read without PEFT and without loading a tensor."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from glider.errors import ExpertError
from glider.experts.site_patterns import BadPattern, SitePatterns, endings
from glider.files.json_text import parse_json
from glider.files.opening import read_bytes

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
_KEY = re.compile(r"^base_model\.model\.(?P<site>.+)\.lora_(?P<factor>[AB])\.weight$")

LARGEST_CONFIG = 8 << 20  # bytes; one that names 37,000 modules has 3 MB
MOST_MEMBERS = 150_000
_LARGEST_ALPHA = 1e9
_NONE = (None, False, [], {}, "")
# settings that make an adapter more than B A x, and the values that do not
_PLAIN = {
    "use_dora": _NONE,
    "use_qalora": _NONE,
    "use_bdlora": _NONE,
    "kasa_config": _NONE,
    "monteclora_config": _NONE,
    "velora_config": _NONE,
    "arrow_config": _NONE,
    "modules_to_save": _NONE,
    "bias": ("none", *_NONE),
    "lora_bias": _NONE,
    "trainable_token_indices": _NONE,
    "layer_replication": _NONE,
    "target_parameters": _NONE,
    "alora_invocation_tokens": _NONE,
}
# PEFT's other settings: they choose modules, or matter while training alone
_IRRELEVANT = frozenset(
    (
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out"),
        *("use_rslora", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
        *("megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("qalora_group_size", "runtime_config", "ensure_weight_tying"),
    )
)
_REMEDIES = {
    "use_dora": "DoRA scales the base's output too, by a norm that the pair B A is part of: it is no B A x that "
    "could be weighed per token; retrain with use_dora=False.",
    "target_parameters": "LoRA on the experts inside MoE blocks is not taken yet; retrain without target_parameters{}.",
}
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")  # PEFT changes the base's weights with these


@dataclass(frozen=True)
class LoraLayout:
    """The settings of a PEFT LoRA adapter that change what it computes."""

    rank: int
    alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    use_rslora: bool

    def __getstate__(self) -> dict[str, Any]:
        """The settings alone: compiled expressions stay in their process."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def rank_at(self, site: str) -> int:
        """The rank at a site. Raises `ValueError` for patterns that would take too long at so many sites."""
        return int(self._ranks.value(site, self.rank))

    def alpha_at(self, site: str) -> float:
        """The alpha at a site; raises as `rank_at`."""
        return self._alphas.value(site, self.alpha)

    def scaling(self, site: str) -> float:
        """`alpha / r` at a site (`alpha / sqrt(r)` with rsLoRA), patterns resolved as PEFT resolves them."""
        rank = self.rank_at(site)
        return self.alpha_at(site) / (math.sqrt(rank) if self.use_rslora else rank)

    @cached_property
    def _ranks(self) -> SitePatterns:
        return SitePatterns(self.rank_pattern)

    @cached_property
    def _alphas(self) -> SitePatterns:
        return SitePatterns(self.alpha_pattern)


def base_name(directory: Path) -> str:
    """The base model that an adapter's settings name; raises `ExpertError` where they name none."""
    path = directory / ADAPTER_CONFIG_FILE
    try:
        name = parse_json(read_bytes(path, LARGEST_CONFIG), MOST_MEMBERS)["base_model_name_or_path"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as fault:
        got = "none" if isinstance(fault, KeyError | TypeError) else str(fault)
        raise ExpertError(f"the base model's name in {path}", got, "Mend the file, or give --base.") from fault
    if not isinstance(name, str) or not name:
        raise ExpertError(f"the base model's name in {path}", repr(name)[:60], "Give --base.")
    return name


def read_layout(directory: Path, linear: Sequence[str] = ()) -> LoraLayout:
    """Read `adapter_config.json`; raises `ExpertError` for anything glider would compute otherwise than PEFT.

    Where the base's `linear` layers are given by name, the error names the target modules that work among them.
    """
    return parsed_layout(read_config(directory), directory / ADAPTER_CONFIG_FILE, linear)


def read_config(directory: Path) -> bytes:
    """The bytes of a directory's `adapter_config.json`; raises `ExpertError` where there is none that can be read."""
    path = directory / ADAPTER_CONFIG_FILE
    try:
        return read_bytes(path, LARGEST_CONFIG)
    except FileNotFoundError:
        raise ExpertError(
            f"a PEFT adapter in {directory}", f"no {ADAPTER_CONFIG_FILE}", "Give a directory that PEFT saved."
        ) from None
    except (ValueError, OSError) as fault:
        raise ExpertError(f"JSON in {path}", str(fault), "Get the expert anew; the file is damaged.") from fault


def parsed_layout(content: bytes, path: Path, linear: Sequence[str] = ()) -> LoraLayout:
    """The settings that lie in `path` with this content; raises as `read_layout`."""
    try:
        config = parse_json(content, MOST_MEMBERS)
    except (ValueError, RecursionError) as fault:
        raise ExpertError(f"JSON in {path}", str(fault), "Get the expert anew; the file is damaged.") from fault
    _refuse_unsupported(config, path, linear)
    return LoraLayout(
        rank=config["r"],
        alpha=config["lora_alpha"],
        rank_pattern=_patterns(config, "rank_pattern", path),
        alpha_pattern=_patterns(config, "alpha_pattern", path),
        use_rslora=bool(config.get("use_rslora")),
    )


def unknown_settings(directory: Path) -> list[str]:
    """Settings of an adapter that this glider does not know and that are not empty or false."""
    config = parse_json(read_config(directory), MOST_MEMBERS)
    known = _PLAIN.keys() | _IRRELEVANT
    return sorted(f"{name}={value!r}"[:80] for name, value in config.items() if name not in known and not _empty(value))


def _empty(value: object) -> bool:
    return value in _NONE or value == 0


def parse_key(key: str) -> tuple[str, str] | None:
    """`(site, "A" or "B")` of a PEFT tensor name, or None for a name that is not a LoRA factor."""
    match = _KEY.match(key)
    return (match["site"], match["factor"]) if match else None


def _refuse_unsupported(config: object, path: Path, linear: Sequence[str]) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        got = str(config.get("peft_type"))[:40] if isinstance(config, dict) else type(config).__name__
        raise ExpertError(f"a LoRA adapter in {path}", f"peft_type {got}", "Only LoRA experts can be pooled.")
    if not _is_rank(config.get("r")) or not _is_alpha(config.get("lora_alpha")):
        got = f"r={str(config.get('r'))[:40]}, lora_alpha={str(config.get('lora_alpha'))[:40]}"
        raise ExpertError(f"a whole r above 0 and a finite lora_alpha in {path}", got, "Mend the file.")
    for setting, value in config.items():
        allowed = _PLAIN.get(setting)
        changes_base = setting == "init_lora_weights" and str(value).lower().startswith(_BASE_CHANGING)
        if changes_base or (allowed is not None and value not in allowed):
            raise ExpertError(
                f"a plain LoRA adapter in {path}",
                f"{setting}={value!r}"[:200],
                _remedy(setting, config, linear),
            )


def _remedy(setting: str, config: dict[str, Any], linear: Sequence[str]) -> str:
    remedy = _REMEDIES.get(setting, "Such an adapter is more than B A x and cannot be routed; retrain it without.")
    targets = config.get("target_modules")
    names = sorted(map(str, targets)) if isinstance(targets, list) else []
    if linear:  # what LoRA pairs can be put on, of the names that are given
        known_names = endings(linear)
        names = [name for name in names if name in known_names]
    if names:
        return remedy.format(f": its target_modules ({', '.join(names)[:200]}) work")
    known = ", ".join(sorted({site.rpartition(".")[2] for site in linear}))[:200]
    return remedy.format(f", on target_modules that are linear layers{known and f': {known}'}")


def _patterns(config: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    patterns = config.get(name) or {}
    fits = _is_rank if name == "rank_pattern" else _is_alpha
    if not isinstance(patterns, dict) or not all(fits(value) for value in patterns.values()):
        raise ExpertError(f"{name} of patterns to numbers in {path}", f"{patterns!r}"[:80], "Mend the file.")
    try:
        SitePatterns(patterns)
    except BadPattern as fault:
        expected = f"names or regular expressions of linear time in {name} of {path}"
        raise ExpertError(expected, str(fault), "Mend the file, or write the modules' names.") from fault
    return patterns


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 < value <= 1 << 20


def _is_alpha(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < _LARGEST_ALPHA  # pyright: ignore[reportArgumentType]
