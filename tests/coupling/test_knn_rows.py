"""Noise split along its datum, and put together again, in blocks of rows."""

import pytest
import torch

from immiscible_policy.coupling._knn_rows import Rows, combine, of_block, split_all


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(shape, generator=generator(seed)).to(dtype) for seed in (0, 1))


@pytest.mark.parametrize("shape", [(7, 3), (300, 5_000), (3, 2**19), (5, 4, 6)])
@pytest.mark.parametrize("copies", [1, 4])
def test_blocks_cover_all_rows_once_and_fit_the_cache(shape, copies):
    data = torch.empty(shape)
    blocks = Rows(data, data, None).blocks_for(copies)
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(shape[0]))
    assert all((b.stop - b.start) * data[0].numel() <= max(2**18 // copies, data[0].numel()) for b in blocks)
    assert all(torch.equal(of_block(torch.arange(shape[0]), b), torch.arange(b.start, b.stop)) for b in blocks)


@pytest.mark.parametrize("dims", [1, 2, 40, 511, 512, 3_000])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_split_is_what_it_says(dims, masked, dtype):
    """Against float64; 200 rows are many blocks for the largest dimension."""
    x, n = pair(200, dims, dtype=dtype)
    x[3] = 0.0
    mask = torch.rand(200, dims, generator=generator(2)) < 0.6 if masked else None
    valid = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    found = split_all(Rows(x, n, mask), None)
    wide, noise = x.double() * valid, n.double() * valid
    norm = wide.norm(dim=1, keepdim=True)
    e = wide / norm.clamp_min(1e-300)
    g = (e * noise).sum(1, keepdim=True)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    assert found.norm == pytest.approx(norm, rel=tolerance)
    assert found.g == pytest.approx(g, abs=tolerance * dims**0.5)
    assert found.r_squared == pytest.approx((noise - g * e).square().sum(1, keepdim=True), abs=tolerance * dims)
    assert torch.equal(found.no_direction, norm == 0)
    assert (found.inverse[found.no_direction] == 0).all()
    assert (torch.as_tensor(found.dims) == valid.sum(1, keepdim=True)).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("columns", [None, torch.tensor([0, 2, 3])])
def test_combining_gives_the_scalars_asked_for(masked, columns):
    x, n = pair(100, 6, dtype=torch.float64)
    mask = (torch.rand(100, 6, generator=generator(2)) < 0.8) if masked else None
    rows = Rows(x, n, mask)
    split = split_all(rows, columns)
    g, r_squared = torch.linspace(-2, 2, 100).double()[:, None], torch.linspace(0.5, 9, 100).double()[:, None]
    target = n.clone()
    block = slice(0, 100)
    combine(
        rows.n(block, columns), rows.x(block, columns), split.factors(g, r_squared), rows.valid(block, columns), target,
        columns,
    )  # fmt: skip
    found = split_all(Rows(x, target, mask), columns)
    several = (torch.as_tensor(split.dims).expand(100, 1) > 1)[:, 0]
    assert found.g[several] == pytest.approx(g[several], abs=1e-9)
    assert found.r_squared[several] == pytest.approx(r_squared[several], abs=1e-8)
    untouched = torch.zeros_like(x, dtype=torch.bool) if mask is None else ~mask
    if columns is not None:
        untouched[:, [1, 4, 5]] = True
    assert torch.equal(target[untouched], n[untouched])


@pytest.mark.parametrize("dims", [1, 2, 700])
def test_its_own_scalars_give_the_noise_back_bit_for_bit(dims):
    x, n = pair(64, dims)
    split = split_all(Rows(x, n, None), None)
    scale, along = split.factors(split.g, split.r_squared)
    assert (scale == 1).all()
    assert (along == 0).all()


def test_a_given_norm_keeps_g_where_there_is_room():
    x, n = pair(50, 4, dtype=torch.float64)
    x[0] = 0.0
    split = split_all(Rows(x, n, None), None)
    wanted = torch.linspace(0.01, 8, 50).double()[:, None]
    g, r_squared = split.with_norm(split.g, split.r_squared, wanted)
    assert g.square() + r_squared == pytest.approx(wanted)
    room = (wanted > split.g.square()) & ~split.no_direction
    assert torch.equal(g[room], split.g[room])
    cramped = ~room & ~split.no_direction
    assert int(cramped.sum()) > 3
    assert (g / r_squared.sqrt())[cramped] == pytest.approx((split.g / split.r_squared.sqrt())[cramped])
