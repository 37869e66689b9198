"""Draw images from a trained image model: a grid to look at, or files for other programs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from image_diffusion.label_mix import MIXES
from image_diffusion.model import last_model_folder, load_image_model
from image_diffusion.sampling import FORMATS, grid_path, load_pictures, save_grid, save_samples
from immiscible_policy.cli import interruptible, report_failure
from immiscible_policy.training.precision import resolve_device

TEXT = """\
examples:
  python scripts/sample_images.py outputs/<date>/<time>_<name> --output samples              64 images and their grid
  python scripts/sample_images.py outputs/<date>/<time>_<name> --output samples -n 50000 --format npz
  python scripts/sample_images.py model/ --output nines -n 16 --label 9 --guidance-scale 2
  python scripts/sample_images.py model/ --output birds -n 8 --prompt "a robin" "an owl" --guidance-scale 7.5

Every image has a seed of its own, --seed and the following ones: the same seed gives the same image whatever else is
drawn beside it. Classes and prompts follow the seeds, too: of 10 classes seed 23 shows class 3, so that all are drawn
equally often. A set that is to be measured against the data takes the data's mix, --labels data, as evaluate_images.py
does of itself. (An image of objective.sampler=adaptive is solved by itself, whatever --batch-size says.) A stopped call
goes on where it was. samples.json notes how the images were made.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=TEXT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a model folder, or a run folder (its last model is taken)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument("-n", type=int, default=64, help="images (default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="of the first image (default: 0)")
    parser.add_argument("--format", choices=FORMATS, default="png", help="png: a file an image; npz: one array")
    parser.add_argument("--label", type=int, help="class of all images (default: see --labels)")
    parser.add_argument("--prompt", nargs="+", help="prompts that the images show in turn, by the seeds")
    parser.add_argument(
        "--labels",
        choices=MIXES,
        default="turn",
        help="turn (the default): all classes or prompts of the model in turn, by the seeds; data: as frequent as in "
        "the training data, for sets that are to be measured",
    )
    parser.add_argument("--num-inference-steps", type=int, help="network calls an image (default: the model's)")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="of classifier-free guidance (default: 1)")
    parser.add_argument("--batch-size", type=int, default=250, help="images at once (default: 250)")
    parser.add_argument("--device", default="auto", help="auto (the default), cpu, cuda or cuda:N")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.n < 1 or arguments.batch_size < 1:
            raise ValueError(f"-n {arguments.n} and --batch-size {arguments.batch_size} must be at least 1")
        if arguments.label is not None and arguments.prompt:
            raise ValueError("--label and --prompt: give one of them")
        if arguments.labels == "data" and (arguments.label is not None or arguments.prompt):
            raise ValueError("--labels data, --label and --prompt: give one of them")
        grid = grid_path(arguments.output)
        folder = last_model_folder(arguments.model)
        model = load_image_model(folder, resolve_device(arguments.device))
        seeds = range(arguments.seed, arguments.seed + arguments.n)
        chosen = arguments.prompt or (None if arguments.label is None else [arguments.label])
        files = save_samples(
            model,
            seeds,
            arguments.output,
            arguments.format,
            labels_in_turn=chosen,
            mix=arguments.labels,
            batch_size=arguments.batch_size,
            record={"weights": str(folder)},
            num_inference_steps=arguments.num_inference_steps,
            guidance_scale=arguments.guidance_scale,
        )
        if arguments.format == "png":
            save_grid(load_pictures(files[:100]), grid)
    except (ValueError, OSError, ArithmeticError) as error:
        return report_failure(error)
    print(f"{folder}: {len(seeds)} images, seeds {seeds[0]} to {seeds[-1]}")
    print(f"files      {files[0] if len(files) == 1 else arguments.output}")
    if arguments.format == "png":
        print(f"grid       {grid}")
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
