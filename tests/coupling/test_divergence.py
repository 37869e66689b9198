"""Divergences from N(0, I): closed forms against numerical integration, simulation and slow versions."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from immiscible_policy.coupling import KNN, Independent, LinearAssignment
from immiscible_policy.coupling.divergence import (
    NoiseMoments,
    divergence_per_datum,
    fit_gaussian,
    gaussian_fit_bias,
    gaussian_fit_deviation,
    kolmogorov_smirnov,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 2, 8, 2.5])
def test_divergence_of_the_best_of_k_is_that_of_the_largest_normal(k):
    """metric="inner": g has density k Phi(g)^(k-1) phi(g), the rest of the noise is untouched."""

    def integrand(g: float) -> float:
        log_ratio = math.log(k) + (k - 1) * special.log_ndtr(g)
        return math.exp(log_ratio) * stats.norm.pdf(g) * log_ratio

    expected = integrate.quad(integrand, -12, 12)[0]
    assert divergence_per_datum(KNN(k=k, metric="inner")) == pytest.approx(expected, abs=1e-8)


def test_divergence_is_known_only_where_there_is_a_closed_form():
    assert divergence_per_datum(Independent()) == 0.0
    assert divergence_per_datum(KNN(k=8)) == pytest.approx(1.2044, abs=1e-4)
    assert divergence_per_datum(KNN(k=8, pick=1)) == divergence_per_datum(KNN(k=8))
    for unknown in (LinearAssignment(), KNN(k=4, pick=2), KNN(k=2, correct_norm=True)):
        assert math.isnan(divergence_per_datum(unknown))


def test_fit_is_the_divergence_of_the_fitted_gaussian():
    noise = (1.3 * normal(300, 2, 2) + 0.2).double()
    moments = NoiseMoments(4)
    for part in noise.split(70):
        moments.add(part)
    fit = moments.gaussian_fit()
    rows = noise.flatten(1)
    fitted = torch.distributions.MultivariateNormal(rows.mean(0), rows.T.cov())
    standard = torch.distributions.MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double())
    assert (fit.n, fit.dims) == (300, 4)
    assert fit.divergence == pytest.approx(float(torch.distributions.kl_divergence(fitted, standard)), rel=1e-9)
    assert fit.excess == pytest.approx(fit.divergence - gaussian_fit_bias(300, 4), rel=1e-12)
    assert fit.trace == pytest.approx(1.69, rel=0.1)


def test_bias_and_deviation_are_those_of_simulated_fits():
    fits = []
    for seed in range(300):
        moments = NoiseMoments(12)
        moments.add(normal(60, 12, seed=seed).double())
        fits.append(moments.gaussian_fit().divergence)
    bias, deviation = gaussian_fit_bias(60, 12), gaussian_fit_deviation(60, 12)
    assert np.mean(fits) == pytest.approx(bias, abs=4 * deviation / math.sqrt(300))
    assert np.std(fits) == pytest.approx(deviation, rel=0.15)


@pytest.mark.parametrize(("n", "dims"), [(3, 1), (6, 2), (9, 4)])
def test_bias_is_that_of_independent_chi_squares(n, dims):
    """Bartlett: det (nu S) of a Wishart matrix is a product of chi^2 variables with nu, nu - 1, ... degrees."""
    log_det = sum(stats.chi2(n - 1 - i).expect(np.log) for i in range(dims)) - dims * math.log(n - 1)
    assert gaussian_fit_bias(n, dims) == pytest.approx((dims / n - log_det) / 2, rel=1e-6)


def test_bias_at_the_published_size_is_the_published_number():
    """ "48.25" for 50,000 draws of N(0, I) with 3,072 entries (Improved Immiscible Diffusion, section 3.3.2)."""
    bias, deviation = gaussian_fit_bias(50_000, 3_072), gaussian_fit_deviation(50_000, 3_072)
    assert bias == pytest.approx(48.231, abs=0.001)
    assert abs(48.25 - bias) < 2 * deviation


def test_too_few_rows_give_no_divergence():
    moments = NoiseMoments(5)
    with pytest.raises(ValueError, match="at least 2 rows of noise, got 0"):
        moments.gaussian_fit()
    moments.add(normal(5, 5))
    assert math.isinf(moments.gaussian_fit().divergence)
    assert math.isinf(gaussian_fit_bias(5, 5))
    assert math.isnan(gaussian_fit_deviation(5, 5))


def test_fit_of_a_coupling_counts_the_noises_asked_for():
    data = 0.5 * normal(100, 2, 3)
    names = []

    def track(steps, name):
        names.append(name)
        return steps

    fit = fit_gaussian(KNN(k=8), data, 1_000, 64, track=track)
    assert fit.n == 1_000
    assert names == ["KNN(k=8)"]
    assert fit.trace < 0.75
    assert fit.excess > 5 * fit.deviation
    plain = fit_gaussian(Independent(), data, 1_000, 64)
    assert abs(plain.excess) < 4 * plain.deviation
    with pytest.raises(ValueError, match="batch_size must be from 2 to the 100 data, got 101"):
        fit_gaussian(Independent(), data, 1_000, 101)


def test_kolmogorov_smirnov_is_scipys():
    noise = normal(500, 300).double()
    noise[:, 1] *= 0.8
    distance, p_value = kolmogorov_smirnov(noise)
    for column in (0, 1, 257, 299):
        expected = stats.kstest(noise[:, column].numpy(), "norm", mode="asymp")
        assert float(distance[column]) == pytest.approx(expected.statistic, rel=1e-9)
        assert float(p_value[column]) == pytest.approx(expected.pvalue, rel=1e-6)
    assert float((p_value < 0.05).double().mean()) == pytest.approx(0.05, abs=0.05)
    assert float(p_value[1]) < 0.01
