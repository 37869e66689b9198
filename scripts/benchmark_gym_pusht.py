"""Random actions in a single environment, and gym-pusht in a process of its own; part of scripts/benchmark.py.

gym-pusht needs pymunk < 7 and so has a virtual environment of its own. Run by path with that interpreter, this file
prints one line of JSON, the versions of the packages used, and then answers each line `<observation type> <steps>` on
its input with the seconds that gym-pusht took for so many steps, until the input ends. The benchmark times its own
single environment by the same loop, so this file imports nothing of the project, and no torch.
"""

import argparse
import importlib
import json
import sys
import time
from importlib.metadata import version
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

WINDOW_SIZE = 512
# Longer than an episode: the next one gets other actions.
SEQUENCE_LENGTH = 1024
OBSERVATIONS = ("state", "pixels")


def random_actions(seed: int, worlds: int) -> NDArray[np.float32]:
    """Targets drawn evenly from the window, (SEQUENCE_LENGTH, worlds, 2).

    World i has the same actions however many worlds there are.
    """
    shape = (SEQUENCE_LENGTH, 2)
    drawn = [np.random.default_rng([seed, world]).uniform(0, WINDOW_SIZE, shape) for world in range(worlds)]
    return np.stack(drawn, axis=1).astype(np.float32)


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of distributions."""
    return {package: version(package) for package in packages}


class Episodes:
    """Random actions in one environment, a new episode whenever one has ended."""

    def __init__(self, environment: gymnasium.Env[Any, Any], seed: int) -> None:
        self.environment = environment
        self.actions = random_actions(seed, 1)[:, 0]
        self.made = 0
        environment.reset(seed=seed)

    def seconds(self, steps: int) -> float:
        """Time of the next `steps` steps, with the resets among them."""
        start = time.perf_counter()
        for number in range(self.made, self.made + steps):
            _, _, terminated, truncated, _ = self.environment.step(self.actions[number % SEQUENCE_LENGTH])
            if terminated or truncated:
                self.environment.reset()
        elapsed = time.perf_counter() - start
        self.made += steps
        return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int, help="of the random actions and the first episode")
    seed = parser.parse_args().seed
    # Imported packages print greetings; the benchmark reads only what this file says.
    answers, sys.stdout = sys.stdout, sys.stderr
    try:
        importlib.import_module("gym_pusht")
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}: run this by an interpreter that has gym-pusht")
    if "cv2" in sys.modules:
        # gym-pusht scales its pictures with OpenCV, which would take all cores.
        sys.modules["cv2"].setNumThreads(1)
    episodes = {kind: Episodes(gymnasium.make("gym_pusht/PushT-v0", obs_type=kind), seed=seed) for kind in OBSERVATIONS}
    print(json.dumps(versions("gym-pusht", "pymunk", "gymnasium", "numpy")), file=answers, flush=True)
    for line in sys.stdin:
        kind, steps = line.split()
        print(episodes[kind].seconds(int(steps)), file=answers, flush=True)


if __name__ == "__main__":
    main()
