"""How far coupled noise is from N(0, I): exact per datum, by a Gaussian fit to many, and coordinate by coordinate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_policy.coupling._checks import flat_rows
from immiscible_policy.coupling.base import Coupling
from immiscible_policy.coupling.batches import Track, check_sizes, coupled_batches, epoch_batches, untracked
from immiscible_policy.coupling.independent import Independent
from immiscible_policy.coupling.knn import KNN


def divergence_per_datum(coupling: Coupling) -> float:
    """KL(p(noise | datum) || source) in nats where there is a closed form, NaN elsewhere.

    The best of k independent draws under any continuous cost has density k (1 - F(cost))^(k-1) relative to the
    source's, F the cost's distribution function, and F(cost) is uniform; so the divergence is ln k - (k-1)/k,
    whatever the datum, the dimension and the metric. (At a datum where the cost is constant, such as x = 0 under
    "inner", there is no selection and the divergence is 0.)
    """
    if isinstance(coupling, Independent):
        return 0.0
    if isinstance(coupling, KNN) and coupling.pick in ("best", 1) and not coupling.correct_norm:
        return math.log(coupling.k) - (coupling.k - 1) / coupling.k
    return math.nan


@dataclass(frozen=True)
class GaussianFit:
    """KL(N(mean, covariance of a sample) || N(0, I)), and what of it is the estimator's own bias.

    Attributes:
        n, dims: size and dimension of the sample.
        divergence: 1/2 (tr S - D - ln det S + |m|^2) in nats, S the unbiased covariance; infinite for n <= D.
        bias: its expectation for a sample of N(0, I) itself, :func:`gaussian_fit_bias`.
        deviation: its standard deviation there.
        trace: tr S / D. mean_square: |m|^2.
    """

    n: int
    dims: int
    divergence: float
    bias: float
    deviation: float
    trace: float
    mean_square: float

    @property
    def excess(self) -> float:
        """Divergence less the bias: what the sample says about its distribution."""
        return self.divergence - self.bias


class NoiseMoments:
    """First and second moments of noise seen in batches; memory D^2 floats of 8 bytes, time O(n D^2)."""

    def __init__(self, dims: int) -> None:
        self.n = 0
        self._sum = torch.zeros(dims, dtype=torch.float64, device="cpu")
        self._products = torch.zeros(dims, dims, dtype=torch.float64, device="cpu")

    def add(self, noise: Tensor) -> None:
        """Count the rows of (B, ...) noise, float32 or float64. Products are summed in its dtype within a batch."""
        n = flat_rows(noise, torch.promote_types(noise.dtype, torch.float32)).cpu()
        self.n += n.shape[0]
        self._sum += n.double().sum(0)
        self._products += n.T @ n

    def gaussian_fit(self) -> GaussianFit:
        """The divergence of the Gaussian with these moments from N(0, I)."""
        dims, n = len(self._sum), self.n
        if n < 2:
            raise ValueError(f"a covariance needs at least 2 rows of noise, got {n}")
        mean = self._sum / n
        covariance = (self._products - n * torch.outer(mean, mean)) / (n - 1)
        trace, mean_square = float(covariance.trace()), float(mean.square().sum())
        log_det = -math.inf
        if n > dims:
            factor, failed = torch.linalg.cholesky_ex(covariance)
            log_det = -math.inf if bool(failed) else 2.0 * float(factor.diagonal().log().sum())
        divergence = 0.5 * (trace - dims - log_det + mean_square)
        bias, deviation = gaussian_fit_bias(n, dims), gaussian_fit_deviation(n, dims)
        return GaussianFit(n, dims, divergence, bias, deviation, trace / dims, mean_square)


@torch.no_grad()
def fit_gaussian(
    coupling: Coupling,
    data: Tensor,
    n_noises: int,
    batch_size: int,
    condition: Tensor | None = None,
    seed: int = 0,
    track: Track = untracked,
) -> GaussianFit:
    """:class:`GaussianFit` of ``n_noises`` noises of a data set, (N, ...), passed through as often as needed."""
    check_sizes(len(data), batch_size)
    moments = NoiseMoments(data[0].numel())
    batches = epoch_batches(len(data), batch_size, -(-n_noises // batch_size), seed)
    for _, _, noise in coupled_batches(coupling, data, condition, batches, seed, track, repr(coupling)):
        moments.add(noise[: n_noises - moments.n])
    return moments.gaussian_fit()


def gaussian_fit_bias(n: int, dims: int) -> float:
    """Mean of the fitted divergence for n draws of N(0, I) itself, whose own divergence is 0.

    With nu = n - 1, nu S is Wishart, so that E tr S = D, E|m|^2 = D/n and
    E ln det S = sum_{i=1..D} psi((nu + 1 - i) / 2) + D ln(2 / nu), which is about -D^2 / (2 nu) for D << nu.
    """
    if n <= dims:
        return math.inf
    nu = n - 1
    orders = (nu - torch.arange(dims, dtype=torch.float64, device="cpu")) / 2.0
    log_det = float(torch.digamma(orders).sum()) + dims * math.log(2.0 / nu)
    return 0.5 * (dims / n - log_det)


def gaussian_fit_deviation(n: int, dims: int) -> float:
    """Standard deviation of the fitted divergence for n draws of N(0, I).

    Var tr S = Cov(tr S, ln det S) = 2D/nu, Var ln det S = sum psi'((nu + 1 - i) / 2), and m, with
    Var|m|^2 = 2D/n^2, is independent of S.
    """
    if n <= dims:
        return math.nan
    nu = n - 1
    orders = (nu - torch.arange(dims, dtype=torch.float64, device="cpu")) / 2.0
    variance = float(torch.polygamma(1, orders).sum()) - 2.0 * dims / nu + 2.0 * dims / n**2
    return 0.5 * math.sqrt(max(0.0, variance))


def kolmogorov_smirnov(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Each coordinate's distance from N(0, 1), max_t |F_n(t) - Phi(t)|, and its asymptotic p-value.

    Args:
        noise: (n, D); rows must be independent of each other for the p-values to hold.

    Returns:
        Two (D,) float64 tensors. For n independent draws of N(0, 1) the distance is about 0.87 / sqrt(n).
    """
    from scipy.special import kolmogorov  # costs a quarter of a second to import

    n = noise.shape[0]
    steps = torch.arange(n + 1, dtype=torch.float64, device="cpu")[:, None] / n
    distances = []
    for columns in noise.cpu().split(256, dim=1):  # blocks, for the memory of float64 copies
        phi = torch.special.ndtr(columns.sort(dim=0).values.double())
        above, below = steps[1:] - phi, phi - steps[:-1]
        distances.append(torch.maximum(above, below).amax(0))
    distance = torch.cat(distances)
    return distance, torch.from_numpy(kolmogorov(math.sqrt(n) * distance.numpy()))
