"""The last observations of many worlds, as a policy takes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from immiscible_policy.data.windows import flat_observation

PICTURES = "pixels"


class ObservationHistory:
    """The last ``n_obs_steps`` observations of N worlds, oldest first, beginning with the first one repeated.

    Args:
        observation: the first one of a vector environment: numbers (N, D) or a dictionary of them, which are kept as
            one float32 row each (see ``flat_observation``); or a dictionary with ``pixels`` (N, H, W, 3) uint8, whose
            parts are kept apart, pictures as they are and the rest as float32.
        n_obs_steps: length of the history, at least 1.
    """

    def __init__(self, observation: np.ndarray | Mapping[str, np.ndarray], n_obs_steps: int) -> None:
        if n_obs_steps < 1:
            raise ValueError(f"n_obs_steps={n_obs_steps}: must be at least 1")
        self.has_pictures = isinstance(observation, Mapping) and PICTURES in observation
        self._steps = {
            name: np.repeat(part[:, None], n_obs_steps, axis=1) for name, part in self._parts(observation).items()
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """One observation of one world: the shape of each part, or of ``observation`` where there is only one."""
        return {name: steps.shape[2:] for name, steps in self._steps.items()}

    def push(self, observation: np.ndarray | Mapping[str, np.ndarray]) -> None:
        """Take the next observation of all worlds; the oldest one goes."""
        for name, part in self._parts(observation).items():
            steps = self._steps[name]
            steps[:, :-1] = steps[:, 1:]
            steps[:, -1] = part

    def rows(self, indices: Any, device: torch.device | str = "cpu") -> Tensor | dict[str, Tensor]:
        """Copies of some worlds' histories: (n, n_obs_steps, D) float32, or a dictionary of (n, n_obs_steps, ...).

        Args:
            indices: (n,) integers, or a (N,) bool mask.
        """
        parts = {name: torch.from_numpy(steps[np.asarray(indices)]).to(device) for name, steps in self._steps.items()}
        return parts if self.has_pictures else parts["observation"]

    def _parts(self, observation: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not (self.has_pictures and isinstance(observation, Mapping)):
            return {"observation": flat_observation(observation)}
        return {name: np.asarray(part, None if name == PICTURES else np.float32) for name, part in observation.items()}
