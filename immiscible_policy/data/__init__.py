"""Demonstrations: replay stores, their download, and action windows for training."""

from immiscible_policy.data.replay import DataError, ReplayData, load_replay
from immiscible_policy.data.windows import ActionWindows, observations_from_replay, split_episodes

__all__ = [
    "ActionWindows",
    "DataError",
    "ReplayData",
    "load_replay",
    "observations_from_replay",
    "split_episodes",
]
