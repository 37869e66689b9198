"""Values that an analysis cannot do with, found before anything is trained for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from image_diffusion.analysis.perturbation import Perturbation
from image_diffusion.analysis.sampling_steps import check_steps
from image_diffusion.analysis.training_curves import check_thresholds
from image_diffusion.analysis.trajectory import sampler_calls
from image_diffusion.analysis.tsne import MAX_CALLS, MIN_POINTS
from image_diffusion.evaluation import ImageEvaluation, check_seeds
from image_diffusion.metrics import MEASURES
from immiscible_policy.checks import check_choice, check_integer
from immiscible_policy.diffusion import build_objective
from immiscible_policy.run_setup import plain_settings

Trainings = Sequence[DictConfig]
"""Configurations of the baseline's trainings, one for each group."""


def check_values(name: str, settings: Mapping[str, Any], trainings: Trainings) -> None:
    """Refuse values that an analysis cannot do with, by themselves or with the trainings.

    Args:
        name: of the analysis.
        settings: all of its own, and those of the rest that are given.

    Raises:
        ValueError: says which value, and what is allowed.
    """
    try:
        _CHECKS[name](settings, trainings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"analysis: {error}") from error


def evaluation_of(saved: Mapping[str, Any], settings: Mapping[str, Any]) -> ImageEvaluation:
    """A training's evaluation, by the Frechet distance alone, with what the analysis sets otherwise.

    Args:
        saved: ``evaluation`` of the training's configuration.
        settings: of the analysis; those that an evaluation does not have, and None, are passed over.

    Raises:
        ValueError: a value is not allowed.
    """
    known = ImageEvaluation.__dataclass_fields__
    own = {name: value for name, value in settings.items() if name in known and value is not None}
    return replace(ImageEvaluation(**saved), metrics=("fd",), **own)


def _check_training_curves(settings: Mapping[str, Any], trainings: Trainings) -> None:
    check_thresholds(settings["thresholds"])
    for cfg in trainings:
        metrics = ImageEvaluation(**plain_settings(cfg.monitor)).metrics
        check_choice("metric", settings["metric"], [name for metric in metrics for name in MEASURES[metric]])


def _check_perturbation(settings: Mapping[str, Any], trainings: Trainings) -> None:
    how = Perturbation(**{name: value for name, value in settings.items() if name in Perturbation.__dataclass_fields__})
    _check_images(settings, {"n_images": 2, "n_pictures": 0})
    _check_calls(how.num_inference_steps, trainings)


def _check_trajectory(settings: Mapping[str, Any], trainings: Trainings) -> None:
    _check_images(settings, {"n_images": 1, "n_pictures": 0, "n_paths": 1})
    fewest = min(_check_calls(settings["num_inference_steps"], trainings, one_by_one=True))
    points = settings["n_paths"] * min(fewest, MAX_CALLS)
    if points < MIN_POINTS:
        raise ValueError(
            f"n_paths={settings['n_paths']}: {fewest} network calls each make {points} points; t-SNE needs {MIN_POINTS}"
        )


def _check_step_distance(settings: Mapping[str, Any], trainings: Trainings) -> None:
    for cfg in trainings:
        config = evaluation_of(plain_settings(cfg.evaluation), settings)
        if config.guidance_scale != 1.0:
            raise ValueError(
                f"guidance_scale={config.guidance_scale}: predictions of single calls are without guidance (1)"
            )
        _check_calls(config.num_inference_steps, [cfg], one_by_one=True)


def _check_sampling_steps(settings: Mapping[str, Any], trainings: Trainings) -> None:
    check_steps(settings["steps"])
    for cfg in trainings:
        evaluation_of(plain_settings(cfg.evaluation), settings)
        build_objective(plain_settings(cfg.objective)).check_steps(max(settings["steps"]))
    _check_calls(None, trainings, one_by_one=True)


_CHECKS: dict[str, Callable[[Mapping[str, Any], Trainings], None]] = {
    "training_curves": _check_training_curves,
    "perturbation": _check_perturbation,
    "trajectory": _check_trajectory,
    "step_distance": _check_step_distance,
    "sampling_steps": _check_sampling_steps,
}


def _check_images(settings: Mapping[str, Any], least: Mapping[str, int]) -> None:
    """Numbers of images, and the first one's seed."""
    for name, smallest in least.items():
        check_integer(name, settings[name], smallest)
    check_seeds("seed", settings["seed"], max(settings[name] for name in least))


def _check_calls(num_inference_steps: int | None, trainings: Trainings, one_by_one: bool = False) -> list[int]:
    """Network calls of a sample of every training's model.

    Args:
        one_by_one: calls are looked at one by one, for which their number must be known.
    """
    calls = []
    for cfg in trainings:
        objective = build_objective(plain_settings(cfg.objective))
        steps = cfg.model.num_inference_steps if num_inference_steps is None else num_inference_steps
        objective.check_num_inference_steps(steps)
        calls.append(sampler_calls(objective, steps) if one_by_one else steps)
    return calls
