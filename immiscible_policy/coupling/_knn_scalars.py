"""The scalars that stand for candidates: their laws, and which candidate wins.

A candidate n is known by g = <n, x/|x|> ~ N(0, 1) and the squared norm r^2 ~ chi^2(D-1) of what is left.
All of this is on (B, k) numbers, without waiting for a GPU: nothing here depends on a tensor's values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# From here on the expansion is nearer to the chi-square law than float32 is: 5e-7 standard deviations up
# to six of them, where rounding r^2 itself moves it by 9e-7.
_EXPANSION_FROM_DOF = 500
# Up to here k-1 normals cost less than the quantile of their largest, which takes nine operations.
_NORMALS_UP_TO_K = 8


def chi_square(dof: int | Tensor, shape: tuple[int, int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """chi^2 draws of ``shape`` (B, m); ``dof`` is an integer or (B, 1), and draws with dof <= 0 are 0.

    torch._standard_gamma is private, but it is what torch.distributions.Gamma calls, and the only
    gamma sampler of torch that accepts a generator.
    """
    if isinstance(dof, Tensor):
        half_dof = (dof.to(like.dtype) / 2.0).expand(shape)
        draws = torch._standard_gamma(half_dof.clamp_min(0.5), generator=generator)
        return torch.where(half_dof > 0, draws.mul_(2.0), 0.0)
    if dof < 1:
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    if dof >= _EXPANSION_FROM_DOF and like.dtype == torch.float32:
        return _chi_square_of_normal(dof, normals(shape, like, generator))
    half_dofs = torch.full(shape, dof / 2.0, dtype=like.dtype, device=like.device)
    return torch._standard_gamma(half_dofs, generator=generator).mul_(2.0)


def _chi_square_of_normal(dof: int, z: Tensor) -> Tensor:
    """chi^2 quantile at the level of the normal z, which is overwritten; a tenth of a gamma draw's time.

    The Cornish-Fisher expansion, Goldberg and Levine (1946), to order 1/dof^2.
    """
    root = math.sqrt(2.0 * dof)
    coefficients = (  # of z^0, z^1, ...
        dof - 2 / 3 + 32 / (405 * dof) + 1472 / (25515 * dof**2),
        root - 7 / (9 * root) - 433 / (4860 * dof * root),
        2 / 3 - 14 / (405 * dof) - 923 / (25515 * dof**2),
        1 / (9 * root) + 256 / (4860 * dof * root),
        -6 / (405 * dof) - 243 / (25515 * dof**2),
        9 / (4860 * dof * root),
        12 / (25515 * dof**2),
    )
    result = torch.mul(z, coefficients[-1])
    for coefficient in coefficients[-2:0:-1]:
        result.add_(coefficient).mul_(z)
    return result.add_(coefficients[0])


def normals(shape: tuple[int, int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def largest_of_others(k: float, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """The largest of k-1 normals, (B, 1); real k > 1: the law Phi(g)^(k-1). ``like`` is (B, 1).

    P(max <= g) = Phi(g)^(k-1) gives g = Phi^-1(U^(1/(k-1))). With U = exp(-E), E exponential,
    1 - U^(1/(k-1)) = -expm1(-E/(k-1)) keeps its digits in the upper tail, where Phi is 1 to rounding;
    float64 for the same reason.
    """
    if k <= _NORMALS_UP_TO_K and k == int(k):
        return normals((like.shape[0], int(k) - 1), like, generator).amax(1, keepdim=True)
    exponential = torch.empty(like.shape, dtype=torch.float64, device=like.device)
    exponential.exponential_(generator=generator)
    upper_tail = torch.expm1(exponential / (1.0 - k)).neg_().clamp_min_(torch.finfo(torch.float64).tiny)
    return torch.special.ndtri(upper_tail).neg_().to(like.dtype)


def winner(cost: Tensor, pick: int, generator: torch.Generator | None) -> Tensor:
    """Index (B, 1) of a uniformly chosen one of the ``pick`` lowest costs of each row of (B, k)."""
    if pick == 1:
        return cost.argmin(1, keepdim=True)
    best = cost.topk(pick, dim=1, largest=False).indices
    return best.gather(1, torch.randint(pick, (cost.shape[0], 1), generator=generator, device=cost.device))
