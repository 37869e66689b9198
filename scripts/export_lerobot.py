"""Write PushT demonstrations as a LeRobot data set (version 3.0, low-dimensional), to train on with LeRobot."""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from envs.pusht.geometry import GOAL_POSE, Pose
from envs.pusht.task import checked_goal
from immiscible_policy.cli import interruptible, report_failure
from immiscible_policy.data.lerobot import is_lerobot, load_lerobot
from immiscible_policy.data.lerobot_export import TASK, export_lerobot
from immiscible_policy.data.replay import load_replay
from immiscible_policy.data.sources import goal_of, training_command

EXAMPLES = """\
examples:
  python scripts/export_lerobot.py data/pusht/pusht_cchi_v7_replay.zarr --output data/pusht_lerobot
  python scripts/export_lerobot.py old_dataset --output new_dataset     # LeRobot v2.0 or v2.1 to v3.0

The data set has the columns of lerobot/pusht_keypoints: observation.state (agent xy), observation.environment_state
(xy of the block's eight vertices), action, next.reward, next.done, next.success and LeRobot's own. No images.
next.reward is that of the state after the action; at an episode's last step, whose next state was not
recorded, it is that of the last recorded state.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demonstrations", type=Path, help="a replay store (.zarr or .zip) or a LeRobot data set")
    parser.add_argument("--output", type=Path, required=True, help="folder of the new data set")
    parser.add_argument("--force", action="store_true", help="replace a LeRobot data set that is there already")
    parser.add_argument("--task", default=TASK, help="what the agent was to do, in words (default: %(default)r)")
    parser.add_argument(
        "--goal",
        type=_pose,
        metavar="X,Y,ANGLE",
        help="where the block belongs, pixels and radians, for next.reward (default: what the demonstrations say, or "
        "the standard goal); meta/info.json tells it, and training here goes by it",
    )
    return parser


def _pose(text: str) -> Pose:
    try:
        numbers = [float(part) for part in text.split(",")]
        if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must be three numbers, as in 356,356,0.785") from None
    try:
        return checked_goal(numbers, "goal")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def training_with_lerobot(output: Path, goal: Pose) -> str:
    """LeRobot's command that trains on the data set, for a shell, and evaluates where it can."""
    root = shlex.quote(f"--dataset.root={output}")
    command = f"lerobot-train --dataset.repo_id=local/pusht {root} --policy.type=diffusion --policy.push_to_hub=false"
    if goal == GOAL_POSE:
        return f"  {command} --env.type=pusht --env.obs_type=environment_state_agent_pos"
    return f"  {command}\n  (without --env.type=pusht: its goal is the standard one, so it would measure another task)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    source = arguments.demonstrations
    try:
        replay = load_lerobot(source) if is_lerobot(source) else load_replay(source, arrays=("action", "state"))
        goal = arguments.goal or goal_of(source) or GOAL_POSE
        output = export_lerobot(replay, arguments.output, goal_pose=goal, force=arguments.force, task=arguments.task)
    except (ValueError, OSError) as error:
        return report_failure(error)
    print(f"{replay.n_episodes} episodes ({replay.n_steps:,} steps) are in {output}, a LeRobot v3.0 data set")
    print("with LeRobot:")
    print(f'  dataset = LeRobotDataset("local/pusht", root="{output}")')
    print(training_with_lerobot(output, goal))
    print(f"here:\n  {training_command(output, replay.n_episodes, goal)}")
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
