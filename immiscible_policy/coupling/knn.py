"""KNN coupling: each sample takes the nearest of k Gaussian draws, at the price of one draw.

The rule is that of "Improved Immiscible Diffusion" (Li et al. 2025), section 3.3.2: draw k noises for a
sample x and keep the nearest one. Drawing them costs k*B*D normals, which are not needed where the
distance depends on two scalars of each candidate; ``_knn_exact`` has the argument.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from immiscible_policy.coupling import _knn_exact, _knn_explicit
from immiscible_policy.coupling._knn_explicit import Metric
from immiscible_policy.coupling._knn_parts import normalised_features, normalised_weights, parts_of, weight_row
from immiscible_policy.coupling._knn_rows import Rows
from immiscible_policy.coupling.base import Context, Coupling, Source

_METRICS = ("l2", "inner", "cosine", "l1")
# Scalar pairs of a part cost about ten times the normals of an explicit candidate's entry.
_ENTRIES_PER_PART = 10


@dataclass(frozen=True, repr=False)
class KNN(Coupling):
    """Nearest of ``k`` draws of the source, for each sample on its own (no batch needed).

    Candidate 0 is the given (or freshly drawn) noise itself; where it wins, that row comes back bit for
    bit (but for ``correct_norm``). ``k=1`` is therefore :class:`Independent`.

    With ``mask``, distances, norms and D count the valid entries only; the others keep the noise as
    drawn. Half-precision data is coupled in float32, float64 data in float64. Exact candidates take
    O(B*D) time whatever k is, explicit ones O(k*B*D). Memory beyond the result: O(B*k) scalars for exact
    candidates, and work space of about 1 MiB, or of a few rows where those are longer. On a GPU work
    space may be some copies of the batch; the fused kernel of ``_knn_triton``, used where it can be
    (unmasked, unweighted, best of k, at most float32), needs none.

    What selection does to the noise n of a sample x of D entries, e = x/|x|. For every continuous cost
    the law of the best of k differs from the source's by KL = ln k - (k-1)/k nats (0.193 at k=2).

    =========  ==================================  ===================================================
    metric     mean along e                        norm
    =========  ==================================  ===================================================
    "l2"       about E_k f, f^2 = 2|x|^2/(D +      shorter: E|n|^2/D = 0.90 at D=32, |x|=4, k=2; with
               2|x|^2): the cost's variance is     ``correct_norm`` exactly chi_D again
               4|x|^2 from e and 2D from the norm
    "inner"    E_k, the mean of the largest of k   E|n|^2 = D at k=2 (all second moments are those of
               normals: 0.56 (2), 1.42 (8)         N(0, I), not the law); longer along e for larger k
    "cosine"   E_k in high dimension, less in low  untouched: chi_D, independent of the direction
    "l1"       nearly as "l2"                      shorter, as "l2"
    =========  ==================================  ===================================================

    >>> actions, mask = torch.randn(64, 16, 2), torch.ones(64, 16, 1, dtype=torch.bool)
    >>> noise = KNN(k=2)(actions, mask=mask)
    >>> noise = KNN(k=8, metric="inner", features={1: range(8)})(actions)  # the first eight steps decide

    Args:
        k: number of candidates, an integer >= 1. With ``metric="inner"``, exact candidates and
            ``pick="best"`` any real number >= 1: the candidates' maximum then has the law Phi(g)^k.
        metric: "l2" keeps the draw nearest in Euclidean distance, the published rule. "inner" keeps the
            draw with the largest <x, n>, "cosine" with the largest <x, n>/|n|, "l1" with the least sum
            of absolute differences. Or a function ``(data (b, ...), noise (b, ...)) -> (b,)`` cost of
            each row on its own, lower is nearer and NaN farthest, called with blocks of rows in the dtype of the
            computation; entries that do not count are zero in both.
        candidates: "exact" draws scalars for all candidates but the first, "explicit" really draws the
            candidates one after the other. Same law. "auto": exact where the law allows it ("l2",
            "inner", "cosine" with the Gaussian source), unless ``weights`` have so many distinct values
            that this takes longer; explicit otherwise.
        pick: "best", or an integer m from 1 to k for a random one of the best m, each as likely.
        source: distribution of the noise, ``(shape, generator) -> tensor``; None is N(0, I). Candidates
            of another source are explicit.
        features: the entries that take part: axis >= 1 of data -> indices along it, as in
            ``{1: [0, 1, 2, 3]}`` for the first four time steps of (B, T, A). Several axes: their product.
            Entries outside keep their noise as drawn.
        weights: axis >= 1 of data -> one weight >= 0 for each entry along it, several axes multiply:
            sum w (x - n)^2, sum w x n, sum w |x - n|, or the cosine under the inner product sum w x n.
            Entries of weight 0 take no part.
        correct_norm: give the chosen noise a fresh chi_D norm over the entries that count, independent
            of the data, by rescaling what is orthogonal to x: alignment <n, e> is kept. In rows where
            that is impossible (<n, e>^2 above the new norm's square, or D=1) all of n is rescaled.
            "l2" without weights only.

    Raises:
        TypeError, ValueError: on construction, for an argument outside these ranges; on call where
            ``features`` or ``weights`` do not fit the shape of data.
    """

    k: int | float = 2
    metric: Literal["l2", "inner", "cosine", "l1"] | Metric = "l2"
    candidates: Literal["auto", "exact", "explicit"] = "auto"
    pick: Literal["best"] | int = "best"
    source: Source | None = None
    features: Mapping[int, Sequence[int]] | None = None
    weights: Mapping[int, Sequence[float]] | None = None
    correct_norm: bool = False

    def __post_init__(self) -> None:
        if self.metric not in _METRICS and not callable(self.metric):
            allowed = "'l2', 'inner', 'cosine', 'l1' or a function (data, noise) -> cost"
            raise ValueError(f"metric must be {allowed}, got {self.metric!r}")
        if self.candidates not in ("auto", "exact", "explicit"):
            raise ValueError(f"candidates must be 'auto', 'exact' or 'explicit', got {self.candidates!r}")
        if self.source is not None and not callable(self.source):
            raise TypeError(f"source must be a function (shape, generator) -> tensor or None, got {self.source!r}")
        if self.candidates == "exact" and self._why_not_exact is not None:
            raise ValueError(f"candidates='exact' is impossible {self._why_not_exact}; use 'auto' or 'explicit'")
        self._check_counts()
        # Tuples instead of mappings, so that a coupling is hashable.
        object.__setattr__(self, "features", normalised_features(self.features))
        object.__setattr__(self, "weights", normalised_weights(self.weights))
        if self.weights is not None and callable(self.metric):
            raise ValueError("weights must be None where metric is a function (which can weight by itself)")
        self._check_correct_norm()

    def _check_counts(self) -> None:
        exact_inner = self.metric == "inner" and self._why_not_exact is None and self.candidates != "explicit"
        real_allowed = exact_inner and self.pick == "best"
        allowed = "a real number >= 1" if real_allowed else "an integer >= 1"
        kind = numbers.Real if real_allowed else numbers.Integral
        if isinstance(self.k, bool) or not isinstance(self.k, kind):
            raise TypeError(f"k must be {allowed}, got {self.k!r} of type {type(self.k).__name__}")
        if not 1 <= self.k < math.inf:
            raise ValueError(f"k must be {allowed}, got {self.k!r}")
        if self.pick != "best":
            is_integer = isinstance(self.pick, numbers.Integral) and not isinstance(self.pick, bool)
            if not is_integer or not 1 <= self.pick <= self.k:
                raise ValueError(f"pick must be 'best' or an integer from 1 to k={self.k!r}, got {self.pick!r}")

    def _check_correct_norm(self) -> None:
        if not isinstance(self.correct_norm, bool):
            raise TypeError(f"correct_norm must be True or False, got {self.correct_norm!r}")
        if not self.correct_norm:
            return
        if self.metric != "l2":
            reason = {
                "cosine": "which leaves the norm as it is",
                "inner": "which does not select short noise (at k=2 the mean of |n|^2 is that of N(0, I))",
            }
            name = repr(self.metric) if isinstance(self.metric, str) else "a function"
            why = reason.get(name.strip("'"), "which has no direction along which alignment could be kept")
            raise ValueError(f"correct_norm must be False for metric {name}, {why}")
        if self.weights is not None or self.source is not None:
            culprit = "weights" if self.weights is not None else "a source other than N(0, I)"
            raise ValueError(f"correct_norm must be False with {culprit}: it restores the chi law of the plain norm")

    @property
    def _why_not_exact(self) -> str | None:
        if self.source is not None:
            return "with a source other than N(0, I), whose direction and norm are not independent"
        if self.metric == "l1":
            return "with metric='l1', which does not depend on two scalars of a candidate alone"
        if callable(self.metric):
            return "with a function as metric, which may depend on all of a candidate"
        return None

    @property
    def is_rowwise(self) -> bool:
        return True

    @property
    def caveat(self) -> str | None:
        if self.k == 1 or self.pick == self.k:
            return None
        count = "the best" if self.pick in ("best", 1) else f"one of the best {self.pick}"
        chosen = f"{count} of k={self.k} draws"
        if self.correct_norm:
            chosen += ", its norm drawn anew"
        elif self.pick in ("best", 1):
            chosen += f" (up to {math.log(self.k) - (self.k - 1) / self.k:.3f} nats from the source)"
        return (
            f"Given its sample, the training noise is {chosen}, which leans towards the sample; "
            "sampling starts from the source itself."
        )

    def _couple(self, data: Tensor, noise: Tensor | None, context: Context) -> Tensor:
        shape = tuple(data.shape[1:])
        features: Any = self.features
        weights: Any = self.weights
        parts = parts_of(features, weights, shape, data.device)  # checks both before anything is drawn
        drawn = self._drawn(data, noise, context)
        if self.k == 1:
            return drawn
        # A source may keep what it returns, and a given noise is never modified.
        out = drawn if noise is None and self.source is None else None
        weighted = parts[0].columns is not None
        rows = Rows(data, drawn, context.mask, weighted)
        pick = 1 if self.pick == "best" else int(self.pick)
        generator = context.generator
        if self._is_explicit(len(parts), shape):
            row = weight_row(features, weights, shape, data.device)

            def draw(shape: tuple[int, ...], like: Tensor) -> Tensor:
                return self._draw(shape, like, context)

            result = _knn_explicit.nearest(rows, row, self.metric, int(self.k), pick, draw, generator, out)
            if not self.correct_norm:
                return result
            corrected = Rows(data, result, context.mask, weighted)
            return _knn_exact.with_fresh_norm(corrected, parts[0].columns, generator, result)
        assert isinstance(self.metric, str)
        if pick == 1 and context.mask is None and not weighted and not self.correct_norm:
            kernel = _kernel_for(data)
            if kernel is not None:
                fused: Tensor = kernel.nearest(data, drawn, self.metric, float(self.k), generator, out)
                return fused
        if self.metric == "inner":
            row = weight_row(features, weights, shape, data.device)
            return _knn_exact.most_aligned(rows, row, float(self.k), pick, generator, out)
        return _knn_exact.nearest(rows, parts, self.metric, int(self.k), pick, self.correct_norm, generator, out)

    def _is_explicit(self, parts: int, shape: tuple[int, ...]) -> bool:
        if self.candidates != "auto":
            return self.candidates == "explicit"
        if self._why_not_exact is not None:
            return True
        return self.metric != "inner" and parts > 1 and parts * _ENTRIES_PER_PART > math.prod(shape)


def _kernel_for(data: Tensor) -> ModuleType | None:
    """The fused GPU kernel's module where it serves ``data``, None where the plain form has to."""
    if not data.is_cuda or data.dtype == torch.float64:
        return None
    module = _fused()
    return module if module is not None and module.works_on(data.device) else None


@functools.cache
def _fused() -> ModuleType | None:
    try:
        from immiscible_policy.coupling import _knn_triton
    except ImportError:  # triton comes with the CUDA builds of torch only
        return None
    return _knn_triton
