"""Training windows over demonstrations, as in Diffusion Policy (Chi et al., 2023): observation and action
sequences of a fixed horizon, padded at the episode's edges by repeating the edge step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.pusht.vertices import vertices_in_world
from immiscible_policy.data.replay import DataError, ReplayData

# The arrays of a replay store that each type of observation is made from.
REPLAY_ARRAYS = {
    "state": ("state",),
    "keypoints": ("state", "keypoint"),
    "environment_state_agent_pos": ("state",),
    "pixels_agent_pos": ("state", "img"),
}
OBS_TYPES = tuple(REPLAY_ARRAYS)
FLAT_ORDER = ("environment_state", "agent_pos")


class ActionWindows:
    """All windows of `horizon` steps of some episodes, in memory, read in batches by index.

    A window may begin up to `n_obs_steps - 1` steps before its episode and end up to `n_action_steps - 1`
    steps after it: steps beyond an edge repeat the edge step. An episode of L steps gives
    `L - horizon + n_obs_steps + n_action_steps - 1` windows, and none if that is not positive (an episode
    shorter than `horizon - n_obs_steps - n_action_steps + 2` steps), which is the reference implementation's
    rule. At horizon 16 with 2 observation and 8 action steps: L - 7, so 24,208 over PushT's 206 episodes.

    Entry t of a window's actions belongs to the same time as entry t of its observations: the action to
    execute after the last observation is `action[:, n_obs_steps - 1]`.

    Args:
        observation: (N, Do) all steps, episodes end to end; stored as float32. Or a dictionary of such parts, in
            which uint8 parts (N, ...) of any rank (pictures) stay uint8; their memory is shared, not copied.
        action: (N, Da) same; stored as float32.
        episode_ends: (n_episodes,) index one past each episode's last step.
        horizon: length of the action sequence, >= 1.
        n_obs_steps: observations per window, 1..horizon.
        n_action_steps: actions executed per prediction, 1..horizon - n_obs_steps + 1.
        episodes: (n_episodes,) bool, the episodes to use; all if None.
        device: where the tensors live.

    Raises:
        ValueError: an argument out of range, mismatched lengths, or no window at all.
    """

    def __init__(
        self,
        observation: np.ndarray | Tensor | Mapping[str, np.ndarray | Tensor],
        action: np.ndarray | Tensor,
        episode_ends: np.ndarray,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        episodes: np.ndarray | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        _check_steps(horizon, n_obs_steps, n_action_steps)
        ends = np.asarray(episode_ends, dtype=np.int64)
        if ends.ndim != 1 or len(ends) == 0 or (np.diff(ends, prepend=0) <= 0).any():
            raise ValueError(f"episode_ends must be 1-D, positive and increasing, got {ends}")
        self.observation: Tensor | dict[str, Tensor]
        if isinstance(observation, Mapping):
            self.observation = {
                name: _as_steps(f"observation {name}", part, int(ends[-1]), device)
                for name, part in observation.items()
            }
        else:
            self.observation = _as_steps("observation", observation, int(ends[-1]), device)
        self.action = _as_steps("action", action, int(ends[-1]), device)
        self.horizon, self.n_obs_steps, self.n_action_steps = horizon, n_obs_steps, n_action_steps

        selected = _episode_mask(episodes, len(ends))
        step, is_pad = _window_table(ends, selected, horizon, n_obs_steps - 1, n_action_steps - 1)
        if len(step) == 0:
            raise ValueError(
                f"no windows: horizon {horizon} needs an episode of at least"
                f" {max(1, horizon - n_obs_steps - n_action_steps + 2)} steps among the"
                f" {int(selected.sum())} selected"
            )
        self.step_index = torch.from_numpy(step).to(device)  # (n_windows, horizon) row of each entry
        self.is_pad = torch.from_numpy(is_pad).to(device)  # (n_windows, horizon)

    def __len__(self) -> int:
        return len(self.step_index)

    @property
    def device(self) -> torch.device:
        """Where the tensors live; the trainer then draws its indices there."""
        return self.step_index.device

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Windows by number.

        Args:
            indices: (B,) int64 in 0..len(self) - 1.

        Returns:
            `observation` (B, n_obs_steps, Do) and `action` (B, horizon, Da) float32; `action_is_pad`
            (B, horizon) bool, True where the entry repeats an edge step instead of being recorded. In the
            place of `observation`, where it is a dictionary, `observation.<name>` (B, n_obs_steps, ...) for
            each part, in its stored type.
        """
        indices = indices.to(self.step_index.device)
        steps = self.step_index.index_select(0, indices)
        size = len(indices)
        # index_select over flat rows costs about half of fancy indexing at these sizes.
        action = self.action.index_select(0, steps.reshape(-1))
        seen = steps[:, : self.n_obs_steps].reshape(-1)
        if isinstance(self.observation, Tensor):
            parts = {"observation": self.observation}
        else:
            parts = {f"observation.{name}": part for name, part in self.observation.items()}
        histories = {
            name: part.index_select(0, seen).view(size, self.n_obs_steps, *part.shape[1:])
            for name, part in parts.items()
        }
        return {
            **histories,
            "action": action.view(size, self.horizon, -1),
            "action_is_pad": self.is_pad.index_select(0, indices),
        }


