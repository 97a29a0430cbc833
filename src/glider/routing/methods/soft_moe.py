"""Soft MoE: experts see weighted combinations of a prompt's tokens (arXiv 2308.00951, 2401.15969)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from glider.routing.base import Decision, Site, SlotDecision, Support, router
from glider.routing.select import chances
from glider.routing.sequence_choice import WHOLE_PROMPTS, ByLocal, sequences
from glider.shapes import Float, Int, Tensor


@router("soft-moe", paper="arXiv:2401.15969")
@dataclass(frozen=True)
class SoftMoe(ByLocal):
    """y_t += sum over e of C_te s_e B_e A_e (sum over u of D_ue x_u), D by softmax over tokens, C over experts.

    One slot an expert: the slots' parameters are what the local score has of the expert, and it has one of them. The
    dispatch and combine tensors are those of the paper's unified form. Tokens are those of one prompt, in an encoder or
    where a decoder reads its prompt; a token that is generated is a sequence of its own, and has all experts by
    softmax. The paper's learnt scale and unit lengths of x and parameters are the local score's business. A prompt's
    token depends on all others, later ones too. Runs in the kernels reference and torch, not in native or triton; all
    experts must be in memory.
    """

    local: str = "gates"
    local_settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def support(self) -> Support:
        """Where its decisions are right."""
        return WHOLE_PROMPTS

    def route(self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None) -> Decision:
        scores = self._scores(site, x, term)
        weights, experts = scores.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        return Decision(experts, weights, scores)

    def route_sequences(
        self, site: Site, x: Float[Tensor, "T D"], term: Float[Tensor, "T E"] | None, sequence_of: Int[Tensor, " T"]
    ) -> Decision | SlotDecision:
        real = sequence_of[sequence_of >= 0]
        if len(real) == len(sequence_of) and len(real.unique()) == len(real):
            return self.route(site, x, term)  # every token stands alone
        scores, there = self._scores(site, x, term), (~site.absent).nonzero()[:, 0]
        groups = list(sequences(sequence_of))
        slots = len(groups) * len(there)
        dispatch, combine = scores.new_zeros(slots, len(x)), scores.new_zeros(len(x), slots)
        for number, tokens in enumerate(groups):
            place = torch.arange(number * len(there), (number + 1) * len(there), device=x.device)
            group_scores = scores[tokens][:, there]  # (N, E)
            dispatch[place[:, None], tokens] = chances(group_scores.T)  # of an expert that no token may use: none
            combine[tokens[:, None], place] = chances(group_scores)
        return SlotDecision(there.repeat(len(groups)), dispatch, combine, scores)
