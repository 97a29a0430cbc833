"""Hashed n-grams of a few thousand everyday requests, which stand for the base in the contest.

The requests were written for this project (`reproduce/background`). They are counted by fold, each of other kinds, so
that some can be judged by a background that has not seen their kind.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from glider.errors import PoolError
from glider.files.disk import save_tensors, write_file
from glider.files.opening import read_owned
from glider.files.tensor_file import tensors_in
from glider.instructions.inputs import ngrams
from glider.shapes import Int, Tensor

SHIPPED = Path(__file__).parent / "background.safetensors"
MOST_GRAMS = 12288
MOST_QUERY_GRAMS = 512
MOST_BYTES = 1 << 24
MOST_FOLDS = 256  # each is looked at beside all others
MOST_JUDGED = 1 << 16  # requests to judge by
JUDGED = 320  # requests that thresholds are chosen by
_AGAIN = "Calibrate the pool again, with the requests it was made of: `glider pool calibrate POOL --background ROWS`."
_DTYPES = {
    "grams": torch.int64,
    "counts": torch.uint8,
    "queries": torch.int64,
    "lengths": torch.int32,
    "folds": torch.int32,
}


@dataclass(frozen=True)
class Background:
    """Counts of n-grams over everyday requests, and some requests to judge by."""

    grams: Int[Tensor, " N"]  # int64, sorted
    counts: Int[Tensor, "F N"]  # uint8: requests of each fold that hold each
    queries: Int[Tensor, " L"]  # int64: n-grams of the requests to judge, one after the other
    lengths: Int[Tensor, " Q"]  # int32: n-grams of each
    folds: Int[Tensor, " Q"]  # int32: the fold that each belongs to

    @classmethod
    def of(cls, folds: Sequence[Sequence[str]], judged: int) -> "Background":
        """Count the requests of each fold; up to `judged` of them, spread evenly, are kept to judge by.

        Beyond 12,288 distinct n-grams those of the fewest requests go. Raises `PoolError` without requests.
        """
        if not any(folds):
            raise PoolError("requests for the background", "none", "Give rows with requests.")
        texts = [[ngrams(text) for text in fold] for fold in folds]
        everything = torch.cat([grams for fold in texts for grams in fold])
        grams, counts = everything.unique(return_counts=True)
        if len(grams) > MOST_GRAMS:
            grams = grams[counts.sort(descending=True, stable=True).indices[:MOST_GRAMS]].sort().values
        by_fold = torch.stack([_counted(grams, fold) for fold in texts])
        numbered = [(text, fold) for fold, part in enumerate(texts) for text in part]
        step = max(1, len(numbered) / max(judged, 1))
        sample = [numbered[int(i * step)] for i in range(min(judged, len(numbered)))]
        queries = [_spread(text) for text, _ in sample]
        return cls(
            grams,
            by_fold,
            torch.cat([torch.zeros(0, dtype=torch.int64), *queries]),
            torch.tensor([len(text) for text in queries], dtype=torch.int32),
            torch.tensor([fold for _, fold in sample], dtype=torch.int32),
        )

    @property
    def total(self) -> Int[Tensor, " N"]:
        """Requests that hold each n-gram."""
        return self.counts.long().sum(dim=0)

    def without(self, fold: int) -> Int[Tensor, " N"]:
        """The same without those of a fold."""
        return self.total - self.counts[fold].long()

    def of_fold(self, fold: int) -> list[Int[Tensor, " _"]]:
        """The n-grams of each request of a fold that is kept to judge by."""
        parts = self.queries.split(self.lengths.tolist())
        return [part for part, number in zip(parts, self.folds.tolist(), strict=True) if number == fold]

    def joined(self, other: "Background") -> "Background":
        """Both, the other's folds after these."""
        grams = torch.cat([self.grams, other.grams]).unique()
        counts = torch.zeros(len(self.counts) + len(other.counts), len(grams), dtype=torch.uint8)
        counts[: len(self.counts), torch.searchsorted(grams, self.grams)] = self.counts
        counts[len(self.counts) :, torch.searchsorted(grams, other.grams)] = other.counts
        return Background(
            grams,
            counts,
            torch.cat([self.queries, other.queries]),
            torch.cat([self.lengths, other.lengths]),
            torch.cat([self.folds, other.folds + len(self.counts)]),
        )

    def equals(self, other: "Background") -> bool:
        """Whether both have the same requests."""
        return all(torch.equal(getattr(self, name), getattr(other, name)) for name in _DTYPES)

    def save(self, path: Path) -> None:
        """Write it as safetensors, whole or not at all."""
        tensors = {name: getattr(self, name).contiguous() for name in _DTYPES}
        write_file(path, lambda partial: save_tensors(tensors, partial, {}))

    @classmethod
    def open(cls, path: Path, sha256: str | None = None) -> "Background":
        """Read it, the content of this digest where one is given; raises `PoolError` for a file that is none."""
        try:
            content = read_owned(path, MOST_BYTES)
            if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
                raise PoolError(f"the pool's background in {path}", "another file", _AGAIN)
            tensors = tensors_in(content, len(_DTYPES))
        except FileNotFoundError:
            raise PoolError(f"the pool's background in {path}", "no such file", _AGAIN) from None
        except (OSError, ValueError, RecursionError) as fault:
            raise _broken(path, str(fault)) from fault
        if fault := _misfit(tensors):
            raise _broken(path, fault)
        return cls(**{name: tensors[name] for name in _DTYPES})


@cache
def shipped() -> Background:
    """The background that comes with the package."""
    return Background.open(SHIPPED)


def _misfit(tensors: dict[str, Tensor]) -> str | None:
    """What keeps tensors from being a background."""
    if tensors.keys() != _DTYPES.keys() or any(tensors[name].dtype != dtype for name, dtype in _DTYPES.items()):
        return "other tensors"
    grams, counts, queries, lengths, folds = (tensors[name] for name in _DTYPES)
    if counts.ndim != 2 or any(part.ndim != 1 for part in (grams, queries, lengths, folds)):
        return "tensors of other shapes"
    if not len(grams) or counts.shape[1] != len(grams) or len(lengths) != len(folds) or not len(counts):
        return "tensors of different lengths"
    if len(counts) > MOST_FOLDS or len(folds) > MOST_JUDGED:
        return f"{len(counts)} folds, {len(folds)} requests, where {MOST_FOLDS} and {MOST_JUDGED} are the most"
    if bool((grams[1:] <= grams[:-1]).any()) or not bool(counts.any()):
        return "counts that are none"
    if bool((lengths < 0).any()) or int(lengths.sum()) != len(queries):
        return "requests of other lengths"
    if len(folds) and not 0 <= int(folds.min()) <= int(folds.max()) < len(counts):
        return "requests of folds that are not there"
    return None


def _broken(path: Path, got: str) -> PoolError:
    return PoolError(f"a background in {path}", f"a damaged one ({got})", _AGAIN)


def _counted(grams: Int[Tensor, " N"], texts: Sequence[Int[Tensor, " _"]]) -> Int[Tensor, " N"]:
    known = torch.cat([torch.zeros(0, dtype=torch.int64), *texts])
    place = torch.searchsorted(grams, known).clamp(max=len(grams) - 1)
    place = place[grams[place] == known]
    return torch.bincount(place, minlength=len(grams)).clamp(max=255).to(torch.uint8)


def _spread(text: Int[Tensor, " N"]) -> Int[Tensor, " M"]:
    return text[torch.linspace(0, len(text) - 1, min(len(text), MOST_QUERY_GRAMS)).long()]
