"""Record PushT demonstrations with the mouse, as the human set of the Diffusion Policy paper was recorded.

A window opens. Move the mouse to the blue agent: from then on the agent follows it, at 10 actions a second. Push the
grey T onto its green outline. At 95% coverage the episode is saved by itself and the next one begins.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from envs.pusht import geometry
from envs.pusht.teleoperation import Teleoperation
from envs.pusht.teleoperation_window import NoDisplayError, run
from immiscible_policy.cli import interruptible, report_failure
from immiscible_policy.data.replay_writer import ReplayWriter
from immiscible_policy.data.sources import training_command
from immiscible_policy.files import alone

EXAMPLES = """\
keys:
  r           start this episode again, from the same initial state
  n, Enter    save this episode as it is and go on (half of the human demonstrations end below 90% coverage)
  d, d        delete the last saved episode, and record it again
  space, p    pause; then move the mouse to the agent to go on
  q           quit; only the episode on the screen is dropped

examples:
  python scripts/collect_demos.py                                # into data/pusht/collected.zarr
  python scripts/collect_demos.py --episodes 20                  # until there are 20, over several sessions
  python scripts/collect_demos.py --output my.zarr --img         # with pictures
  python scripts/train_policy.py dataset.path=data/pusht/collected.zarr

Run again with the same --output to go on recording. Every episode is on the disk, whole, when the window says that
it is saved. Episode i (from 0) starts at the initial state of seed i, which is where the i-th human demonstration
starts; choose others with --seed-start. The evaluations use seeds from 100000 on.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("data/pusht/collected.zarr"),
        help="the replay store to append to; made if it is not there (default: %(default)s)",
    )
    parser.add_argument("--episodes", type=int, help="stop when the store holds so many (default: no limit)")
    parser.add_argument("--img", action="store_true", help="also record a 96 x 96 picture of every step")
    parser.add_argument(
        "--seed-start", type=int, help="seed of the store's first episode (default: 0, or what the store says)"
    )
    return parser


def open_store(output: Path, seed_start: int | None, images: bool) -> tuple[ReplayWriter, int, bool]:
    """The store, its first seed and whether it has images; ValueError if it was recorded in another way."""
    if seed_start is not None and seed_start < 0:
        raise ValueError(f"--seed-start is {seed_start}; allowed: integers of at least 0")
    attributes = {
        "recorded_with": "scripts/collect_demos.py",
        "seed_start": seed_start or 0,
        "control_hz": geometry.CONTROL_HZ,
    }
    writer = ReplayWriter(output, attributes)
    stored = writer.attributes.get("seed_start")
    if writer.attributes.get("recorded_with") != attributes["recorded_with"] or not isinstance(stored, int):
        raise ValueError(f"{output} was not recorded by this script: choose another --output")
    if seed_start not in (None, stored):
        raise ValueError(f"--seed-start is {seed_start}, but {output} starts at {stored}: choose another --output")
    has_images = "img" in writer.names if writer.names else images
    if images and not has_images:
        raise ValueError(f"--img: the episodes in {output} have no pictures: choose another --output")
    return writer, stored, has_images


def report(writer: ReplayWriter) -> str:
    """Where the demonstrations are and how to train on them."""
    n_episodes = writer.n_episodes
    if n_episodes == 0:
        return "no demonstrations were saved"
    noun, verb = ("demonstration", "is") if n_episodes == 1 else ("demonstrations", "are")
    return (
        f"{n_episodes} {noun} ({writer.n_steps:,} steps) {verb} in {writer.path}; to train:\n"
        f"  {training_command(writer.path, n_episodes)}"
    )


@contextmanager
def alone_with(output: Path) -> Iterator[None]:
    """Nobody else records into the store meanwhile: both would record the same seeds."""
    missing = [folder for folder in output.parents if not folder.exists()]
    try:
        with alone(output, "another window that records"):
            yield
    finally:
        # The lock has made them; where nothing was saved they go again.
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def record(arguments: argparse.Namespace) -> None:
    """Shows the window and says at its end where the demonstrations are."""
    writer, seed_start, images = open_store(arguments.output, arguments.seed_start, arguments.img)
    # Ctrl-C is as q: what was saved is saved.
    with suppress(KeyboardInterrupt):
        run(Teleoperation(writer, images=images, seed_start=seed_start, limit=arguments.episodes))
    print(report(writer))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.episodes is not None and arguments.episodes < 1:
            raise ValueError(f"--episodes is {arguments.episodes}; allowed: integers of at least 1")
        with alone_with(arguments.output.expanduser()):
            record(arguments)
    except (NoDisplayError, ValueError, OSError) as error:
        return report_failure(error)
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
