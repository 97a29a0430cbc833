"""The GPU kernel in Triton, `triton` by name: no count reaches the host, no atomic addition, the same bits every time.

Few tokens: a program for each pair and for each token. More: the products with the factors of all experts, which the
matrix units make faster than a smaller product could be prepared. Where these would be too many, pairs sorted by expert
in blocks of one expert each, as in grouped products of LoRA (Punica, arXiv 2310.18547) and mixtures of experts; how
many blocks there can be is known beforehand, whose they are is a table made on the device. Tiles were chosen on one
H100 (`benchmarks/gpu_tiles.py`).

Triton comes with PyTorch for CUDA on Linux; elsewhere there is none, and other kernels run.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import torch
from torch.torch_version import TorchVersion

from glider.layers.bank import Bank
from glider.routing.base import Decision
from glider.shapes import Float, Int, Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FEW = 16  # tokens for which nothing is sorted
DENSE = 4096  # ranks of all experts together, up to which tokens are multiplied by all of them
OUTS = 64  # tile of outputs
_PAIRS, _WIDTHS, _RANKS = 32, 128, 64  # tiles; ranks at most
_PAIR_RANKS, _PAIR_WIDTHS = 2, 1024  # of one pair alone: small tiles, for there are few programs
_COLUMNS = 1024  # ranks of all experts that a program weighs
_ROOM = 2**24  # outputs of pairs, in float32, that are held at a time
_YES = ("1", "true", "on", "yes", "y")  # as Triton reads it
_CAPABILITY = (8, 0)  # what Triton supports of NVIDIA's
_WIDE_PRODUCTS = TorchVersion(torch.__version__) >= "2.8"  # of factors in 16 bits, in float32


class Factors(NamedTuple):
    """The tensors of a bank, or a part of them."""

    A: Float[Tensor, "E R D"]
    B: Float[Tensor, "E O R"]
    scaling: Float[Tensor, " E"]


def why_absent() -> str | None:
    """Why the kernel can run nowhere on this machine, or None."""
    if find_spec("triton") is None:
        return "triton is not installed (PyTorch for CUDA brings it, on Linux)"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "there is no GPU (with TRITON_INTERPRET=1 it runs on the CPU, for tests)"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "triton found no C compiler (gcc or clang), which it needs to launch programs"
    return None


def interpreted() -> bool:
    """Whether Triton interprets its programs, on any device, in place of compiling them."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in _YES


def refusal(x: Float[Tensor, "*N D"], bank: Bank | Factors) -> str | None:
    """Why the kernel cannot run a call for the tokens x, or None."""
    if absent := why_absent() if interpreted() else _why_absent():
        return absent
    if type(x) is not torch.Tensor:
        return f"tokens in a {type(x).__name__}, which has no address"
    if x.device.type != "cuda" and not (x.is_cpu and interpreted()):
        return f"tokens on {x.device} (with TRITON_INTERPRET=1 it runs on the CPU, for tests)"
    if bank.A.device != x.device:
        return f"experts on {bank.A.device} and tokens on {x.device}"
    for what, dtype in (("tokens", x.dtype), ("experts", bank.A.dtype), ("experts", bank.B.dtype)):
        if dtype not in DTYPES:
            return f"{what} in {str(dtype).removeprefix('torch.')}"
    if x.is_cuda and (version := _capability(x.device)) < _CAPABILITY:
        return f"a GPU of compute capability {version[0]}.{version[1]}, older than {_CAPABILITY[0]}.{_CAPABILITY[1]}"
    return None


