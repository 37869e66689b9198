"""Demonstrations made by `envs.pusht.demonstrator`, written as a replay store: no download, any number of them."""

import math
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from envs.pusht.demonstrator import Demonstration, Demonstrator, DemonstratorConfig
from envs.pusht.geometry import GOAL_POSE, Pose
from envs.pusht.keypoints import BLOCK_KEYPOINTS
from envs.pusht.physics import World
from envs.pusht.pixels import PixelObserver
from envs.pusht.task import initial_state
from envs.pusht.vertices import points_in_world
from immiscible_policy.data.replay import DataError, load_replay
from immiscible_policy.data.replay_writer import ReplayWriter, read_attributes

# Changes when the same seed would give other demonstrations.
VERSION = 1
# An unlucky demonstrator must end.
LARGEST_SHARE_UNSOLVED = 0.5


def generate_demonstrations(
    path: str | Path,
    n_episodes: int = 200,
    seed: int = 0,
    images: bool = False,
    goal_pose: Pose = GOAL_POSE,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Write `n_episodes` solved episodes to a replay store; the first n are the same however many are asked for.

    Each is appended as soon as it and those before it are there, so a killed call loses seconds of work: the next one
    with the same arguments goes on, and one with more episodes extends the store. Episode i starts at a state drawn
    from (seed, i), placed as the published evaluations and the human demonstrations place theirs. Attempts that do
    not solve the task are left out.

    Args:
        path: of the store, as the human demonstrations' (`immiscible_policy.data.replay`). Its attributes say how it
            was made.
        n_episodes: at least 1.
        seed: at least 0.
        images: also store what the camera sees, (96, 96, 3) a step.
        goal_pose: where the block belongs.
        processes: workers; all cores by default. The result does not depend on it.

    Raises:
        ValueError: an argument out of range.
        DataError: what is at `path` was made otherwise.
    """
    for name, value, least in (("n_episodes", n_episodes, 1), ("seed", seed, 0), ("processes", processes or 1, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; allowed: an integer of at least {least}")
    path = Path(path).expanduser()
    attributes = _attributes(seed, images, goal_pose)
    _check_made_alike(path, attributes)
    writer = ReplayWriter(path, attributes)
    first = _attempts_made(path, seed) if writer.n_episodes else 0
    if writer.n_episodes >= n_episodes:
        return path
    observer = PixelObserver(goal_pose=goal_pose) if images else None
    with ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=n_episodes, initial=writer.n_episodes, desc="demonstrate", unit="episode", disable=not progress)
        )
        attempts, solved = first, writer.n_episodes
        for demonstration in stack.enter_context(_Attempts(seed, first, goal_pose, processes)):
            attempts += 1
            if demonstration.solved:
                writer.append(_arrays(demonstration, observer))
                solved += 1
                bar.update()
            bar.set_postfix(solved=f"{solved / attempts:.0%}", refresh=False)
            if solved == n_episodes:
                return path
            if attempts - solved > max(10, LARGEST_SHARE_UNSOLVED * attempts):
                raise DataError(
                    f"the demonstrator solved {solved} of {attempts} initial states for goal_pose={goal_pose}: "
                    "is the goal within reach?"
                )
    raise AssertionError("attempts do not end")


class _Attempts:
    """Demonstrations number first, first + 1, ... in this order, from worker processes."""

    def __init__(self, seed: int, first: int, goal_pose: Pose, processes: int | None) -> None:
        self._jobs = ((seed, number, goal_pose) for number in _count(first))
        self._processes = processes or os.cpu_count() or 1

    def __enter__(self) -> Iterator[Demonstration]:
        if self._processes == 1:
            self._pool = None
            return (_attempt(*job) for job in self._jobs)
        # Forked workers start at once; where there is no fork they import everything first.
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
        self._pool = multiprocessing.get_context(method).Pool(self._processes)
        return self._ahead()

    def _ahead(self) -> Iterator[Demonstration]:
        """As `Pool.imap`, which would take up endless jobs all at once."""
        assert self._pool is not None
        waiting = [self._pool.apply_async(_attempt, next(self._jobs)) for _ in range(3 * self._processes)]
        while True:
            yield waiting.pop(0).get()
            waiting.append(self._pool.apply_async(_attempt, next(self._jobs)))

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()


def _count(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


def _attempt(seed: int, number: int, goal_pose: Pose) -> Demonstration:
    return _demonstrator(goal_pose).demonstrate(initial_state(_state_seed(seed, number)), legacy=True)


@cache
def _demonstrator(goal_pose: Pose) -> Demonstrator:
    return Demonstrator(goal_pose=goal_pose)


def _state_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _arrays(demonstration: Demonstration, observer: PixelObserver | None) -> dict[str, np.ndarray]:
    states = demonstration.states
    arrays: dict[str, np.ndarray] = {
        "state": states.astype(np.float32),
        "action": demonstration.actions.astype(np.float32),
        "keypoint": points_in_world(BLOCK_KEYPOINTS, states[:, 2:]).astype(np.float32),
        "n_contacts": demonstration.n_contacts[:, None].astype(np.float32),
    }
    if observer is not None:
        arrays["img"] = observer(states[:, :2], states[:, 2:])
    return arrays


def _attributes(seed: int, images: bool, goal_pose: Pose) -> dict[str, Any]:
    return {
        "made_by": "envs.pusht.demonstrator",
        "version": VERSION,
        "seed": seed,
        "images": images,
        "goal_pose": list(goal_pose),
        "legacy": True,
        "config": asdict(DemonstratorConfig()),
    }


def _check_made_alike(path: Path, attributes: dict[str, Any]) -> None:
    if not path.exists():
        return
    found = read_attributes(path)
    differing = [name for name, value in attributes.items() if found.get(name) != value]
    if differing:
        name = differing[0]
        raise DataError(
            f"{path} holds demonstrations made otherwise ({name} is {found.get(name)!r} there, {attributes[name]!r} is "
            "asked for): choose another path, or remove it"
        )


def _attempts_made(path: Path, seed: int) -> int:
    """How many attempts led to the episodes of a store: unsolved ones between them left no trace but their turn."""
    replay = load_replay(path, ("state",))
    number, world = 0, World()
    for episode in range(replay.n_episodes):
        begin = replay.arrays["state"][replay.episode(episode).start]
        while True:
            world.place(initial_state(_state_seed(seed, number)).tolist(), position_first=True)
            number += 1
            there = (*world.agent.position, *world.block.position, world.block.angle)
            if math.dist(there, begin.tolist()) < 1e-2:
                break
            if number > 10 * (replay.n_episodes + 10):
                raise DataError(f"{path}: episode {episode} does not start at a state of seed {seed}")
    return number
