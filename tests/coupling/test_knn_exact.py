"""Exact candidates have the law of explicit ones for weights, features, masks, ranks and corrected norms."""

import numpy as np
import pytest
import torch
from scipy import stats

from immiscible_policy.coupling import KNN

ROWS = 20_000
# Probability of a false alarm of one comparison, of about 600; seeds are fixed, so a pass stays a pass.
P_VALUE = 2e-5


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_sample(shape: tuple[int, ...], norm: float, seed: int = 0) -> torch.Tensor:
    """The same sample in every row, so that each entry of the noise has one law."""
    x = torch.randn(shape, generator=generator(seed), dtype=torch.float64)
    return (norm * x / x.norm()).float().expand(ROWS, *shape)


def assert_same_law(x: torch.Tensor, found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Compare every entry, every pair of entries' product, norms, products with x, and a joint statistic."""

    def statistics_of(noise: torch.Tensor) -> torch.Tensor:
        data, flat = x.flatten(1).double(), noise.flatten(1).double()
        norm, product, distance = flat.norm(dim=1), (data * flat).sum(1), (data - flat).norm(dim=1)
        neighbours = flat * flat.roll(1, 1)
        return torch.cat((flat, neighbours, torch.stack((norm, product, distance, product * norm), 1)), 1)

    for a, b in zip(statistics_of(found).T.numpy(), statistics_of(wanted).T.numpy(), strict=True):
        assert stats.ks_2samp(a, b, method="asymp").pvalue > P_VALUE


WEIGHTS = {
    "one axis": {"weights": {1: [1, 0.5, 0.5, 0.1]}},
    "zeros": {"weights": {1: [2, 0, 1, 0]}},
    "two axes": {"weights": {1: [1, 0.5, 0.25, 1], 2: [1, 3]}},
    "every entry its own": {"weights": {1: [1, 2, 3, 5], 2: [1, 0.3]}},
    "features": {"features": {1: [0, 1, 3]}},
    "features of two axes": {"features": {1: [1, 2], 2: [1]}},
    "both": {"features": {1: [0, 1, 2]}, "weights": {1: [1, 0.5, 0, 1], 2: [1, 0.2]}},
}


@pytest.mark.parametrize("metric", ["l2", "inner", "cosine"])
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("masked", [False, True])
def test_weights_and_features_keep_the_law_of_explicit_candidates(metric, name, masked):
    x = one_sample((4, 2), 2.5)
    drawn = torch.randn(x.shape, generator=generator(1))
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 1]], dtype=torch.bool) if masked else None
    found, wanted = (
        KNN(5, metric, candidates, **WEIGHTS[name])(x, drawn, mask=mask, generator=generator(seed))
        for seed, candidates in enumerate(("exact", "explicit"), start=2)
    )
    assert_same_law(x, found, wanted)