def add_experts(
    y: Float[Tensor, "T O"], x: Float[Tensor, "T D"], decision: Decision, bank: Bank | Factors, *, dense: bool = False
) -> None:
    """y += sum over kept e of w_e * s_e * B_e A_e x, in place; sums in float32, rounded to the dtype of y.

    With more than `FEW` tokens the factors and w s A x are rounded to the dtype of x, for the products. `dense` allows
    products with all experts, which must be finite then. For calls that `refusal` lets pass, without gradients. A
    decision must name experts that exist: to look would need the host.
    """
    tokens, per_token = decision.experts.shape
    if not tokens:
        return
    decision = Decision(decision.experts.contiguous(), decision.weights.contiguous())
    with on_device(x):
        if tokens <= FEW:
            by_pair(y, x, decision, bank)
            return
        alike = x.dtype == y.dtype == bank.A.dtype == bank.B.dtype
        if dense and alike and bank.A.shape[0] * bank.A.shape[1] <= DENSE:
            _by_all(y, x, decision, bank)
            return
        step = max(FEW, _ROOM // (per_token * y.shape[1]))
        for start in range(0, tokens, step):
            part = slice(start, start + step)
            _by_block(y[part], x[part], Decision(decision.experts[part], decision.weights[part]), bank)


def by_pair(
    y: Float[Tensor, "T O"],
    x: Float[Tensor, "T D"],
    decision: Decision,
    bank: Bank | Factors,
    sites: int = 1,
    owners: Int[Tensor, " N"] | None = None,
) -> None:
    """`add_experts` by a program for each pair, for few tokens. Contiguous experts and weights.

    Of several sites side by side, experts are numbered through in the decision, in A and in the scaling. B (E, O, R)
    has the outputs of all of them, and `owners` says whose each tile of `OUTS` outputs is.
    """
    code, (count, rank, width), out = programs(), bank.A.shape, y.shape[1]
    experts, weights, pairs = decision.experts, decision.weights, decision.experts.shape[1]
    z = torch.empty(experts.numel(), rank, dtype=torch.float32, device=x.device)
    code.project_pair[(experts.numel(), _parts(rank, _PAIR_RANKS))](
        z_at=z, x_at=x, a_at=bank.A, experts_at=experts, weights_at=weights, scaling_at=bank.scaling,
        per_token=pairs, rank=rank, width=width,
        **_strides(x, "x_row", "x_column"), **_strides(bank.A, "a_expert", "a_row", "a_column"),
        RANKS=_PAIR_RANKS, WIDTHS=min(_PAIR_WIDTHS, power(width)),
    )  # fmt: skip
    code.add_token[(y.shape[0], _parts(out, OUTS))](
        y_at=y, z_at=z, b_at=bank.B, experts_at=experts, weights_at=weights, scaling_at=bank.scaling,
        sites_at=experts if owners is None else owners,
        per_token=pairs // sites, rank=rank, out=out, count=count // sites,
        **_strides(y, "y_row", "y_column"), **_strides(bank.B, "b_expert", "b_row", "b_column"),
        OUTS=OUTS, RANKS=_ranks(rank), SITES=sites,
    )  # fmt: skip


def _by_block(y: Float[Tensor, "T O"], x: Float[Tensor, "T D"], decision: Decision, bank: Bank | Factors) -> None:
    experts, weights, per_token = decision.experts, decision.weights, decision.experts.shape[1]
    code, (count, rank, width), out = programs(), bank.A.shape, y.shape[1]
    ranks, blocks = _ranks(rank), Blocks.of(experts, weights, bank.scaling, _PAIRS)
    table = {
        "order_at": blocks.order,
        "starts_at": blocks.starts,
        "firsts_at": blocks.firsts,
        "owners_at": blocks.owners,
    }
    z = x.new_empty(experts.numel(), rank)
    outputs = torch.empty(experts.numel(), out, dtype=torch.float32, device=x.device)
    code.project_block[(len(blocks.owners), _parts(rank, ranks))](
        z_at=z, x_at=x, a_at=bank.A, weights_at=weights, scaling_at=bank.scaling, **table,
        count=count, per_token=per_token, rank=rank, width=width,
        **_strides(x, "x_row", "x_column"), **_strides(bank.A, "a_expert", "a_row", "a_column"),
        PAIRS=_PAIRS, RANKS=ranks, WIDTHS=_WIDTHS, WIDEN=interpreted(),
    )  # fmt: skip
    code.expand_block[(len(blocks.owners), _parts(out, OUTS))](
        outputs_at=outputs, z_at=z, b_at=bank.B, **table,
        count=count, rank=rank, out=out, **_strides(bank.B, "b_expert", "b_row", "b_column"),
        PAIRS=_PAIRS, OUTS=OUTS, RANKS=ranks, WIDEN=interpreted(),
    )  # fmt: skip
    code.add_pairs[(y.shape[0], _parts(out, OUTS))](
        y_at=y, outputs_at=outputs, experts_at=experts, weights_at=weights, scaling_at=bank.scaling,
        per_token=per_token, out=out, **_strides(y, "y_row", "y_column"), OUTS=OUTS,
    )  # fmt: skip


def _by_all(y: Float[Tensor, "T O"], x: Float[Tensor, "T D"], decision: Decision, bank: Bank | Factors) -> None:
    z = weighed(x, decision, bank)
    y.addmm_(z, bank.B.mT.reshape(z.shape[1], -1))


def weighed(x: Float[Tensor, "T D"], decision: Decision, bank: Bank | Factors) -> Float[Tensor, "T P"]:
    """w s A x for the ranks of all experts, 0 for those that a token does not name. Few ranks: `DENSE`."""
    ranks = bank.A.shape[0] * bank.A.shape[1]
    z = x @ bank.A.reshape(ranks, -1).T
    programs().weigh[(len(z), _parts(ranks, _COLUMNS))](
        z_at=z, experts_at=decision.experts, weights_at=decision.weights, scaling_at=bank.scaling,
        per_token=decision.experts.shape[1], rank=bank.A.shape[1], ranks_of_all=ranks,
        RANKS=min(_COLUMNS, power(ranks)),
    )  # fmt: skip
    return z


def products(x: Float[Tensor, "T D"], rows: Float[Tensor, "P D"]) -> Float[Tensor, "T P"]:
    """x . rows in float32, of exact factors."""
    if x.is_cuda and x.dtype != torch.float32 and _WIDE_PRODUCTS:
        return torch.mm(x, rows.T, out_dtype=torch.float32)
    return x.float() @ rows.float().T


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Programs are launched on the device of x inside the block."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class Blocks:
    """Pairs in the order of their experts, cut into blocks of one expert each. Made on the device of the experts."""

    order: Int[Tensor, " P"]  # pairs by expert, then by number; those without weight come last and are in no block
    starts: Int[Tensor, " E1"]  # where the pairs of each expert begin in the order, and where the last one's end
    firsts: Int[Tensor, " E1"]  # the first block of each expert, and the number of blocks
    owners: Int[Tensor, " N"]  # the expert of each block; E for a block of nobody

    @classmethod
    def of(
        cls, experts: Int[Tensor, "T K"], weights: Float[Tensor, "T K"], scaling: Float[Tensor, " E"], size: int
    ) -> "Blocks":
        """Blocks of `size` pairs; there are as many as any decision of this shape can need."""
        pairs, count, device = experts.numel(), len(scaling), experts.device
        idle = weights.float() * scaling.float()[experts] == 0
        owners, order = experts.masked_fill(idle, count).flatten().sort(stable=True)
        starts = torch.searchsorted(owners, torch.arange(count + 1, device=device))
        ends = ((starts.diff() + size - 1) // size).cumsum(0)
        most = (pairs + (size - 1) * min(count, pairs)) // size
        numbers = torch.arange(most, device=device)
        firsts = torch.nn.functional.pad(ends, (1, 0))
        return cls(order, starts, firsts, torch.searchsorted(ends, numbers, right=True))


@cache
def programs() -> ModuleType:
    """The device code; imported when first needed, as it needs Triton."""
    from glider.layers.kernels import gpu_programs

    return gpu_programs


_why_absent: Callable[[], str | None] = cache(why_absent)  # asked at every call


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _strides(tensor: Tensor, *names: str) -> dict[str, int]:
    """The distances between elements of a tensor, by dimension, as a program calls them."""
    return dict(zip(names, tensor.stride(), strict=True))


def _ranks(rank: int) -> int:
    """The tile of ranks: a power of two, 16 at least, as `tl.dot` needs."""
    return min(_RANKS, max(16, 1 << (rank - 1).bit_length()))


def _parts(whole: int, part: int) -> int:
    return -(-whole // part)
