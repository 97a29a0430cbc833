"""Published checkpoint -> pool: all of its experts or nothing."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from glider.contribute.published_format import NOMIC, SCALING, OfficialCheckpoint, OfficialExpert
from glider.errors import BaseModelError, ExpertError, PoolError
from glider.experts.base_identity import BaseIdentity, identify
from glider.experts.card import ExpertCard
from glider.experts.expert import write_expert
from glider.experts.pool import Pool
from glider.experts.prompt_format import PromptFormat
from glider.files.disk import new_directory
from glider.progress import CountTick
from glider.shapes import Float, Tensor

Gates = Literal["auto", "trained", "arrow"]


@dataclass(frozen=True)
class OfficialBase:
    """What an import must know of the base model; the model itself may go."""

    identity: BaseIdentity
    embedding: Float[Tensor, "V D"]
    widths: dict[str, tuple[int, int]]  # (D, O) of every linear module

    @classmethod
    def of(cls, model: Any, model_id: str) -> "OfficialBase":
        """Take it from a transformers model (not yet attached to anything)."""
        widths = {
            name: (module.in_features, module.out_features)
            for name, module in model.named_modules()
            if hasattr(module, "in_features") and hasattr(module, "out_features")
        }
        return cls(identify(model, model_id), model.get_input_embeddings().weight.detach(), widths)


def import_checkpoint(
    checkpoint: OfficialCheckpoint,
    pool: Path | str,
    base: OfficialBase,
    *,
    embeddings: Mapping[str, Float[Tensor, "N G"]] | None = None,
    descriptions: Mapping[str, str] | None = None,
    without: Collection[str] = (),
    gates: Gates = "auto",
    dtype: torch.dtype = torch.float32,
    licence: str | None = None,
    report: CountTick = lambda name, done, total: None,
) -> Pool:
    """Write the experts of a published checkpoint as a new pool at `pool`, in the checkpoint's order.

    `embeddings` are the experts' instruction embeddings (`read_embeddings`); without them the pool serves routers that
    need none. `without` leaves experts out. `gates` says what the gates are; "auto" tells Arrow's by their unit length.
    The pool appears when it is complete. Raises `PoolError` if `pool` exists, `ExpertError` for a checkpoint that is
    not of the layout, and `BaseModelError` for one made for another base.
    """
    pool = Path(pool)
    if os.path.lexists(pool):
        raise PoolError(f"a new directory at {pool}", "an existing one", "Remove it or give another path.")
    names = _names_without(checkpoint, without)
    instructions = None if embeddings is None else _instructions(names, embeddings)
    with new_directory(pool) as partial:
        Pool.create(partial, base.identity)
        for done, expert in enumerate(checkpoint.experts(without), start=1):
            _check_base(expert, base)
            is_arrow = expert.has_unit_gates if gates == "auto" else gates == "arrow"
            card = ExpertCard(
                name=expert.name,
                task=expert.name,
                description=(descriptions or {}).get(expert.name),
                licence=licence,
                base=base.identity,
                prompt=PromptFormat(kind="encoder-decoder"),
                embedder=None if instructions is None else NOMIC,
                training={
                    "imported_from": expert.file.name,
                    "layout": checkpoint.layout,
                    "position": checkpoint.names.index(expert.name),
                    "gates": "arrow" if is_arrow else "trained",
                },
            )
            instruction = None if instructions is None else instructions[expert.name]
            config = _peft_config(expert, base.identity.path or base.identity.model_id)
            write_expert(partial / expert.name, card, config, expert.lora, expert.gates, instruction, dtype)
            Pool.open(partial).add(expert.name)  # opened anew: a kept pool keeps the files of its experts mapped
            report(expert.name, done, len(names))
    return Pool.open(pool)


def _names_without(checkpoint: OfficialCheckpoint, without: Collection[str]) -> list[str]:
    if strangers := [name for name in without if name not in checkpoint.names]:
        raise ExpertError(
            f"experts of the checkpoint to leave out ({', '.join(checkpoint.names)})",
            ", ".join(strangers),
            "Check the names.",
        )
    names = [name for name in checkpoint.names if name not in without]
    if not names:
        raise ExpertError("at least one expert to import", "every one left out", "Leave fewer out.")
    return names


def _instructions(
    names: Collection[str], embeddings: Mapping[str, Float[Tensor, "N G"]]
) -> dict[str, Float[Tensor, " G"]]:
    """The one instruction embedding of each expert."""
    if lacking := [name for name in names if name not in embeddings]:
        raise ExpertError(
            "an instruction embedding for every expert",
            f"none for {', '.join(lacking)}",
            "Leave these experts out (--without), or give the embeddings of this checkpoint.",
        )
    if several := [name for name in names if len(embeddings[name]) != 1]:
        raise ExpertError(
            "one instruction embedding for each expert",
            f"{len(embeddings[several[0]])} for {several[0]}",
            "Several are wordings of a query; give the experts' own embeddings.",
        )
    return {name: embeddings[name][0] for name in names}


def _check_base(expert: OfficialExpert, base: OfficialBase) -> None:
    """Refuse an expert whose sites or embed_tokens are not those of the base."""
    model_id = base.identity.model_id
    for site, gate in expert.gates.items():
        got = base.widths.get(site)
        widths = (gate.numel(), expert.lora[f"base_model.model.{site}.lora_B.weight"].shape[0])
        if got != widths:
            raise BaseModelError(
                f"a linear module {widths[0]} -> {widths[1]} at {site} in the base model, as {expert.name} adapts it",
                "no such module" if got is None else f"{got[0]} -> {got[1]} in {model_id}",
                "Give the base model that the checkpoint was made for.",
            )
    for module, weight in expert.embed_tokens.items():
        if not _same(weight, base.embedding):
            raise BaseModelError(
                f"the base model whose {module} are those in {expert.file}",
                f"{model_id}, whose embed_tokens differ",
                "Give the base model that the checkpoint was made for.",
            )


def _same(one: Tensor, other: Tensor) -> bool:
    """Equality in the coarser of both dtypes: a base stored in bfloat16 is still the base."""
    coarse = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return one.shape == other.shape and torch.equal(one.to(coarse), other.to("cpu", coarse))


def _peft_config(expert: OfficialExpert, base: str) -> Any:
    from peft import LoraConfig

    alpha = expert.rank * SCALING
    return LoraConfig(
        r=expert.rank,
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # pyright: ignore[reportArgumentType]
        target_modules=list(expert.gates),
        base_model_name_or_path=base,
        task_type="SEQ_2_SEQ_LM",
        inference_mode=True,
    )
