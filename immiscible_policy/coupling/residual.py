"""Residual: pairs noise with what the condition leaves open of the data, so that it does not tell of the noise.

A conditional model samples from p(noise) = N(0, I), but was trained on p(noise | condition). A coupling pairs noise
with data, and where the condition nearly fixes the data (an observation and the action that follows it)
p(noise | condition) is no N(0, I). What is left of the data when its regression on the condition is taken off (as
Robinson does, "Root-N-Consistent Semiparametric Regression", Econometrica 1988) has mean 0 given the condition, and so
has the noise that is paired with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from immiscible_policy.coupling._checks import check_arguments
from immiscible_policy.coupling._settings import require_count
from immiscible_policy.coupling._state import on_device
from immiscible_policy.coupling.base import FIT_ARGUMENTS, Context, Coupling
from immiscible_policy.coupling.condition_regression import KINDS, Fitted, fit_regression, predict
from immiscible_policy.coupling.wrapper import Wrapper


@dataclass(frozen=True, repr=False)
class Residual(Wrapper):
    """Couples noise with ``data - E[data | condition]``, by a regression that :meth:`fit` makes before training.

    With ``KNN(k=2, metric="inner")`` and residuals that are as likely as their negatives given the condition, the noise
    is exactly N(0, I) given the condition: along the residual's direction u it has density 2 phi(z) Phi(z), and the two
    signs of u average to phi(z) (Phi(z) + Phi(-z)) = phi(z). Its mean along the residual is still 0.56 standard
    deviations. Other couplings keep the mean 0 given the condition, but not the variance.

    >>> import torch
    >>> from immiscible_policy.coupling import KNN
    >>> condition = torch.randn(4096, 3)
    >>> data = condition.repeat(1, 4) + 0.1 * torch.randn(4096, 12)
    >>> coupling = Residual(KNN(k=2, metric="inner"))
    >>> coupling.fit(data, condition)
    >>> noise = coupling(data[:64], condition=condition[:64])

    Args:
        coupling: pairs the residuals with noise.
        n_features: random Fourier features of vector conditions, >= 0, by which the regression is not only linear (0 is
            linear regression). Labels take class means; without conditions the mean of the data is taken off.
        seed: of these features.

    Raises:
        TypeError, ValueError: an argument is something else; on call, ``condition`` is not of the kind fitted with.
        RuntimeError: called before :meth:`fit`.
    """

    coupling: Coupling
    n_features: int = 512
    seed: int = 0
    _state: Fitted = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._require_coupling()
        require_count("n_features", self.n_features, least=0)
        require_count("seed", self.seed, least=0)

    def fit(self, data: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Fit the regression of data on condition, and the coupling to the residuals.

        Args:
            data: (N, ...) the data set.
            condition: (N, ...) vectors or (N,) labels.
            mask: bool tensor broadcastable to data, as calls are given: entries are regressed over the data where they
                count, so that residuals have mean 0 there whatever padding holds (NaN too).
        """
        if mask is not None:
            check_arguments(data, mask=mask)
        self._state.clear()
        self._state.update(fit_regression(data, condition, self.n_features, self.seed, mask))
        super().fit(self._residual(data, condition), condition, mask)

    @property
    def fit_uses(self) -> frozenset[str]:
        return FIT_ARGUMENTS | {"mask"}

    def _couple(self, data: Tensor, noise: Tensor | None, context: Context) -> Tensor:
        residual = data if data.numel() == 0 else self._residual(data, context.condition)
        return self._by(self.coupling, residual, noise, context)

    def _residual(self, data: Tensor, condition: Tensor | None) -> Tensor:
        """What the condition leaves open of the data, in its shape and dtype."""
        if not self._state:
            raise RuntimeError(
                "Residual must be fitted before it is used: call fit(data, condition) with the data set, or load its "
                "state"
            )
        fitted = on_device(self._state, data.device)
        predicted = predict(fitted, None if condition is None else condition.to(data.device), len(data))
        if data[0].numel() != predicted.shape[1]:
            raise ValueError(
                f"data must have the {predicted.shape[1]} entries a row that Residual was fitted with, got "
                f"{tuple(data.shape)}"
            )
        return data - predicted.view(data.shape).to(data.dtype)

    @property
    def caveat(self) -> str | None:
        inner = self.coupling.caveat
        return None if inner is None else f"Of what the condition leaves open of the data: {inner}"

    def for_validation(self) -> Residual:
        return self._around(self.coupling.for_validation())

    def at_inference(self) -> Coupling:
        if not self._state:
            raise ValueError(
                f"{self} was fitted to the training data, and without that cannot choose noise for new data"
            )
        return self._around(self.coupling.at_inference())

    def _around(self, coupling: Coupling) -> Residual:
        """Another coupling with the same regression."""
        twin = replace(self, coupling=coupling)
        twin._state.update(self._state)
        return twin

    def state_dict(self) -> dict[str, Any]:
        regression = {name: value.cpu().clone() for name, value in self._state.items()}
        return {"regression": regression, "coupling": self.coupling.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: ``state`` is not that of a residual's coupling.
        """
        if set(state) != {"regression", "coupling"}:
            raise ValueError(f"state of Residual must hold regression and coupling, got the keys {sorted(state)}")
        regression = dict(state["regression"])
        if regression and set(regression) not in KINDS:
            raise ValueError(f"regression of Residual holds {sorted(regression)}, which no fit leaves")
        self.coupling.load_state_dict(state["coupling"])
        self._state.clear()
        self._state.update(regression)
