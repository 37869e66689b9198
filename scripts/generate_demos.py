"""Make PushT demonstrations with the built-in demonstrator: python scripts/generate_demos.py n_episodes=200 seed=0"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs.pusht.geometry import GOAL_POSE
from immiscible_policy.cli import report_failure
from immiscible_policy.data.generate import generate_demonstrations
from immiscible_policy.data.replay import load_replay
from immiscible_policy.data.sources import training_command

EPILOG = """\
settings (name=value, all optional):
  n_episodes=200        solved episodes that the store shall hold; more extend a store that is there
  seed=0                other seeds, other demonstrations
  output=PATH           default data/pusht/demonstrator_seed<seed>.zarr, where dataset=demonstrator looks
  images=false          true: also a 96 x 96 picture of every step
  goal=x,y,angle        where the block belongs, pixels and radians (default: 256,256,0.785)
  processes=            workers (default: all cores); they do not change the result

examples:
  python scripts/generate_demos.py n_episodes=1000
  python scripts/train_policy.py dataset=demonstrator dataset.demonstrator.n_episodes=1000
  python scripts/generate_demos.py n_episodes=50 seed=1 goal=356,356,0.785 output=data/pusht/elsewhere.zarr

Every episode is on the disk as soon as it is counted: a killed run goes on when the command is run again.
"""


def flag(text: str) -> bool:
    """true or false."""
    if text.lower() not in ("true", "false"):
        raise ValueError("allowed: true, false")
    return text.lower() == "true"


def pose(text: str) -> tuple[float, ...]:
    """Three numbers separated by commas."""
    numbers = tuple(float(part) for part in text.split(","))
    if len(numbers) != 3:
        raise ValueError("allowed: x,y,angle")
    return numbers


SETTINGS: dict[str, Any] = {
    "n_episodes": int,
    "seed": int,
    "output": Path,
    "images": flag,
    "goal": pose,
    "processes": int,
}


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """Settings given as name=value."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", metavar="name=value")
    given: dict[str, Any] = {}
    for text in parser.parse_args(argv).settings:
        name, separator, value = text.partition("=")
        if name not in SETTINGS or not separator:
            parser.error(f"{text!r}: give name=value with one of {', '.join(SETTINGS)}")
        try:
            given[name] = SETTINGS[name](value)
        except ValueError as error:
            parser.error(f"{text}: {error}")
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    given = parse(argv)
    seed = given.get("seed", 0)
    path = given.get("output", Path(f"data/pusht/demonstrator_seed{seed}.zarr"))
    started = time.monotonic()
    try:
        generate_demonstrations(
            path,
            given.get("n_episodes", 200),
            seed,
            given.get("images", False),
            given.get("goal", GOAL_POSE),
            given.get("processes"),
        )
    except (ValueError, OSError) as error:
        return report_failure(error)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 130
    replay = load_replay(path, ("state",))
    print(
        f"{path}: {replay.n_episodes} episodes, {replay.n_steps / replay.n_episodes:.0f} steps each, "
        f"{time.monotonic() - started:.0f} s"
    )
    print(f"train on them: {training_command(path, replay.n_episodes, given.get('goal', GOAL_POSE))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
