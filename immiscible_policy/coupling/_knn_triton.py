"""The exact sampler of ``_knn_exact`` as one GPU kernel: a program per row splits, chooses and rebuilds.

The plain form is some 35 small kernels, which at small batches cost more than the work itself. This one
consumes the generator in the same order and gives the same noise up to rounding. It serves what is most
used: all entries counting alike, the best of k. Importing this module raises ImportError without triton.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.coupling._knn_scalars import chi_square, largest_of_others, normals

# Not plain imports, since type checkers find triton on some machines and not on others.
triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

_METRICS = {"l2": 0, "cosine": 1, "inner": 2}
_LARGEST_BLOCK = 4096


@triton.jit
def _nearest_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    n_ptr,
    g_ptr,
    r_squared_ptr,
    out_ptr,
    dims,
    others,
    METRIC: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_OTHERS: tl.constexpr,
):
    """x, n, out: (B, dims), any float dtype. g, r_squared: (B, others) float32, unused r_squared for "inner"."""
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + row * dims
    n_row = n_ptr + row * dims

    squares = tl.zeros([BLOCK], tl.float32)
    products = tl.zeros([BLOCK], tl.float32)
    for start in range(0, dims, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + columns, mask=columns < dims, other=0.0).to(tl.float32)
        n = tl.load(n_row + columns, mask=columns < dims, other=0.0).to(tl.float32)
        squares += x * x
        products += x * n
    norm = tl.sqrt(tl.sum(squares, 0))
    has_direction = norm > 0.0
    inverse = tl.where(has_direction, 1.0 / tl.where(has_direction, norm, 1.0), 0.0)
    own_g = tl.sum(products, 0) * inverse

    # |n|^2 - g^2 would cancel in low dimension: read the row again, from the cache.
    own_r_squared = 0.0
    if METRIC != 2:
        squares = tl.zeros([BLOCK], tl.float32)
        for start in range(0, dims, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            x = tl.load(x_row + columns, mask=columns < dims, other=0.0).to(tl.float32)
            n = tl.load(n_row + columns, mask=columns < dims, other=0.0).to(tl.float32)
            residual = n - x * (own_g * inverse)
            squares += residual * residual
        own_r_squared = tl.sum(squares, 0)

    best_g = own_g
    best_r_squared = own_r_squared
    if METRIC == 0:
        best_cost = own_g * (own_g - 2.0 * norm) + own_r_squared
    elif METRIC == 1:
        best_cost = -norm * own_g / tl.sqrt(tl.maximum(own_g * own_g + own_r_squared, 1e-37))
    else:
        best_cost = -own_g
    for start in range(0, others, BLOCK_OTHERS):
        place = tl.arange(0, BLOCK_OTHERS)
        inside = start + place < others
        g = tl.load(g_ptr + row * others + start + place, mask=inside, other=0.0)
        r_squared = tl.zeros([BLOCK_OTHERS], tl.float32)
        if METRIC != 2:
            r_squared = tl.load(r_squared_ptr + row * others + start + place, mask=inside, other=0.0)
        if METRIC == 0:
            cost = g * (g - 2.0 * norm) + r_squared
        elif METRIC == 1:
            cost = -norm * g / tl.sqrt(tl.maximum(g * g + r_squared, 1e-37))
        else:
            cost = -g
        cost = tl.where(inside, cost, float("inf"))
        lowest = tl.min(cost, 0)
        is_lowest = place == tl.argmin(cost, 0)
        better = lowest < best_cost
        best_g = tl.where(better, tl.sum(tl.where(is_lowest, g, 0.0), 0), best_g)
        best_r_squared = tl.where(better, tl.sum(tl.where(is_lowest, r_squared, 0.0), 0), best_r_squared)
        best_cost = tl.where(better, lowest, best_cost)

    scale = 1.0
    if METRIC != 2:
        reach = tl.where(has_direction, best_r_squared, best_r_squared + best_g * best_g)
        # Rounded to nearest, so that it is exactly 1 where the given noise wins.
        scale = tl.sqrt_rn(tl.div_rn(reach, tl.maximum(own_r_squared, 1e-12)))
        scale = tl.where(has_direction & (dims == 1), 1.0, scale)
    along = (best_g - scale * own_g) * inverse
    for start in range(0, dims, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + columns, mask=columns < dims, other=0.0).to(tl.float32)
        n = tl.load(n_row + columns, mask=columns < dims, other=0.0).to(tl.float32)
        chosen = n * scale + x * along
        tl.store(out_ptr + row * dims + columns, chosen.to(out_ptr.dtype.element_ty), mask=columns < dims)


def nearest(
    data: Tensor, noise: Tensor, metric: str, k: float, generator: torch.Generator | None, out: Tensor | None
) -> Tensor:
    """The best of k candidates by "l2", "cosine" or "inner", without waiting for the GPU.

    Args:
        data, noise: (B, ...) float16, bfloat16 or float32.
        out: (B, ...) contiguous memory of the result, which may be the noise itself; None for new memory.
    """
    batch = data.shape[0]
    dims = data.numel() // batch
    like = torch.empty((batch, 1), dtype=torch.float32, device=data.device)
    if metric == "inner":
        g = r_squared = largest_of_others(k, like, generator)
    else:
        shape = (batch, int(k) - 1)
        g = normals(shape, like, generator)
        r_squared = chi_square(dims - 1, shape, like, generator)
    out = torch.empty(data.shape, dtype=data.dtype, device=data.device) if out is None else out
    others = g.shape[1]
    block = min(_LARGEST_BLOCK, triton.next_power_of_2(dims))
    # Triton launches on the current device, which need not be that of the data.
    with torch.cuda.device(data.device) if data.is_cuda else contextlib.nullcontext():
        _nearest_kernel[(batch,)](
            data.contiguous(),
            noise.contiguous(),
            g.contiguous(),
            r_squared.contiguous(),
            out,
            dims,
            others,
            METRIC=_METRICS[metric],
            BLOCK=block,
            BLOCK_OTHERS=min(1024, triton.next_power_of_2(others)),
            num_warps=max(1, min(8, block // 256)),
        )
    return out


@functools.cache
def works_on(device: torch.device) -> bool:
    """Whether the kernel can be built and launched there, tried once on a few numbers.

    Triton compiles at the first call, and needs a C compiler and a GPU it knows; without them KNN's plain
    form still works, so that this is a warning.
    """
    probe = torch.ones((1, 2), device=device)
    try:
        # The generator's state must not depend on whether this was the first call.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            nearest(probe, probe, "l2", 2, None, None)
    except Exception as error:
        warnings.warn(f"KNN's fused kernel is not used on {device}: {error!r}", RuntimeWarning, stacklevel=2)
        return False
    return True
