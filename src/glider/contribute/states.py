"""The file that a work which was killed goes on from, read as one that somebody else may have laid there.

Every tensor is looked at in the header, before any is read. None is read by a map of the file: who cuts a mapped file
short ends the process. A digest of all of it is in the metadata, so that a state that was damaged or edited is refused;
it is no signature, and whoever may write the directory can lay a state there that has one.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from glider.errors import TrainingError
from glider.files.disk import save_tensors, write_file
from glider.files.dtypes import torch_dtype
from glider.files.headers import header_at
from glider.files.opening import UnfitFile, opened
from glider.files.tensor_file import tensors_at
from glider.shapes import Tensor

PROGRESS = "progress"  # the name in the metadata
_DIGEST = "sha256"  # likewise
_LONGEST_PROGRESS = 8 << 20  # characters
Fits = Callable[[tuple[int, ...], torch.dtype], bool]


def write_state(state_file: Path, tensors: Mapping[str, Tensor], progress: Any) -> None:
    """Store tensors that share no memory, and a progress that JSON holds, in one file: no kill can separate them."""
    text = json.dumps(progress)
    metadata = {PROGRESS: text, _DIGEST: _digest(text, tensors)}
    write_file(state_file, lambda path: save_tensors(tensors, path, metadata))


def read_state(
    state_file: Path, needed: Mapping[str, Fits], possible: Mapping[str, Fits]
) -> tuple[Any, dict[str, Tensor]]:
    """The progress of a state and its tensors: all that are needed, perhaps some that are possible, and no others.

    Raises `UnfitFile`, and `OSError`, for a file that holds anything else.
    """
    with opened(state_file, follow=False) as descriptor:  # a link or a pipe is no state of ours
        header = header_at(descriptor)
        known = {**needed, **possible}
        if other := sorted((header.shapes.keys() - known.keys()) | (needed.keys() - header.shapes.keys())):
            raise UnfitFile(f"{other[0]}, which is missing or of other work")
        for name, shape in header.shapes.items():
            if not known[name](shape, torch_dtype(header.dtypes[name])):
                raise UnfitFile(f"shape {shape} of {header.dtypes[name]} in {name}")
        progress, tensors = _progress(header.metadata.get(PROGRESS)), tensors_at(descriptor, header)
        if header.metadata.get(_DIGEST) != _digest(header.metadata[PROGRESS], tensors):
            raise UnfitFile("content of another digest than its own")
        return progress, tensors


def like(tensor: Tensor) -> Fits:
    """Tensors of the shape and the dtype of this one."""
    expected = tuple(tensor.shape), tensor.dtype
    return lambda shape, dtype: (shape, dtype) == expected


@contextmanager
def restoring(state_file: Path) -> Iterator[None]:
    """Around the reading of a work's state; raises `TrainingError` where it cannot be read as one."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as fault:
        raise misfit(state_file, f"{type(fault).__name__}: {fault}"[:300]) from fault


def misfit(state_file: Path, got: str) -> TrainingError:
    """The error for a state that is not of this work."""
    remedy = f"Remove {state_file.parent} to begin anew."
    return TrainingError(f"the state of this training in {state_file}", got, remedy)


def _progress(text: object) -> Any:
    if not isinstance(text, str) or len(text) > _LONGEST_PROGRESS:
        raise UnfitFile("no progress in its metadata")
    return json.loads(text)


def _digest(progress: str, tensors: Mapping[str, Tensor]) -> str:
    """Of the progress, and of each tensor's name, form and bytes."""
    whole = hashlib.sha256(progress.encode())
    for name, tensor in sorted(tensors.items()):
        whole.update(json.dumps([name, str(tensor.dtype), tuple(tensor.shape)]).encode())
        whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()
