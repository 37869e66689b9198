"""The section `environment` of scripts/benchmark.py: steps per second of PushT environments, gym-pusht's among them."""

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import gymnasium
import numpy as np
from benchmark_gym_pusht import OBSERVATIONS, SEQUENCE_LENGTH, Episodes, random_actions, versions
from benchmark_timing import interleaved, quartiles, ratio, spread
from gymnasium.vector import VectorEnv

Answer = TypeVar("Answer")

WORKER = Path(__file__).with_name("benchmark_gym_pusht.py")
ENVIRONMENT = "envs:immiscible/PushT-v0"
INSTALL = 'python -m venv gym-pusht && gym-pusht/bin/pip install gym-pusht==0.1.8 "pymunk<7"'
# One contender's share of a round: an episode or two of gym-pusht.
SLICE_S = 0.15
WARM_UP_STEPS = 100

COMPARED = """\
  environment ours: PushT alone (gymnasium.make) and as a vector environment (gymnasium.make_vec), one core.
              gym-pusht: in a process of its own, through the same loop. All take random targets, the i-th world
              the i-th sequence; episodes end after 300 steps. Steps that only reset a world are not counted, and
              the worlds of a vector environment are at different points of their episodes. gym-pusht has no such
              keypoints; those are held against its state, which is faster than its other observations.
"""


class GymPushtError(RuntimeError):
    """gym-pusht cannot be run by the given interpreter."""


