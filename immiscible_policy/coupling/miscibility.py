"""Miscibility: how far apart lie the clusters of noises that different data are given.

"Improved Immiscible Diffusion" (Li et al. 2025) reports, in section 3.2 and in the discussion, the "average L2
distance between noise clusters (i.e. 10,000 noise points) assigned to each image". Here it is |m_i - m_j|, the
distance between the mean noises of two data after each met N of them, averaged over pairs of data. Even noise
that knows nothing of the data does not reach 0: by sampling alone E|m_i - m_j|^2 = D (1/N_i + 1/N_j). Hence
also the same without that term, which does not depend on N.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_policy.coupling.base import Coupling
from immiscible_policy.coupling.batches import Track, check_sizes, couple_rows, fitted_copy, untracked
from immiscible_policy.coupling.independent import Independent
from immiscible_policy.coupling.knn import KNN


@dataclass(frozen=True)
class ClusterDistance:
    """Mean over pairs of data, standard deviation over pairs, and standard error of the mean (jackknife over data)."""

    mean: float
    deviation: float
    error: float


@dataclass(frozen=True)
class NoiseClusters:
    """Noises that T data were given, N each.

    Attributes:
        centres: (T, D) float64, mean noise of each datum.
        spread: (T,) float64, trace of the unbiased covariance of its noises; D for N(0, I).
        count: N.
    """

    centres: Tensor
    spread: Tensor
    count: int

    def squared_shifts(self) -> Tensor:
        """(T(T-1)/2,) unbiased estimates of the squared distances of the true means; may be negative."""
        first, second = torch.triu_indices(len(self.centres), len(self.centres), 1)
        squared = (self.centres[first] - self.centres[second]).square().sum(1)
        return squared - (self.spread[first] + self.spread[second]) / self.count

    def distances(self, count: int | None = None) -> Tensor:
        """(T(T-1)/2,) distances between centres; with ``count``, as clusters of so many noises would show them."""
        if count is None or count == self.count:
            return torch.pdist(self.centres)
        first, second = torch.triu_indices(len(self.centres), len(self.centres), 1)
        sampling = (self.spread[first] + self.spread[second]) / count
        return (self.squared_shifts().clamp_min(0.0) + sampling).sqrt()

    def distance(self, count: int | None = None) -> ClusterDistance:
        """Mean of :meth:`distances` over pairs."""
        values = self.distances(count)
        return ClusterDistance(float(values.mean()), float(values.std()), _jackknife_error(values, _mean))

    def shift(self) -> ClusterDistance:
        """Root mean square distance of the true means, free of the sampling term; 0 where it is below chance."""
        values = self.squared_shifts()
        return ClusterDistance(_root_mean(values), math.nan, _jackknife_error(values, _root_mean))


def independent_distance(dims: int, count: int) -> float:
    """Mean distance between the means of two clusters of ``count`` draws of N(0, I): sqrt(2/N) E chi_D."""
    return math.sqrt(4.0 / count) * math.exp(math.lgamma((dims + 1) / 2) - math.lgamma(dims / 2))


@torch.no_grad()
def noise_clusters(
    coupling: Coupling,
    data: Tensor,
    tracked: Tensor,
    count: int,
    batch_size: int,
    condition: Tensor | None = None,
    seed: int = 0,
    track: Track = untracked,
) -> NoiseClusters:
    """Give ``count`` noises to each of some data, in batches with fresh companions.

    Each batch holds every tracked datum once, and random others. (Couplings that look at one datum at a time need no
    companions: there a batch holds the tracked data alone, several times.) The coupling is copied, so that the
    given one's memory stays as it is.

    Args:
        data: (N, ...) normalised data. tracked: (T,) indices of different data, T >= 2.
        count: noises for each tracked datum, >= 2.
        batch_size: from T to N; keep it well above T, since the tracked data always compete with each other.
        condition: (N, ...) or (N,), for the couplings that use it.
        track: wraps the loop over batches, for a progress bar.

    Raises:
        ValueError: an argument outside these ranges.
    """
    dims = data[0].numel()
    total = torch.zeros(len(tracked), dims, dtype=torch.float64, device=data.device)
    squares = torch.zeros(len(tracked), dtype=torch.float64, device=data.device)
    for noise in _noises(coupling, data, tracked, count, batch_size, condition, seed, track):
        total += noise.double().sum(0)
        squares += noise.double().square().sum((0, 2))
    centres = total / count
    spread = (squares - count * centres.square().sum(1)) / (count - 1)
    return NoiseClusters(centres.cpu(), spread.cpu(), count)


@torch.no_grad()
def tracked_noises(
    coupling: Coupling,
    data: Tensor,
    tracked: Tensor,
    count: int,
    batch_size: int,
    condition: Tensor | None = None,
    seed: int = 0,
    track: Track = untracked,
) -> Tensor:
    """The noises themselves that :func:`noise_clusters` summarises, (T, count, D); arguments as there."""
    blocks = list(_noises(coupling, data, tracked, count, batch_size, condition, seed, track))
    return torch.cat(blocks).transpose(0, 1).cpu()


def _noises(
    coupling: Coupling,
    data: Tensor,
    tracked: Tensor,
    count: int,
    batch_size: int,
    condition: Tensor | None,
    seed: int,
    track: Track,
) -> Iterator[Tensor]:
    """Blocks (n, T, D) of noises of the tracked data, ``count`` in all."""
    _check_tracked(tracked, len(data), count)
    check_sizes(len(data), batch_size, least=len(tracked))
    name = repr(coupling)
    alone = isinstance(coupling, Independent | KNN)  # these look at one datum at a time
    coupling = fitted_copy(coupling, data, condition)
    generator = torch.Generator(data.device).manual_seed(seed)
    tracked = tracked.to(data.device)
    is_other = torch.ones(len(data), dtype=torch.bool, device=data.device)
    is_other[tracked] = False
    others = is_other.nonzero().squeeze(1)
    most = max(1, batch_size // len(tracked)) if alone else 1
    done = 0
    for _ in track(range(-(-count // most)), name):
        copies = min(most, count - done)
        done += copies
        if alone:
            noise = couple_rows(coupling, data, condition, tracked.repeat(copies), generator)
        else:
            rows, places = _with_companions(tracked, others, batch_size, generator)
            noise = couple_rows(coupling, data, condition, rows, generator)[places]
        yield noise.view(copies, len(tracked), -1)


def _check_tracked(tracked: Tensor, n_data: int, count: int) -> None:
    if tracked.ndim != 1 or len(tracked) < 2 or len(torch.unique(tracked)) != len(tracked):
        raise ValueError(f"tracked must be (T,) different indices, T >= 2, got {tracked.tolist()}")
    if int(tracked.min()) < 0 or int(tracked.max()) >= n_data:
        raise ValueError(f"tracked must index the {n_data} data, got {int(tracked.min())} to {int(tracked.max())}")
    if count < 2:
        raise ValueError(f"count must be at least 2, got {count}")


def _with_companions(
    tracked: Tensor, others: Tensor, batch_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Indices of a batch in random order, and where in it the tracked data are."""
    chosen = torch.randperm(len(others), generator=generator, device=others.device)[: batch_size - len(tracked)]
    places = torch.randperm(batch_size, generator=generator, device=others.device)
    rows = torch.empty(batch_size, dtype=torch.int64, device=others.device)
    rows[places] = torch.cat((tracked, others[chosen]))
    return rows, places[: len(tracked)]


def _mean(values: Tensor) -> float:
    return float(values.mean())


def _root_mean(values: Tensor) -> float:
    return math.sqrt(max(0.0, float(values.mean())))


def _jackknife_error(values: Tensor, statistic: Callable[[Tensor], float]) -> float:
    """Standard error of a statistic of (T(T-1)/2,) pair values, leaving out one of the T data at a time."""
    data = round((1 + math.sqrt(1 + 8 * len(values))) / 2)
    if data < 4:
        return math.nan
    first, second = torch.triu_indices(data, data, 1, device="cpu")
    left_out = [statistic(values[(first != i) & (second != i)]) for i in range(data)]
    deviations = torch.tensor(left_out, dtype=torch.float64, device="cpu")
    return math.sqrt((data - 1) / data * float((deviations - deviations.mean()).square().sum()))
