"""How much the conditions count when noise is dealt to the samples of a conditional model.

A pair of sample i with the noise drawn beside sample j costs ``cost + weight * condition cost(c_i, c_j)``.
A plain number is a fixed weight; the classes here find one per batch:

- :class:`TargetRate`: C2OT, "The Curse of Conditions" (Cheng and Schwing, ICCV 2025, arXiv 2503.10636),
  the adaptive weight for continuous conditions;
- :class:`ClusteredConditions`: COT Policy, "Fast Flow-based Visuomotor Policies via Conditional Optimal
  Transport Couplings" (Sochopoulos et al., CoRL 2025, arXiv 2505.01179), quantised observations.
"""

from __future__ import annotations

import copy
import dataclasses
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.coupling._checks import flat_rows, require_finite
from immiscible_policy.coupling._settings import require_count, require_number
from immiscible_policy.coupling._state import on_device
from immiscible_policy.coupling.base import FIT_ARGUMENTS

LARGEST_WEIGHT = 1e8
"""Weights end here: the conditions then decide alone, and the costs still keep their digits in float64."""


@dataclass(frozen=True)
class ConditionWeight(ABC):
    """Finds the weight of the condition cost for each batch. Settings are frozen, memory is in ``_state``."""

    _state: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def features(self, condition: Tensor) -> Tensor:
        """What of a (B, ...) condition enters the condition cost; (B, ...)."""
        return condition

    @abstractmethod
    def weight(self, cost: Tensor, condition_cost: Tensor, own: Tensor, power: int, condition_power: int) -> float:
        """The weight for this batch.

        Args:
            cost: (B, P) cost of the samples against the noises.
            condition_cost: (B, P) cost of the samples' conditions against those of the noises.
            own: (B,) column of the noise drawn beside each sample.
            power, condition_power: 1 where the cost is a distance, 2 where it is a squared one.
        """

    def fit(self, data: Tensor, condition: Tensor | None) -> None:  # noqa: B027 - not all need the data set
        """Learn what the weight needs of the data set; see :meth:`Coupling.fit`."""

    @property
    def fit_uses(self) -> frozenset[str]:
        """See :attr:`Coupling.fit_uses`."""
        return frozenset() if type(self).fit is ConditionWeight.fit else FIT_ARGUMENTS

    def snapshot(self) -> ConditionWeight:
        """The same settings with a copy of the memory."""
        twin = dataclasses.replace(self)
        twin._state.update(copy.copy(self._state))
        return twin

    def state_dict(self) -> dict[str, Any]:
        """The memory, for checkpoints."""
        return {
            name: value.cpu().clone() if isinstance(value, Tensor) else value for name, value in self._state.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: ``state`` does not fit these settings; nothing is changed then.
        """
        restored = dict(state)
        self._check_state(restored)
        self._state.clear()
        self._state.update(restored)

    @abstractmethod
    def _check_state(self, state: dict[str, Any]) -> None:
        """Raise ValueError unless ``state`` is empty or could have been saved with these settings."""


@dataclass(frozen=True)
class TargetRate(ConditionWeight):
    """The weight at which a target share of all pairs stays cheaper than the sample's own pair (C2OT).

    The share is counted over the matrix before assignment, (i, j) with
    ``cost_ij + weight * condition_cost_ij <= cost_i,own(i)``. It falls from about a half at weight 0, where
    the conditions are ignored, to the pairs whose conditions agree, where every sample keeps to its kind. The
    weight is found by doubling from the last batch's, then bisection; the last weight is the memory.

    Args:
        rate: target share in (0, 1); 0.2 in the authors' configuration for ImageNet 32x32.
        initial: weight that the first search starts from, > 0.
        tolerance: the search ends once the share is this near to ``rate``, >= 0.
        iterations: most steps of the bisection, >= 1.

    Where even weight 0 gives fewer pairs, the weight is 0; where too many conditions are equal for
    ``rate``, it is 1e8. Neither enters the memory, which stays above 1e-8 of ``initial``: no search recovers from
    a start at 0.
    """

    rate: float = 0.2
    initial: float = 100.0
    tolerance: float = 1e-4
    iterations: int = 30

    def __post_init__(self) -> None:
        require_number("rate", self.rate, "in (0, 1)", lambda rate: 0 < rate < 1)
        require_number("initial", self.initial, f"in (0, {LARGEST_WEIGHT:g}]", lambda w: 0 < w <= LARGEST_WEIGHT)
        require_number("tolerance", self.tolerance, ">= 0", lambda tolerance: tolerance >= 0)
        require_count("iterations", self.iterations)

    def weight(self, cost: Tensor, condition_cost: Tensor, own: Tensor, power: int, condition_power: int) -> float:
        cost = cost.double()
        slack = cost.gather(1, own[:, None]) - cost
        extra = condition_cost.double()

        def share(weight: float) -> float:
            return float((extra * weight <= slack).double().mean())

        if share(0.0) <= self.rate:
            return 0.0
        high = self._state.get("weight", self.initial)
        low = 0.0
        while share(high) > self.rate:
            if high >= LARGEST_WEIGHT:
                return LARGEST_WEIGHT
            low, high = high, min(2.0 * high, LARGEST_WEIGHT)
        found = high
        for _ in range(self.iterations):
            found = (low + high) / 2.0
            reached = share(found)
            if abs(reached - self.rate) <= self.tolerance:
                break
            low, high = (found, high) if reached > self.rate else (low, found)
        self._state["weight"] = max(found, 1e-8 * self.initial)
        return found

    def _check_state(self, state: dict[str, Any]) -> None:
        if not state:
            return
        weight = state.get("weight")
        is_number = isinstance(weight, numbers.Real) and not isinstance(weight, bool)
        if set(state) != {"weight"} or not is_number or not 0 < float(weight) <= LARGEST_WEIGHT:  # type: ignore[arg-type]
            raise ValueError(
                f"state of TargetRate must be {{'weight': number in (0, {LARGEST_WEIGHT:g}]}} or empty, got {state!r}"
            )


@dataclass(frozen=True)
class ClusteredConditions(ConditionWeight):
    """Conditions are replaced by the centre of their cluster, and weighted to dominate (COT Policy).

    :meth:`fit` finds principal components and K-means centres of the data set's conditions before
    training. The cost of a pair is ``|x - n|^2 + |g (c - c')|^2`` with cluster centres c and, per batch,
    ``g = gain * mean |x - n| / mean |c - c'|`` over all pairs (for unsquared costs ``|x - n| + g |c - c'|``).
    Samples of a cluster may exchange their noises; the network still sees the raw condition.

    Args:
        n_clusters: K >= 1. The paper finds K near the batch size best (64): K = 1 ignores the condition,
            and with K near the number of samples every sample keeps its own noise.
        n_components: principal components kept, at most (fewer where the data allow fewer); the paper
            keeps 100 of images. None clusters the conditions as they are.
        gain: >= 0, by how much the conditions outweigh the samples; 10 in the paper.
        seed: of the K-means starts.
    """

    n_clusters: int = 64
    n_components: int | None = 100
    gain: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_count("n_clusters", self.n_clusters)
        if self.n_components is not None:
            require_count("n_components", self.n_components)
        require_number("gain", self.gain, ">= 0", lambda gain: gain >= 0)
        require_count("seed", self.seed, least=0)

    def fit(self, data: Tensor, condition: Tensor | None) -> None:
        """Find the components and centres; ``data`` is not used.

        Raises:
            TypeError, ValueError: ``condition`` is missing, not of floats, not finite, or has fewer
                different rows than ``n_clusters``.
        """
        if condition is None:
            raise ValueError("condition must be given to fit ClusteredConditions, got None")
        _require_vectors(condition)
        rows = flat_rows(condition.detach(), torch.float64)
        require_finite("condition", rows)
        different = torch.unique(rows, dim=0).shape[0]
        if different < self.n_clusters:
            raise ValueError(
                f"n_clusters must be at most the number of different conditions {different}, got {self.n_clusters}"
            )
        mean = rows.mean(0)
        components = None if self.n_components is None else _principal_components(rows - mean, self.n_components)
        reduced = rows - mean if components is None else (rows - mean) @ components.T
        fitted = {"mean": mean.float(), "centres": _k_means(reduced, self.n_clusters, self.seed).float()}
        if components is not None:
            fitted["components"] = components.float()
        self._state.clear()
        self._state.update(fitted)

    @property
    def fit_uses(self) -> frozenset[str]:
        return frozenset({"condition"})

    def features(self, condition: Tensor) -> Tensor:
        """(B, C) float32: each condition's cluster centre, in the space of the components."""
        if not self._state:
            raise RuntimeError(
                "ClusteredConditions must be fitted before it is used: "
                "call fit(data, condition) of the coupling, or load its state"
            )
        _require_vectors(condition)
        state = on_device(self._state, condition.device)
        rows = flat_rows(condition, torch.float32)
        if rows.shape[1] != state["mean"].shape[0]:
            raise ValueError(
                f"condition must have the {state['mean'].shape[0]} entries a row that ClusteredConditions was "
                f"fitted with, got {rows.shape[1]}"
            )
        rows = rows - state["mean"]
        if "components" in state:
            rows = rows @ state["components"].T
        nearest = torch.cdist(rows, state["centres"]).argmin(1)
        return state["centres"][nearest]

    def weight(self, cost: Tensor, condition_cost: Tensor, own: Tensor, power: int, condition_power: int) -> float:
        sample_distance = float(cost.double().clamp_min(0.0).pow(1.0 / power).mean())
        condition_distance = float(condition_cost.double().pow(1.0 / condition_power).mean())
        if condition_distance == 0.0:
            return 0.0  # one cluster in the batch: there is nothing to weight
        return min((self.gain * sample_distance / condition_distance) ** condition_power, LARGEST_WEIGHT)

    def _check_state(self, state: dict[str, Any]) -> None:
        if not state:
            return
        expected = {"mean", "centres"} | (set() if self.n_components is None else {"components"})
        if set(state) != expected or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError(
                f"state of ClusteredConditions must hold the tensors {sorted(expected)}, got {sorted(state)}"
            )
        entries = state["mean"].shape[0] if state["mean"].ndim == 1 else -1
        components = state["components"].shape[0] if self.n_components is not None else entries
        wanted = {"mean": (entries,), "centres": (self.n_clusters, components)}
        if self.n_components is not None:
            wanted["components"] = (min(components, self.n_components), entries)
        found = {name: tuple(state[name].shape) for name in wanted}
        if found != wanted:
            raise ValueError(f"state of ClusteredConditions must have the shapes {wanted}, got {found}")


def _principal_components(centred: Tensor, at_most: int) -> Tensor:
    """(C, E) orthonormal rows, leading first, of (N, E) centred rows, through the smaller Gram matrix."""
    by_entries = centred.shape[1] <= centred.shape[0]
    values, vectors = torch.linalg.eigh(centred.T @ centred if by_entries else centred @ centred.T)
    # Directions without variance are rounding errors: normalised, they would repeat the leading ones.
    rank = int((values > 1e-12 * values[-1]).sum())
    leading = vectors.flip(1)[:, : max(1, min(at_most, rank))].T
    return leading.contiguous() if by_entries else torch.nn.functional.normalize(leading @ centred, dim=1)


def _k_means(rows: Tensor, clusters: int, seed: int) -> Tensor:
    """(K, C) centres of (N, C) rows, from K-means++ starts; those that lose all rows stay where they began."""
    import warnings

    from scipy.cluster.vq import kmeans2  # not at the top: scipy costs a quarter of a second to import

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        centres, _ = kmeans2(rows.cpu().numpy(), clusters, iter=50, minit="++", seed=seed)
    return torch.from_numpy(centres).to(rows.device)


def _require_vectors(condition: Tensor) -> None:
    if not condition.dtype.is_floating_point:
        raise TypeError(
            f"condition must be of floats for ClusteredConditions, got {condition.dtype}; "
            "labels need no clusters: use within='condition' or a fixed condition_weight"
        )
