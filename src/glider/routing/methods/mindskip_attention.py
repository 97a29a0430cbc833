"""MindSkip as its paper has it: prompts skip whole attention blocks (arXiv 2410.13184)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.experts.router_files import read_router
from glider.routing.base import Block, Decision, Prepared, Site, Support, router
from glider.routing.compose import declared
from glider.routing.linear import LinearTopK
from glider.routing.local_scores.joint import width_at
from glider.routing.sequence_choice import WHOLE_PROMPTS
from glider.routing.skipping import Skipping
from glider.shapes import Float, Int, Tensor

KIND = "mindskip-attention"
_READING = ("q_proj", "qkv_proj")  # what reads a block's own input


@router("mindskip-attention", paper="arXiv:2410.13184")
@dataclass(frozen=True)
class MindSkipAttention(Skipping):
    """An attention block is computed for a prompt where sigmoid(w . mean of its tokens + b) >= tau, else skipped.

    Where it is skipped the residual alone goes on, and neither the base's attention nor its experts count; an answer
    keeps to what its prompt decided. Elsewhere, and at all other sites, tokens use experts by top-2 of any local score.
    Only the gates w, b are trained, on few rows, by the language model's loss and `penalty` times the share of blocks
    that are computed, with a straight-through step (Router-Tuning, MindSkip's granularity of a sequence, as the
    authors' code has it; b is ours, so that gates begin open, and padding has no part in the mean). `glider pool
    train-router POOL --router mindskip-attention`. For decoders with blocks of a known form; prompts in one pass, with
    a cache. Experts are chosen in the native kernel where the local score is linear, as of gates; they run in any.
    """

    trained: ClassVar[str] = KIND

    @property
    def support(self) -> Support:
        """Where its decisions are right."""
        return WHOLE_PROMPTS

    def prepare(self, pool: Pool) -> Prepared:
        shapes = {}
        for name, width in blocks_of(pool).items():
            shapes |= {f"{name}.gate": (width,), f"{name}.bias": (1,)}
        return self.prepared_with(pool, read_router(pool, KIND, shapes)[0])

    def prepared_with(self, pool: Pool, tensors: Mapping[str, Tensor]) -> Prepared:
        """What the router makes of a pool, with these gates."""
        blocks = {
            name: Block(name, {part: tensors[f"{name}.{part}"] for part in ("gate", "bias")})
            for name in blocks_of(pool)
        }
        return replace(super().prepare(pool), blocks=blocks)

    def computed(self, block: Block, x: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """1 for each prompt whose gate is open."""
        return self.is_open((x @ block["gate"] + block["bias"]).sigmoid())

    def linear(self, site: Site) -> LinearTopK | None:
        """Tokens choose experts one by one, whatever prompt they belong to."""
        return declared(self, site)

    def route_sequences(
        self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None, sequence_of: Int[Tensor, " T"]
    ) -> Decision:
        """Experts are chosen token by token; padding has none."""
        decision = self.route(site, x, term)
        return replace(decision, weights=decision.weights * (sequence_of >= 0)[:, None])


def blocks_of(pool: Pool) -> dict[str, int]:
    """The attention blocks that experts of a pool adapt, and the width of what each of them reads."""
    blocks = {}
    for site in pool.sites:
        block, _, part = site.rpartition(".")
        if part in _READING:
            blocks[block] = width_at(pool, site)
    if not blocks:
        expected = f"experts that adapt attention ({' or '.join(_READING)})"
        raise RouterError(expected, "none", "Choose mindskip, which skips experts alone.")
    return blocks