def split_episodes(
    n_episodes: int, val_ratio: float, seed: int, max_train_episodes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split by episode, so that no window of a validation episode is trained on.

    The reference implementation's rule and random draws: `round(n_episodes * val_ratio)` episodes, at least
    1 and at most n_episodes - 1, are held out (none for ratio 0); of the rest at most `max_train_episodes`
    are kept, drawn with a fresh generator of the same seed. (The reference then validates on every episode
    that is not trained on; that set is `~train_mask`.)

    Returns:
        (train_mask, val_mask), each (n_episodes,) bool, disjoint.

    Raises:
        ValueError: n_episodes < 1, val_ratio outside [0, 1), max_train_episodes < 1, or a hold-out asked
            from a single episode.
    """
    if n_episodes < 1:
        raise ValueError(f"n_episodes must be at least 1, got {n_episodes}")
    if not 0.0 <= val_ratio < 1.0:
        raise ValueError(f"val_ratio must be in [0, 1), got {val_ratio}")
    if max_train_episodes is not None and max_train_episodes < 1:
        raise ValueError(f"max_train_episodes must be at least 1 or None, got {max_train_episodes}")
    if val_ratio > 0 and n_episodes == 1:
        raise ValueError(
            f"val_ratio {val_ratio} needs at least 2 episodes, got 1: hold none out with dataset.val_ratio=0"
        )

    val_mask = np.zeros(n_episodes, dtype=bool)
    if val_ratio > 0:
        n_val = min(max(1, round(n_episodes * val_ratio)), n_episodes - 1)
        val_mask[np.random.default_rng(seed).choice(n_episodes, size=n_val, replace=False)] = True
    train_mask = ~val_mask
    candidates = np.flatnonzero(train_mask)
    if max_train_episodes is not None and len(candidates) > max_train_episodes:
        kept = np.random.default_rng(seed).choice(len(candidates), size=max_train_episodes, replace=False)
        train_mask = np.zeros(n_episodes, dtype=bool)
        train_mask[candidates[kept]] = True
    return train_mask, val_mask


def observations_from_replay(replay: ReplayData, obs_type: str) -> np.ndarray | dict[str, np.ndarray]:
    """Observations as the PushT environment would have returned them.

    Args:
        replay: recorded steps with the arrays that `REPLAY_ARRAYS` names.
        obs_type: "state" (5): agent xy, block xy in pixels, block angle in [0, 2 pi), whatever was recorded;
            "keypoints" (20): xy of the 9 block keypoints, then agent xy, in pixels;
            "environment_state_agent_pos" (18): xy of the block's 8 vertices, then agent xy, in pixels;
            "pixels_agent_pos": the recorded pictures and agent xy in pixels.

    Returns:
        (n_steps, 5), (n_steps, 20) or (n_steps, 18) float32; for "pixels_agent_pos" a dictionary of `pixels`
        (n_steps, 96, 96, 3) uint8 RGB, the replay's own array, and `agent_pos` (n_steps, 2) float32.

    Raises:
        ValueError: unknown obs_type. DataError: an array that it needs was not loaded.
    """
    if obs_type not in OBS_TYPES:
        raise ValueError(f"obs_type must be one of {', '.join(OBS_TYPES)}, got {obs_type!r}")
    state = _loaded(replay, "state")
    if obs_type == "pixels_agent_pos":
        return {"pixels": _loaded(replay, "img"), "agent_pos": np.ascontiguousarray(state[:, :2], dtype=np.float32)}
    if obs_type == "keypoints":
        keypoint = _loaded(replay, "keypoint")
        return np.concatenate([keypoint.reshape(len(keypoint), -1), state[:, :2]], axis=1, dtype=np.float32)
    if obs_type == "environment_state_agent_pos":
        vertices = vertices_in_world(state[:, 2:])
        return flat_observation({"environment_state": vertices, "agent_pos": state[:, :2]})
    observation = state.astype(np.float32)
    angle = np.mod(state[:, 4].astype(np.float64), 2 * np.pi).astype(np.float32)
    # Rounding to float32 can carry an angle just under 2 pi past it.
    observation[:, 4] = np.where(angle >= 2 * np.pi, np.float32(0), angle)
    return observation


def flat_observation(observation: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
    """Low-dimensional observations (N, D) float32 of an environment; a dictionary's parts in `FLAT_ORDER`."""
    if isinstance(observation, Mapping):
        return np.concatenate([observation[name] for name in FLAT_ORDER], axis=1, dtype=np.float32)
    return np.asarray(observation, np.float32)


def _loaded(replay: ReplayData, name: str) -> np.ndarray:
    if name not in replay.arrays:
        hint = ""
        if name == "img":
            hint = ": it holds no pictures, which image observations are trained on"
        elif "agent_pos" in replay.arrays:
            hint = ": this data set holds no block pose (lerobot/pusht has it in videos only; lerobot/pusht_keypoints"
            hint += " has it in numbers)"
        raise DataError(f"array {name!r} was not loaded from {replay.source}; loaded: {sorted(replay.arrays)}{hint}")
    return replay.arrays[name]


def _check_steps(horizon: int, n_obs_steps: int, n_action_steps: int) -> None:
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}")
    if not 1 <= n_obs_steps <= horizon:
        raise ValueError(f"n_obs_steps must be in 1..horizon={horizon}, got {n_obs_steps}")
    longest = horizon - n_obs_steps + 1
    if not 1 <= n_action_steps <= longest:
        raise ValueError(f"n_action_steps must be in 1..horizon - n_obs_steps + 1 = {longest}, got {n_action_steps}")


