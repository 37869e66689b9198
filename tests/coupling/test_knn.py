"""KNN: the exact sampler has the law of k explicit candidates, at the price of one draw.

Closed forms: with F the law of the squared distance to an independent draw (noncentral chi-square), the
nearest of k draws has (1 - F)^k uniform; the largest projection of k has Phi^k uniform.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from immiscible_policy.coupling import KNN

# Probability of a false alarm of one comparison; seeds are fixed, so a pass stays a pass.
P_VALUE = 1e-4


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(rows: int, dims: int, norm: float, seed: int = 0) -> torch.Tensor:
    """Rows of the given norm in random directions, zero rows where the norm is 0."""
    x = torch.randn(rows, dims, generator=generator(seed), dtype=torch.float64)
    return (norm * x / x.norm(dim=1, keepdim=True)).float()


def statistics_of(x: torch.Tensor, noise: torch.Tensor) -> dict[str, np.ndarray]:
    """Distance, projection on x, norm, what is orthogonal to x, single coordinates."""
    x, noise = x.double(), noise.double()
    norm = x.norm(dim=1, keepdim=True)
    e = torch.where(norm > 0, x / norm.clamp_min(1e-300), torch.zeros_like(x))
    projection = (e * noise).sum(1, keepdim=True)
    orthogonal = noise - projection * e
    result = {
        "distance": (x - noise).norm(dim=1),
        "norm": noise.norm(dim=1),
        "first coordinate": noise[:, 0],
        "last coordinate": noise[:, -1],
        "fourth powers": noise.pow(4).sum(1),
    }
    if norm.max() > 0:
        result["projection"] = projection[:, 0]
    if norm.max() > 0 and x.shape[1] > 1:
        result["orthogonal norm"] = orthogonal.norm(dim=1)
        result["orthogonal coordinate"] = orthogonal[:, 0]
        result["joint"] = projection[:, 0] * orthogonal.norm(dim=1)
    return {name: value.numpy() for name, value in result.items()}


LAW_CASES = [  # (D, |x|, k, rows)
    (1, 1.5, 2, 40_000),
    (1, 0.0, 3, 40_000),
    (2, 1.0, 4, 60_000),
    (2, 1.0, 64, 20_000),
    (2, 0.0, 2, 40_000),
    (3, 2.0, 8, 40_000),
    (32, 4.0, 1, 20_000),
    (32, 4.0, 2, 60_000),
    (32, 4.0, 8, 30_000),
    (32, 4.0, 64, 15_000),
    (64, 0.0, 4, 20_000),
    (3072, 27.7, 2, 1_000),
    (3072, 27.7, 8, 1_000),
]


@pytest.mark.parametrize("metric", ["l2", "inner"])
@pytest.mark.parametrize(("dims", "norm", "k", "rows"), LAW_CASES)
def test_exact_has_the_law_of_explicit_candidates(metric, dims, norm, k, rows):
    x = points(rows, dims, norm)
    exact = KNN(k, metric)(x, generator=generator(1))
    explicit = KNN(k, metric, candidates="explicit")(x, generator=generator(2))
    found, wanted = statistics_of(x, exact), statistics_of(x, explicit)
    for name in wanted:
        assert stats.ks_2samp(found[name], wanted[name]).pvalue > P_VALUE, name


@pytest.mark.parametrize("candidates", ["exact", "explicit"])
@pytest.mark.parametrize(("dims", "norm", "k"), [(1, 1.0, 3), (2, 0.0, 2), (2, 3.0, 64), (32, 4.0, 2), (32, 2.0, 64)])
def test_distance_has_the_closed_form_law(dims, norm, k, candidates):
    x = points(20_000, dims, norm)
    noise = KNN(k, candidates=candidates)(x, generator=generator(3))
    squared = (x.double() - noise.double()).square().sum(1).numpy()
    survival = stats.chi2.sf(squared, dims) if norm == 0 else stats.ncx2.sf(squared, dims, norm**2)
    assert stats.kstest(survival**k, "uniform").pvalue > P_VALUE


@pytest.mark.parametrize("k", [1.5, 2, 8, 64, 1000])
def test_inner_projection_has_the_closed_form_law(k):
    x = points(40_000, 16, 3.0)
    noise = KNN(k, metric="inner")(x, generator=generator(4))
    projection = (x.double() * noise.double()).sum(1).numpy() / 3.0
    assert stats.kstest(stats.norm.cdf(projection) ** k, "uniform").pvalue > P_VALUE


@pytest.mark.parametrize(("k", "expected"), [(2, 0.5642), (4, 1.0292), (8, 1.4235), (16, 1.7662), (64, 2.3439)])
def test_inner_shift_is_the_mean_of_the_largest_of_k_normals(k, expected):
    x = points(200_000, 4, 2.0)
    projection = (x * KNN(k, metric="inner")(x, generator=generator(5))).sum(1) / 2.0
    standard_error = float(projection.std()) / math.sqrt(200_000)
    assert float(projection.mean()) == pytest.approx(expected, abs=4 * standard_error + 5e-5)


def test_inner_with_two_candidates_keeps_second_moments():
    x = points(200_000, 32, 4.0)
    noise = KNN(2, metric="inner")(x, generator=generator(6))
    squares = noise.square().sum(1) / 32
    assert float(squares.mean()) == pytest.approx(1.0, abs=4 * float(squares.std()) / math.sqrt(200_000))
    along = ((x * noise).sum(1) / 4.0).square()
    assert float(along.mean()) == pytest.approx(1.0, abs=4 * float(along.std()) / math.sqrt(200_000))


@pytest.mark.parametrize(
    ("dims", "norm", "k", "rows", "shift", "variance", "norm_ratio"),
    [  # E[g], var g and E|n|^2/D of a separate study of the explicit rule
        (32, 2.0, 2, 200_000, 0.251, 0.836, 0.875),
        (32, 4.0, 2, 200_000, 0.400, 0.790, 0.902),
        (32, 4.0, 8, 200_000, 0.978, 0.583, 0.780),
        (32, 4.0, 64, 200_000, 1.551, 0.452, 0.683),
        (3072, 27.7, 8, 8_000, 0.818, 0.775, 0.971),
        (4096, 64.0, 64, 4_000, 1.908, 0.463, 0.971),
    ],
)
def test_published_moments(dims, norm, k, rows, shift, variance, norm_ratio):
    x = points(rows, dims, norm)
    noise = KNN(k)(x, generator=generator(7))
    g = (x.double() * noise).sum(1) / norm
    ratio = noise.double().square().sum(1) / dims
    root = math.sqrt(rows)
    # The table's last digit, and its own sampling error of the size of ours.
    assert float(g.mean()) == pytest.approx(shift, abs=5 * float(g.std()) / root + 1e-3)
    assert float(g.var()) == pytest.approx(variance, abs=5 * math.sqrt(2) * float(g.var()) / root + 1e-3)
    assert float(ratio.mean()) == pytest.approx(norm_ratio, abs=5 * float(ratio.std()) / root + 1e-3)


@pytest.mark.parametrize(("k", "nats"), [(2, 0.193), (4, 0.636), (8, 1.204), (64, 3.175)])
def test_divergence_from_the_prior_depends_on_k_alone(k, nats):
    """KL(n|x || N(0, I)) = ln k - (k-1)/k: the density ratio is k (1 - F)^(k-1)."""
    x = points(20_000, 32, 4.0)
    squared = (x.double() - KNN(k)(x, generator=generator(8)).double()).square().sum(1).numpy()
    log_ratio = math.log(k) + (k - 1) * np.log(stats.ncx2.sf(squared, 32, 16.0))
    standard_error = log_ratio.std() / math.sqrt(len(log_ratio))
    assert log_ratio.mean() == pytest.approx(math.log(k) - (k - 1) / k, abs=4 * standard_error)
    assert math.log(k) - (k - 1) / k == pytest.approx(nats, abs=6e-4)


@pytest.mark.parametrize("metric", ["l2", "inner"])
def test_masked_law_is_that_of_the_valid_entries(metric):
    """Rows with 0 to 6 valid entries, zero rows among them: each count has its own law."""
    rows, k = 60_000, 4
    x = points(rows, 6, 2.0)
    counts = torch.arange(rows) % 7
    mask = torch.rand(rows, 6, generator=generator(9)).argsort(1) < counts[:, None]
    x[::5] = 0.0
    drawn = torch.randn(rows, 6, generator=generator(10))
    noise = KNN(k, metric)(x, drawn, mask=mask, generator=generator(11))
    explicit = KNN(k, metric, candidates="explicit")(x, drawn, mask=mask, generator=generator(12))
    assert torch.equal(noise[~mask], drawn[~mask])
    assert torch.equal(explicit[~mask], drawn[~mask])
    for count in range(1, 7):
        for zero in (False, True):
            chosen = (counts == count) & (x.masked_fill(~mask, 0.0).norm(dim=1).eq(0) == zero)
            # Gather the valid entries into the last `count` columns: a dense problem of that dimension.
            order = mask[chosen].int().argsort(dim=1, stable=True)[:, 6 - count :]
            dense = [t[chosen].gather(1, order) for t in (x, noise, explicit)]
            found, wanted = statistics_of(dense[0], dense[1]), statistics_of(dense[0], dense[2])
            for name in wanted:
                assert stats.ks_2samp(found[name], wanted[name]).pvalue > P_VALUE, (count, zero, name)
            if metric == "l2":
                squared = (dense[0] - dense[1]).double().square().sum(1).numpy()
                shift = dense[0].double().square().sum(1).numpy().clip(1e-12)
                survival = stats.ncx2.sf(squared, count, shift)
                assert stats.kstest(survival**k, "uniform").pvalue > P_VALUE, (count, zero)


@pytest.mark.parametrize("metric", ["l2", "inner"])
def test_mask_of_ones_changes_nothing(metric):
    x = torch.randn(32, 4, 3, generator=generator(0))
    plain = KNN(3, metric)(x, generator=generator(1))
    masked = KNN(3, metric)(x, mask=torch.ones(1, dtype=torch.bool), generator=generator(1))
    if metric == "l2":
        # Constant and per-row degrees of freedom take different paths of the gamma sampler's set-up.
        assert masked == pytest.approx(plain, abs=1e-5)
    else:
        assert torch.equal(plain, masked)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["exact", "explicit"]),
    st.sampled_from(["l2", "inner"]),
    st.integers(1, 9),
    st.integers(0, 999),
)
def test_never_further_than_the_given_noise(candidates, metric, k, seed):
    """Candidate 0 is the given noise, so that the score can only improve; ties come back bit for bit."""
    x = torch.randn(20, 5, generator=generator(seed), dtype=torch.float64)
    given_noise = torch.randn(20, 5, generator=generator(seed + 1), dtype=torch.float64)
    noise = KNN(k, metric, candidates)(x, given_noise, generator=generator(seed + 2))
    moved = (noise != given_noise).any(1)
    if metric == "l2":
        assert ((x - noise).norm(dim=1) <= (x - given_noise).norm(dim=1) + 1e-12).all()
    else:
        assert ((x * noise).sum(1) >= (x * given_noise).sum(1) - 1e-12).all()
    assert not (k == 1 and moved.any())


@pytest.mark.parametrize("metric", ["l2", "inner"])
def test_the_first_candidate_wins_one_time_in_k(metric):
    x = points(50_000, 8, 2.0)
    given_noise = torch.randn(50_000, 8, generator=generator(1))
    noise = KNN(4, metric)(x, given_noise, generator=generator(2))
    kept = (noise == given_noise).all(1)
    share = float(kept.double().mean())
    assert share == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 50_000))
    assert float((noise == given_noise).any(1).double().mean()) == pytest.approx(share, abs=1e-3)


def test_l2_transform_keeps_the_direction_orthogonal_to_data():
    x, given_noise = points(500, 32, 4.0), torch.randn(500, 32, generator=generator(1))
    noise = KNN(8)(x, given_noise, generator=generator(2))
    residuals = []
    for n in (given_noise, noise):
        e = x.double() / 4.0
        residual = n.double() - (e * n).sum(1, keepdim=True) * e
        residuals.append(residual / residual.norm(dim=1, keepdim=True))
    assert (residuals[0] * residuals[1]).sum(1).numpy() == pytest.approx(np.ones(500), abs=1e-6)


def test_inner_moves_noise_only_along_data():
    x, given_noise = points(500, 32, 4.0), torch.randn(500, 32, generator=generator(1))
    change = (KNN(8, "inner")(x, given_noise, generator=generator(2)) - given_noise).double()
    e = x.double() / 4.0
    along = (change * e).sum(1, keepdim=True)
    assert float((change - along * e).abs().max()) < 1e-5
    assert float(along.min()) > -1e-6


@pytest.mark.parametrize("metric", ["l2", "inner"])
@pytest.mark.parametrize("candidates", ["exact", "explicit"])
def test_one_candidate_is_the_draw_itself(metric, candidates):
    x, given_noise = torch.randn(8, 4), torch.randn(8, 4)
    coupling = KNN(1, metric, candidates)
    assert torch.equal(coupling(x, given_noise), given_noise)
    assert torch.equal(coupling(x, generator=generator(3)), torch.randn(8, 4, generator=generator(3)))


def test_half_precision_is_coupled_in_float32():
    x, given_noise = points(4_000, 64, 8.0).half(), torch.randn(4_000, 64, generator=generator(1)).half()
    half = KNN(8)(x, given_noise, generator=generator(2))
    full = KNN(8)(x.float(), given_noise.float(), generator=generator(2))
    assert torch.equal(half, full.half())


def test_double_precision_is_kept():
    x = points(2_000, 2, 1.0).double()
    given_noise = torch.randn(2_000, 2, generator=generator(1), dtype=torch.float64)
    noise = KNN(4)(x, given_noise, generator=generator(2))
    e = x / x.norm(dim=1, keepdim=True)
    orthogonal = torch.stack((-e[:, 1], e[:, 0]), 1)
    signs = [(orthogonal * n).sum(1).sign() for n in (given_noise, noise)]
    assert noise.dtype == torch.float64
    assert torch.equal(*signs)


@pytest.mark.parametrize("given_noise", [torch.zeros(3, 2), torch.ones(3, 2)])
def test_degenerate_given_noise_stays_finite(given_noise):
    assert torch.isfinite(KNN(8)(torch.ones(3, 2), given_noise, generator=generator(0))).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e15])
def test_any_scale_of_data_gives_finite_noise_of_order_one(scale):
    x = points(2_000, 8, 1.0) * scale
    noise = KNN(4)(x, generator=generator(1))
    assert torch.isfinite(noise).all()
    assert 0.3 < float(noise.square().mean()) < 2.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, r"k must be an integer >= 1, got 0"),
        ({"k": -3}, ValueError, r"k must be an integer >= 1, got -3"),
        ({"k": 1.5}, TypeError, r"k must be an integer >= 1, got 1.5 of type float"),
        ({"k": True}, TypeError, r"k must be an integer >= 1, got True of type bool"),
        ({"k": "2"}, TypeError, r"k must be an integer >= 1, got '2' of type str"),
        ({"k": None}, TypeError, r"k must be an integer >= 1, got None"),
        ({"k": True, "metric": "inner"}, TypeError, r"k must be a real number >= 1, got True"),
        ({"k": 0.5, "metric": "inner"}, ValueError, r"k must be a real number >= 1, got 0.5"),
        ({"k": math.nan, "metric": "inner"}, ValueError, r"k must be a real number >= 1, got nan"),
        ({"k": math.inf, "metric": "inner"}, ValueError, r"k must be a real number >= 1, got inf"),
        ({"k": 1.5, "metric": "inner", "candidates": "explicit"}, TypeError, r"k must be an integer >= 1"),
        ({"metric": "cosine"}, ValueError, r"metric must be 'l2' or 'inner', got 'cosine'"),
        ({"candidates": "some"}, ValueError, r"candidates must be 'exact' or 'explicit', got 'some'"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        KNN(**arguments)


def test_numpy_integers_are_integers():
    assert KNN(np.int64(3))(torch.zeros(2, 2)).shape == (2, 2)
