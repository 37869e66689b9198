"""What couplings do to the noise of a data set: every statistic with a 95% interval, coupling beside coupling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.coupling._checks import check_arguments, flat_rows
from immiscible_policy.coupling.base import Coupling
from immiscible_policy.coupling.batches import Track, check_sizes, coupled_batches, epoch_batches, untracked
from immiscible_policy.coupling.diagnose import expected_distance, share_reused
from immiscible_policy.coupling.divergence import divergence_per_datum, kolmogorov_smirnov
from immiscible_policy.coupling.skew import (
    class_shift,
    is_labels,
    leading_components,
    predicted_data,
    regressors_of,
    share_explained_by,
)

STATISTICS: dict[str, str] = {
    "distance_change": "mean |x - n| against independent noise, percent",
    "from_shorter_noise": "share of the fall of |x - n|^2 that shorter noise makes, the rest is alignment",
    "alignment": "mean <n, x/|x|>, independent: 0",
    "noise_mean": "mean of all entries, independent: 0",
    "noise_variance": "variance of all entries within a batch, independent: 1",
    "noise_norm": "mean |n|^2 / D, independent: 1",
    "reuse": "share of the noises that equal an earlier one, independent: 0",
    "divergence": "KL(p(n|x) || N(0, I)) in nats for each datum, where there is a closed form, independent: 0",
    "data_skew": "share of the noise's variance that linear regression on the data explains, independent: 0",
    "condition_skew": "the same on the condition (class means for labels), independent: 0",
    "condition_divergence": "mean KL(p(n|condition) || N(0, I)) is at least so many nats, D/2 times explained variance",
    "condition_alignment": "mean of the noise along the data that the condition predicts (linearly), independent: 0",
    "class_shift": "distance of a class's mean noise from the mean noise, chance taken off, independent: 0",
    "class_p_value": "chance of classes at least so far apart under independent noise",
    "ks_distance": "Kolmogorov-Smirnov distance of a coordinate from N(0, 1), mean over coordinates",
    "ks_rejected": "share of coordinates that the test rejects at 5%, independent: 0.05",
}
_GROUPS = 10
_SMALLEST_GROUP = 8
# Of a group: at least 1,024 rows, more where the regressors are few, since regressions take cubic time.
_SURE_ROWS, _LARGEST_REGRESSION = 1_024, 2**20
_KEY_COLUMNS = 64  # Gaussian rows that agree in so many entries are the same row


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` batches or groups of batches, with its 95% interval (t distribution); NaN ends where n < 2."""

    mean: float
    low: float = math.nan
    high: float = math.nan
    n: int = 1

    def __str__(self) -> str:
        return f"{self.mean:.4g}" if math.isnan(self.low) else f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Survey:
    """Rows of :data:`STATISTICS` by coupling, and how they were measured."""

    rows: dict[str, dict[str, Estimate]]
    settings: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text; NaN stays NaN."""
        rows = {name: {key: asdict(value) for key, value in row.items()} for name, row in self.rows.items()}
        return {"settings": self.settings, "definitions": STATISTICS, "rows": rows}


@torch.no_grad()
def survey(
    data: Tensor | Sized,
    couplings: Sequence[Coupling] | Mapping[str, Coupling],
    condition: Tensor | None = None,
    batch_size: int = 256,
    n_batches: int = 40,
    seed: int = 0,
    track: Track = untracked,
) -> Survey:
    """Couple batches of a data set by each coupling, and measure the noise.

    All couplings see the same batches (random order, each datum once an epoch, incomplete batches dropped) and begin
    each batch with the same generator state. Couplings are copied and fitted to the data, so the given ones stay as
    they are. Means are over batches; regressions are made within groups of batches (at most ten) and averaged over
    these, so that their intervals are those of independent repetitions; of a group at most 1,024 rows
    are used, or a batch, or 2^20 entries of the regressors.
    Memory: all noises of one coupling, ``n_batches * batch_size`` rows in float32.

    >>> from immiscible_policy.coupling import KNN, Independent
    >>> result = survey(0.5 * torch.randn(512, 3, 8, 8), [Independent(), KNN(k=8)], batch_size=64, n_batches=8)
    >>> result.rows["KNN(k=8)"]["alignment"].mean > 0.5
    True

    Args:
        data: (N, ...) float tensor of normalised data; or a map-style data set (a torch Dataset) whose items are
            such rows, or tuples that begin with one, followed by their condition.
        couplings: named by their repr, or a mapping from names.
        condition: (N, ...) vectors or (N,) labels (integers) of the data.
        batch_size: what the couplings see at once, as in training.
        seed: of the order of data, and of the noise.
        track: wraps each coupling's loop over batches, for a progress bar.

    Raises:
        TypeError, ValueError: data that no coupling takes (integers: normalise images first), counts out of range,
            two couplings of one name.
    """
    data, condition = as_tensors(data, condition)
    check_arguments(data, condition=condition)
    check_sizes(len(data), batch_size)
    if n_batches < 1:
        raise ValueError(f"n_batches must be at least 1, got {n_batches}")
    named = _named(couplings)
    if data.dtype != torch.float64:
        data = data.float()
    batches = epoch_batches(len(data), batch_size, n_batches, seed)
    facts = _DataFacts(data, condition, batches)
    rows = {name: _measure(coupling, name, facts, seed, track) for name, coupling in named.items()}
    settings = {
        "n_data": len(data),
        "shape": list(data.shape[1:]),
        "mean_square_of_data": float(data.double().square().mean()),
        "mean_norm_of_data": float(torch.linalg.vector_norm(flat_rows(data, torch.float64), dim=1).mean()),
        "batch_size": batch_size,
        "n_batches": n_batches,
        "n_noises": batch_size * n_batches,
        "seed": seed,
        "groups_for_regressions": len(facts.groups),
        "rows_of_a_group": min(rows.stop - rows.start for rows, _ in facts.condition_bases or facts.data_bases),
    }
    return Survey(rows, settings)


def as_tensors(data: Any, condition: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Data (N, ...) and condition of a tensor, or of a map-style data set, which is read whole."""
    if isinstance(data, Tensor):
        return data, condition
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise TypeError(f"data must be a tensor (N, ...) or a data set with len() and [], got {type(data).__name__}")
    items = [data[index] for index in range(len(data))]
    if not items:
        raise ValueError("data must hold at least one item, got an empty data set")
    if not isinstance(items[0], tuple | list):
        return _stacked(items), condition
    stacked = _stacked([item[0] for item in items])
    if condition is None and len(items[0]) > 1:
        condition = _stacked([item[1] for item in items])
    return stacked, condition


