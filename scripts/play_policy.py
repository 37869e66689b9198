"""Watch a trained PushT policy live, disturb it with the mouse, and compare checkpoints in the same scene.

A window opens. The policy pushes the grey T onto its green outline; the orange path is what it plans to do next. Press
on the T and drag it away: it follows the mouse like on a spring, and the policy has to think again. Nothing happens
where you press beside it. With --record the same picture goes into a video instead, and no display is needed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from envs.pusht.live_window import NoDisplayError
from immiscible_policy import cli
from immiscible_policy.evaluation.play import PlaySession
from immiscible_policy.evaluation.play_picture import KEYS_IN_WORDS
from immiscible_policy.evaluation.play_policies import load_policies
from immiscible_policy.evaluation.play_recording import record
from immiscible_policy.evaluation.play_window import play
from immiscible_policy.policy.inference_coupling import MODES
from immiscible_policy.training.precision import resolve_device

RECORDED_STEPS = 300
VIDEO_DIR = Path("outputs/play")
EXAMPLES = f"""\
keys:
{chr(10).join(f"  {key:<12} {meaning}" for key, meaning in KEYS_IN_WORDS)}

examples:
  python scripts/play_policy.py outputs/<date>/<time>_<name>                     # the run's last policy
  python scripts/play_policy.py <run>/checkpoints/step=000{{1000,6000}}             # tab switches between the two
  python scripts/play_policy.py <run> --num-inference-steps 4 --speed 2
  python scripts/play_policy.py <run> --num-inference-steps 16 --noise-scale 0.8
  python scripts/play_policy.py <run> --record out.mp4 --steps 300 --disturb 120 # no display; disturbed at 12 s

Every policy is shown on the task that it was trained for. A seed starts as in the evaluations (100000 and up are the
published test states). Undisturbed, and with the inference steps, coupling and noise scale of the evaluation, it goes
on as there, up to rounding; but the episode does not end with success, so that you can disturb the policy again.
The policy thinks within the window's loop: less than 0.1 s of one core for the default network and 10 inference steps,
once in 8 control steps. With a larger network use fewer inference steps, or --device cuda.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("policies", type=Path, nargs="+", metavar="FOLDER", help="a policy folder, or a run folder (its last policy)")
    add("--seed", type=int, default=100_000, help="initial state (default: %(default)s)")
    add("--num-inference-steps", type=int, default=10, help="network calls for a chunk (default: %(default)s)")
    about = "choose initial noise as in training, against the previous plan or a first attempt (default: %(default)s)"
    add("--inference-coupling", choices=MODES, default="none", help=about)
    about = "multiplies the initial noise; below 1 plans are less various (default: %(default)s)"
    add("--noise-scale", type=float, default=1.0, help=about)
    add("--legacy", action=argparse.BooleanOptionalAction, help="how seeds are set up (default: as in the task)")
    add("--speed", type=float, default=1.0, help="simulated seconds in a second (default: %(default)s)")
    add("--fps", type=float, default=10.0, help="pictures a second in videos; 30 moves smoothly (default: %(default)s)")
    add("--record", type=Path, metavar="FILE.mp4", help="write a video instead of opening a window")
    add("--steps", type=int, help=f"control steps (0.1 s each) to record (default: {RECORDED_STEPS})")
    about = "when recording: shift and turn the block at random after so many steps"
    add("--disturb", type=int, nargs="+", default=[], metavar="STEP", help=about)
    add("--video-dir", type=Path, help=f"where the key v saves videos (default: {VIDEO_DIR})")
    add("--device", default="cpu", help="cpu, cuda, cuda:N or auto (default: %(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """ValueError for arguments that are out of range, or that would have no effect."""
    if arguments.threads < 1:
        raise ValueError(f"--threads is {arguments.threads}; allowed: integers of at least 1")
    if arguments.record is None:
        if arguments.disturb:
            raise ValueError("--disturb is for --record; in the window press d")
        if arguments.steps is not None:
            raise ValueError("--steps is for --record; the window stays until you press q")
        return
    if len(arguments.policies) > 1:
        raise ValueError(f"--record shows one policy, but {len(arguments.policies)} were given")
    if arguments.video_dir is not None:
        raise ValueError("--video-dir is for the window; --record itself says where the video goes")
    if arguments.record.suffix != ".mp4":
        raise ValueError(f"--record is {arguments.record}; allowed: a name that ends in .mp4")
    n_steps = RECORDED_STEPS if arguments.steps is None else arguments.steps
    if n_steps < 1:
        raise ValueError(f"--steps is {n_steps}; allowed: integers of at least 1")
    outside = [step for step in arguments.disturb if not 0 <= step < n_steps]
    if outside:
        raise ValueError(
            f"--disturb is {outside[0]}; allowed: 0 to {n_steps - 1}, before the last of --steps {n_steps}"
        )


def run(arguments: argparse.Namespace) -> None:
    """Plays, or records, and prints where the videos are."""
    check(arguments)
    torch.set_num_threads(arguments.threads)
    policies = load_policies(arguments.policies, resolve_device(arguments.device))
    session = PlaySession(
        policies,
        seed=arguments.seed,
        num_inference_steps=arguments.num_inference_steps,
        inference_coupling=arguments.inference_coupling,
        legacy=arguments.legacy,
        noise_scale=arguments.noise_scale,
    )
    if arguments.record is None:
        window = play(session, arguments.video_dir or VIDEO_DIR, arguments.fps, arguments.speed)
        for line in (*(f"video {path}" for path in window.videos), *window.problems):
            print(line)
        return
    n_steps = arguments.steps or RECORDED_STEPS
    with tqdm(total=n_steps, desc="record", unit="step", leave=False, disable=None) as bar:
        path = record(
            session,
            arguments.record,
            n_steps,
            arguments.fps,
            arguments.speed,
            arguments.disturb,
            on_step=lambda step: bar.update(step - bar.n),
        )
    success = "no success" if session.success_step is None else f"success at step {session.success_step}"
    print(
        f"{session.name}, seed {session.seed}, {session.n_steps} steps: coverage {session.coverage:.1%} at the end, "
        f"{session.max_coverage:.1%} at most, {success}\nvideo {path}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; a failure that a user can cause ends in one line."""
    arguments = build_parser().parse_args(argv)
    try:
        run(arguments)
    except NoDisplayError as error:
        cli.fail(f"{error}, or write a video with --record")
    except cli.EXPECTED as error:
        cli.fail(str(error))


if __name__ == "__main__":
    sys.exit(cli.interruptible(main))
