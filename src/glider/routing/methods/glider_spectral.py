"""GLIDER's global term over the local scores of Arrow and SpectR, which need no trained gates."""

from dataclasses import dataclass

from glider.routing.base import router
from glider.routing.compose import Composed
from glider.routing.methods.arrow import ArrowVectors
from glider.routing.methods.spectr import SpectralNorm
from glider.routing.parts import GlobalPart
from glider.routing.select import Select, TopK


@router("glider+arrow", paper="arXiv:2410.07172")
@dataclass(frozen=True)
class GliderArrow(Composed):
    """score = alpha * global_e + |v_e . x| / temperature: GLIDER (section 4.2) over Arrow (arXiv 2405.11157)."""

    select: Select = TopK(2)
    temperature: float = 1.0
    global_: str | None = None
    p: float | None = None
    gamma: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        ArrowVectors(self.temperature)  # refuses a bad temperature now, not at the first token

    @property
    def local(self) -> ArrowVectors:
        return ArrowVectors(self.temperature)

    @property
    def global_term(self) -> GlobalPart:
        return GlobalPart("glider+arrow", self.global_, self.p, self.gamma, self.beta)


@router("glider+spectr", paper="arXiv:2410.07172")
@dataclass(frozen=True)
class GliderSpectr(Composed):
    """score = alpha * global_e + |S_e V_e^T x|: GLIDER (section 4.2) over SpectR (arXiv 2504.03454)."""

    select: Select = TopK(2)
    global_: str | None = None
    p: float | None = None
    gamma: float | None = None
    beta: float | None = None

    @property
    def local(self) -> SpectralNorm:
        return SpectralNorm()

    @property
    def global_term(self) -> GlobalPart:
        return GlobalPart("glider+spectr", self.global_, self.p, self.gamma, self.beta)
