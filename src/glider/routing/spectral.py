"""The singular values and right singular vectors of every expert's product, exact, and kept on disk.

What `arrow` and `spectr` share: for each site and expert S V^T of B A = U S V^T, found without making B A.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from glider.errors import ExpertError
from glider.experts.expert import Expert
from glider.experts.peft_format import ADAPTER_WEIGHTS_FILE
from glider.experts.pool import Pool
from glider.files.disk import save_tensors, sha256, write_file
from glider.files.tensor_file import TensorFile
from glider.progress import track
from glider.routing.base import Site, absent_at
from glider.routing.spectra_files import forget_unused, note_use, spectra_file
from glider.shapes import Float, Tensor

Step = TypeVar("Step")
Spectra = Mapping[str, Tensor]
"""By site: the spectral basis (S, R) of one expert, in coordinates of the rows of its A."""

_ALL = "coordinates"  # of all sites in the order of their names: one tensor a file is read ten times as fast as 210
_TOGETHER = 16  # experts factorised at once; what is kept on disk grows by so many
_PATIENCE = 2.0  # seconds without a progress bar


@dataclass(frozen=True)
class Basis:
    """S V^T at a site for each expert, times its scaling: strongest direction first, zero where there is none."""

    name: str
    rows: Float[Tensor, "E S D"]
    site: Site  # without tensors: which experts are absent


def factorise(a: Float[Tensor, "N R D"], b: Float[Tensor, "N O R"]) -> Float[Tensor, "N S R"]:
    """The spectral basis S V^T of each product B A = U S V^T, in coordinates of the rows of A: S V^T = C A.

    With B = Q_b R_b and A^T = Q_a R_a the small R_b R_a^T has the product's singular values, and its left singular
    vectors W give C = W^T R_b. Neither Q nor a product of the layer's size is made. S is the smallest of R, D and O.
    """
    r_a = torch.linalg.qr(a.mT.double(), mode="r").R
    r_b = torch.linalg.qr(b.double(), mode="r").R
    w = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False).U
    return (w.mT @ r_b).float()


def bases(pool: Pool, directions: int | None = None) -> Iterator[Basis]:
    """Each site's spectral basis, or its `directions` strongest directions.

    Factorises the experts that were not before. Raises `ExpertError` for an adapter file that is damaged or not the
    one that joined the pool.
    """
    spectra = spectra_of(pool)
    for name in track(pool.sites, len(pool.sites), "Reading spectra"):
        widths = [spectrum[name].shape[0] for spectrum in spectra if name in spectrum]
        depth = min(max(widths), directions or max(widths))
        width = next(expert.sites[name].in_features for expert in pool if name in expert.sites)
        rows = torch.zeros(len(pool), depth, width)
        for group in _alike(pool.experts, name):
            experts = [pool.experts[i] for i in group]
            a = torch.stack([expert.factors(name)[0].float() for expert in experts])  # (N, R, D)
            c = torch.stack([spectra[i][name][:depth] for i in group])  # (N, S, R)
            scaling = torch.tensor([expert.scaling(name) for expert in experts])
            rows[group, : c.shape[1]] = scaling[:, None, None] * (c @ a)
        yield Basis(name, rows, Site(name, absent_at(name, pool.experts)))


def spectra_of(pool: Pool) -> list[Spectra]:
    """The spectra of each expert, in the pool's order, from the cache where they are."""
    keys = [record.files[ADAPTER_WEIGHTS_FILE].sha256 for record in pool.index.experts]
    experts = dict(zip(keys, pool, strict=True))  # equal files are factorised once
    known = {key: spectra for key, expert in experts.items() if (spectra := _read(key, expert)) is not None}
    missing = {key: expert for key, expert in experts.items() if key not in known}
    known |= _compute(missing) if missing else {}
    return [known[key] for key in keys]


def _compute(missing: Mapping[str, Expert]) -> dict[str, Spectra]:
    """Factorise experts, some at a time; those that are done stay on disk if the rest is interrupted."""
    keys = list(missing)
    parts = [keys[start : start + _TOGETHER] for start in range(0, len(keys), _TOGETHER)]
    done: dict[str, Spectra] = {}
    keeping = True
    for part in track(parts, len(parts), "Factorising experts"):
        for key in part:
            if sha256(missing[key].directory / ADAPTER_WEIGHTS_FILE) != key:
                missing[key].verify({ADAPTER_WEIGHTS_FILE: key})  # raises: nothing wrong may be kept under this key
        spectra = dict(zip(part, _factorised([missing[key] for key in part]), strict=True))
        done |= spectra
        keeping = keeping and _keep(spectra)
    return done


def _factorised(experts: Sequence[Expert]) -> list[Spectra]:
    """The spectra of each expert; those that have one rank at a site are factorised together there."""
    spectra: list[dict[str, Tensor]] = [{} for _ in experts]
    for name in dict.fromkeys(name for expert in experts for name in expert.sites):
        for group in _alike(experts, name):
            pairs = [experts[i].factors(name) for i in group]
            a, b = (torch.stack([pair[side].float() for pair in pairs]) for side in (0, 1))
            if not (a.isfinite().all() and b.isfinite().all()):
                for i in group:
                    experts[i].verify()  # raises, naming the expert and the tensor
            for i, coordinates in zip(group, factorise(a, b), strict=True):
                spectra[i][name] = coordinates
    return list(spectra)


def _alike(experts: Sequence[Expert], site: str) -> list[list[int]]:
    """Positions of the experts at a site, those of the same rank together."""
    groups: dict[int, list[int]] = {}
    for i, expert in enumerate(experts):
        if site in expert.sites:
            groups.setdefault(expert.sites[site].rank, []).append(i)
    return list(groups.values())


def _keep(spectra: Mapping[str, Spectra]) -> bool:
    """Write spectra to the cache; a cache that cannot be written is no reason not to route."""
    try:
        for key, spectrum in spectra.items():
            whole = {_ALL: torch.cat([spectrum[name].flatten() for name in sorted(spectrum)])}
            write_file(spectra_file(key), lambda path, whole=whole: save_tensors(whole, path, {"format": "pt"}))
        forget_unused()
    except OSError as fault:
        warnings.warn(f"the spectra of the experts are not kept for the next time: {fault}", stacklevel=2)
        return False
    return True


def _read(key: str, expert: Expert) -> Spectra | None:
    """The spectra in the cache, or None where there are none or the file is damaged."""
    shapes = {
        name: (min(site.rank, site.in_features, site.out_features), site.rank)
        for name, site in sorted(expert.sites.items())
    }
    file = spectra_file(key)
    try:
        (whole,) = TensorFile(file).read((_ALL,))
        parts = whole.split([depth * rank for depth, rank in shapes.values()])
    except (ExpertError, KeyError, RuntimeError):  # the last: a sum other than the tensor's length
        return None
    note_use(file)
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
