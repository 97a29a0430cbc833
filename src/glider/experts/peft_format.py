"""PEFT's adapter files, read without PEFT and without loading a tensor."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from glider.errors import ExpertError

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
_KEY = re.compile(r"^base_model\.model\.(?P<site>.+)\.lora_(?P<factor>[AB])\.weight$")


@dataclass(frozen=True)
class LoraLayout:
    """The settings of a PEFT LoRA adapter that change what it computes."""

    rank: int
    alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    use_rslora: bool

    def scaling(self, site: str) -> float:
        """`alpha / r` at a site (`alpha / sqrt(r)` with rsLoRA), patterns resolved as PEFT resolves them."""
        rank = _pattern_value(self.rank_pattern, site, self.rank)
        alpha = _pattern_value(self.alpha_pattern, site, self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_layout(directory: Path) -> LoraLayout:
    """Read `adapter_config.json`; raises `ExpertError` for anything glider would compute otherwise than PEFT."""
    path = directory / ADAPTER_CONFIG_FILE
    try:
        config = json.loads(path.read_text("utf8"))
    except FileNotFoundError:
        raise ExpertError(
            f"a PEFT adapter in {directory}", f"no {ADAPTER_CONFIG_FILE}", "Give a directory that PEFT saved."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        raise ExpertError(f"JSON in {path}", str(fault), "Get the expert anew; the file is damaged.") from fault
    _refuse_unsupported(config, path)
    return LoraLayout(
        rank=config["r"],
        alpha=config["lora_alpha"],
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
        use_rslora=bool(config.get("use_rslora")),
    )


def parse_key(key: str) -> tuple[str, str] | None:
    """`(site, "A" or "B")` of a PEFT tensor name, or None for a name that is not a LoRA factor."""
    match = _KEY.match(key)
    return (match["site"], match["factor"]) if match else None


def _refuse_unsupported(config: object, path: Path) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        got = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ExpertError(f"a LoRA adapter in {path}", f"peft_type {got}", "Only LoRA experts can be pooled.")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ExpertError(f"r and lora_alpha in {path}", f"r={rank!r}, lora_alpha={alpha!r}", "Mend the file.")
    refused = {
        "use_dora": (True,),
        "modules_to_save": None,
        "bias": ("all", "lora_only"),
        "fan_in_fan_out": (True,),
        "trainable_token_indices": None,
        "layer_replication": None,
        "target_parameters": None,
    }
    for setting, bad in refused.items():
        value = config.get(setting)
        if value in bad if bad is not None else bool(value):
            raise ExpertError(
                f"a plain LoRA adapter in {path}",
                f"{setting}={value!r}",
                "Such a part cannot be routed per token; retrain the adapter without it.",
            )


def _pattern_value(patterns: dict, site: str, default: float) -> float:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", site):
            return value
    return default