def test_rows_with_masks_of_their_own_under_weights():
    """No entry, one or all of a part of equal weight may count; each mask has its own law."""
    x = one_sample((3, 2), 2.0)
    masks = torch.tensor([[0, 0, 0, 0, 1, 1], [1, 0, 0, 0, 0, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    which = torch.arange(ROWS) % 4
    drawn = torch.randn(x.shape, generator=generator(1))
    for metric in ("l2", "cosine"):
        found, wanted = (
            KNN(4, metric, candidates, weights={1: [1, 0.5, 0.3]})(
                x, drawn, mask=masks[which].view(-1, 3, 2), generator=generator(seed)
            )
            for seed, candidates in enumerate(("exact", "explicit"), start=2)
        )
        for number in range(4):
            rows = which == number
            assert_same_law(x[rows], found[rows], wanted[rows])


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("zero", [[0, 1], [0, 1, 2, 3, 4, 5]])
def test_parts_without_a_direction(metric, zero):
    x = one_sample((3, 2), 2.0).clone()
    x.view(ROWS, 6)[:, zero] = 0.0
    found, wanted = (
        KNN(4, metric, candidates, weights={1: [1, 0.5, 0.3]})(x, generator=generator(seed))
        for seed, candidates in enumerate(("exact", "explicit"), start=2)
    )
    assert_same_law(x, found, wanted)


@pytest.mark.parametrize("metric", ["l2", "inner", "cosine"])
@pytest.mark.parametrize(("k", "pick"), [(4, 2), (4, 4), (8, 3)])
@pytest.mark.parametrize("more", [{}, {"weights": {1: [1, 0.3, 0]}}])
def test_a_random_one_of_the_best_has_the_law_of_explicit_candidates(metric, k, pick, more):
    x = one_sample((3, 2), 2.0)
    found, wanted = (
        KNN(k, metric, candidates, pick=pick, **more)(x, generator=generator(seed))
        for seed, candidates in enumerate(("exact", "explicit"), start=2)
    )
    assert_same_law(x, found, wanted)


@pytest.mark.parametrize("candidates", ["exact", "explicit"])
@pytest.mark.parametrize(("k", "pick"), [(4, 1), (4, 2), (4, 4), (16, 5)])
def test_a_random_one_of_the_best_has_the_closed_form_law(k, pick, candidates):
    """The i-th largest of k is at most t if fewer than i of them are above; the mean of that over i <= pick."""
    x = one_sample((6,), 2.0)
    noise = KNN(k, "inner", candidates, pick=pick)(x, generator=generator(3))
    g = (x * noise).sum(1).double().numpy() / 2.0
    ranks = np.arange(pick)[:, None]
    levels = stats.binom.cdf(ranks, k, stats.norm.sf(g)).mean(0)
    assert stats.kstest(levels, "uniform").pvalue > P_VALUE


def test_one_of_all_is_independent_noise():
    x = one_sample((6,), 2.0)
    noise = KNN(4, pick=4)(x, generator=generator(4))
    for entry in noise.T.numpy():
        assert stats.kstest(entry, "norm").pvalue > P_VALUE
    assert stats.kstest(noise.norm(dim=1).numpy(), stats.chi(6).cdf).pvalue > P_VALUE


@pytest.mark.parametrize("candidates", ["exact", "explicit"])
@pytest.mark.parametrize(
    ("dims", "norm", "k"),
    [(1, 1.5, 4), (2, 0.0, 4), (2, 1.0, 8), (3, 6.0, 64), (32, 4.0, 2), (32, 4.0, 64), (600, 12.0, 8)],
)
def test_corrected_norm_is_chi_and_tells_nothing_of_the_data(candidates, dims, norm, k):
    rows = ROWS if dims < 100 else 2_000
    x = one_sample((dims,), norm)[:rows] if norm else torch.zeros(rows, dims)
    x = x * (1.0 + 0.5 * torch.rand(rows, 1, generator=generator(4)))
    noise = KNN(k, candidates=candidates, correct_norm=True)(x, generator=generator(5)).double()
    length = noise.norm(dim=1).numpy()
    assert stats.kstest(length, stats.chi(dims).cdf).pvalue > P_VALUE
    if norm:
        assert stats.spearmanr(length, x.norm(dim=1).numpy()).pvalue > P_VALUE


def test_corrected_norm_keeps_the_alignment():
    x, drawn = one_sample((32,), 4.0), torch.randn(ROWS, 32, generator=generator(6))
    plain = KNN(8)(x, drawn, generator=generator(7))
    corrected = KNN(8, correct_norm=True)(x, drawn, generator=generator(7))
    alignment = [(x * noise).sum(1) / 4.0 for noise in (plain, corrected)]
    assert alignment[1] == pytest.approx(alignment[0], abs=1e-4)
    assert stats.spearmanr(alignment[1], corrected.norm(dim=1)).pvalue > P_VALUE
    e = x / 4.0
    orthogonal = [n - (e * n).sum(1, keepdim=True) * e for n in (plain, corrected)]
    assert torch.nn.functional.cosine_similarity(*orthogonal).min() > 1 - 1e-5


def test_corrected_norm_keeps_the_noise_of_rows_without_room_for_it():
    """Where the alignment alone exceeds the new norm, the noise is rescaled as a whole."""
    x, drawn = one_sample((2,), 3.0).double(), torch.randn(ROWS, 2, generator=generator(8), dtype=torch.float64)
    plain = KNN(16)(x, drawn, generator=generator(9))
    corrected = KNN(16, correct_norm=True)(x, drawn, generator=generator(9))
    along = [(x * n).sum(1) / 3.0 for n in (plain, corrected)]
    no_room = corrected.norm(dim=1) < along[0].abs() * (1 - 1e-5)
    kept = corrected.norm(dim=1) > along[0].abs() * (1 + 1e-5)
    assert 0.2 < float(no_room.float().mean()) < 0.9
    assert torch.nn.functional.cosine_similarity(plain[no_room], corrected[no_room]).min() > 1 - 1e-5
    assert along[1][kept] == pytest.approx(along[0][kept], abs=1e-8)


@pytest.mark.parametrize("candidates", ["exact", "explicit"])
def test_corrected_norm_counts_what_takes_part(candidates):
    x = one_sample((5, 2), 3.0)
    mask = torch.tensor([1, 1, 0, 1, 1]).bool()[:, None]
    coupling = KNN(4, candidates=candidates, features={1: [0, 1, 2]}, correct_norm=True)
    drawn = torch.randn(x.shape, generator=generator(10))
    noise = coupling(x, drawn, mask=mask, generator=generator(11))
    assert torch.equal(noise[:, 2:], drawn[:, 2:])
    assert stats.kstest(noise[:, :2].flatten(1).norm(dim=1).numpy(), stats.chi(4).cdf).pvalue > P_VALUE


@pytest.mark.parametrize("metric", ["l2", "cosine", "inner"])
def test_weights_of_ones_change_nothing(metric):
    x = one_sample((3, 2), 2.0)
    plain = KNN(3, metric)(x, generator=generator(1))
    assert torch.equal(plain, KNN(3, metric, weights={1: [7, 7, 7]})(x, generator=generator(1)))
    assert torch.equal(plain, KNN(3, metric, features={1: [2, 1, 0], 2: [0, 1]})(x, generator=generator(1)))


def test_features_are_the_coupling_of_the_selected_entries():
    x, drawn = torch.randn(50, 4, 3, generator=generator(0)), torch.randn(50, 4, 3, generator=generator(1))
    noise = KNN(6, features={1: [1, 3], 2: [0, 2]})(x, drawn, generator=generator(2))
    part = (slice(None), slice(1, None, 2), slice(None, None, 2))
    assert noise[part] == pytest.approx(KNN(6)(x[part], drawn[part], generator=generator(2)), abs=1e-6)
    assert torch.equal(noise[:, ::2], drawn[:, ::2])
    assert torch.equal(noise[:, :, 1], drawn[:, :, 1])


def test_the_scale_of_weights_does_not_matter():
    x = one_sample((3, 2), 2.0)[:200]
    noises = [
        KNN(5, weights={1: [scale, scale / 4, 0]})(x, generator=generator(1)) for scale in (1.0, 2.0**900, 2.0**-900)
    ]
    assert torch.equal(noises[0], noises[1])
    assert torch.equal(noises[0], noises[2])


@pytest.mark.parametrize("dims", [511, 512])
@pytest.mark.parametrize("k", [2, 1_000])
def test_the_law_on_both_sides_of_where_the_arithmetic_changes(dims, k):
    x = torch.randn(5_000, dims, generator=generator(0))
    squared = (x - KNN(k)(x, generator=generator(2))).double().square().sum(1).numpy()
    survival = stats.ncx2.sf(squared, dims, x.double().square().sum(1).numpy())
    assert stats.kstest(survival**k, "uniform").pvalue > P_VALUE


def test_many_parts_are_drawn_explicitly_unless_told_otherwise():
    """Pairs for each of eight parts of one entry cost more than the entries: same law, other candidates."""
    x, drawn = torch.randn(400, 8, generator=generator(0)), torch.randn(400, 8, generator=generator(1))
    weights = {1: [1, 2, 3, 4, 5, 6, 7, 8]}
    auto, explicit, exact = (
        KNN(3, candidates=c, weights=weights)(x, drawn, generator=generator(2)) for c in ("auto", "explicit", "exact")
    )
    assert torch.equal(auto, explicit)
    assert not torch.equal(auto, exact)
    wide = torch.randn(400, 40, generator=generator(3))
    weights = {1: [1.0] * 20 + [0.5] * 20}
    auto, exact = (KNN(3, candidates=c, weights=weights)(wide, generator=generator(2)) for c in ("auto", "exact"))
    assert torch.equal(auto, exact)
