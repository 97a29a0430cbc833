"""How near a query's description is to each expert's, where a pool mixes the experts of unsure queries by that."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from glider.shapes import Float, Int, Tensor


@dataclass(frozen=True)
class Kinship:
    """Cosine of descriptions' embeddings, as the signal `instruction` has it (arXiv 2410.07172, section 4.2).

    An expert without a description is nobody's kin: its score is minus infinity.
    """

    instructions: Float[Tensor, "D G"]  # of unit length, of the experts that have one
    columns: Int[Tensor, " D"]  # of those experts in the pool
    experts: int

    @classmethod
    def of(cls, instructions: Sequence[Float[Tensor, " G"] | None]) -> "Kinship | None":
        """Of the instruction embeddings of a pool's experts; None where no expert has one."""
        columns = [i for i, vector in enumerate(instructions) if vector is not None]
        if not columns:
            return None
        vectors = torch.stack([vector.float() for vector in instructions if vector is not None])
        unit = torch.nn.functional.normalize(vectors, dim=-1)
        return cls(unit, torch.tensor(columns), len(instructions))

    def scores(self, vectors: Float[Tensor, "N G"]) -> Float[Tensor, "N E"]:
        """The cosines; NaN for a vector of zeros, a query that could not be embedded."""
        cosines = torch.nn.functional.normalize(vectors.float(), dim=-1) @ self.instructions.T
        scores = torch.full((len(vectors), self.experts), -torch.inf).index_copy(1, self.columns, cosines)
        return scores.masked_fill((vectors == 0).all(dim=-1, keepdim=True), torch.nan)
