"""The global term of GLIDER, for any method to use (arXiv 2410.07172, section 4.2)."""

from dataclasses import dataclass

from glider.errors import RouterError
from glider.experts.pool import Pool
from glider.routing.base import GlobalTerm
from glider.routing.signals.base import signals

GAMMA, BETA = 100.0, 3.0
LARGEST_CONSTANT = 1e9
DESCRIPTIONS = "instruction"  # the signal that compares descriptions


@dataclass(frozen=True)
class GlobalPart:
    """alpha * global, alpha = gamma * [max global > p] + beta (GLIDER, section 4.2), the scores by a global signal.

    Without a signal it is the one that the pool is calibrated for, or else the paper's, `instruction`; a query that
    brings a description is then asked by `instruction`, whatever the pool's is. Constants left at None are the pool's
    calibration for the signal, or without one the paper's 100 and 3 and the signal's own p.
    """

    signal: str | None = None
    p: float | None = None
    gamma: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("gamma", self.gamma), ("beta", self.beta), ("p", self.p)):
            fits = value is None or (value == value if name == "p" else abs(value) <= LARGEST_CONSTANT)
            if not fits:
                expected = "a number" if name == "p" else f"a number within {LARGEST_CONSTANT:g}"
                raise RouterError(f"{name} as {expected}", f"{value:g}", "Mend the router's setting.")

    def prepare(self, pool: Pool) -> GlobalTerm:
        if self.signal is None and pool.index.signal is None:
            _require_descriptions(pool)
        return self._term(pool, self.signal or pool.index.signal or DESCRIPTIONS, self.p)

    def prepare_described(self, pool: Pool) -> GlobalTerm | None:
        """The term of queries that bring a description, by the signal `instruction` and its own p.

        A pool's p of that signal is chosen for queries' texts, which are farther from descriptions than other
        descriptions are: it serves where the embedder's own is not known. None where `prepare` serves such queries,
        where the caller named another signal, and where the pool has no description of every expert or no threshold
        for them.
        """
        named, stored = self.signal or pool.index.signal or DESCRIPTIONS, pool.index.calibrations.get(DESCRIPTIONS)
        known = signals.create(DESCRIPTIONS).threshold(pool)
        if named == DESCRIPTIONS and (self.p is not None or known is None or stored is None):
            return None
        if self.signal not in (None, DESCRIPTIONS) or (known is None and stored is None):
            return None
        described = all(expert.instruction is not None for expert in pool)
        return self._term(pool, DESCRIPTIONS, known) if described else None

    def _term(self, pool: Pool, name: str, p: float | None) -> GlobalTerm:
        signal, stored = signals.create(name), pool.index.calibrations.get(name)
        scores = signal.prepare(pool)
        p = p if p is not None else stored.p if stored else signal.threshold(pool)
        if p is None:
            embedder = pool.index.embedder
            raise RouterError(
                "a threshold p for the pool's embedder",
                f"none known for {embedder.embedder if embedder else 'a pool without embedder'}",
                "Calibrate the pool (`glider pool calibrate`) or give p.",
            )
        gamma = self.gamma if self.gamma is not None else stored.gamma if stored else GAMMA
        beta = self.beta if self.beta is not None else stored.beta if stored else BETA
        return GlobalTerm(scores, p, gamma, beta, name)


def _require_descriptions(pool: Pool) -> None:
    """Raise `RouterError` where the pool has neither a signal of its own nor what the paper's signal compares."""
    if lacking := [expert.name for expert in pool if expert.instruction is None]:
        raise RouterError(
            "a pool calibrated for a signal, or an instruction embedding for every expert",
            f"neither: none in {', '.join(lacking)}",
            "Give each expert a profile with 16 held-back rows or more (`glider expert profile`) and run `glider pool "
            "calibrate`; or describe them (`glider expert describe`); or take a router without either, such as arrow.",
        )
