"""Gates without training: the mean activation of the expert's data (the ablation of PHATGOOSE, arXiv 2402.05859)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from glider.contribute.examples import EncodedRow, collate
from glider.errors import DataError
from glider.inference.base_model import BaseModel
from glider.progress import track
from glider.shapes import Float, Tensor


@torch.no_grad()
def mean_gates(base: BaseModel, rows: Sequence[EncodedRow], sites: Iterable[str]) -> dict[str, Float[Tensor, " D"]]:
    """Each site's mean input over the tokens of `rows` in the base model, to be stored as the gate there.

    An expert with such gates needs no router of its own: `glider` and `phatgoose` compare tokens with them as with
    trained ones (both are standardised). A site of the decoder sees the answer's tokens; in an encoder-decoder its
    cross-attention's keys and values see the question's. Raises `DataError` without rows.
    """
    if not rows:
        raise DataError("rows to take the mean over", "none", "Give the expert's training rows.")
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    model: Any = base.model
    was_training = model.training
    hooks = [model.get_submodule(site).register_forward_pre_hook(_add_to(sums, counts, site)) for site in sites]
    model.eval()
    try:
        for row in track(rows, len(rows), "Mean inputs"):  # one at a time: no pads, whichever tokens a site sees
            batch = collate([row], base.tokenizer.pad_token_id, model.config.is_encoder_decoder)
            if not model.config.is_encoder_decoder:
                del batch["labels"]  # they cover the answer alone, and no loss is wanted
            model(**{name: tensor.to(model.device) for name, tensor in batch.items()}, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return {site: (total / counts[site]).float() for site, total in sums.items()}


def _add_to(sums: dict[str, Tensor], counts: dict[str, int], site: str) -> Callable[[Any, tuple[Tensor]], None]:
    def add(module: Any, inputs: tuple[Tensor]) -> None:
        tokens = inputs[0].flatten(0, -2)
        sums[site] = sums.get(site, 0) + tokens.sum(dim=0, dtype=torch.float32).cpu().double()
        counts[site] = counts.get(site, 0) + len(tokens)

    return add
