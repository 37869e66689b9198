"""KNN: the exact sampler has the law of k explicit candidates, at the price of one draw.

Closed forms: with F the law of the squared distance to an independent draw (noncentral chi-square), the
nearest of k draws has (1 - F)^k uniform; the largest projection of k has Phi^k uniform.
"""

import math
import re

import numpy as np
import pytest
import torch
from host_reads import HostReads
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from immiscible_policy.coupling import KNN
from immiscible_policy.coupling.base import Context

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


@pytest.mark.parametrize(
    ("metric", "dims", "norm", "k", "rows"),
    [
        *((metric, *case) for metric in ("l2", "inner") for case in LAW_CASES),
        *(("cosine", dims, norm, k, 20_000) for dims, norm, k, _ in LAW_CASES if dims < 1_000 and 1 < k < 64),
    ],
)
def test_exact_has_the_law_of_explicit_candidates(metric, dims, norm, k, rows):
    x = points(rows, dims, norm)
    exact = KNN(k, metric, "exact")(x, generator=generator(1))
    explicit = KNN(k, metric, candidates="explicit")(x, generator=generator(2))
    found, wanted = statistics_of(x, exact), statistics_of(x, explicit)
    for name in wanted:
        assert stats.ks_2samp(found[name], wanted[name], method="asymp").pvalue > P_VALUE, name


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


@pytest.mark.parametrize("metric", ["l2", "inner", "cosine"])
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
                assert stats.ks_2samp(found[name], wanted[name], method="asymp").pvalue > P_VALUE, (count, zero, name)
            if metric == "l2":
                squared = (dense[0] - dense[1]).double().square().sum(1).numpy()
                shift = dense[0].double().square().sum(1).numpy().clip(1e-12)
                survival = stats.ncx2.sf(squared, count, shift)
                assert stats.kstest(survival**k, "uniform").pvalue > P_VALUE, (count, zero)


@pytest.mark.parametrize("metric", ["l2", "inner", "cosine"])
def test_mask_of_ones_changes_nothing(metric):
    x = torch.randn(32, 4, 3, generator=generator(0))
    plain = KNN(3, metric)(x, generator=generator(1))
    masked = KNN(3, metric)(x, mask=torch.ones(1, dtype=torch.bool), generator=generator(1))
    if metric != "inner":
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


@pytest.mark.parametrize("metric", ["l2", "inner", "cosine", "l1"])
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


