"""Device code of the GPU kernel, in Triton: each program computes one tile, each element is written by one program.

A *pair* is a token and an expert it names; with K experts a token, pair p belongs to token p // K. Tensors come as an
address and their strides, or as an address where they are contiguous. Sums are float32. A pair whose weight is 0 is
neither computed nor read, so that what is not finite in it goes nowhere. `WIDEN` multiplies in float32 what is in
bfloat16: the interpreter's `dot` takes the bits of bfloat16 for whole numbers.

`no_type_check`: the types of these functions are Triton's.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def project_pair(
    z_at, x_at, a_at, experts_at, weights_at, scaling_at,
    kept, rank, width, x_row, x_column, a_expert, a_row, a_column,
    RANKS: tl.constexpr, WIDTHS: tl.constexpr,
):  # fmt: skip
    """z[p] = w s A_e x for one pair and `RANKS` ranks."""
    pair = tl.program_id(0).to(tl.int64)
    expert = tl.load(experts_at + pair)
    weight = tl.load(weights_at + pair).to(tl.float32) * tl.load(scaling_at + expert).to(tl.float32)
    if weight != 0:
        ranks = tl.program_id(1) * RANKS + tl.arange(0, RANKS)
        total = tl.zeros((RANKS, WIDTHS), dtype=tl.float32)
        for start in range(0, width, WIDTHS):
            columns = start + tl.arange(0, WIDTHS)
            x = tl.load(x_at + pair // kept * x_row + columns * x_column, mask=columns < width, other=0.0)
            inside = (ranks < rank)[:, None] & (columns < width)[None, :]
            a_tile = a_at + expert * a_expert + ranks[:, None] * a_row + columns[None, :] * a_column
            a = tl.load(a_tile, mask=inside, other=0.0)
            total += a.to(tl.float32) * x.to(tl.float32)[None, :]
        tl.store(z_at + pair * rank + ranks, tl.sum(total, axis=1) * weight, mask=ranks < rank)


@triton.jit
@no_type_check
def add_token(
    y_at, z_at, b_at, experts_at, weights_at, scaling_at,
    kept, rank, out, y_row, y_column, b_expert, b_row, b_column,
    OUTS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """y[t] += sum over k of B_e z[t, k] for one token and `OUTS` outputs, k in its order."""
    token = tl.program_id(0).to(tl.int64)
    outs = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    total = tl.zeros((OUTS,), dtype=tl.float32)
    for k in range(0, kept):
        pair = token * kept + k
        expert = tl.load(experts_at + pair)
        weight = tl.load(weights_at + pair).to(tl.float32) * tl.load(scaling_at + expert).to(tl.float32)
        if weight != 0:
            for start in range(0, rank, RANKS):
                ranks = start + tl.arange(0, RANKS)
                z = tl.load(z_at + pair * rank + ranks, mask=ranks < rank, other=0.0)
                inside = (outs < out)[:, None] & (ranks < rank)[None, :]
                b_tile = b_at + expert * b_expert + outs[:, None] * b_row + ranks[None, :] * b_column
                b = tl.load(b_tile, mask=inside, other=0.0)
                total += tl.sum(b.to(tl.float32) * z.to(tl.float32)[None, :], axis=1)
    y_tile = y_at + token * y_row + outs * y_column
    y = tl.load(y_tile, mask=outs < out, other=0.0)
    tl.store(y_tile, (y.to(tl.float32) + total).to(y.dtype), mask=outs < out)


@triton.jit
@no_type_check
def project_block(
    z_at, x_at, a_at, weights_at, scaling_at, order_at, starts_at, firsts_at, owners_at,
    count, kept, rank, width, x_row, x_column, a_expert, a_row, a_column,
    PAIRS: tl.constexpr, RANKS: tl.constexpr, WIDTHS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """z[p] = w s A_e x for the pairs of a block, which have one expert e, and `RANKS` ranks."""
    block = tl.program_id(0)
    expert = tl.load(owners_at + block)
    if expert < count:
        places = tl.load(starts_at + expert) + (block - tl.load(firsts_at + expert)) * PAIRS + tl.arange(0, PAIRS)
        ours = places < tl.load(starts_at + expert + 1)
        pairs = tl.load(order_at + places, mask=ours, other=0)
        ranks = tl.program_id(1) * RANKS + tl.arange(0, RANKS)
        total = tl.zeros((PAIRS, RANKS), dtype=tl.float32)
        for start in range(0, width, WIDTHS):
            columns = start + tl.arange(0, WIDTHS)
            x_tile = x_at + (pairs // kept)[:, None] * x_row + columns[None, :] * x_column
            x = tl.load(x_tile, mask=ours[:, None] & (columns < width)[None, :], other=0.0)
            inside = (columns < width)[:, None] & (ranks < rank)[None, :]
            a_tile = a_at + expert * a_expert + columns[:, None] * a_column + ranks[None, :] * a_row
            a = tl.load(a_tile, mask=inside, other=0.0).to(x.dtype)
            if WIDEN:
                x, a = x.to(tl.float32), a.to(tl.float32)
            total = tl.dot(x, a, total, input_precision="ieee")
        scale = tl.load(scaling_at + expert).to(tl.float32)
        weights = tl.load(weights_at + pairs, mask=ours, other=0.0).to(tl.float32) * scale
        z_tile = z_at + pairs[:, None] * rank + ranks[None, :]
        inside = ours[:, None] & (ranks < rank)[None, :]
        tl.store(z_tile, (total * weights[:, None]).to(z_at.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def expand_block(
    outputs_at, z_at, b_at, order_at, starts_at, firsts_at, owners_at,
    count, rank, out, b_expert, b_row, b_column,
    PAIRS: tl.constexpr, OUTS: tl.constexpr, RANKS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """outputs[p] = B_e z[p] for the pairs of a block, which have one expert e, and `OUTS` outputs."""
    block = tl.program_id(0)
    expert = tl.load(owners_at + block)
    if expert < count:
        places = tl.load(starts_at + expert) + (block - tl.load(firsts_at + expert)) * PAIRS + tl.arange(0, PAIRS)
        ours = places < tl.load(starts_at + expert + 1)
        pairs = tl.load(order_at + places, mask=ours, other=0)
        outs = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
        total = tl.zeros((PAIRS, OUTS), dtype=tl.float32)
        for start in range(0, rank, RANKS):
            ranks = start + tl.arange(0, RANKS)
            z_tile = z_at + pairs[:, None] * rank + ranks[None, :]
            z = tl.load(z_tile, mask=ours[:, None] & (ranks < rank)[None, :], other=0.0)
            inside = (ranks < rank)[:, None] & (outs < out)[None, :]
            b_tile = b_at + expert * b_expert + ranks[:, None] * b_column + outs[None, :] * b_row
            b = tl.load(b_tile, mask=inside, other=0.0).to(z.dtype)
            if WIDEN:
                z, b = z.to(tl.float32), b.to(tl.float32)
            total = tl.dot(z, b, total, input_precision="ieee")
        inside = ours[:, None] & (outs < out)[None, :]
        tl.store(outputs_at + pairs[:, None] * out + outs[None, :], total, mask=inside)


@triton.jit
@no_type_check
def add_pairs(
    y_at, outputs_at, experts_at, weights_at, scaling_at,
    kept, out, y_row, y_column,
    OUTS: tl.constexpr,
):  # fmt: skip
    """y[t] += sum over k of outputs[t, k] for one token and `OUTS` outputs, k in its order."""
    token = tl.program_id(0).to(tl.int64)
    outs = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    total = tl.zeros((OUTS,), dtype=tl.float32)
    for k in range(0, kept):
        pair = token * kept + k
        expert = tl.load(experts_at + pair)
        weight = tl.load(weights_at + pair).to(tl.float32) * tl.load(scaling_at + expert).to(tl.float32)
        if weight != 0:
            total += tl.load(outputs_at + pair * out + outs, mask=outs < out, other=0.0)
    y_tile = y_at + token * y_row + outs * y_column
    y = tl.load(y_tile, mask=outs < out, other=0.0)
    tl.store(y_tile, (y.to(tl.float32) + total).to(y.dtype), mask=outs < out)
