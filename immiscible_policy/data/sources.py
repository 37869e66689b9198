"""Where the demonstrations of a training run come from: a given path, the human set, or the demonstrator."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.pusht.geometry import GOAL_POSE, Pose
from immiscible_policy.data.generate import generate_demonstrations
from immiscible_policy.data.lerobot import is_lerobot, load_lerobot
from immiscible_policy.data.lerobot_files import read_info
from immiscible_policy.data.replay import DataError, ReplayData, load_replay
from immiscible_policy.data.replay_writer import read_attributes


@dataclass(frozen=True)
class DemonstratorSet:
    """Generated demonstrations: the first `n_episodes` of `seed`, kept at `path`, for a goal."""

    path: str
    n_episodes: int = 200
    seed: int = 0
    goal_pose: Pose = GOAL_POSE


def demonstrations_text(source: Mapping[str, Any]) -> str:
    """The demonstrations that a run recorded, in a few words: ``206 of human.zarr``, ``25 of the 206 of human.zarr``.

    The number leaves out what a training holds out for validation, but not that it was limited to fewer.
    """
    limit, all_of_them = source.get("max_train_episodes"), f"{source['n_episodes']} of {Path(str(source['path'])).name}"
    return all_of_them if limit is None or limit >= source["n_episodes"] else f"{limit} of the {all_of_them}"


def locate_demonstrations(
    path: str | None,
    human: str | None,
    demonstrator: DemonstratorSet | None,
    announce: Callable[[str], None] = print,
) -> tuple[Path, int | None]:
    """The folder to read, and how many of its first episodes to use (None: all).

    `path`, where given, is taken; else the human demonstrations, if they are at `human` and the demonstrator's are not
    for another goal than theirs; else the demonstrator's, which are made now where they are not there. `announce` is
    told in one line which, unless a path was given.

    Raises:
        ValueError: none of the three is given. DataError: see `generate_demonstrations`.
    """
    if path is not None:
        return Path(path).expanduser(), None
    elsewhere = demonstrator is not None and demonstrator.goal_pose != GOAL_POSE
    if human is not None and Path(human).expanduser().exists() and not elsewhere:
        announce(f"demonstrations: the human ones at {human}")
        return Path(human).expanduser(), None
    if demonstrator is None:
        raise ValueError("dataset: give a path, the human demonstrations or the demonstrator's")
    instead = "" if human is None else f" (no human ones at {human}: scripts/download_pusht.py gets them)"
    if elsewhere:
        instead = "" if human is None else " (the human ones are for another goal)"
    announce(f"demonstrations: {demonstrator.n_episodes} of the demonstrator at {demonstrator.path}{instead}")
    generated = generate_demonstrations(
        demonstrator.path, demonstrator.n_episodes, demonstrator.seed, goal_pose=demonstrator.goal_pose
    )
    return generated, demonstrator.n_episodes


def goal_of(path: str | Path) -> Pose | None:
    """The goal pose (x, y in pixels, angle) that demonstrations are for; None where they do not say.

    Stores of this package say, and LeRobot data sets that it wrote.

    Raises:
        DataError: there are none, or what they say is no pose.
    """
    path = Path(path).expanduser()
    goal = (read_info(path) if is_lerobot(path) else read_attributes(path)).get("goal_pose")
    if goal is None:
        return None
    try:
        x, y, angle = (float(value) for value in goal)
    except (TypeError, ValueError):
        raise DataError(f"{path}: goal_pose is {goal!r}; allowed: three numbers, x, y and an angle") from None
    return x, y, angle


def goal_setting(goal: Pose) -> str:
    """The setting of `scripts/train_policy.py` for a goal, as it is given on a command line."""
    return f"'task.goal_pose=[{','.join(map(str, goal))}]'"


def training_command(path: Path, n_episodes: int, goal: Pose = GOAL_POSE) -> str:
    """The command that trains on demonstrations for a goal, for a shell."""
    settings = [shlex.quote(f"dataset.path={path}")]
    # None can be held out where there is one.
    settings += ["dataset.val_ratio=0"] if n_episodes == 1 else []
    settings += [] if goal == GOAL_POSE else [goal_setting(goal)]
    return f"python scripts/train_policy.py {' '.join(settings)}"


def load_demonstrations(path: Path, arrays: tuple[str, ...], n_episodes: int | None = None) -> ReplayData:
    """A replay store, or a LeRobot data set of which everything is read; only its first `n_episodes`, where given."""
    replay = load_lerobot(path) if is_lerobot(path) else load_replay(path, arrays)
    return replay if n_episodes is None else replay.first(n_episodes)