def _stacked(parts: list[Any]) -> Tensor:
    """What the items of a data set are made of, as one tensor.

    Raises:
        TypeError: no tensor can be made of a part. ValueError: parts have different shapes.
    """
    try:
        tensors = [torch.as_tensor(part) for part in parts]
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            "data must be a tensor (N, ...) or a data set whose items are rows of data, or tuples (row, condition), of "
            f"tensors, arrays or numbers; of {type(parts[0]).__name__} no tensor can be made ({error})"
        ) from error
    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(shapes) > 1:
        raise ValueError(f"data must have items of one shape, got {shapes[0]} and {shapes[1]}")
    return torch.stack(tensors)


class _DataFacts:
    """What the statistics of every coupling need of data, condition and batches, computed once."""

    def __init__(self, data: Tensor, condition: Tensor | None, batches: Tensor) -> None:
        self.data, self.condition, self.batches = data, condition, batches
        rows = flat_rows(data, data.dtype)
        self.norm = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        dims = torch.full_like(self.norm, rows.shape[1])
        self.expected = torch.cat(
            [expected_distance(*part) for part in zip(self.norm.split(4096), dims.split(4096), strict=True)]
        )
        n_groups = min(_GROUPS, max(1, batches.numel() // _SMALLEST_GROUP), len(batches))
        # Rows of the pooled noise, which lie batch after batch.
        bounds = [round(i * len(batches) / n_groups) * batches.shape[1] for i in range(n_groups + 1)]
        self.groups = [slice(begin, end) for begin, end in itertools.pairwise(bounds)]
        self.data_bases = self._bases(rows)
        self.condition_bases = [] if condition is None else self._bases(regressors_of(condition))
        self.predicted: Tensor | None = None
        if condition is not None:
            predicted = predicted_data(data, condition)
            length = torch.linalg.vector_norm(predicted, dim=1, keepdim=True)
            self.predicted = torch.where(length > 0, predicted / length, 0.0)

    def _bases(self, regressors: Tensor) -> list[tuple[slice, Tensor]]:
        """For each group, the rows that its regression uses and an orthonormal basis of the regressors there."""
        per_batch, drawn = self.batches.shape[1], self.batches.reshape(-1)
        at_most = max(per_batch, _SURE_ROWS, _LARGEST_REGRESSION // regressors.shape[1])
        used = [slice(group.start, min(group.stop, group.start + at_most)) for group in self.groups]
        return [
            (rows, leading_components(regressors[drawn[rows]], max(1, (rows.stop - rows.start) // 4))) for rows in used
        ]


def _measure(coupling: Coupling, name: str, facts: _DataFacts, seed: int, track: Track) -> dict[str, Estimate]:
    """Every statistic of one coupling."""
    per_batch, pool = _couple_batches(coupling, name, facts, seed, track)
    result = {key: _estimate(values) for key, values in per_batch.items() if key in STATISTICS}
    result["from_shorter_noise"] = _share_of_norm(per_batch["norm_fall"], per_batch["product_fall"])
    result["reuse"] = Estimate(share_reused(pool[:, :_KEY_COLUMNS]))
    result["divergence"] = Estimate(divergence_per_datum(coupling))
    shares = [share_explained_by(basis, pool[rows]) for rows, basis in facts.data_bases]
    result["data_skew"] = _estimate(shares)
    if facts.condition is not None:
        shares = [share_explained_by(basis, pool[rows]) for rows, basis in facts.condition_bases]
        result["condition_skew"] = _estimate(shares)
        # KL >= |E[n|c]|^2 / 2 by the Donsker-Varadhan bound with a linear function; the mean over c of |E[n|c]|^2 is
        # at least the variance that a regression on c explains (the mean noise itself would add to it).
        spread = [float(pool[rows].double().var(0).sum()) for rows, _ in facts.condition_bases]
        bounds = [0.5 * share * total for share, total in zip(shares, spread, strict=True)]
        result["condition_divergence"] = _estimate(bounds)
        labels = facts.condition[facts.batches.reshape(-1)]
        if is_labels(facts.condition) and len(torch.unique(labels)) > 1:
            shift = class_shift(pool, labels)
            result["class_shift"] = Estimate(shift.shift)
            result["class_p_value"] = Estimate(shift.p_value)
    distances, p_values = kolmogorov_smirnov(pool)
    result["ks_distance"] = Estimate(float(distances.mean()))
    result["ks_rejected"] = Estimate(float((p_values < 0.05).double().mean()))
    return {key: result.get(key, Estimate(math.nan)) for key in STATISTICS}


def _couple_batches(
    coupling: Coupling, name: str, facts: _DataFacts, seed: int, track: Track
) -> tuple[dict[str, list[float]], Tensor]:
    """Statistics of each batch, and all noises (n_batches * batch_size, D)."""
    values: dict[str, list[float]] = {}
    size = facts.batches.shape[1]
    pool = torch.empty(facts.batches.numel(), facts.data[0].numel(), dtype=facts.data.dtype, device=facts.data.device)
    drawn = coupled_batches(coupling, facts.data, facts.condition, facts.batches, seed, track, name)
    for number, rows, noise in drawn:
        pool[number * size : (number + 1) * size] = noise
        for key, value in _batch_statistics(flat_rows(facts.data[rows], torch.float64), noise, rows, facts):
            values.setdefault(key, []).append(value)
    return values, pool


def _batch_statistics(x: Tensor, noise: Tensor, indices: Tensor, facts: _DataFacts) -> Iterator[tuple[str, float]]:
    n = flat_rows(noise, torch.float64)
    norm, product = facts.norm[indices], (x * n).sum(1)
    distance = float(torch.linalg.vector_norm(x - n, dim=1).mean())
    yield "distance_change", 100.0 * (distance / float(facts.expected[indices].mean()) - 1.0)
    directed = norm > 0
    yield "alignment", float((product[directed] / norm[directed]).mean())
    yield "noise_mean", float(n.mean())
    yield "noise_variance", float(n.var(correction=0))
    square = n.square().sum(1)
    yield "noise_norm", float(square.mean() / n.shape[1])
    yield "norm_fall", n.shape[1] - float(square.mean())
    yield "product_fall", 2.0 * float(product.mean())
    if facts.predicted is not None:
        yield "condition_alignment", float((facts.predicted[indices].double() * n).sum(1).mean())


def _share_of_norm(norm_fall: Sequence[float], product_fall: Sequence[float]) -> Estimate:
    """norm / (norm + product), with a jackknife interval over batches; NaN where the sum may be 0."""
    norm, product = torch.tensor(norm_fall).double(), torch.tensor(product_fall).double()
    total = _estimate((norm + product).tolist())
    if not total.low > 0:
        return Estimate(math.nan)
    n = len(norm)
    left_out = (norm.sum() - norm) / ((norm.sum() - norm) + (product.sum() - product))
    share = float(norm.sum() / (norm.sum() + product.sum()))
    half = _t_quantile(n) * math.sqrt((n - 1) / n * float((left_out - left_out.mean()).square().sum()))
    return Estimate(share, share - half, share + half, n)


def _estimate(values: Sequence[float]) -> Estimate:
    """Mean of independent values with its t interval; NaN values make it NaN."""
    n = len(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    mean = float(tensor.mean())
    if n < 2 or not math.isfinite(mean):
        return Estimate(mean, n=n)
    half = _t_quantile(n) * float(tensor.std()) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def _t_quantile(n: int) -> float:
    from scipy.special import stdtrit  # costs a quarter of a second to import

    return float(stdtrit(n - 1, 0.975))


def _named(couplings: Sequence[Coupling] | Mapping[str, Coupling]) -> dict[str, Coupling]:
    pairs = list(couplings.items()) if isinstance(couplings, Mapping) else [(repr(c), c) for c in couplings]
    if not pairs:
        raise ValueError("couplings must hold at least one coupling, got none")
    for name, coupling in pairs:
        if not isinstance(coupling, Coupling):
            raise TypeError(f"couplings must be Coupling objects such as KNN(k=2), got {type(coupling).__name__}")
        if [other for other, _ in pairs].count(name) > 1:
            raise ValueError(f"couplings must have different names, got {name} twice: give a mapping from names")
    return dict(pairs)
