"""Linear assignment: the batch's noises are dealt to its samples at the least total cost.

"Immiscible Diffusion" (Li et al., NeurIPS 2024), section 3.2, Algorithm 1, line "assign". Extensions name
their source where they are described.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from immiscible_policy.coupling import solvers
from immiscible_policy.coupling._checks import compute_dtype, require_finite
from immiscible_policy.coupling._costs import (
    CONDITION_METRICS,
    METRICS,
    as_rows,
    class_ids,
    condition_cost,
    moments,
    pairwise_cost,
    pooled_moments,
    round_cost,
    standardised,
)
from immiscible_policy.coupling._ranks import Alone, all_ranks, world_size
from immiscible_policy.coupling._settings import require_number, require_one_of, require_own_columns
from immiscible_policy.coupling.base import Context, Coupling, Source
from immiscible_policy.coupling.condition_weight import LARGEST_WEIGHT, ClusteredConditions, ConditionWeight

_COST_DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, repr=False)
class LinearAssignment(Coupling):
    """Permutes the batch's noise so that the total cost of the pairs is least.

    The result is always a permutation of the rows of the given (or drawn) noise. As a batch it is the
    very same set of draws, so its mean, variance and norms are untouched; what changes is who meets
    whom, and so p(noise | sample). A batch of one passes through.

    With ``mask`` the cost of a pair counts the sample's valid entries only, but whole noise rows move.
    The set of rows is still the Gaussian draw. If every sample has the same mask, so are its valid
    entries; with masks that differ between samples the draws that land on the valid entries are
    selected: large entries cost nothing under padding, so they gather there (variance 0.94 on valid and
    1.20 on padded entries at B=64, 16x2 actions of which 0 to 7 steps are padding).

    >>> latents, labels = torch.randn(64, 4, 8, 8), torch.randint(10, (64,))
    >>> noise = LinearAssignment("sqeuclidean")(latents)
    >>> noise = LinearAssignment("sqeuclidean", within="condition")(latents, condition=labels)

    Args:
        metric: "l2" is the published cost, the unsquared Euclidean distance. "sqeuclidean" is solved
            through -<x_i, n_j> (terms of the row or the column alone do not change the optimum): nearly
            the same mean distance, and the metric on which "greedy" works well. "l1" is the sum of
            absolute differences. "inner" makes the total <x_i, n_j> greatest: the optimum of "sqeuclidean",
            except that with masks or ``pool_factor`` the norm of the noise on the valid entries does not count.
        cost_dtype: precision of the cost matrix. "fp32": float32 at least. "fp16" and "bf16" round as
            the published code does: data and noise are rounded to that dtype, distances are
            accumulated in float32, and the resulting cost is rounded to that dtype (bf16 keeps 8 bits,
            so that many L2 costs tie). Where costs exceed the range of fp16 they are scaled by a
            power of two for the rounding; entries of data beyond 65504 are an error.
        solver: "exact" (scipy, CPU), "auction" or "greedy" (see :mod:`~immiscible_policy.coupling.solvers`),
            or a callable ``cost (B, P) -> (B,)`` different columns, deterministic under ``across_ranks``.
        standardize: compute the cost from data and noise less their mean over their standard deviation
            in each coordinate, both over the batch ("immiscible diffusion policy", arXiv 2610.09369). Data's
            are taken over valid entries, noise's over all rows of the pool. The noise returned is the raw one.
        pool_factor: p >= 1; the B samples choose among round(p B) noises, of which a given ``noise`` is
            the first B. Each noise is used at most once, but only those that suit the data survive, so that the
            result is no longer the source's: with a distance, short ones (E|n|^2/D = 0.83 at p=2 and 0.73
            at p=4, for B=256, D=32, data of deviation 0.5), with "inner" long ones (1.14 and 1.21).
        target: "flipped" assigns on noise whose entries are in reverse order along every axis but the
            batch's and returns the assigned row as it was drawn: the immiscible ablation without optimal
            transport (section 4.3, "flipped noise whose all dimensions are reversed"; the other reading, the
            negated noise, would maximise the distance instead of ignoring it). "given" assigns on the noise.
        within: "condition" exchanges noises only between samples whose conditions are equal (labels, or
            equal rows of any dtype), so that p(noise | condition) stays the source's. Samples that are
            the only ones of their condition keep their noise; float conditions that are all different
            leave the batch as it is, with a warning. None ignores conditions.
        condition_weight: w >= 0: the cost of a pair is raised by w times the condition cost between the
            sample and the sample that the noise was drawn beside. 0 ignores conditions. Or an object that
            finds w: :class:`~immiscible_policy.coupling.condition_weight.TargetRate` (C2OT) or
            :class:`~immiscible_policy.coupling.condition_weight.ClusteredConditions` (COT Policy).
        condition_metric: cost between float conditions: "sqeuclidean", "l2" or "cosine" (1 - cosine). None is
            "l2" where ``metric`` is a distance, and "sqeuclidean" where it is a squared one. Integer and
            bool conditions are labels, and cost 0 or 1.
        across_ranks: under torch.distributed, one assignment over the batches of all ranks, which must
            all make the call (with any number of samples, none too). Each rank computes its rows of the
            cost; all solve the same problem, each keeps its own samples' noises. Noise not given is
            drawn from seeds that the ranks exchange. Calls that differ between ranks fail on all of them, but
            where one rank alone refuses its arguments (NaN data), the others wait for the group's timeout.
        source: distribution of the noise, ``(shape, generator) -> tensor``; None is N(0, I).

    Raises:
        TypeError, ValueError: on construction for an argument outside these ranges; on call where the
            cost is not finite, a condition is needed but missing, or a callable solver returns anything
            but one column of its own for each row.
    """

    metric: Literal["l2", "sqeuclidean", "l1", "inner"] = "l2"
    cost_dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    solver: str | Callable[[Tensor], Tensor] = "exact"
    standardize: bool = False
    pool_factor: int | float = 1
    target: Literal["given", "flipped"] = "given"
    within: Literal["condition"] | None = None
    condition_weight: float | ConditionWeight = 0
    condition_metric: Literal["sqeuclidean", "l2", "cosine"] | None = None
    across_ranks: bool = False
    source: Source | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("metric", METRICS),
            ("cost_dtype", tuple(_COST_DTYPES)),
            ("standardize", (False, True)),
            ("target", ("given", "flipped")),
            ("within", (None, "condition")),
            ("condition_metric", (None, *CONDITION_METRICS)),
            ("across_ranks", (False, True)),
        ):
            require_one_of(name, getattr(self, name), allowed)
        if not callable(self.solver):
            require_one_of("solver", self.solver, tuple(solvers.SOLVERS), "a callable")
        require_number("pool_factor", self.pool_factor, ">= 1", lambda factor: factor >= 1)
        if not isinstance(self.condition_weight, ConditionWeight):
            allowed_weight = f"in [0, {LARGEST_WEIGHT:g}], TargetRate or ClusteredConditions"
            require_number(
                "condition_weight", self.condition_weight, allowed_weight, lambda w: 0 <= w <= LARGEST_WEIGHT
            )
        if self.within is not None and self._weighs_conditions:
            raise ValueError(
                "condition_weight must be 0 with within='condition', which already keeps noises with their "
                f"condition, got {self.condition_weight!r}"
            )
        if self.metric == "inner" and isinstance(self.condition_weight, ClusteredConditions):
            raise ValueError(
                "metric must be a distance for ClusteredConditions, which compares it with the conditions': "
                "'l2', 'sqeuclidean' or 'l1', got 'inner'"
            )

    def _couple(self, data: Tensor, noise: Tensor | None, context: Context) -> Tensor:
        condition = context.condition if self._uses_condition else None
        if self.is_collective:
            group: Alone = all_ranks(data, noise, condition, context.generator, repr(self))
        else:
            group = Alone((data.shape[0],), (context.generator,))
        if condition is None and self._uses_condition:
            raise ValueError(f"condition must be given to {self!r}, got None")
        noises, beside, own = self._pool(data, noise, group)
        if noises.shape[0] <= 1 or noises[0].numel() == 0:
            return noises[own[group.mine]]
        cost = round_cost(group.gather(self._cost(data, noises, context.mask, group)), _COST_DTYPES[self.cost_dtype])
        self._require_finite(cost)
        if condition is not None:
            condition = group.gather(condition.to(data.device))
        columns = self._columns(cost, condition, beside, own)
        return noises[columns[group.mine]]

    def _pool(self, data: Tensor, noise: Tensor | None, group: Alone) -> tuple[Tensor, Tensor, Tensor]:
        """All ranks' noises (P, ...); (P,) the sample that each was drawn beside; (B,) each sample's own noise."""
        given = None if noise is None else group.gather(noise).split(group.sizes)
        noises, beside, own = [], [], []
        first_sample = first_noise = 0
        for rank, size in enumerate(group.sizes):
            context = Context(generator=group.generators[rank])
            number = round(self.pool_factor * size)
            noises.append(self._draw((size, *data.shape[1:]), data, context) if given is None else given[rank])
            if number > size:
                noises.append(self._draw((number - size, *data.shape[1:]), data, context))
            # Noises beyond the batch are dealt out to its samples in turn.
            beside.append(first_sample + torch.arange(number, device=data.device) % max(size, 1))
            own.append(first_noise + torch.arange(size, device=data.device))
            first_sample, first_noise = first_sample + size, first_noise + number
        return torch.cat(noises) if len(noises) > 1 else noises[0], torch.cat(beside), torch.cat(own)

    def _cost(self, data: Tensor, noises: Tensor, mask: Tensor | None, group: Alone) -> Tensor:
        """(b, P) cost of this rank's samples against all noises, not rounded."""
        dtype = compute_dtype(data)
        x, n = as_rows(data).to(dtype), as_rows(noises).to(dtype)
        valid = None if mask is None else as_rows(mask.expand(data.shape))
        if self.standardize:
            of_data = pooled_moments(group.gather_same(moments(x, valid)))
            x, n = standardised(x, of_data).to(dtype), standardised(n, moments(n)).to(dtype)
        if self.target == "flipped":
            n = n.flip(1)  # rows in reverse: the order of every axis is reversed
        return pairwise_cost(
            x,
            n,
            self.metric,
            valid,
            input_dtype=_COST_DTYPES[self.cost_dtype],
            drop_constants=self.pool_factor == 1 and not self._weighs_conditions,
        )

    def _columns(self, cost: Tensor, condition: Tensor | None, beside: Tensor, own: Tensor) -> Tensor:
        """(B,) the noise that each sample gets, from the (B, P) cost and the (B, ...) condition."""
        if condition is None:
            return self._solve(cost)
        if condition.dtype.is_floating_point:
            require_finite("condition", condition)
        if self.within is None:
            return self._solve(self._weighted(cost, condition, beside, own))
        return self._within_classes(cost, condition, beside, own)

    def _weighted(self, cost: Tensor, condition: Tensor, beside: Tensor, own: Tensor) -> Tensor:
        """The cost of samples and conditions together, in float64, which keeps both at any ratio of the two."""
        weight = self.condition_weight
        if isinstance(weight, ConditionWeight):
            condition = weight.features(condition)
        power = 1 if self.metric in ("l2", "l1") else 2
        metric = self.condition_metric or ("l2" if power == 1 else "sqeuclidean")
        extra = condition_cost(condition, condition[beside], metric).to(torch.float64)
        if isinstance(weight, ConditionWeight):
            weight = weight.weight(cost, extra, own, power, condition_power=1 if metric == "l2" else 2)
        return extra.mul_(float(weight)).add_(cost)

    def _within_classes(self, cost: Tensor, condition: Tensor, beside: Tensor, own: Tensor) -> Tensor:
        """Assign each class of equal conditions its own noises."""
        classes = class_ids(condition)
        sizes = torch.bincount(classes)
        if condition.dtype.is_floating_point and int(sizes.max()) == 1 and self.pool_factor == 1:
            warnings.warn(
                f"within='condition' left a batch of {len(classes)} as it was, since all its float conditions differ; "
                "give labels, or use condition_weight",
                stacklevel=4,
            )
        columns = own.clone()
        rows_of = classes.argsort(stable=True).split(sizes.tolist())
        noise_classes = classes[beside]
        noises_of = noise_classes.argsort(stable=True).split(torch.bincount(noise_classes).tolist())
        for rows, noises in zip(rows_of, noises_of, strict=True):
            if len(noises) > 1:
                columns[rows] = noises[self._solve(cost[rows[:, None], noises])]
        return columns

    def _solve(self, cost: Tensor) -> Tensor:
        if not callable(self.solver):
            return solvers.SOLVERS[self.solver](cost)
        columns = self.solver(cost)
        require_own_columns(columns, cost)
        return columns.to(device=cost.device, dtype=torch.int64)

    def _require_finite(self, cost: Tensor) -> None:
        if not bool(torch.isfinite(cost).all()):
            raise ValueError(
                f"cost of data against noise must be finite, got {int((~torch.isfinite(cost)).sum())} NaN or "
                f"infinite of {cost.numel()} entries: normalise data, or use cost_dtype='fp32' "
                f"(now {self.cost_dtype!r})"
            )

    @property
    def _weighs_conditions(self) -> bool:
        return self.condition_weight != 0

    @property
    def _uses_condition(self) -> bool:
        return self.within is not None or self._weighs_conditions

    @property
    def is_collective(self) -> bool:
        return self.across_ranks and world_size() > 1

    @property
    def caveat(self) -> str | None:
        skew = "a conditional model meets p(noise | condition) skewed towards the data of that condition"
        if self.pool_factor == 1:
            return None if self.within else f"{skew}, although the batch's noises as a whole are the source's"
        norms = "long" if self.metric == "inner" else "short"
        selection = f"1 in {self.pool_factor:g} noises is chosen by the data, {norms} ones rather than others"
        return selection if self.within else f"{selection}, and {skew}"

    def fit(self, data: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> None:
        if isinstance(self.condition_weight, ConditionWeight):
            self.condition_weight.fit(data, condition)

    @property
    def fit_uses(self) -> frozenset[str]:
        weight = self.condition_weight
        return weight.fit_uses if isinstance(weight, ConditionWeight) else frozenset()

    def for_validation(self) -> LinearAssignment:
        weight = self.condition_weight
        if isinstance(weight, ConditionWeight):
            weight = weight.snapshot()
        return dataclasses.replace(self, across_ranks=False, condition_weight=weight)

    def at_inference(self) -> Coupling:
        if self.fit_uses and not any(self.state_dict().values()):
            raise ValueError(
                f"{self} was fitted to the training data, and without that cannot choose noise for new data"
            )
        return super().at_inference()

    def state_dict(self) -> dict[str, Any]:
        """The memory of ``condition_weight``, if it has any."""
        weight = self.condition_weight
        return {"condition_weight": weight.state_dict()} if isinstance(weight, ConditionWeight) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        weight = self.condition_weight
        if not isinstance(weight, ConditionWeight):
            return super().load_state_dict(state)
        if set(state) != {"condition_weight"}:
            raise ValueError(f"state of LinearAssignment must be {{'condition_weight': ...}}, got {sorted(state)}")
        weight.load_state_dict(state["condition_weight"])
