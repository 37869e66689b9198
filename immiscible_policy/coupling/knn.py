"""KNN coupling: each sample takes the nearest of k Gaussian draws, at the price of one draw.

The rule is that of "Improved Immiscible Diffusion" (Li et al. 2025), section 3.3.2: draw k noises for a
sample x and keep the nearest one. Drawing them costs k*B*D normals. They are not needed: split a draw n
along e = x/|x|,

    n = g e + r u,    g ~ N(0, 1),  r^2 ~ chi^2(D-1),  u uniform on the unit sphere orthogonal to e,

all three independent. Then |x - n|^2 = |x|^2 + r^2 + g^2 - 2 |x| g does not involve u, so the winner's
direction u is independent of the fact that it won. Hence k scalar pairs (g, r^2) decide, and one full
draw supplies u: exact in distribution for every k and D, O(B*D) time and memory whatever k is.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from immiscible_policy.coupling._checks import compute_dtype, flat_mask, flat_rows
from immiscible_policy.coupling.base import Context, Coupling

# Below this the direction of the residual is rounding noise; reached with probability < 1e-6 (D = 2).
_SMALLEST_RESIDUAL = 1e-6


@dataclass(frozen=True, repr=False)
class KNN(Coupling):
    """Nearest of ``k`` standard normal draws, for each sample on its own (no batch needed).

    Candidate 0 is the given (or freshly drawn) noise itself; where it wins, that row comes back bit for
    bit. ``k=1`` is therefore :class:`Independent`.

    With ``mask``, distances, norms and D count the valid entries only; the others keep the noise as
    drawn. Half-precision data is coupled in float32, float64 data in float64. Memory beyond the draw and
    the result: O(B*k); with a mask one more (B, D) tensor; for half precision the float32 copies.

    Args:
        k: number of candidates, an integer >= 1. With ``metric="inner"`` and exact candidates any real
            number >= 1: the candidates' maximum then has the law Phi(g)^k.
        metric: "l2" keeps the draw nearest in Euclidean distance, the published rule. Its score has
            variance 4|x|^2 from alignment with x and about 2D from the norm of the noise, so it also
            selects short noise (E|n|^2/D = 0.90 at D=32, |x|=4, k=2). "inner" keeps the draw with the
            largest <x, n>: no norm is selected, at k=2 all second moments stay those of N(0, I).
        candidates: "exact" (see the module's text) or "explicit", which really draws the candidates
            one after the other, in O(k*B*D) time. Same law; explicit is the reference for the tests.

    Raises:
        TypeError, ValueError: on construction, for an argument outside these ranges.
    """

    k: int | float = 2
    metric: Literal["l2", "inner"] = "l2"
    candidates: Literal["exact", "explicit"] = "exact"

    def __post_init__(self) -> None:
        if self.metric not in ("l2", "inner"):
            raise ValueError(f"metric must be 'l2' or 'inner', got {self.metric!r}")
        if self.candidates not in ("exact", "explicit"):
            raise ValueError(f"candidates must be 'exact' or 'explicit', got {self.candidates!r}")
        real_allowed = self.metric == "inner" and self.candidates == "exact"
        allowed = "a real number >= 1" if real_allowed else "an integer >= 1"
        kind = numbers.Real if real_allowed else numbers.Integral
        if isinstance(self.k, bool) or not isinstance(self.k, kind):
            raise TypeError(f"k must be {allowed}, got {self.k!r} of type {type(self.k).__name__}")
        if not 1 <= self.k < math.inf:
            raise ValueError(f"k must be {allowed}, got {self.k!r}")

    def _couple(self, data: Tensor, noise: Tensor | None, context: Context) -> Tensor:
        noise = self._drawn(data, noise, context)
        if self.k == 1:
            return noise
        valid = flat_mask(context.mask, data)
        x = flat_rows(data, compute_dtype(data))
        if valid is not None:
            x = x.masked_fill(~valid, 0.0)
        first = flat_rows(noise, x.dtype)
        if self.candidates == "explicit":
            chosen = _explicit(x, first, valid, int(self.k), self.metric, context.generator)
        elif self.metric == "l2":
            chosen = _nearest(x, first, valid, int(self.k), context.generator)
        else:
            chosen = _most_aligned(x, first, float(self.k), context.generator)
        return chosen.to(noise.dtype).reshape(noise.shape)


def _nearest(x: Tensor, first: Tensor, valid: Tensor | None, k: int, generator: torch.Generator | None) -> Tensor:
    """Nearest of k draws in L2. x, first: (B, D), x zero where not valid. Returns (B, D)."""
    norm, inverse_norm, no_direction = _norms(x)
    # Counted before the buffer exists, since torch widens the whole mask to sum it.
    dims = x.shape[1] if valid is None else valid.sum(1, keepdim=True, dtype=torch.int32)
    buffer = torch.mul(x, first)  # the only (B, D) memory: products, then the residual, then the result
    g_first = buffer.sum(1, keepdim=True).mul_(inverse_norm)
    # |first|^2 - g^2 would cancel in low dimension (all digits at D=2): form the residual itself.
    residual = torch.addcmul(first, x, g_first * -inverse_norm, out=buffer)
    if valid is not None:
        residual.masked_fill_(~valid, 0.0)
    r_first = torch.linalg.vector_norm(residual, dim=1, keepdim=True)

    shape = (x.shape[0], k - 1)
    g = torch.cat((g_first, torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)), 1)
    r_squared = torch.cat((r_first.square(), _chi_square(dims - 1, shape, x, generator)), 1)
    winner = (g * (g - 2.0 * norm)).add_(r_squared).argmin(1, keepdim=True)
    g_best, r_squared_best = g.gather(1, winner), r_squared.gather(1, winner)

    # Rows with x = 0 have no direction e: there only the norm decides, whose square is r^2 + g^2 (the
    # residual is the whole draw, g_first is 0), and the draw is rescaled to it.
    reach = g_best.square().mul_(no_direction).add_(r_squared_best)
    scale = reach.sqrt_() / r_first.clamp_min(_SMALLEST_RESIDUAL)
    if valid is not None or dims == 1:
        # With one entry that counts there is no residual to rescale: the draw is the scalar g.
        no_residual = torch.as_tensor(dims, device=x.device) < 2
        scale = torch.where(no_residual & ~no_direction, 1.0, scale)
    along = torch.addcmul(g_best, scale, g_first, value=-1.0) * inverse_norm
    # scale * (first - g_first e) + g_best e, written such that it is `first` exactly where that won.
    chosen = torch.mul(first, scale, out=buffer).addcmul_(x, along)
    return chosen if valid is None else torch.where(valid, chosen, first, out=buffer)


def _most_aligned(x: Tensor, first: Tensor, k: float, generator: torch.Generator | None) -> Tensor:
    """Largest <x, n> of k draws. x, first: (B, D), x zero where not valid. Returns (B, D).

    Only g matters, and the largest of k-1 normals is one quantile: P(max <= g) = Phi(g)^(k-1), that is
    g = Phi^-1(U^(1/(k-1))). With U = exp(-E), E exponential, 1 - U^(1/(k-1)) = -expm1(-E/(k-1)) keeps
    its digits in the upper tail, where Phi is 1 to rounding; float64 for the same reason (B scalars).
    """
    _, inverse_norm, _ = _norms(x)
    g_first = torch.linalg.vecdot(x, first).unsqueeze(1) * inverse_norm
    exponential = torch.empty(g_first.shape, dtype=torch.float64, device=x.device)
    exponential.exponential_(generator=generator)
    upper_tail = torch.expm1(exponential / (1.0 - k)).neg_().clamp_min_(torch.finfo(torch.float64).tiny)
    g_rest = torch.special.ndtri(upper_tail).neg_().to(x.dtype)
    return torch.addcmul(first, x, (g_rest - g_first).clamp_min_(0.0) * inverse_norm)


def _explicit(
    x: Tensor, first: Tensor, valid: Tensor | None, k: int, metric: str, generator: torch.Generator | None
) -> Tensor:
    """Draw k-1 further candidates one by one, keep the best so far. Memory O(B*D)."""

    def cost(candidate: Tensor) -> Tensor:
        if metric == "inner":
            return -torch.linalg.vecdot(x, candidate).unsqueeze(1)
        difference = x - candidate
        if valid is not None:
            difference.masked_fill_(~valid, 0.0)
        return torch.linalg.vector_norm(difference, dim=1, keepdim=True)

    best, best_cost = first, cost(first)
    for _ in range(k - 1):
        candidate = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        candidate_cost = cost(candidate)
        best = torch.where(candidate_cost < best_cost, candidate, best)
        best_cost = torch.minimum(candidate_cost, best_cost)
    return best if valid is None else torch.where(valid, best, first)


def _norms(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row norms of (B, D), their inverses (1 where the norm is 0), and where it is 0; (B, 1) each."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    is_zero = norm == 0
    return norm, (norm + is_zero).reciprocal_(), is_zero


def _chi_square(dof: int | Tensor, shape: tuple[int, int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """chi^2 draws of ``shape``; ``dof`` is an integer or (B, 1), and draws with dof <= 0 are 0.

    torch._standard_gamma is private, but it is what torch.distributions.Gamma calls, and the only
    gamma sampler of torch that accepts a generator.
    """
    if isinstance(dof, Tensor):
        half_dof = (dof.to(like.dtype) / 2.0).expand(shape)
        draws = torch._standard_gamma(half_dof.clamp_min(0.5), generator=generator)
        return torch.where(half_dof > 0, draws.mul_(2.0), 0.0)
    if dof < 1:
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    half_dofs = torch.full(shape, dof / 2.0, dtype=like.dtype, device=like.device)
    return torch._standard_gamma(half_dofs, generator=generator).mul_(2.0)
