"""The fused GPU kernel gives the plain form's noise up to rounding; on a CPU it runs in triton's interpreter."""

import os
import sys

import pytest
import torch

if not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ:
    if "triton" in sys.modules:
        pytest.skip("triton was imported to compile: set TRITON_INTERPRET=1", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
pytest.importorskip("triton")

from immiscible_policy.coupling import KNN, _knn_exact, _knn_triton, knn
from immiscible_policy.coupling._knn_parts import Part
from immiscible_policy.coupling._knn_rows import Rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def generator(seed: int) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


def plain(data: torch.Tensor, noise: torch.Tensor, metric: str, k: float, seed: int) -> torch.Tensor:
    rows = Rows(data, noise, None)
    if metric == "inner":
        return _knn_exact.most_aligned(rows, None, k, 1, generator(seed), None)
    return _knn_exact.nearest(rows, (Part(1.0, None),), metric, int(k), 1, False, generator(seed), None)


@pytest.mark.parametrize("metric", ["l2", "cosine", "inner"])
@pytest.mark.parametrize(
    ("shape", "k"),
    [((7, 1), 3), ((7, 2), 2), ((9, 16, 2), 2), ((5, 33), 64), ((2, 1030), 8), ((3, 5000), 4), ((2, 8), 1500)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_agrees_with_the_plain_form(shape, k, dtype, metric):
    data = torch.randn(shape, generator=generator(0), device=DEVICE).to(dtype)
    data[-1] = 0.0
    noise = torch.randn(shape, generator=generator(1), device=DEVICE).to(dtype)
    fused = _knn_triton.nearest(data, noise, metric, k, generator(2), None)
    wanted = plain(data, noise, metric, k, 2)
    assert fused.dtype == dtype
    assert fused.shape == shape
    if metric == "cosine" and shape == (7, 1):
        # The cosine of two numbers is a sign: candidates of one sign tie up to rounding.
        assert torch.equal(data * fused >= 0, data * wanted >= 0)
        return
    assert (fused.float() - wanted.float()).abs().max() <= TOLERANCE[dtype] * wanted.abs().max()


@pytest.mark.parametrize("metric", ["l2", "cosine", "inner"])
def test_the_given_noise_comes_back_where_it_wins(metric):
    data = torch.randn(100, 6, generator=generator(0), device=DEVICE)
    noise = torch.randn(100, 6, generator=generator(1), device=DEVICE)
    before = noise.clone()
    fused = _knn_triton.nearest(data, noise, metric, 2, generator(2), None)
    wanted = plain(data, noise, metric, 2, 2)
    kept = (wanted == noise).all(1)
    assert 20 < int(kept.sum()) < 80
    assert torch.equal((fused == noise).all(1), kept)
    assert torch.equal(noise, before)


def test_writes_over_the_noise_where_it_may():
    data = torch.randn(6, 50, generator=generator(0), device=DEVICE)
    noise = torch.randn(6, 50, generator=generator(1), device=DEVICE)
    apart = _knn_triton.nearest(data, noise, "l2", 4, generator(2), None)
    over = _knn_triton.nearest(data, noise, "l2", 4, generator(2), noise)
    assert over is noise
    assert torch.equal(over, apart)


def test_real_numbers_of_candidates():
    data = torch.randn(6, 10, generator=generator(0), device=DEVICE)
    noise = torch.randn(6, 10, generator=generator(1), device=DEVICE)
    fused = _knn_triton.nearest(data, noise, "inner", 1.5, generator(2), None)
    assert fused.cpu() == pytest.approx(plain(data, noise, "inner", 1.5, 2).cpu(), abs=1e-5)


def test_half_precision_of_large_magnitude_stays_finite():
    data = torch.full((3, 300), 6e4, device=DEVICE).half()
    noise = torch.randn(3, 300, generator=generator(1), device=DEVICE).half()
    assert torch.isfinite(_knn_triton.nearest(data, noise, "l2", 4, generator(2), None)).all()


def test_layouts_other_than_contiguous():
    data = torch.randn(5, 4, 6, generator=generator(0), device=DEVICE).transpose(1, 2)
    noise = torch.randn(5, 4, 6, generator=generator(1), device=DEVICE).transpose(1, 2)
    strided = _knn_triton.nearest(data, noise, "l2", 4, generator(2), None)
    assert torch.equal(strided, _knn_triton.nearest(data.contiguous(), noise.contiguous(), "l2", 4, generator(2), None))


def test_a_kernel_that_cannot_be_built_is_a_warning(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no C compiler")

    _knn_triton.works_on.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(_knn_triton, "nearest", broken)
        with pytest.warns(RuntimeWarning, match="fused kernel is not used on .*no C compiler"):
            assert not _knn_triton.works_on(torch.device(DEVICE))
    _knn_triton.works_on.cache_clear()


def test_trying_the_kernel_leaves_the_generator_as_it_is():
    _knn_triton.works_on.cache_clear()
    state = torch.get_rng_state() if DEVICE == "cpu" else torch.cuda.get_rng_state()
    assert _knn_triton.works_on(torch.device(DEVICE))
    assert torch.equal(torch.get_rng_state() if DEVICE == "cpu" else torch.cuda.get_rng_state(), state)


@pytest.fixture
def calls(monkeypatch):
    """Metrics that the kernel was called for; on a CPU too, where KNN would not choose it."""
    seen = []
    fused = _knn_triton.nearest
    monkeypatch.setattr(_knn_triton, "nearest", lambda *a: seen.append(a[2]) or fused(*a))
    if DEVICE == "cpu":
        monkeypatch.setattr(knn, "_kernel_for", lambda data: _knn_triton)
    return seen


@pytest.mark.parametrize("metric", ["l2", "cosine", "inner"])
@pytest.mark.parametrize("given_noise", [False, True])
def test_calls_take_the_kernel(metric, given_noise, calls):
    data = torch.randn(16, 8, 2, generator=generator(0), device=DEVICE)
    g = generator(3)
    drawn = torch.randn(data.shape, generator=g, device=DEVICE)
    before = drawn.clone()
    noise = KNN(4, metric)(data, drawn if given_noise else None, generator=g if given_noise else generator(3))
    assert calls == [metric]
    assert torch.equal(drawn, before)
    g = generator(3)
    torch.randn(data.shape, generator=g, device=DEVICE)
    rows = Rows(data, drawn, None)
    if metric == "inner":
        wanted = _knn_exact.most_aligned(rows, None, 4, 1, g, None)
    else:
        wanted = _knn_exact.nearest(rows, (Part(1.0, None),), metric, 4, 1, False, g, None)
    assert noise.cpu() == pytest.approx(wanted.cpu(), abs=2e-5)


@pytest.mark.parametrize(
    "more",
    [
        {"metric": "l1"},
        {"candidates": "explicit"},
        {"pick": 2},
        {"features": {1: [0]}},
        {"weights": {1: [1, 1, 1, 2]}},
        {"correct_norm": True},
        {"k": 1},
    ],
)
def test_what_the_kernel_does_not_serve_goes_the_plain_way(more, calls):
    data = torch.randn(16, 4, 2, device=DEVICE)
    assert KNN(**{"k": 4, **more})(data).shape == data.shape
    KNN(4)(data, mask=torch.ones(1, dtype=torch.bool, device=DEVICE))
    assert calls == []
