"""In- and out-painting with a trained image model: keep a part of each picture, paint the rest anew."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from image_diffusion.base_model import ImageModel, Labels
from image_diffusion.data import ImageDataset, ImageSource, load_images
from image_diffusion.model import last_model_folder, load_image_model
from image_diffusion.painting import MASKS, build_mask, load_folder, paint
from image_diffusion.sampling import grid_path, save_grid, save_pictures
from immiscible_policy.cli import interruptible, report_failure
from immiscible_policy.run_setup import plain_settings
from immiscible_policy.training.precision import resolve_device

TEXT = """\
examples:
  python scripts/paint.py outputs/<date>/<time>_<name> --output painted                    the centre of 8 test pictures
  python scripts/paint.py outputs/<date>/<time>_<name> --output painted --mask surroundings
  python scripts/paint.py model/ --images my_pictures --mask mask.png --output painted     white is painted anew
  python scripts/paint.py model/ --images my_pictures -n 3 --label 9 0 9 --output painted  for a model of classes

Pictures are those of --images, or the test split of the data that the run was trained on. Subfolders of --images are
taken as classes only where the run's dataset.class_names has all their names. What is kept is kept to the bit.
<output>_grid.png shows a column a picture: as it was, what was kept, painted.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=TEXT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a model folder, or a run folder (its last model is taken)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument("--images", type=Path, help="a folder of pictures (default: the run's own test split)")
    parser.add_argument("--mask", default="centre", help=f"{', '.join(MASKS)} or a mask file (default: centre)")
    parser.add_argument("--share", type=float, default=0.5, help="side of the centre, of the picture's (default: 0.5)")
    parser.add_argument("-n", type=int, default=8, help="pictures, the first of them (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture (default: 0)")
    parser.add_argument("--num-inference-steps", type=int, help="network calls a picture (default: the model's)")
    parser.add_argument("--label", type=int, nargs="+", help="class of all pictures, or one each (default: their own)")
    parser.add_argument("--prompt", help="of all pictures, for models of prompts (default: each one's own)")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="of classifier-free guidance (default: 1)")
    parser.add_argument("--device", default="auto", help="auto (the default), cpu, cuda or cuda:N")
    return parser


def load_pictures_for(model: ImageModel, run: Path, folder: Path | None) -> ImageDataset:
    """Pictures of the model's size: of a folder, or of the run's test split."""
    config = run / ".hydra" / "config.yaml"
    saved = OmegaConf.load(config) if config.is_file() else None
    assert saved is None or isinstance(saved, DictConfig)
    trained = None if saved is None else ImageSource.from_config(plain_settings(saved.dataset))
    if folder is not None:
        return load_folder(model, folder, None if trained is None else trained.class_names)
    if trained is None:
        raise ValueError(f"--images: give a folder of pictures, since {run} is not a run folder that knows its data")
    if trained.test_split is None:
        raise ValueError(
            f"--images: give a folder of pictures, since {trained.name}, the data of {run}, has no test_split"
        )
    return load_images(trained.for_test())


def choose_labels(model: ImageModel, data: ImageDataset, arguments: argparse.Namespace) -> Labels | None:
    """What each picture shall show: ``--label`` or ``--prompt``, else what the data says of it.

    Raises:
        ValueError: both, another number of labels than pictures, or a model that must be told and nothing to tell it.
    """
    n, given = arguments.n, arguments.label
    if arguments.prompt is not None:
        if given is not None:
            raise ValueError("--label and --prompt: give one of them")
        return [arguments.prompt] * n
    if given is not None:
        if len(given) not in (1, n):
            raise ValueError(f"--label: give one, or one for each of {n} pictures (-n), got {len(given)}")
        return given * n if len(given) == 1 else given
    labels = model.labels_of(data, torch.arange(n))
    if labels is None and model.seed_labels([0]) is not None:
        option = "--label" if model.n_classes is not None else "--prompt"
        raise ValueError(f"{option}: this model must be told what to paint, and {data.source['name']} does not say it")
    return labels


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        grid = grid_path(arguments.output)
        model = load_image_model(last_model_folder(arguments.model), resolve_device(arguments.device))
        mask = build_mask(arguments.mask, model.image_size, arguments.share)
        data = load_pictures_for(model, arguments.model, arguments.images)
        if not 1 <= arguments.n <= len(data):
            raise ValueError(f"-n {arguments.n}: there are {len(data)} pictures; choose 1 to {len(data)}")
        images = data.batch(torch.arange(arguments.n))["image"]
        seeds = range(arguments.seed, arguments.seed + arguments.n)
        labels = choose_labels(model, data, arguments)
        options = (arguments.num_inference_steps, arguments.guidance_scale)
        painted = paint(model, images, mask, seeds, labels, *options)
        save_pictures(painted, [arguments.output / f"{seed:08d}.png" for seed in seeds])
        kept = torch.where(mask, torch.tensor(128, dtype=torch.uint8), images)
        save_grid(torch.cat([images, kept, painted]), grid, columns=arguments.n)
    except (ValueError, OSError) as error:
        return report_failure(error)
    print(f"pictures   {arguments.output}")
    print(f"grid       {grid}")
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
