"""The published checkpoints of GLIDER and PHATGOOSE, read one expert at a time.

Two layouts hold the same experts (T5 bases, LoRA scaling 1/16):

- GLIDER: a file `<task>_best.pt` for each expert, with `base_model.model.<site>.lora_A.default.weight` (R, D),
  `.lora_B.default.weight` (O, R) and `.lora_gate.default` (D,). Its Arrow variant has unit vectors for gates.
- PHATGOOSE: one file for all, with `<site>._addons.expert_lora.layer1__i` (D, R), `.layer2__i` (R, O) and
  `.router.expert_embeddings__i` (D,) for expert i. Which task i is, only the order of the experts says.

Both may carry copies of the base's `embed_tokens`. The files are pickles, and this module is the one place that opens
any: by `torch.load(weights_only=True)`, which builds tensors and plain containers and runs nothing.
"""

import errno
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from glider.config import repeated
from glider.contribute.checkpoint_pickle import check_pickle
from glider.errors import ExpertError
from glider.experts.card import NAME, EmbedderIdentity
from glider.files.opening import UnfitFile, opened
from glider.shapes import Float, Tensor

Layout = Literal["glider", "phatgoose"]

SCALING = 1 / 16  # of every published expert, whatever its rank

# what made the published instruction embeddings; they come without a probe of it
NOMIC = EmbedderIdentity(embedder="nomic-ai/nomic-embed-text-v1.5", prefix="", dimension=768, probe=())

# The 36 T0 tasks as PHATGOOSE numbers its experts (r-three/phatgoose, scripts/concatenate.py, `p3_dataset_dict`; the
# same in UNITES-Lab/glider, src/utils/manipulation.py). In its files of 166 experts they are the first 36.
T0_TASKS = (
    *("p3agnews", "p3amazonpolarity", "p3cosmosqa", "p3samsum", "p3quartz", "p3ropes", "p3wikibio", "p3paws"),
    *("p3wikiqa", "p3socialiqa", "p3qasc", "p3quail", "p3dream", "p3wiqa", "p3quarel", "p3sciq", "p3quoref"),
    *("p3duorc", "p3rottentomatoes", "p3yelp", "p3commongen", "p3gigaword", "p3xsum", "p3mrpc", "p3qqp"),
    *("p3commonsenseqa", "p3cose", "p3wikihop", "p3hotpotqa", "p3appreviews", "p3trec", "p3multinews", "p3imdb"),
    *("p3adversarialqa", "p3cnndailymail", "p3dbpedia14"),
)

_SUFFIX = "_best.pt"
_EMBED_TOKENS = re.compile(r"(?:base_model\.model\.)?((?:encoder|decoder)\.embed_tokens)\.weight")
_GLIDER_KEY = re.compile(r"base_model\.model\.(?P<site>.+)\.lora_(?P<part>A|B|gate)\.default(?P<weight>\.weight)?")
_PHATGOOSE_KEY = re.compile(
    r"(?P<site>.+)\._addons\.(?P<part>expert_lora\.layer[12]|router\.expert_embeddings)__(?P<expert>0|[1-9]\d{0,5})"
)
_PARTS = {"expert_lora.layer1": "A", "expert_lora.layer2": "B", "router.expert_embeddings": "gate"}
_UNIT_TOLERANCE = 1e-3
_MOST_OF_FILE = 4  # times a file's bytes: two names may share the embeddings of the base
_LFS_POINTER = b"version https://git-lfs"
_LAYOUTS = "GLIDER's or PHATGOOSE's layout"

# tensors of one expert: site -> "A", "B", "gate" -> tensor
_Parts = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class OfficialExpert:
    """One published expert; its tensors are views into the mapped file and are read when used."""

    name: str
    file: Path
    rank: int
    lora: dict[str, Tensor]  # PEFT's tensors under PEFT's names
    gates: dict[str, Float[Tensor, " D"]]  # by site
    embed_tokens: dict[str, Float[Tensor, "V D"]]  # copies of the base's, by module; often empty

    @property
    def has_unit_gates(self) -> bool:
        """Whether every gate has unit length: Arrow's vectors do, trained gates do not."""
        return all(abs(float(gate.float().norm()) - 1) < _UNIT_TOLERANCE for gate in self.gates.values())


@dataclass(frozen=True)
class OfficialCheckpoint:
    """A published checkpoint: which experts it holds, in which order, and where."""

    path: Path
    layout: Layout
    names: tuple[str, ...]
    files: tuple[Path, ...]  # of each expert; the same one for all in PHATGOOSE's layout

    def experts(self, without: Collection[str] = ()) -> Iterator[OfficialExpert]:
        """Yield the experts one by one.

        A file is mapped anew for each, so that what was read of one expert leaves the memory before the next.
        Raises `ExpertError` naming file and tensor for anything that is not of the layout.
        """
        for position, (name, file) in enumerate(zip(self.names, self.files, strict=True)):
            if name not in without:
                yield _read_expert(name, file, position if self.layout == "phatgoose" else None)


