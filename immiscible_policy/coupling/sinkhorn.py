"""Sinkhorn: noises dealt to the batch by the entropic optimal transport plan instead of the exact one.

Cuturi, "Sinkhorn distances" (NeurIPS 2013), section 4: the plan P with uniform marginals that minimises
<P, C> - h(P) / lambda, C the cost and h the entropy. Solved in the log domain with the multiplicative
iterations in between and decreasing entropy, as in Schmitzer, "Stabilized sparse scaling algorithms for
entropy regularized transport problems" (SIAM J. Sci. Comput. 2019), sections 3.1 and 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from immiscible_policy.coupling import solvers
from immiscible_policy.coupling._costs import METRICS, pairwise_cost
from immiscible_policy.coupling._settings import require_count, require_number, require_one_of
from immiscible_policy.coupling.base import Context, Coupling, Source

_FIRST_REG = 1.0
_REG_FACTOR = 4.0  # by which the entropy falls from stage to stage
_STAGE_ITERATIONS = 10
_FLOAT64_BELOW_REG = 0.01  # costs over reg then have too few digits left in float32
_LARGEST_SCALING = 10.0  # logarithm from which scalings are absorbed into the potentials
_SMALLEST_ENTRY = 1e-25  # of the kernel; below lie the slow denormal numbers


@dataclass(frozen=True, repr=False)
class Sinkhorn(Coupling):
    """Pairs the batch with its noises by the entropic transport plan between them.

    Between :class:`LinearAssignment` (``reg`` to 0) and independent noise (``reg`` to infinity, with
    ``rounding="sample"``). A batch of one passes through.

    >>> noise = Sinkhorn(reg=0.05)(torch.randn(64, 16, 2))

    Args:
        reg: weight of the entropy, > 0, in units of the standard deviation s of the batch's costs after
            the means of rows and columns are taken off (the plan does not depend on these). So reg is
            free of the data's scale and dimension: the absolute epsilon is ``reg * s``, Cuturi's lambda
            is ``1 / (reg * s)``. For "sqeuclidean", s is about 2 E|x - mean of x|. Smaller is nearer the
            optimum and takes more iterations.
        metric: cost of a pair: "l2" |x - n|, "sqeuclidean" |x - n|^2, "l1", or "inner" -<x, n>, which has
            the same plan as "sqeuclidean" (unless masks differ between samples).
        rounding: "permutation" takes the plan's most likely pair, then the most likely among the other
            rows and columns, and so on: every noise is used once. "sample" draws each sample's noise
            from its row of the plan, independently: a noise may come up twice or not at all.
        n_iterations: most iterations, over all stages of decreasing entropy.
        tolerance: the iterations end once the rows' marginals are off by less than this share of
            their mass on average (those of the columns are then exact).
        source: distribution of the noise, ``(shape, generator) -> tensor``; None is N(0, I).

    Raises:
        ValueError: on construction, for an argument outside these ranges; on call where a cost is not
            finite.
    """

    reg: float = 0.05
    metric: Literal["sqeuclidean", "l2", "l1", "inner"] = "sqeuclidean"
    rounding: Literal["permutation", "sample"] = "permutation"
    n_iterations: int = 500
    tolerance: float = 0.01
    source: Source | None = None

    def __post_init__(self) -> None:
        for name in ("reg", "tolerance"):
            require_number(name, getattr(self, name), "> 0", lambda value: value > 0)
        require_one_of("metric", self.metric, METRICS)
        require_one_of("rounding", self.rounding, ("permutation", "sample"))
        require_count("n_iterations", self.n_iterations)

    @property
    def caveat(self) -> str | None:
        skew = "a conditional model meets p(noise | condition) skewed towards the data of that condition"
        if self.rounding == "permutation":
            return f"{skew}, although the batch's noises as a whole are the source's"
        return f"a batch may use a noise twice and another not at all, and {skew}"

    def _couple(self, data: Tensor, noise: Tensor | None, context: Context) -> Tensor:
        noise = self._drawn(data, noise, context)
        if data.shape[0] == 1:
            return noise
        cost = pairwise_cost(data, noise, self.metric, context.mask, drop_constants=True)
        if not bool(torch.isfinite(cost).all()):
            raise ValueError(
                f"cost of data against noise must be finite, got {int((~torch.isfinite(cost)).sum())} NaN or infinite "
                f"of {cost.numel()} entries: normalise data"
            )
        plan = log_plan(cost, self.reg, self.n_iterations, self.tolerance)
        if self.rounding == "permutation":
            return noise[solvers.greedy(-plan)]
        return noise[torch.multinomial(plan.softmax(1), 1, generator=context.generator).squeeze(1)]


def log_plan(cost: Tensor, reg: float, n_iterations: int = 500, tolerance: float = 0.01) -> Tensor:
    """Logarithm of the entropic plan with marginals 1/B; (B, B) finite cost -> (B, B) float32 or float64.

    Args as in :class:`Sinkhorn`. A cost without spread (beyond terms of rows and columns) has the
    independent plan, 1 / B^2.
    """
    batch = cost.shape[0]
    dtype = torch.float64 if reg < _FLOAT64_BELOW_REG else torch.promote_types(cost.dtype, torch.float32)
    cost = cost.to(dtype)
    rounding_error = 16.0 * torch.finfo(dtype).eps * float(cost.abs().max())
    cost = cost - cost.mean(1, keepdim=True)
    cost -= cost.mean(0)
    spread = float(cost.square().mean().sqrt())
    if spread <= rounding_error:
        return torch.full_like(cost, -2.0 * math.log(batch))
    cost /= spread

    column = torch.zeros_like(cost[0])  # potential, in units of the spread
    used, stage = 0, max(reg, _FIRST_REG)
    while stage > reg and used < n_iterations:
        most = min(_STAGE_ITERATIONS, n_iterations - used)
        _, column, taken = _scale(cost / stage, column / stage, most, tolerance)
        column *= stage
        used, stage = used + taken, max(reg, stage / _REG_FACTOR)
    cost /= reg
    row, column, _ = _scale(cost, column / reg, max(1, n_iterations - used), tolerance)
    return cost.neg_().add_(row.unsqueeze(1)).add_(column).sub_(math.log(batch))


def _scale(cost: Tensor, column: Tensor, n_iterations: int, tolerance: float) -> tuple[Tensor, Tensor, int]:
    """Potentials u, v (B,) for which exp(u_i + v_j - cost_ij) has columns of sum 1 and rows of nearly so.

    Begins with v = ``column``. Each turn of the loop is one iteration by log-sum-exp, whose result is
    the kernel of matrix-vector iterations, ten times as fast, until these have scaled it by so much that
    entries that were negligible may not be any longer.

    Returns:
        u, v, and the number of iterations taken.
    """
    iterations = 0
    while True:
        row = -torch.logsumexp(column - cost, 1)
        column = -torch.logsumexp(row.unsqueeze(1) - cost, 0)
        iterations += 1
        kernel = torch.exp(row.unsqueeze(1) + column - cost)
        kernel.masked_fill_(kernel < _SMALLEST_ENTRY, 0.0)
        a, b = torch.ones_like(row), torch.ones_like(column)
        while True:
            sums = kernel @ b
            error = (a * sums - 1.0).abs().mean()
            scaling = torch.cat((a, b)).log_().abs().max()
            is_done = bool(error < tolerance) or iterations >= n_iterations
            if is_done or bool(scaling > _LARGEST_SCALING):
                break
            a = sums.reciprocal()
            b = (kernel.T @ a).reciprocal()
            iterations += 1
        row, column = row + a.log_(), column + b.log_()
        if is_done:
            return row, column, iterations