class GymPusht:
    """gym-pusht behind a pipe: the process of scripts/benchmark_gym_pusht.py, ended when the context is left.

    Args:
        python: an interpreter that can import gym_pusht.
        seed: of the actions and of the first episode.

    Attributes: `versions`, of the packages there. Raises GymPushtError if it does not start or does not answer.
    """

    def __init__(self, python: Path, seed: int) -> None:
        self.python = python
        # A file, because a pipe that nobody reads fills up.
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [python, WORKER, str(seed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                errors="replace",
                env=os.environ | {"SDL_VIDEODRIVER": "dummy"},
            )
        except OSError as error:
            self._errors.close()
            raise GymPushtError(f"cannot start {python}: {error.strerror}") from None
        try:
            self.versions: dict[str, str] = self._answer(lambda line: dict(json.loads(line)))
            if "gym-pusht" not in self.versions:
                raise GymPushtError(f"{python} answered without the version of gym-pusht")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "GymPusht":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        with contextlib.suppress(OSError):
            self._process.communicate()
        self._errors.close()

    def seconds(self, observation: str, steps: int) -> float:
        """Time of the next `steps` steps with that observation, as the process measured it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{observation} {steps}\n")
            self._process.stdin.flush()
        return self._answer(float)

    def _answer(self, read: Callable[[str], Answer]) -> Answer:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            return read(line)
        except (ValueError, TypeError):
            said = line.strip()[:80]
            if not line:
                self._process.wait()
                self._errors.seek(0)
                said = (self._errors.read().strip().splitlines() or ["it ended without a word"])[-1]
            raise GymPushtError(f"{self.python} cannot run gym-pusht ({said}); to get it: {INSTALL}") from None


class VectorEpisodes:
    """Random actions in a vector environment that resets its worlds by itself, in the step after an episode's last.

    The worlds start at even distances within an episode, so that every timed slice holds its share of resets.
    """

    def __init__(self, environment: VectorEnv[Any, Any, Any], seed: int) -> None:
        self.environment = environment
        self.actions = random_actions(seed, environment.num_envs)
        self.made = 0
        self._ended = np.zeros(environment.num_envs, bool)
        assert environment.spec is not None
        assert environment.spec.max_episode_steps is not None
        length = environment.spec.max_episode_steps
        environment.reset(seed=seed)
        begins = np.arange(environment.num_envs) * length // environment.num_envs
        for number in range(length):
            if (begins == number).any():
                environment.reset(options={"reset_mask": begins == number})
            self._step()

    def seconds_per_step(self, steps: int) -> float:
        """Time for one step of one world, over at least `steps` of them; resets are timed but not counted."""
        counted = 0
        start = time.perf_counter()
        while counted < steps:
            counted += self._step()
        return (time.perf_counter() - start) / counted

    def _step(self) -> int:
        """Steps all worlds; returns how many of them went on with an episode."""
        _, _, terminated, truncated, _ = self.environment.step(self.actions[self.made % SEQUENCE_LENGTH])
        self.made += 1
        counted = len(self._ended) - int(np.count_nonzero(self._ended))
        self._ended = terminated | truncated
        return counted


# --- contenders ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """One row: `seconds_per_step(steps)` takes about so many steps and returns the mean time of one."""

    observation: str
    name: str
    num_envs: int
    versions: dict[str, str]
    seconds_per_step: Callable[[int], float]

    @property
    def key(self) -> str:
        return f"{self.observation}, {self.name}"

    def measurement(self) -> Callable[[], float]:
        """Seconds per step over as many steps as fit into `SLICE_S` now."""
        steps = max(1, round(SLICE_S / self.seconds_per_step(WARM_UP_STEPS)))
        return lambda: self.seconds_per_step(steps)


def gym_pusht_contender(gym_pusht: GymPusht, observation: str) -> Contender:
    name = f"gym-pusht {gym_pusht.versions['gym-pusht']}"
    return Contender(
        observation, name, 1, gym_pusht.versions, lambda steps: gym_pusht.seconds(observation, steps) / steps
    )


def our_contender(observation: str, num_envs: int | None, seed: int) -> Contender:
    """The single environment, or for a number of worlds the vector environment."""
    ours = versions("pymunk", "gymnasium", "numpy")
    if num_envs is None:
        episodes = Episodes(gymnasium.make(ENVIRONMENT, obs_type=observation), seed)
        return Contender(observation, "ours, make", 1, ours, lambda steps: episodes.seconds(steps) / steps)
    environment = gymnasium.make_vec(ENVIRONMENT, num_envs=num_envs, obs_type=observation)
    steps_of_worlds = VectorEpisodes(environment, seed).seconds_per_step
    return Contender(observation, f"ours, make_vec({num_envs})", num_envs, ours, steps_of_worlds)


def contenders(gym_pusht: GymPusht | None, num_envs: Sequence[int], seed: int) -> list[Contender]:
    """In the order of the table. All numbers of worlds with state, the first with keypoints and pixels too."""
    theirs = {kind: [gym_pusht_contender(gym_pusht, kind)] if gym_pusht else [] for kind in OBSERVATIONS}
    return [
        *theirs["state"],
        *(our_contender("state", count, seed) for count in (None, *sorted(set(num_envs)))),
        our_contender("keypoints", num_envs[0], seed),
        *theirs["pixels"],
        *(our_contender("pixels", count, seed) for count in (None, num_envs[0])),
    ]


# --- the section -----------------------------------------------------------------------------------


def environment_section(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps per second of our environments and gym-pusht's, interleaved on one core."""
    with contextlib.ExitStack() as stack:
        gym_pusht = None
        if arguments.gym_pusht_python is not None:
            gym_pusht = stack.enter_context(GymPusht(arguments.gym_pusht_python, arguments.seed))
        chosen = contenders(gym_pusht, arguments.num_envs, arguments.seed)
        times = interleaved({contender.key: contender.measurement() for contender in chosen}, arguments.rounds)
    references = {
        contender.observation: contender.key for contender in chosen if contender.name.startswith("gym-pusht")
    }
    rows = [] if gym_pusht else [skipped_row(kind) for kind in OBSERVATIONS]
    rows += [measured_row(contender, times, references) for contender in chosen]
    print_rows(rows)
    return rows


def skipped_row(observation: str) -> dict[str, Any]:
    return {"observation": observation, "contender": "gym-pusht", "num_envs": 1, "skipped": f"to get it: {INSTALL}"}


def measured_row(contender: Contender, times: dict[str, list[float]], references: dict[str, str]) -> dict[str, Any]:
    """A row of the results; `references` maps observations to gym-pusht's contenders."""
    row = {
        "observation": contender.observation,
        "contender": contender.name,
        "num_envs": contender.num_envs,
        "versions": contender.versions,
        "steps_per_s": quartiles([1 / seconds for seconds in times[contender.key]]),
    }
    reference = references.get("state" if contender.observation == "keypoints" else contender.observation)
    if reference is not None:
        row |= {"compared_with": reference, "speed_over_gym_pusht": ratio(times, reference, contender.key)}
    return row


def print_rows(rows: list[dict[str, Any]]) -> None:
    for name, used in {row["contender"].split(",")[0]: row["versions"] for row in rows if "versions" in row}.items():
        print(f"{name}: " + ", ".join(f"{package} {number}" for package, number in used.items()))
    print(f"{'observation':<12} {'contender':<20} {'steps/s':>26} {'over gym-pusht':>22}")
    for row in rows:
        head = f"{row['observation']:<12} {row['contender']:<20}"
        if "skipped" in row:
            print(f"{head} skipped: no --gym-pusht-python")
            continue
        over = spread(row["speed_over_gym_pusht"]) if "speed_over_gym_pusht" in row else ""
        print(f"{head} {spread(row['steps_per_s'], ',.0f'):>26} {over:>22}")
    if any("skipped" in row for row in rows):
        print(f"For gym-pusht: {INSTALL}\nand then --gym-pusht-python gym-pusht/bin/python")
    print()


# --- command line ----------------------------------------------------------------------------------


def interpreter(text: str) -> Path:
    """An interpreter that has run gym-pusht, tried before any work is done."""
    try:
        GymPusht(Path(text), seed=0).close()
    except GymPushtError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def number_of_worlds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this section."""
    parser.add_argument(
        "--gym-pusht-python",
        type=interpreter,
        metavar="PATH",
        help=f"a Python that has gym-pusht, to compare with it ({INSTALL})",
    )
    parser.add_argument(
        "--num-envs",
        nargs="+",
        type=number_of_worlds,
        metavar="N",
        default=[64, 16, 256],
        help="worlds of our vector environment; the first also with keypoints and pixels (default: 64 16 256)",
    )