def open_checkpoint(path: Path | str, order: Sequence[str] | None = None) -> OfficialCheckpoint:
    """Look into a published checkpoint: a directory of `<task>_best.pt`, one such file, or PHATGOOSE's file.

    `order` names the experts. Default: the names of the files, sorted, as the published code has them; for a file of
    PHATGOOSE, `T0_TASKS`. Raises `ExpertError` where there is no such layout, or where the order does not fit.
    """
    path = Path(path)
    if path.is_dir():
        return _open_directory(path, order)
    tensors = _load_tensors(path)
    count = _count_phatgoose(tensors, path)
    if count:
        names = tuple(T0_TASKS if order is None else order)
        _check_order(names, count, path)
        return OfficialCheckpoint(path, "phatgoose", names, (path,) * count)
    names = (_task(path),) if order is None else tuple(order)
    _check_order(names, 1, path)
    return OfficialCheckpoint(path, "glider", names, (path,))


def read_embeddings(path: Path | str) -> dict[str, Float[Tensor, "N 768"]]:
    """Read the published instruction embeddings, a row for each instruction of a task.

    The files map a task to one vector (768,), or for BIG-bench to two (2, 768): two wordings of the query. Raises
    `ExpertError` for anything else.
    """
    path, width = Path(path), NOMIC.dimension
    embeddings = {}
    for task, value in _load_tensors(path).items():
        rows = value[None] if value.ndim == 1 else value  # (N, 768)
        if rows.ndim != 2 or rows.shape[1] != width or not len(rows) or not torch.isfinite(rows).all():
            raise ExpertError(
                f"finite instruction embeddings ({width},) or (n, {width}) in {path}",
                f"{task} of shape {tuple(value.shape)}",
                "Give the published nomic_instruction_embedding.pt.",
            )
        embeddings[task] = rows.float().clone()  # off the mapped file
    return embeddings


def _open_directory(path: Path, order: Sequence[str] | None) -> OfficialCheckpoint:
    files = {_task(file): file for file in sorted(path.glob(f"*{_SUFFIX}"))}
    if not files:
        raise ExpertError(
            f"files <task>{_SUFFIX} in {path}",
            "none",
            "Give the directory of GLIDER's checkpoints, or PHATGOOSE's file itself.",
        )
    names = tuple(files if order is None else order)
    _check_order(names, len(files), path)
    if strangers := [name for name in names if name not in files]:
        raise ExpertError(
            f"a file <task>{_SUFFIX} in {path} for every expert of the order",
            f"none for {', '.join(strangers)}",
            f"There are: {', '.join(files)}.",
        )
    return OfficialCheckpoint(path, "glider", names, tuple(files[name] for name in names))


def _task(file: Path) -> str:
    return file.name.removesuffix(_SUFFIX).removesuffix(".pt")


def _check_order(names: Sequence[str], count: int, path: Path) -> None:
    if len(names) != count:
        raise ExpertError(
            f"as many experts in {path} as the order names ({len(names)})",
            f"{count}",
            f"Give the {count} names in the order of the checkpoint (--order).",
        )
    if twice := sorted(repeated(names)):
        raise ExpertError("every expert once in the order", f"{', '.join(twice)} twice", "Mend the order.")
    if bad := [name for name in names if re.match(NAME, name) is None]:
        raise ExpertError("names of letters, digits, '.', '_' and '-'", repr(bad[0]), "Give other names (--order).")


def _count_phatgoose(tensors: Mapping[str, Tensor], path: Path) -> int:
    """How many experts a file in PHATGOOSE's layout holds; 0 for a file of another layout."""
    matches = (_PHATGOOSE_KEY.fullmatch(key) for key in tensors)
    numbers = {int(match["expert"]) for match in matches if match}
    if absent := sorted(set(range(len(numbers))) - numbers):
        raise ExpertError(
            f"experts 0 to {max(numbers)} in {path}",
            f"none numbered {absent[0]}",
            "Get the file anew; it is incomplete.",
        )
    return len(numbers)


def _read_expert(name: str, file: Path, position: int | None) -> OfficialExpert:
    """One expert of a file; `position` is its number in PHATGOOSE's layout, None in GLIDER's."""
    parts: _Parts = {}
    embed_tokens = {}
    for key, tensor in _load_tensors(file).items():
        if match := _EMBED_TOKENS.fullmatch(key):
            embed_tokens[match[1]] = tensor
            continue
        site, part, owner = _parse_key(key, file, position is not None)
        if owner == position:
            parts.setdefault(site, {})[part] = tensor
    if position is not None:
        parts = {
            site: {part: tensor.T if part != "gate" else tensor for part, tensor in of.items()}
            for site, of in parts.items()
        }
    ranks = {_check_site(site, of, name, file) for site, of in parts.items()}
    if len(ranks) != 1:
        got = f"ranks {', '.join(map(str, sorted(ranks)))}" if ranks else "no LoRA pair"
        raise ExpertError(f"LoRA pairs of one rank for expert {name} in {file}", got, "Give a published checkpoint.")
    lora = {f"base_model.model.{site}.lora_{f}.weight": of[f] for site, of in parts.items() for f in ("A", "B")}
    gates = {site: of["gate"] for site, of in parts.items()}
    return OfficialExpert(name, file, ranks.pop(), lora, gates, embed_tokens)