def _as_steps(name: str, values: Any, n_steps: int, device: str | torch.device) -> Tensor:
    steps = torch.as_tensor(values)
    is_pictures = steps.dtype == torch.uint8 and steps.ndim > 2
    if not is_pictures:
        steps = steps.to(torch.float32)
    if (steps.ndim != 2 and not is_pictures) or len(steps) != n_steps:
        raise ValueError(f"{name} must have shape ({n_steps}, D), as episode_ends says, got {tuple(steps.shape)}")
    return steps.to(device).contiguous()


def _episode_mask(episodes: np.ndarray | None, n_episodes: int) -> np.ndarray:
    if episodes is None:
        return np.ones(n_episodes, dtype=bool)
    mask = np.asarray(episodes)
    if mask.dtype != bool or mask.shape != (n_episodes,):
        raise ValueError(
            f"episodes must be a bool mask of shape ({n_episodes},), got {mask.dtype} of shape {mask.shape}"
        )
    return mask


def _window_table(
    ends: np.ndarray, selected: np.ndarray, horizon: int, pad_before: int, pad_after: int
) -> tuple[np.ndarray, np.ndarray]:
    """Row of each entry of each window and whether it is padding, both (n_windows, horizon)."""
    begins = np.concatenate([[0], ends[:-1]])
    steps, pads = [np.empty((0, horizon), np.int64)], [np.empty((0, horizon), bool)]
    for begin, end in zip(begins[selected], ends[selected], strict=True):
        first = np.arange(begin - pad_before, end - horizon + pad_after + 1)
        step = first[:, None] + np.arange(horizon)
        steps.append(np.clip(step, begin, end - 1))
        pads.append((step < begin) | (step >= end))
    return np.concatenate(steps), np.concatenate(pads)
