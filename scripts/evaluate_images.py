"""Measure how good generated images are: those of a trained model, or of any program."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from image_diffusion.data import ImageDataset, ImageSource, load_images, recorded_images
from image_diffusion.evaluation import (
    EXTRACTORS,
    ImageEvaluation,
    build_extractor,
    data_reference,
    evaluate_model,
    find_images,
    measure,
    measurement_table,
)
from image_diffusion.metrics import METRICS, add_measurements, read_measurements
from image_diffusion.model import last_model_folder, load_image_model
from immiscible_policy.cli import CONFIG_DIR, EXPECTED, explain, interruptible, report_failure
from immiscible_policy.run_setup import check_dataset, plain_settings
from immiscible_policy.training.precision import resolve_device

# What a user can cause here beyond that: names of overrides, a solver that fails.
FAILURES = (HydraException, OmegaConfBaseException, ArithmeticError, *EXPECTED)
TEXT = """\
examples:
  python scripts/evaluate_images.py outputs/<date>/<time>_<name> -n 5000                    against its training data
  python scripts/evaluate_images.py outputs/<date>/<time>_<name> -n 50000 --extractor inception --metrics fd
  python scripts/evaluate_images.py samples/ --dataset cifar10 dataset.path=data/cifar10    pictures of any program

Only the canonical Inception network with 50,000 images and a reference no smaller gives a number that may stand beside
published ones; every other is named after its extractor and number of images, and compares with its like alone. Each
number is written with the record of how it came about, beside what was measured before with other settings.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=TEXT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="a run or model folder, a folder of pictures, or an .npz file")
    parser.add_argument("overrides", nargs="*", help="of the reference data set: dataset.split=test, ...")
    parser.add_argument("--dataset", help="reference, a choice of configs/dataset (default: what a run trained on)")
    parser.add_argument("-n", type=int, default=2_000, help="images that a model draws (default: 2000)")
    parser.add_argument("--metrics", nargs="+", default=["fd", "fd_floor", "kid", "precision_recall"], choices=METRICS)
    parser.add_argument("--extractor", default="auto", choices=EXTRACTORS, help="default: auto")
    parser.add_argument("--weights", help="path of the extractor's weights, for inception and clip")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the first image drawn (default: 1000000)")
    parser.add_argument("--num-inference-steps", type=int, help="network calls an image (default: the model's)")
    parser.add_argument("--batch-size", type=int, default=250, help="images drawn at once (default: 250)")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="of classifier-free guidance (default: 1)")
    parser.add_argument("--output", type=Path, help="JSON file to add to (default: <images>/metrics_<extractor>.json)")
    parser.add_argument("--device", default="auto", help="auto (the default), cpu, cuda or cuda:N")
    return parser


def reference_data(arguments: argparse.Namespace) -> ImageDataset:
    """The data set to compare with: ``--dataset``, or the one that the run was trained on, if it still is that one."""
    recorded = None
    saved = arguments.images / ".hydra" / "config.yaml"
    if arguments.dataset is not None:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            cfg = compose("train_image", [f"dataset={arguments.dataset}", *arguments.overrides])
        check_dataset(cfg, "format", "images")
    elif saved.is_file():
        stray = next((text for text in arguments.overrides if not text.startswith("dataset.")), None)
        if stray is not None:
            raise ValueError(f"{stray}: only settings of the reference data can be given, dataset.<name>=<value>")
        loaded = OmegaConf.merge(OmegaConf.load(saved), OmegaConf.from_dotlist(arguments.overrides))
        assert isinstance(loaded, DictConfig)
        cfg = loaded
        if not arguments.overrides:
            recorded = recorded_images(arguments.images)
        check_dataset(cfg, "format", "images")
    else:
        raise ValueError(f"--dataset is not set, and {arguments.images} is no run folder that names its data")
    return load_images(ImageSource.from_config(plain_settings(cfg.dataset)), recorded)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = build_parser().parse_intermixed_args(argv)  # overrides may stand before and behind options
    try:
        config = ImageEvaluation(
            tuple(arguments.metrics),
            arguments.n,
            arguments.extractor,
            arguments.weights,
            arguments.seed,
            arguments.num_inference_steps,
            arguments.guidance_scale,
            batch_size=arguments.batch_size,
        )
        device = resolve_device(arguments.device)
        is_model = any((arguments.images / name).exists() for name in ("checkpoints", "image_model.json"))
        if not arguments.images.exists():
            raise ValueError(f"{arguments.images}: no such folder or archive of images, nor a run or model folder")
        if arguments.output is not None:  # what cannot be written is known before anything is measured
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
        data = reference_data(arguments)
        extractor = build_extractor(config, data.image_size, data.channels, device)
        folder = arguments.images if arguments.images.is_dir() else arguments.images.parent
        output = arguments.output or folder / f"metrics_{extractor.name}.json"
        read_measurements(output)  # what cannot be added to is known now, too
        reference = data_reference(data, extractor, config)
        if is_model:
            saved = last_model_folder(arguments.images)
            model = load_image_model(saved, device)
            measured = evaluate_model(model, reference, extractor, config, {"model": saved.name})
        else:
            images = find_images(arguments.images)
            measured = measure(images, reference, extractor, config, {"images": arguments.images.name})
        measured = add_measurements(output, measured)
    except (BadZipFile, EOFError) as error:
        return report_failure(f"{arguments.images}: damaged or half-written file ({error})")
    except FAILURES as error:
        return report_failure(explain(error, "train_image"))
    print(f"{arguments.images}:")
    print(measurement_table(measured))
    print(f"everything {output}")
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