@pytest.mark.parametrize("metric", ["l2", "inner", "cosine"])
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
        ({"metric": "dot"}, ValueError, r"metric must be 'l2', 'inner', 'cosine', 'l1' or a function.*got 'dot'"),
        ({"candidates": "some"}, ValueError, r"candidates must be 'auto', 'exact' or 'explicit', got 'some'"),
        ({"metric": "l1", "candidates": "exact"}, ValueError, r"candidates='exact' is impossible with metric='l1'"),
        ({"metric": torch.sub, "candidates": "exact"}, ValueError, r"impossible with a function as metric"),
        ({"source": torch.rand, "candidates": "exact"}, ValueError, r"impossible with a source other than N\(0, I\)"),
        ({"source": "uniform"}, TypeError, r"source must be a function .* or None, got 'uniform'"),
        ({"k": 1.5, "metric": "inner", "source": torch.rand}, TypeError, r"k must be an integer >= 1, got 1.5"),
        ({"k": 2.5, "metric": "inner", "pick": 2}, TypeError, r"k must be an integer >= 1, got 2.5"),
        ({"k": 1.5, "metric": "cosine"}, TypeError, r"k must be an integer >= 1, got 1.5"),
        ({"k": 4, "pick": 5}, ValueError, r"pick must be 'best' or an integer from 1 to k=4, got 5"),
        ({"k": 4, "pick": 0}, ValueError, r"pick must be .*, got 0"),
        ({"k": 4, "pick": True}, ValueError, r"pick must be .*, got True"),
        ({"k": 4, "pick": "first"}, ValueError, r"pick must be .*, got 'first'"),
        ({"features": {0: [1]}}, ValueError, r"features must name axes >= 1 of data .*, got 0"),
        ({"features": {1: [-1]}}, ValueError, r"features\[1\] must hold distinct indices >= 0"),
        ({"weights": {1: [1.0, -1.0]}}, ValueError, r"weights\[1\] must hold finite numbers >= 0"),
        ({"weights": {1: [1.0]}, "metric": torch.sub}, ValueError, r"weights must be None where metric is a function"),
        ({"correct_norm": 1}, TypeError, r"correct_norm must be True or False, got 1"),
        ({"correct_norm": True, "metric": "cosine"}, ValueError, r"metric 'cosine', which leaves the norm as it is"),
        ({"correct_norm": True, "metric": "inner"}, ValueError, r"metric 'inner', which does not select short noise"),
        ({"correct_norm": True, "metric": "l1"}, ValueError, r"correct_norm must be False for metric 'l1'"),
        ({"correct_norm": True, "metric": torch.sub}, ValueError, r"correct_norm must be False for metric a function"),
        ({"correct_norm": True, "weights": {1: [1.0]}}, ValueError, r"correct_norm must be False with weights"),
        ({"correct_norm": True, "source": torch.rand}, ValueError, r"correct_norm must be False with a source other"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        KNN(**arguments)


def test_numpy_integers_are_integers():
    assert KNN(np.int64(3))(torch.zeros(2, 2)).shape == (2, 2)


@pytest.mark.parametrize("metric", ["l2", "inner", "cosine", "l1", lambda x, n: (x - n).flatten(1).abs().amax(1)])
@pytest.mark.parametrize("candidates", ["auto", "explicit"])
@pytest.mark.parametrize("sign", [1, -1])
def test_half_precision_of_huge_magnitude_does_not_overflow(metric, candidates, sign):
    x = torch.full((50, 300), sign * 6e4, dtype=torch.float16)
    noise = KNN(8, metric, candidates)(x, generator=generator(1))
    assert torch.isfinite(noise).all()
    assert float(noise.float().square().mean()) == pytest.approx(1.0, abs=0.1)
    if metric in ("l2", "inner", "cosine"):
        assert sign * float(noise.float().mean()) * math.sqrt(300) > 1.0


def test_cosine_has_the_closed_form_law_and_leaves_the_norm():
    """(1 + cos)/2 of a uniform direction is Beta((D-1)/2, (D-1)/2); the norm is chi_D, independent of it."""
    x = points(20_000, 5, 2.0)
    noise = KNN(8, "cosine")(x, generator=generator(13)).double()
    cosine = ((x * noise).sum(1) / 2.0 / noise.norm(dim=1)).numpy()
    assert stats.kstest(stats.beta.cdf((1 + cosine) / 2, 2, 2) ** 8, "uniform").pvalue > P_VALUE
    assert stats.kstest(noise.norm(dim=1).numpy(), stats.chi(5).cdf).pvalue > P_VALUE
    assert stats.spearmanr(cosine, noise.norm(dim=1).numpy()).pvalue > P_VALUE


@pytest.mark.parametrize(
    ("coupling", "wanted"),
    [
        (KNN(1), None),
        (KNN(4, pick=4), None),
        (KNN(2), r"best of k=2 draws \(up to 0\.193 nats from the source\), which leans towards the sample"),
        (KNN(1.5, "inner"), r"best of k=1\.5 draws \(up to 0\.072 nats"),
        (KNN(8, pick=3), r"one of the best 3 of k=8 draws, which leans"),
        (KNN(8, correct_norm=True), r"best of k=8 draws, its norm drawn anew, which leans"),
    ],
)
def test_caveat_names_the_number_of_candidates(coupling, wanted):
    assert coupling.caveat is None if wanted is None else re.search(wanted, coupling.caveat)


def test_settings_from_a_configuration_are_values():
    OmegaConf = pytest.importorskip("omegaconf").OmegaConf
    config = OmegaConf.create({"features": {2: [1, 0]}, "weights": {1: [1, 0.5, 0]}})
    coupling = KNN(3, features=config.features, weights=config.weights)
    assert coupling == KNN(3, features={2: (0, 1)}, weights={1: (1.0, 0.5, 0.0)})
    assert hash(coupling) == hash(KNN(**vars(coupling)))
    assert repr(coupling) == "KNN(k=3, features=((2, (0, 1)),), weights=((1, (1.0, 0.5, 0.0)),))"


@pytest.mark.parametrize("arguments", [{"features": {2: [0]}}, {"weights": {1: [1.0, 2.0]}}])
def test_settings_that_do_not_fit_the_data_draw_nothing(arguments):
    g = generator(0)
    state = g.get_state()
    with pytest.raises(ValueError, match=r"(features names axis 2|weights\[1\] must hold 3 numbers).*data \(B, 3\)"):
        KNN(2, **arguments)(torch.zeros(4, 3), generator=g)
    assert torch.equal(g.get_state(), state)


@pytest.mark.parametrize("metric", ["l2", "inner", "cosine", "l1"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "more", [{}, {"k": 16}, {"pick": 2}, {"features": {1: [0, 2]}}, {"weights": {1: [1, 1, 1, 1, 0, 2] * 10}}]
)
def test_the_host_never_waits_for_values(metric, masked, more):
    coupling = KNN(**{"k": 4, "metric": metric, **more})
    data = torch.randn(4, 60, 1)
    context = Context(mask=torch.rand(4, 60, 1) < 0.5 if masked else None, generator=generator(0))
    coupling._couple(data, None, context)  # what features and weights select is looked up once
    with HostReads():
        coupling._couple(data, None, context)


any_shape = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)
any_dtype = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


@st.composite
def settings_for(draw, shape):
    """Constructor arguments that fit data of ``shape``."""
    metric = draw(st.sampled_from(["l2", "inner", "cosine", "l1", _largest_difference]))
    k = draw(st.integers(1, 6))
    arguments = {"k": k, "metric": metric, "pick": draw(st.one_of(st.just("best"), st.integers(1, k)))}
    exact = metric in ("l2", "inner", "cosine")
    arguments["candidates"] = draw(st.sampled_from(["auto", "explicit", *(["exact"] if exact else [])]))
    axes = st.integers(1, len(shape) - 1)
    features, weights = {}, {}
    for axis in draw(st.sets(axes, max_size=2)):
        chosen = draw(st.sets(st.integers(0, shape[axis] - 1), min_size=1))
        features[axis] = sorted(chosen)
    if isinstance(metric, str):
        for axis in draw(st.sets(axes, max_size=2)):
            weights[axis] = draw(st.lists(st.sampled_from([0.5, 1, 3]), min_size=shape[axis], max_size=shape[axis]))
    arguments["features"] = features or None
    arguments["weights"] = weights or None
    arguments["correct_norm"] = metric == "l2" and not weights and draw(st.booleans())
    return arguments


def _largest_difference(data: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return (data - noise).flatten(1).abs().amax(1)


def obvious_cost(arguments, x, n, counts):
    """The cost of each row by the definition, in float64."""
    weight = counts.double()
    for axis, values in (arguments["weights"] or {}).items():
        view = [-1 if i == axis else 1 for i in range(x.ndim)]
        weight = weight * torch.tensor(values, dtype=torch.float64).view(view)
    x, n, weight = x.double().flatten(1), n.double().flatten(1), weight.flatten(1)
    product = (weight * x * n).sum(1)
    if callable(arguments["metric"]):
        return ((x - n) * weight).abs().amax(1)
    return {
        "l2": (weight * (x - n).square()).sum(1),
        "l1": (weight * (x - n).abs()).sum(1),
        "inner": -product,
        "cosine": -product / (weight * n * n).sum(1).sqrt().clamp_min(1e-30),
    }[arguments["metric"]]


@settings(max_examples=150, deadline=None)
@given(st.data(), any_shape, any_dtype, st.booleans(), st.integers(0, 2**20))
def test_any_setting_on_any_shape(data_of, shape, dtype, masked, seed):
    """Only entries that count change, the best is no dearer than the given noise, the generator decides all."""
    arguments = data_of.draw(settings_for(shape))
    coupling = KNN(**arguments)
    data = torch.randn(shape, generator=generator(seed)).to(dtype)
    noise = torch.randn(shape, generator=generator(seed + 1)).to(dtype)
    mask = torch.rand(shape, generator=generator(seed + 2)) < 0.7 if masked else None
    counts = torch.ones(shape, dtype=torch.bool) if mask is None else mask
    for axis, indices in (arguments["features"] or {}).items():
        inside = torch.zeros(shape[axis], dtype=torch.bool)
        inside[indices] = True
        counts = counts & inside.view([-1 if i == axis else 1 for i in range(len(shape))])
    before = data.clone(), noise.clone()
    poisoned = data.masked_fill(~counts, float("nan")) if mask is not None and not arguments["features"] else data
    first = coupling(poisoned, noise, mask=mask, generator=generator(seed + 3))
    state = torch.get_rng_state()
    second = coupling(poisoned, noise, mask=mask, generator=generator(seed + 3))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(data, before[0])
    assert torch.equal(noise, before[1])
    assert first.shape == shape
    assert first.dtype == dtype
    assert torch.isfinite(first).all()
    assert torch.equal(first[~counts], noise[~counts])
    if coupling.k == 1:
        assert torch.equal(first, noise)
    if arguments["pick"] == "best" and not arguments["correct_norm"]:
        precision = 10 * torch.finfo(dtype).eps
        after, given_cost = (obvious_cost(arguments, data, n, counts) for n in (first, noise))
        slack = precision * (1.0 + data.double().flatten(1).norm(dim=1)) * (1.0 + first.double().flatten(1).norm(dim=1))
        assert (after <= given_cost + 10 * slack).all()
