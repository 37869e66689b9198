"""What a condition tells of the data: a regression, fitted once to the data set and evaluated in every batch.

Class means for labels; for vectors a ridge regression on their entries and on random Fourier features of them (Rahimi
and Recht, "Random Features for Large-Scale Kernel Machines", NeurIPS 2007), which stands for that with a Gaussian
kernel. Length scale and ridge are those with the least error on blocks of the data set that were left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.coupling._checks import flat_mask, flat_rows, require_finite
from immiscible_policy.coupling.skew import is_labels

Fitted = dict[str, Tensor]
"""``mean`` (D,) of the data (with a mask and vectors: what is predicted at ``feature_means``); with labels also
``labels`` (K,) and their ``means`` (K, D); with vectors of P entries ``centre`` and ``inverse_scale`` (P,),
``frequencies`` (P, F), ``phases`` (F,), ``feature_means`` (P + F,) and ``weights`` (P + F, D)."""

KINDS = (
    {"mean"},
    {"mean", "labels", "means"},
    {"mean", "centre", "inverse_scale", "frequencies", "phases", "feature_means", "weights"},
)

_LENGTHS = (0.25, 0.5, 1.0)  # times the median distance of two conditions
_RIDGES = (1e-5, 1e-4, 1e-3)
_BLOCKS, _FOLDS = 20, 5  # neighbours in a trajectory, which stand side by side, are left out together
_FEWEST = 100  # data, below which nothing is left out and the smoothest settings are taken


def fit_regression(
    data: Tensor, condition: Tensor | None, n_features: int, seed: int, mask: Tensor | None = None
) -> Fitted:
    """Fit the data to the condition.

    Args:
        data: (N, ...) floats. condition: (N, ...) vectors, (N,) labels, or None for the mean alone.
        n_features: F, random Fourier features of vectors; 0 is linear regression.
        seed: of these.
        mask: bool, broadcastable to data. Each entry of a row is regressed over the data where it counts, and predicted
            as 0 where it never does. Vectors take a solution for every set of data in which some entry counts: a few
            for padding, as many as entries for masks at random.

    Raises:
        ValueError: data or condition are not finite, there are none, or not as many of one as of the other.
    """
    if not len(data) or (condition is not None and len(condition) != len(data)):
        found = "no condition" if condition is None else f"{len(condition)} conditions"
        raise ValueError(f"a fit needs data and a condition for each, got {len(data)} data and {found}")
    x = flat_rows(data.detach(), torch.float64)
    valid = flat_mask(mask, data)
    require_finite("data", x, valid)
    if valid is None:
        mean = x.mean(0)
    else:
        x = x.masked_fill(~valid, 0.0)
        mean = x.sum(0) / valid.sum(0).clamp_min(1)
    if condition is None:
        return {"mean": mean.float()}
    if is_labels(condition):
        labels, classes, counts = torch.unique(condition.long(), return_inverse=True, return_counts=True)
        sums = torch.zeros(len(labels), x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, classes, x)
        number = counts[:, None] if valid is None else torch.zeros_like(sums).index_add_(0, classes, valid.to(x.dtype))
        means = torch.where(number > 0, sums / number, mean)
        return {"mean": mean.float(), "labels": labels, "means": means.float()}
    c = flat_rows(condition.detach(), torch.float64)
    require_finite("condition", c)
    centred = x - mean if valid is None else (x - mean).masked_fill(~valid, 0.0)
    fitted = _fit_vectors(centred, c, n_features, seed, valid)
    fitted["mean"] += mean
    return {name: value.float() for name, value in fitted.items()}


def predict(fitted: Mapping[str, Tensor], condition: Tensor | None, batch: int) -> Tensor:
    """The data (B, D) that the condition predicts, float32. Labels that were not fitted predict the mean.

    Raises:
        ValueError: the condition is not of the kind that was fitted, or (on the CPU, where asking costs no wait) not
            finite.
    """
    if "labels" in fitted:
        if condition is None or not is_labels(condition):
            raise ValueError(f"condition must be (B,) labels, as Residual was fitted with, got {_kind(condition)}")
        wanted = condition.long()
        place = torch.searchsorted(fitted["labels"], wanted).clamp_max(len(fitted["labels"]) - 1)
        known = fitted["labels"][place] == wanted
        return torch.where(known[:, None], fitted["means"][place], fitted["mean"])
    if "weights" in fitted:
        if condition is None or is_labels(condition) or condition[0].numel() != len(fitted["centre"]):
            raise ValueError(
                f"condition must be of the {len(fitted['centre'])} entries a row that Residual was fitted with, got "
                f"{_kind(condition)}"
            )
        rows = flat_rows(condition.detach(), torch.float32)
        if not rows.is_cuda:
            require_finite("condition", rows)
        return fitted["mean"] + (_features(rows, fitted) - fitted["feature_means"]) @ fitted["weights"]
    return fitted["mean"].expand(batch, -1)


def _fit_vectors(x: Tensor, c: Tensor, n_features: int, seed: int, valid: Tensor | None) -> Fitted:
    """A fit to vectors in float64, of centred data (N, D), 0 where not valid, and conditions (N, P)."""
    n, entries = c.shape
    centre, scale = c.mean(0), c.std(0, unbiased=False)
    varies = scale > 1e-9 * (1 + centre.abs())
    inverse = torch.where(varies, 1 / scale.clamp_min(torch.finfo(c.dtype).tiny), 0.0)
    generator = torch.Generator("cpu").manual_seed(seed)
    # On the CPU, whatever the default device, so that the features are the same everywhere.
    draw: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
    frequencies = torch.randn(entries, n_features, **draw).to(c.device)
    phases = (2 * math.pi * torch.rand(n_features, **draw)).to(c.device)
    some = ((c - centre) * inverse)[:: max(1, n // 1000)]
    distances = torch.nn.functional.pdist(some)
    typical = float(distances.median()) if len(distances) else 0.0
    shared = {"centre": centre, "inverse_scale": inverse, "phases": phases}
    # Where the conditions are all the same there is nothing to tell them by.
    lengths = _LENGTHS if typical > 0 and n_features else (1.0,)
    candidates = [{**shared, "frequencies": frequencies / (length * (typical or 1.0))} for length in lengths]
    held_out = (torch.arange(n, device=c.device) * _BLOCKS // n) % _FOLDS == _FOLDS // 2
    groups = _groups(x, valid)
    best, settings = math.inf, (candidates[-1], _RIDGES[-1])
    for candidate in candidates if n >= _FEWEST else ():
        features = _features(c, candidate)
        errors = [0.0] * len(_RIDGES)
        for rows, columns in groups:
            own, trained, tested = x[:, columns], rows & ~held_out, rows & held_out
            kept = features[trained]
            if not len(kept):
                continue
            left_out = features[tested] - kept.mean(0)
            for i, weights in enumerate(_solutions(kept, own[trained], _RIDGES)):
                errors[i] += float((own[tested] - left_out @ weights).square().sum())
        for ridge, error in zip(_RIDGES, errors, strict=True):
            if error < best:
                best, settings = error, (candidate, ridge)
    candidate, ridge = settings
    features = _features(c, candidate)
    feature_means = features.mean(0)
    weights = torch.zeros(features.shape[1], x.shape[1], dtype=x.dtype, device=x.device)
    mean = torch.zeros_like(x[0])
    for rows, columns in groups:
        kept = features[rows]
        if not len(kept):
            continue
        (solution,) = _solutions(kept, x[rows][:, columns], (ridge,))
        weights[:, columns] = solution
        mean[columns] = (feature_means - kept.mean(0)) @ solution  # the entry's own centre is that of its data
    return {**candidate, "mean": mean, "feature_means": feature_means, "weights": weights}


def _groups(x: Tensor, valid: Tensor | None) -> list[tuple[Tensor, Tensor | slice]]:
    """(rows, columns) of data (N, D): entries that count in the same data are regressed together."""
    if valid is None:
        return [(torch.ones(len(x), dtype=torch.bool, device=x.device), slice(None))]
    rows, which = torch.unique(valid, dim=1, return_inverse=True)
    return [(rows[:, i], which == i) for i in range(rows.shape[1])]


def _features(c: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
    """(N, P + F) of conditions (N, P): their standardised entries, and random Fourier features of squared sum 1."""
    z = (c - fitted["centre"]) * fitted["inverse_scale"]
    n_features = fitted["frequencies"].shape[1]
    waves = torch.cos(z @ fitted["frequencies"] + fitted["phases"])
    return torch.cat([z, waves * math.sqrt(2 / max(1, n_features))], dim=1)


def _solutions(features: Tensor, x: Tensor, ridges: tuple[float, ...]) -> list[Tensor]:
    """(P + F, D) weights of the centred features for each ridge."""
    centred = features - features.mean(0)
    gram, moments = centred.T @ centred / len(x), centred.T @ x / len(x)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return [torch.linalg.solve(gram + ridge * identity, moments) for ridge in ridges]


def _kind(condition: Tensor | None) -> str:
    return "None" if condition is None else f"{condition.dtype} of shape {tuple(condition.shape)}"
