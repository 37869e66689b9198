"""Trained policies to play with, by name, and the environment of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from envs.pusht.playground import PlaygroundEnv
from immiscible_policy.policy import DiffusionPolicy, load_policy
from immiscible_policy.policy_run import last_policy_folder

ENV_ID = "envs:immiscible/PushT-v0"


class NamedPolicy(NamedTuple):
    """A policy under the name that the person sees."""

    name: str
    policy: DiffusionPolicy


def playground(named: NamedPolicy, legacy: bool | None = None) -> PlaygroundEnv:
    """The environment that a policy was trained for; ValueError if that is not PushT."""
    task = named.policy.task
    if task.get("env_id") != ENV_ID or "obs_type" not in task:
        raise ValueError(f"{named.name}: its task is {task}; this is for policies of {ENV_ID}")
    goal: dict[str, Any] = {} if task.get("goal_pose") is None else {"goal_pose": tuple(task["goal_pose"])}
    return PlaygroundEnv(task["obs_type"], legacy=task.get("legacy", False) if legacy is None else legacy, **goal)


def load_policies(folders: Sequence[Path], device: str = "cpu") -> list[NamedPolicy]:
    """The policies in policy folders, or the last ones of run folders; ValueError for a folder that is neither."""
    return [load_named(folder, device) for folder in folders]


def load_named(folder: Path, device: str) -> NamedPolicy:
    """A policy named by its folder, and by its run's if it lies in one."""
    found = last_policy_folder(folder)
    place = found.resolve()
    name = f"{place.parent.parent.name} {place.name}" if place.parent.name == "checkpoints" else place.name
    return NamedPolicy(name, load_policy(found, device))