def _parse_key(key: str, file: Path, phatgoose: bool) -> tuple[str, str, int | None]:
    """Site, part ("A", "B" or "gate") and number of the expert (None in GLIDER's layout) of a tensor."""
    if phatgoose and (match := _PHATGOOSE_KEY.fullmatch(key)):
        return match["site"], _PARTS[match["part"]], int(match["expert"])
    match = None if phatgoose else _GLIDER_KEY.fullmatch(key)
    if match and (match["weight"] is None) == (match["part"] == "gate"):
        return match["site"], match["part"], None
    raise ExpertError(f"tensors in {_LAYOUTS} in {file}", f"one named {key}", "Give a published checkpoint.")


def _check_site(site: str, of: Mapping[str, Tensor], name: str, file: Path) -> int:
    """Refuse a site without its three tensors, or with shapes that do not fit; returns the rank."""
    if missing := [part for part in ("A", "B", "gate") if part not in of]:
        what = "gate" if missing == ["gate"] else f"LoRA factor {missing[0]}"
        remedy = "Get the file anew, or give the checkpoint that has trained gates."
        raise ExpertError(f"a LoRA pair and a gate at {site} of expert {name} in {file}", f"no {what}", remedy)
    a, b, gate = of["A"], of["B"], of["gate"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or gate.shape != a.shape[1:]:
        got = f"A {tuple(a.shape)}, B {tuple(b.shape)}, gate {tuple(gate.shape)}"
        expected = f"A (R, D), B (O, R) and a gate (D,) at {site} of expert {name} in {file}"
        raise ExpertError(expected, got, "Get the file anew.")
    return a.shape[0]


def _load_tensors(path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors in a pickle, memory-mapped where the file allows (since torch 1.6)."""
    content = _load(path)
    if not isinstance(content, Mapping) or not content:
        raise ExpertError(f"a mapping of names to tensors in {path}", _kind(content), "Give a published checkpoint.")
    size, total = path.stat().st_size, 0
    for key, value in content.items():
        dense = isinstance(value, Tensor) and value.layout == torch.strided and value.is_floating_point()
        if not isinstance(key, str) or not dense:
            got = f"{key!r}"[:80] + f": {_kind(value)}"
            raise ExpertError(
                f"nothing but dense floating-point tensors in {path}", got, "Give a published checkpoint."
            )
        # strides of 0 let a file of a few bytes declare a tensor that fills the memory once it is copied
        total += value.numel() * value.itemsize  # many names of one tensor are many tensors once they are copied
        if value.device.type != "cpu" or value.numel() * value.itemsize > size or total > _MOST_OF_FILE * size:
            got = f"{key!r}"[:80] + f" of shape {tuple(value.shape)} in a file of {size} bytes"
            raise ExpertError(f"tensors no larger than their file in {path}", got, "Give a published checkpoint.")
    return {key: value.detach() for key, value in content.items()}


def _load(path: Path) -> Any:
    again = "Get the file anew; it is damaged or not a checkpoint."
    try:
        with opened(path) as descriptor:
            pointer = os.read(descriptor, len(_LFS_POINTER)) == _LFS_POINTER
        if pointer:
            raise ExpertError(f"a checkpoint in {path}", "a pointer of Git LFS", "Run `git lfs pull` where it lies.")
        try:
            check_pickle(path)
        except UnfitFile as fault:
            expected = f"nothing but tensors and plain containers in {path}"
            raise ExpertError(expected, str(fault), again) from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch did not write; they are refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (FileNotFoundError, NotADirectoryError):
        raise ExpertError(f"a published checkpoint at {path}", "no such file", "Check the path.") from None
    except UnfitFile as fault:
        raise ExpertError(f"a published checkpoint at {path}", str(fault), "Give a file or a directory.") from fault
    except ExpertError:
        raise
    except OSError as fault:
        if fault.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # the machine's fault, not the file's
        raise ExpertError(f"a checkpoint saved by torch in {path}", fault.strerror or str(fault), again) from fault
    except pickle.UnpicklingError as fault:  # torch's advice to turn the protection off stays out of sight
        named = re.search(r"GLOBAL ([\w.]+)", str(fault))
        got = f"a pickle that holds {named[1]}" if named else "another content"
        raise ExpertError(f"nothing but tensors and plain containers in {path}", got, again) from None
    except Exception as fault:  # a damaged pickle fails in any way whatever
        raise ExpertError(f"a checkpoint saved by torch in {path}", f"{type(fault).__name__}", again) from None


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype}, {value.layout}"
    return f"{'an empty ' if isinstance(value, Mapping) and not value else ''}{type(value).__name__}"
