"""Demonstrations made by `envs.pusht.demonstrator`, written as a replay store: no download, any number of them."""

import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import count
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from envs.pusht.demonstrator import Demonstration, Demonstrator, DemonstratorConfig
from envs.pusht.geometry import GOAL_POSE, Pose
from envs.pusht.keypoints import BLOCK_KEYPOINTS
from envs.pusht.physics import World
from envs.pusht.pixels import PixelObserver
from envs.pusht.task import checked_goal, initial_state, wrapped
from envs.pusht.vertices import points_in_world
from immiscible_policy.checks import is_integer
from immiscible_policy.data.replay import DataError, load_replay
from immiscible_policy.data.replay_writer import ReplayWriter, read_attributes
from immiscible_policy.files import alone

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
    with the same arguments goes on, and one with more episodes extends the store. Attempt i starts at a state drawn
    from (seed, i), placed as the published evaluations and the human demonstrations place theirs; the episodes are, in
    this order, the attempts that solve the task.

    Args:
        path: of the store, as the human demonstrations' (`immiscible_policy.data.replay`). Its attributes say how it
            was made.
        n_episodes: at least 1.
        seed: at least 0.
        images: also store what the camera sees, (96, 96, 3) a step; a store that has it goes on with it anyway.
        goal_pose: where the block belongs.
        processes: workers; all cores by default. The result does not depend on it.

    Raises:
        ValueError: an argument out of range.
        DataError: what is at `path` was made otherwise, or the demonstrator does not reach the goal.
        OSError: the store cannot be written, or a worker was killed; what was stored before is still there.
    """
    least = {"n_episodes": (n_episodes, 1), "seed": (seed, 0), "processes": (1 if processes is None else processes, 1)}
    for name, (value, bound) in least.items():
        if not is_integer(value, bound):
            raise ValueError(f"{name} is {value!r}; allowed: an integer of at least {bound}")
    goal_pose = checked_goal(goal_pose)
    path = Path(path).expanduser()
    images = images or (path.exists() and read_attributes(path).get("images") is True)
    attributes = _attributes(seed, images, goal_pose)
    # Without a writer: another process may be extending what is long enough here.
    if _episodes_there(path, attributes) < n_episodes:
        with alone(path, "another process that makes demonstrations"):
            _extend(path, attributes, n_episodes, _Attempts(seed, goal_pose, processes), progress)
    return path


def _extend(path: Path, attributes: dict[str, Any], n_episodes: int, attempts: "_Attempts", progress: bool) -> None:
    """Appends to the store until it holds `n_episodes`."""
    solved, goal_pose = _episodes_there(path, attributes), attempts.goal_pose
    made = _attempts_made(path, attempts.seed) if solved else 0
    if solved >= n_episodes:
        return
    writer = ReplayWriter(path, attributes)
    observer = PixelObserver(goal_pose=goal_pose) if attributes["images"] else None
    with ExitStack() as stack:
        bar = tqdm(total=n_episodes, initial=solved, desc="demonstrate", unit="episode", disable=not progress)
        stack.enter_context(bar)
        for demonstration in stack.enter_context(attempts.since(made)):
            made += 1
            # Where the block starts at its goal there is nothing to show.
            if demonstration.solved and len(demonstration.actions):
                writer.append(_arrays(demonstration, observer))
                solved += 1
                bar.update()
            bar.set_postfix(solved=f"{solved / made:.0%}", refresh=False)
            if solved == n_episodes:
                return
            if made - solved > max(10, LARGEST_SHARE_UNSOLVED * made):
                raise DataError(
                    f"the demonstrator solved {solved} of {made} initial states for goal_pose={goal_pose}: "
                    "is the goal within reach?"
                )


class _Attempts:
    """Demonstrations from the initial states of a seed, made in worker processes.

    Args:
        seed, goal_pose: see `generate_demonstrations`.
        processes: workers; None for as many as there are cores.
    """

    def __init__(self, seed: int, goal_pose: Pose, processes: int | None) -> None:
        self.seed, self.goal_pose, self._processes = seed, goal_pose, processes or _cores()

    @contextmanager
    def since(self, first: int) -> Iterator[Iterator[Demonstration]]:
        """Those number first, first + 1, ... without end, in this order."""
        jobs = ((self.seed, number, self.goal_pose) for number in count(first))
        if self._processes == 1:
            yield (_attempt(*job) for job in jobs)
            return
        # Forked workers start at once. Elsewhere than on Linux, system libraries do not survive a fork.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        others = _children()
        pool = context.Pool(self._processes, _start_worker)
        try:
            yield self._ahead(pool, jobs, _children() - others)
        finally:
            pool.terminate()
            pool.join()

    def _ahead(self, pool: Pool, jobs: Iterator[tuple[int, int, Pose]], workers: set[int]) -> Iterator[Demonstration]:
        """As `Pool.imap`, which would take up endless jobs all at once, and wait forever for a worker that is dead."""
        waiting = [pool.apply_async(_attempt, next(jobs)) for _ in range(3 * self._processes)]
        while True:
            result = waiting.pop(0)
            while not result.ready():
                result.wait(0.5)
                if not workers <= _children():
                    raise ChildProcessError("a worker process was killed (out of memory?): use fewer processes")
            yield result.get()
            waiting.append(pool.apply_async(_attempt, next(jobs)))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def _start_worker() -> None:
    # Ctrl-C reaches every process of the terminal; the parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A parent that is killed cannot.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _attempt(seed: int, number: int, goal_pose: Pose) -> Demonstration:
    # A new one each time: the worlds in which it plans remember, in the last digits, what was planned in them before.
    return Demonstrator(goal_pose=goal_pose).demonstrate(initial_state(_state_seed(seed, number)), legacy=True)


def _state_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _arrays(demonstration: Demonstration, observer: PixelObserver | None) -> dict[str, np.ndarray]:
    states = demonstration.states
    # As the environment observes it.
    observed = np.column_stack([states[:, :4], wrapped(states[:, 4])])
    arrays: dict[str, np.ndarray] = {
        "state": observed.astype(np.float32),
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


def _episodes_there(path: Path, attributes: dict[str, Any]) -> int:
    """How many episodes there are at `path`; DataError if they were made otherwise."""
    if not path.exists():
        return 0
    found = read_attributes(path)
    differing = [name for name, value in attributes.items() if found.get(name) != value]
    if differing:
        name = differing[0]
        raise DataError(
            f"{path} holds demonstrations made otherwise ({name} is {found.get(name)!r} there, {attributes[name]!r} is "
            "asked for): choose another path, or remove it"
        )
    return load_replay(path, ()).n_episodes


def _attempts_made(path: Path, seed: int) -> int:
    """How many attempts led to the episodes of a store: unsolved ones between them left no trace but their turn."""
    replay = load_replay(path, ("state",))
    number, world = 0, World()
    for episode in range(replay.n_episodes):
        begin = replay.arrays["state"][replay.episode(episode).start]
        while True:
            world.place(initial_state(_state_seed(seed, number)).tolist(), position_first=True)
            number += 1
            there = (*world.agent.position, *world.block.position, float(wrapped(world.block.angle)))
            if math.dist(there, begin.tolist()) < 1e-2:
                break
            if number > 10 * (replay.n_episodes + 10):
                raise DataError(f"{path}: episode {episode} does not start at a state of seed {seed}")
    return number
