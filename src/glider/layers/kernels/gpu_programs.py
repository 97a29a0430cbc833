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
    per_token, rank, width, x_row, x_column, a_expert, a_row, a_column,
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
            x = tl.load(x_at + pair // per_token * x_row + columns * x_column, mask=columns < width, other=0.0)
            inside = (ranks < rank)[:, None] & (columns < width)[None, :]
            a_tile = a_at + expert * a_expert + ranks[:, None] * a_row + columns[None, :] * a_column
            a = tl.load(a_tile, mask=inside, other=0.0)
            total += a.to(tl.float32) * x.to(tl.float32)[None, :]
        tl.store(z_at + pair * rank + ranks, tl.sum(total, axis=1) * weight, mask=ranks < rank)


@triton.jit
@no_type_check
def add_token(
    y_at, z_at, b_at, experts_at, weights_at, scaling_at, sites_at,
    per_token, rank, out, y_row, y_column, b_expert, b_row, b_column, count,
    OUTS: tl.constexpr, RANKS: tl.constexpr, SITES: tl.constexpr,
):  # fmt: skip
    """y[t] += sum over k of B_e z[t, k] for one token and `OUTS` outputs, k in its order.

    Of several sites side by side, experts are numbered through, `count` a site; `sites_at` says whose a tile is, and
    B has the outputs of all of them.
    """
    token = tl.program_id(0).to(tl.int64)
    outs = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    total = tl.zeros((OUTS,), dtype=tl.float32)
    site = 0
    if SITES > 1:
        site = tl.load(sites_at + tl.program_id(1))
    for k in range(0, per_token):
        pair = (token * SITES + site) * per_token + k
        expert = tl.load(experts_at + pair)
        weight = tl.load(weights_at + pair).to(tl.float32) * tl.load(scaling_at + expert).to(tl.float32)
        if weight != 0:
            for start in range(0, rank, RANKS):
                ranks = start + tl.arange(0, RANKS)
                z = tl.load(z_at + pair * rank + ranks, mask=ranks < rank, other=0.0)
                inside = (outs < out)[:, None] & (ranks < rank)[None, :]
                owner = expert - site * count
                b_tile = b_at + owner * b_expert + outs[:, None] * b_row + ranks[None, :] * b_column
                b = tl.load(b_tile, mask=inside, other=0.0)
                total += tl.sum(b.to(tl.float32) * z.to(tl.float32)[None, :], axis=1)
    y_tile = y_at + token * y_row + outs * y_column
    y = tl.load(y_tile, mask=outs < out, other=0.0)
    tl.store(y_tile, (y.to(tl.float32) + total).to(y.dtype), mask=outs < out)


@triton.jit
@no_type_check
def pairs_of_block(order_at, starts_at, firsts_at, block, expert, PAIRS: tl.constexpr):
    """The pairs of a block that belongs to an expert, and which of its places have one."""
    places = tl.load(starts_at + expert) + (block - tl.load(firsts_at + expert)) * PAIRS + tl.arange(0, PAIRS)
    ours = places < tl.load(starts_at + expert + 1)
    return tl.load(order_at + places, mask=ours, other=0), ours


@triton.jit
@no_type_check
def project_block(
    z_at, x_at, a_at, weights_at, scaling_at, order_at, starts_at, firsts_at, owners_at,
    count, per_token, rank, width, x_row, x_column, a_expert, a_row, a_column,
    PAIRS: tl.constexpr, RANKS: tl.constexpr, WIDTHS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """z[p] = w s A_e x for the pairs of a block, which have one expert e, and `RANKS` ranks."""
    block = tl.program_id(0)
    expert = tl.load(owners_at + block)
    if expert < count:
        pairs, ours = pairs_of_block(order_at, starts_at, firsts_at, block, expert, PAIRS)
        ranks = tl.program_id(1) * RANKS + tl.arange(0, RANKS)
        total = tl.zeros((PAIRS, RANKS), dtype=tl.float32)
        for start in range(0, width, WIDTHS):
            columns = start + tl.arange(0, WIDTHS)
            x_tile = x_at + (pairs // per_token)[:, None] * x_row + columns[None, :] * x_column
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
        pairs, ours = pairs_of_block(order_at, starts_at, firsts_at, block, expert, PAIRS)
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
    per_token, out, y_row, y_column,
    OUTS: tl.constexpr,
):  # fmt: skip
    """y[t] += sum over k of outputs[t, k] for one token and `OUTS` outputs, k in its order."""
    token = tl.program_id(0).to(tl.int64)
    outs = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    total = tl.zeros((OUTS,), dtype=tl.float32)
    for k in range(0, per_token):
        pair = token * per_token + k
        expert = tl.load(experts_at + pair)
        weight = tl.load(weights_at + pair).to(tl.float32) * tl.load(scaling_at + expert).to(tl.float32)
        if weight != 0:
            total += tl.load(outputs_at + pair * out + outs, mask=outs < out, other=0.0)
    y_tile = y_at + token * y_row + outs * y_column
    y = tl.load(y_tile, mask=outs < out, other=0.0)
    tl.store(y_tile, (y.to(tl.float32) + total).to(y.dtype), mask=outs < out)


@triton.jit
@no_type_check
def weigh(
    z_at, experts_at, weights_at, scaling_at,
    per_token, rank, ranks_of_all,
    RANKS: tl.constexpr,
):  # fmt: skip
    """z[t, e R + r] *= w s where token t names expert e, else 0: z is x times the factors A of all experts."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * RANKS + tl.arange(0, RANKS)
    owners, total = columns // rank, tl.zeros((RANKS,), dtype=tl.float32)
    for k in range(0, per_token):
        expert = tl.load(experts_at + token * per_token + k)
        weight = tl.load(weights_at + token * per_token + k).to(tl.float32)
        weight *= tl.load(scaling_at + expert).to(tl.float32)
        total += tl.where(owners == expert, weight, 0.0)
    place, inside = z_at + token * ranks_of_all + columns, columns < ranks_of_all
    z = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, tl.where(total == 0, 0.0, z * total).to(z_at.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def moments(x_at, width, WIDTHS: tl.constexpr):
    """Mean of `width` numbers, and the sum of squares of what they are away from it.

    Put together from those of `WIDTHS` numbers at a time (Chan et al., 1979), so that nothing cancels.
    """
    mean = 0.0
    spread = 0.0
    for start in range(0, width, WIDTHS):
        columns = start + tl.arange(0, WIDTHS)
        inside = columns < width
        x = tl.load(x_at + columns, mask=inside, other=0.0).to(tl.float32)
        size = tl.minimum(width - start, WIDTHS).to(tl.float32)
        part_mean = tl.sum(x) / size
        away = tl.where(inside, x - part_mean, 0.0)
        step = part_mean - mean
        spread += tl.sum(away * away) + step * step * start * size / (start + size)
        mean += step * size / (start + size)
    return mean, spread


@triton.jit
@no_type_check
def choose(
    experts_at, weights_at, products_at, x_at, sums_at, absent_at, term_at, queries_at,
    routed_at, settled_at, shares_at,
    count, width, per_token, top, queries, tokens_each, divisor,
    PARTS: tl.constexpr, EXPERTS: tl.constexpr, WIDTHS: tl.constexpr, PLACES: tl.constexpr,
    STANDARDISE: tl.constexpr, ABSOLUTE: tl.constexpr, RENORMALISE: tl.constexpr,
    TERM: tl.constexpr, MAPPED: tl.constexpr, SETTLED: tl.constexpr, SITES: tl.constexpr,
):  # fmt: skip
    """The experts and weights of one token at one site, from its products with the gates (their parts are added up
    here). The `top` best are followed by places of weight 0, up to `per_token`. Of several sites experts are numbered
    through. With `SETTLED`, a mapped query that is not routed brings its own experts and shares.

    std(x) . v = (x . v - mean(x) sum(v)) / sqrt(var(x) + 1e-5).
    """
    token, site = tl.program_id(0).to(tl.int64), tl.program_id(1)
    experts = tl.arange(0, EXPERTS)
    there = experts < count
    scores = tl.zeros((EXPERTS,), dtype=tl.float32)
    for part in tl.static_range(PARTS):
        scores += tl.load(
            products_at + ((token * SITES + site) * PARTS + part) * count + experts, mask=there, other=0.0
        )
    if STANDARDISE:
        mean, spread = moments(x_at + token * width, width, WIDTHS)
        sums = tl.load(sums_at + site * count + experts, mask=there, other=0.0)
        scores = (scores - mean * sums) * (1.0 / tl.sqrt_rn(spread / width + 1e-5))
    scores = scores / divisor
    if ABSOLUTE:
        scores = tl.abs(scores)
    scores = tl.where(tl.load(absent_at + site * count + experts, mask=there, other=1) != 0, float("-inf"), scores)
    if TERM:
        query = token // tokens_each
        if MAPPED:
            query = tl.load(queries_at + token)
        known = (query >= 0) & (query < queries)
        served = tl.where(known, experts, count) < count  # `there & known` is no mask of bits to the interpreter
        scores += tl.load(term_at + query * count + experts, mask=served, other=0.0)
    chances = tl.exp(scores - tl.maximum(tl.max(scores), -3.0e38))
    total = tl.sum(chances)
    chances = tl.where(there, chances / tl.where(total == 0, 1.0, total), -1.0)  # 0 where all experts are left out
    places = tl.arange(0, PLACES)
    selected = tl.zeros((PLACES,), dtype=tl.int64)
    weights = tl.zeros((PLACES,), dtype=tl.float32)
    for k in range(0, top):
        best = tl.minimum(tl.argmax(chances, axis=0), count - 1)
        chance = tl.sum(tl.where(experts == best, chances, 0.0))
        selected = tl.where(places == k, best.to(tl.int64), selected)
        weights = tl.where(places == k, chance, weights)
        chances = tl.where(experts == best, -1.0, chances)
    if RENORMALISE:
        weights = weights / (tl.sum(weights) + 1e-6)
    if SETTLED:
        inside = tl.where(known, places, per_token) < per_token
        fixed = tl.load(routed_at + query, mask=known, other=1) == 0
        selected = tl.where(fixed, tl.load(settled_at + query * per_token + places, mask=inside, other=0), selected)
        weights = tl.where(fixed, tl.load(shares_at + query * per_token + places, mask=inside, other=0.0), weights)
    if TERM:
        weights = tl.where(known, weights, float("nan"))  # a map that leads elsewhere shows in every logit
    at = (token * SITES + site) * per_token + places
    tl.store(experts_at + at, selected + site * count, mask=places < per_token)
    tl.store(weights_at + at, weights, mask=places < per_token)
