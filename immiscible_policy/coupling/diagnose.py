"""What a coupling did to a batch: how near, how aligned, how Gaussian, how skewed."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_policy.coupling._checks import check_arguments, flat_mask, flat_rows
from immiscible_policy.coupling.skew import explained_share, regressors_of

_TABLE = (
    ("distance", "{:.4f}", "mean |x - n|"),
    ("distance_change", "{:+.2f} %", "against independent noise"),
    ("alignment", "{:+.4f}", "mean <n, x/|x|>, independent: 0"),
    ("noise_mean", "{:+.4f}", "independent: 0"),
    ("noise_variance", "{:.4f}", "independent: 1"),
    ("noise_norm", "{:.4f}", "mean |n|^2 / D, independent: 1"),
    ("reuse", "{:.4f}", "share of rows that repeat another, independent: 0"),
    ("data_skew", "{:+.4f}", "noise variance explained by data, independent: 0"),
    ("condition_skew", "{:+.4f}", "noise variance explained by condition, independent: 0"),
)


@dataclass(frozen=True)
class Diagnosis:
    """Statistics of coupled pairs (x_i, n_i), over valid entries; NaN where undefined.

    Attributes:
        distance: mean over the batch of |x_i - n_i|.
        distance_change: percent by which ``distance`` differs from its expectation for the same data
            with independent noise (closed form, no reference draw). The papers' distance reduction.
        alignment: mean of <n_i, x_i/|x_i|> over rows with x_i != 0. Unlike the distance it is not
            lowered by short noise; read the two together.
        noise_mean, noise_variance: over all valid entries of the batch.
        noise_norm: mean of |n_i|^2 / D_i. A sampler starts from 1.
        reuse: share of noise rows equal to an earlier row of the batch.
        data_skew: adjusted R^2 of the linear regression of the noise on the data, see
            :func:`explained_share`.
        condition_skew: the same on the condition: what a conditional sampler, which starts from noise
            independent of the condition, does not reproduce. NaN without a condition.
    """

    distance: float
    distance_change: float
    alignment: float
    noise_mean: float
    noise_variance: float
    noise_norm: float
    reuse: float
    data_skew: float
    condition_skew: float

    def as_dict(self) -> dict[str, float | None]:
        """All fields by name, with None for NaN so that the dictionary is valid JSON."""
        return {name: None if math.isnan(value) else float(value) for name, value in dataclasses.asdict(self).items()}

    def __str__(self) -> str:
        lines = []
        for name, form, meaning in _TABLE:
            value = getattr(self, name)
            shown = "n/a" if math.isnan(value) else form.format(value)
            lines.append(f"{name:<16} {shown:>12}   {meaning}")
        return "\n".join(lines)


@torch.no_grad()
def diagnose(data: Tensor, noise: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> Diagnosis:
    """Measure what a coupling did. All arithmetic is in float64.

    Skews have a standard error of about sqrt(2 p / D) / B with p regressors: concatenate many batches
    (coupled one by one) to see small ones.

    Args:
        data: (B, ...) normalised data.
        noise: (B, ...) the noise that the coupling returned for it.
        condition: (B, ...) vectors, or (B,) integer or bool labels, which are treated as classes.
        mask: bool, broadcastable to ``data``, True where the entry counts.

    Raises:
        TypeError, ValueError: as :class:`Coupling` does for the same arguments; also without noise,
            for an empty batch, and for a mask without any True entry.
    """
    if noise is None:
        raise TypeError("noise must be a torch.Tensor (what the coupling returned), got NoneType")
    check_arguments(data, noise, condition, mask)
    if condition is not None and not bool(torch.isfinite(condition).all()):
        raise ValueError("condition must be finite, got NaN or infinite entries")
    valid = flat_mask(mask, data)
    if data.numel() == 0 or (valid is not None and not bool(valid.any())):
        raise ValueError(f"data must hold at least one valid entry, got shape {tuple(data.shape)}")
    x, n = flat_rows(data, torch.float64), flat_rows(noise, torch.float64)
    if valid is None:
        valid = torch.ones_like(x, dtype=torch.bool)
    x, n = x.masked_fill(~valid, 0.0), n.masked_fill(~valid, 0.0)
    dims = valid.sum(1)
    used = dims > 0
    norm = torch.linalg.vector_norm(x, dim=1)
    entries = n[valid]
    distance = float(torch.linalg.vector_norm(x - n, dim=1)[used].mean())
    expected = float(expected_distance(norm[used], dims[used]).mean())
    directed = norm > 0
    return Diagnosis(
        distance=distance,
        distance_change=100.0 * (distance / expected - 1.0),
        alignment=float(((x * n).sum(1)[directed] / norm[directed]).mean()),
        noise_mean=float(entries.mean()),
        noise_variance=float(entries.var(correction=0)),
        noise_norm=float((n.square().sum(1)[used] / dims[used]).mean()),
        reuse=share_reused(flat_rows(noise, noise.dtype)),
        data_skew=explained_share(x, n, valid),
        condition_skew=math.nan if condition is None else explained_share(regressors_of(condition), n, valid),
    )


def expected_distance(norm: Tensor, dims: Tensor) -> Tensor:
    """E|x - n| for |x| = norm and independent n ~ N(0, I) in ``dims`` dimensions. (B,), (B,) -> (B,).

    |x - n|^2 is noncentral chi-square. Its root's mean is (the 1F1 form overflows at D = 3072)

        E sqrt(Y) = (4 pi)^(-1/2) int_0^inf (1 - E exp(-t Y)) t^(-3/2) dt,
        E exp(-t Y) = (1 + 2t)^(-D/2) exp(-|x|^2 t / (1 + 2t)),

    by the trapezoid rule in log t, which converges exponentially fast (relative error below 1e-11).
    """
    square = norm.double().square().unsqueeze(1)
    half_dims = dims.double().unsqueeze(1) / 2.0
    step = 0.25
    log_t = torch.arange(-60.0, 60.0, step, dtype=torch.float64, device=norm.device)
    log_t = log_t - torch.log(2.0 * half_dims + square)
    t = log_t.exp()
    laplace_exponent = -half_dims * torch.log1p(2.0 * t) - square * t / (1.0 + 2.0 * t)
    integrand = -torch.expm1(laplace_exponent) * torch.exp(-log_t / 2.0)
    return integrand.sum(1) * step / math.sqrt(4.0 * math.pi)


def share_reused(noise: Tensor) -> float:
    """Share of the rows of (B, D) that equal an earlier row."""
    return 1.0 - torch.unique(noise, dim=0).shape[0] / noise.shape[0]
