"""The tensors of trained routers, beside a pool's experts: a safetensors file each, with a record in `pool.json`.

The record has the file's sha256 and those of the adapters that it was trained for, so that a signature on `pool.json`
vouches for it too, and a router is never used with other experts than its own.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from glider.errors import PoolError, RouterError, TrainingError
from glider.experts.index import RouterRecord
from glider.experts.peft_format import ADAPTER_WEIGHTS_FILE
from glider.experts.pool import Pool
from glider.files.disk import refuse_links_out, save_tensors, work_directory, write_file
from glider.files.held import held
from glider.files.opening import read_owned, sha256
from glider.files.tensor_file import LARGEST_VALUE, sane, tensors_in
from glider.shapes import Tensor

FOLDER = "routers"
Shape = tuple[int | str | None, ...]  # None: any length; a name: any, and the same wherever the name stands


def router_path(pool: Path, kind: str) -> Path:
    """The file of a trained router."""
    return pool / FOLDER / f"{kind}.safetensors"


def put_router(pool: Pool, kind: str, tensors: Mapping[str, Tensor], settings: Mapping[str, str | float]) -> Pool:
    """Store the tensors of a trained router and record them in the index; a signed pool must be signed again.

    Raises `TrainingError` for values that `read_router` would refuse; what was there before stays.
    """
    path = router_path(pool.path, kind)
    plain = {name: tensor.detach().float().contiguous().clone() for name, tensor in tensors.items()}
    if wild := [name for name, tensor in plain.items() if not sane(tensor)]:
        expected, got = f"a router {kind} of values up to {LARGEST_VALUE:g}", f"larger ones, or none, in {wild[0]}"
        raise TrainingError(expected, got, "Lower the learning rate or the penalty, or check the rows.")
    with held(work_directory(path.parent)) as folder:  # a link would lead what is written elsewhere
        write_file(folder / path.name, lambda partial: save_tensors(plain, partial, {"format": "pt"}))
    record = RouterRecord(
        sha256=sha256(path), size=path.stat().st_size, experts=_adapters(pool), settings=dict(settings)
    )
    with pool._changing() as now:
        records = {**(now.index.routers or {}), kind: record}
        return now._write(now.index.model_copy(update={"routers": records}), now.experts)


def read_router(pool: Pool, kind: str, shapes: Mapping[str, Shape]) -> tuple[dict[str, Tensor], RouterRecord]:
    """The tensors of a trained router, exactly those of these names and shapes, finite, in float32.

    Raises `RouterError` where it was not trained for this pool, and `PoolError` for a file that is not the recorded one
    or holds anything else.
    """
    record = (pool.index.routers or {}).get(kind)
    train = f"Train it: `glider pool train-router {pool.path} --router {kind}`."
    if record is None:
        raise RouterError(f"what the router {kind} was trained to", f"nothing in {pool.path}", train)
    adapters = _adapters(pool)
    if [*record.experts.items()] != [*adapters.items()]:  # an expert that left and came back stands elsewhere
        got = "one for others" if record.experts != adapters else "one for them in another order"
        raise RouterError(f"a router {kind} trained for the pool's experts", got, train)
    path = router_path(pool.path, kind)
    try:
        tensors = tensors_in(_content(path, record), max(len(shapes), 1))
    except (ValueError, RecursionError) as fault:
        raise PoolError(f"safetensors in {path}", str(fault), train) from fault
    if tensors.keys() != shapes.keys():
        other = sorted(tensors.keys() ^ shapes.keys())
        raise PoolError(f"{len(shapes)} tensors of the router {kind} in {path}", f"others ({other[0]})", train)
    lengths: dict[str, int] = {}
    for name, shape in shapes.items():
        tensor = tensors[name]
        fits = fits_shape(tuple(tensor.shape), shape, lengths)
        if not fits or not tensor.is_floating_point() or not sane(tensor):
            got = f"{tuple(tensor.shape)} of {tensor.dtype}" if not fits else "values that are not finite"
            raise PoolError(f"the tensor {name} of shape {shape} in {path}", got, train)
    return {name: tensor.float() for name, tensor in tensors.items()}, record


def require_values(pool: Pool, kind: str, possible: Mapping[str, bool]) -> None:
    """Raise `PoolError` for a tensor of a trained router, by name, with values that no training leaves behind."""
    if wild := [name for name, holds in possible.items() if not holds]:
        remedy = f"Train it: `glider pool train-router {pool.path} --router {kind}`."
        got = "values that no training leaves behind"
        raise PoolError(f"the tensor {wild[0]} of a router {kind} in {router_path(pool.path, kind)}", got, remedy)


def fits_shape(got: tuple[int, ...], shape: Shape, lengths: dict[str, int]) -> bool:
    """Whether lengths are of a shape; `lengths` are those of the names so far, and take up the shape's."""
    if len(got) != len(shape):
        return False
    for length, expected in zip(got, shape, strict=True):
        known = lengths.setdefault(expected, length) if isinstance(expected, str) else expected
        if length != known if known is not None else length == 0:
            return False
    return 0 not in got


def verify_routers(pool: Pool) -> None:
    """Raise `PoolError` for a file of a trained router that is not the one recorded."""
    for kind, record in (pool.index.routers or {}).items():
        _content(router_path(pool.path, kind), record)


def _content(path: Path, record: RouterRecord) -> bytearray:
    remedy = "Get the file anew, or train the router again."
    refuse_links_out(path.parents[1], (path.parent.name,))
    refuse_links_out(path.parent, (path.name,))
    try:
        content = read_owned(path, record.size)
    except (OSError, ValueError) as fault:
        raise PoolError(f"a file of {record.size} bytes at {path}", str(fault), remedy) from fault
    if (got := hashlib.sha256(content).hexdigest()) != record.sha256:
        raise PoolError(f"{path} unchanged since it was trained (sha256 {record.sha256[:12]})", got[:12], remedy)
    return content


def _adapters(pool: Pool) -> dict[str, str]:
    return {record.name: record.files[ADAPTER_WEIGHTS_FILE].sha256 for record in pool.index.experts}
