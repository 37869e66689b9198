"""The analyses of a study by name: from its finished trainings to tables, JSON and figures."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from image_diffusion.analysis.check import check_values, evaluation_of
from image_diffusion.analysis.curves import DistanceCurves
from image_diffusion.analysis.perturbation import Perturbation, perturbation_stability, perturbed_images
from image_diffusion.analysis.plots import (
    plot_curves,
    plot_paths,
    plot_perturbed,
    plot_stability,
    plot_statistics,
    plot_training_curves,
    plot_trajectory,
)
from image_diffusion.analysis.sampling_steps import PUBLISHED_STEPS, sampling_steps
from image_diffusion.analysis.step_distance import step_distance
from image_diffusion.analysis.study import ImageRun, Study
from image_diffusion.analysis.training_curves import TrainingCurves, final_table
from image_diffusion.analysis.trajectory import record_trajectory, trajectory_statistics
from image_diffusion.analysis.tsne import map_paths
from image_diffusion.base_model import ImageModel
from image_diffusion.data import ImageDataset, ImageSource, load_images, recorded_images
from image_diffusion.data.record import check_unchanged
from image_diffusion.evaluation import ImageEvaluation, build_extractor, data_reference
from image_diffusion.metrics import MEASURES, DigitsCnn, FeatureExtractor, Measurement, ReferenceStatistics
from immiscible_policy.files import finite, write_json, write_text

Arms = Mapping[str, Sequence[ImageRun]]
"""Arm -> its finished trainings; the baseline first."""


@dataclass(frozen=True)
class Place:
    """Where an analysis writes and computes.

    Args:
        folder: of the study's tables and figures.
        group: what its file names begin with.
        device: cpu | cuda.
    """

    folder: Path
    group: str
    device: str = "cpu"

    def path(self, name: str) -> Path:
        """A file of the group."""
        return self.folder / f"{self.group}-{name}"

    def write(self, name: str, markdown: str, content: Mapping[str, Any]) -> list[Path]:
        """A table and the numbers behind it."""
        table, numbers = self.path(f"{name}.md"), self.path(f"{name}.json")
        write_text(table, markdown)
        write_json(numbers, content)
        return [table, numbers]


def _models(arms: Arms, device: str) -> dict[str, dict[int, ImageModel]]:
    return {arm: {run.seed: run.load(device) for run in runs} for arm, runs in arms.items()}


@dataclass(frozen=True)
class _Measures:
    """What distances to the data need: features, the data's statistics, and settings."""

    data: ImageDataset
    extractor: FeatureExtractor
    reference: ReferenceStatistics
    config: ImageEvaluation


def _configuration(run: ImageRun) -> Any:
    return OmegaConf.to_container(OmegaConf.load(run.run_dir / ".hydra" / "config.yaml"), resolve=True)


def _measures(arms: Arms, settings: Mapping[str, Any], device: str) -> _Measures:
    """From the configuration of the baseline's first training, with an evaluation's settings changed.

    Raises:
        ImageDataError: the data are no longer those that a training began with.
    """
    trainings = [run for runs in arms.values() for run in runs]
    saved = _configuration(trainings[0])
    config = evaluation_of(saved["evaluation"], settings)
    data = load_images(ImageSource.from_config(saved["dataset"]))
    for run in trainings:
        recorded = recorded_images(run.run_dir)
        if recorded is not None and _configuration(run)["dataset"] == saved["dataset"]:
            check_unchanged(recorded, data.source)
    extractor = build_extractor(config, data.image_size, data.channels, device)
    return _Measures(data, extractor, data_reference(data, extractor, config), config)


def _training_curves(
    arms: Arms, place: Place, thresholds: Sequence[float] = TrainingCurves.thresholds, metric: str = "fd"
) -> list[Path]:
    """Distance while training, and steps to a distance.

    Args:
        metric: what the name of the number in ``metrics.jsonl`` begins with, after ``evaluation/``. ``fd`` is also what
            is called ``fid`` where it may be.
    """
    curves = _curves(arms, thresholds, metric)
    plot_training_curves({place.group: curves}, place.path("curves.png"))
    final = final_table({arm: {run.seed: run.summary["final"] for run in runs} for arm, runs in arms.items()})
    content = {**curves.to_json(), "final": final.content}
    return [*place.write("curves", f"{final.markdown}\n{curves.markdown()}", content), place.path("curves.png")]


def _curves(arms: Arms, thresholds: Sequence[float] = TrainingCurves.thresholds, metric: str = "fd") -> TrainingCurves:
    first = next(iter(arms.values()))[0]
    measured = [name for name in first.logged() if name.startswith("evaluation/")]
    names = [name for name in measured if _is_of(metric, name.removeprefix("evaluation/"))]
    if not names:
        raise ValueError(f"metric={metric!r}: {first.folder.name} has logged {', '.join(first.logged())}")
    return TrainingCurves(
        names[0].removeprefix("evaluation/"),
        {arm: {run.seed: run.curve(names[0]) for run in runs} for arm, runs in arms.items()},
        tuple(thresholds),
    )


def _is_of(metric: str, key: str) -> bool:
    """Whether a number's name, see ``metrics.result_key``, is one of this metric."""
    if metric == "fd" and (key == "fid" or key.startswith("fid_")):
        return True
    names = [name for measures in MEASURES.values() for name in measures]
    longer = [name for name in names if name.startswith(f"{metric}_")]  # fd_floor is no fd
    return key.startswith(f"{metric}_") and not any(key.startswith(f"{name}_") for name in longer)


def _perturbation(
    arms: Arms,
    place: Place,
    n_images: int = 100,
    n_pictures: int = 2,
    seed: int = 0,
    **settings: Any,
) -> list[Path]:
    """Stability against perturbed noise, and pictures of the first training seed's models."""
    models = _models(arms, place.device)
    how = Perturbation(**settings)
    first = next(iter(next(iter(models.values())).values()))
    config = ImageEvaluation(**_configuration(next(iter(arms.values()))[0])["evaluation"])
    extractor = build_extractor(config, first.image_size, first.channels, place.device)
    stability = perturbation_stability(models, range(seed, seed + n_images), extractor, how)
    plot_stability(stability, place.path("stability.png"))
    written = [*place.write("stability", stability.markdown(), stability.to_json()), place.path("stability.png")]
    for arm, by_seed in models.items() if n_pictures else ():
        images = perturbed_images(next(iter(by_seed.values())), range(seed, seed + n_pictures), how)
        for index in range(n_pictures):
            path = place.path(f"{arm}-image{index}.png")
            plot_perturbed(images, how.weights, path, index)
            written.append(path)
    return written


def _trajectory(
    arms: Arms,
    place: Place,
    n_images: int = 200,
    n_pictures: int = 6,
    n_paths: int = 40,
    seed: int = 0,
    num_inference_steps: int | None = None,
) -> list[Path]:
    """Predicted noise and images at every network call, in numbers and pictures, and a map of their paths."""
    models = _models(arms, place.device)
    statistics = trajectory_statistics(models, range(seed, seed + n_images), None, num_inference_steps)
    plot_statistics(statistics, place.path("calls.png"))
    written = [*place.write("calls", statistics.markdown(), statistics.to_json()), place.path("calls.png")]
    first = {arm: next(iter(by_seed.values())) for arm, by_seed in models.items()}
    for arm, model in first.items() if n_pictures else ():
        path = place.path(f"{arm}-predictions.png")
        predicted = record_trajectory(model, range(seed, seed + n_pictures), None, num_inference_steps)
        plot_trajectory(predicted, path, to_images=model.to_images)
        written.append(path)
    paths = {
        arm: record_trajectory(model, range(seed, seed + n_paths), None, num_inference_steps)
        for arm, model in first.items()
    }
    classes = {arm: _classes(first[arm], trajectory.images, seed) for arm, trajectory in paths.items()}
    maps = map_paths(paths, classes)
    plot_paths(maps, place.path("paths.png"))
    write_json(place.path("paths.json"), {arm: one.to_json() for arm, one in maps.items()})
    return [*written, place.path("paths.png"), place.path("paths.json")]


def _classes(model: ImageModel, images: torch.Tensor, seed: int) -> list[int]:
    """Colours of images of seeds from ``seed`` on: their labels, or what a classifier sees in digits, or all one."""
    if model.n_classes is not None:
        return list(model.seed_labels(range(seed, seed + len(images))) or [])
    if (model.image_size, model.channels) == (8, 1):
        return [int(label) for label in DigitsCnn().classify(images)]
    return [0] * len(images)


def _step_distance(arms: Arms, place: Place, **settings: Any) -> list[Path]:
    """Distance of the images that are predicted at every network call."""
    measures = _measures(arms, settings, place.device)
    models = _models(arms, place.device)
    curves = step_distance(models, measures.reference, measures.extractor, measures.config)
    return _write_distances(curves, place, "calls")


def _sampling_steps(arms: Arms, place: Place, steps: Sequence[int] = PUBLISHED_STEPS, **settings: Any) -> list[Path]:
    """Distance against the number of sampling steps. Each is kept as it is measured, for a call after a kill."""
    measures = _measures(arms, settings, place.device)
    models = _models(arms, place.device)
    reference, extractor, config = measures.reference, measures.extractor, measures.config
    path = place.path("steps-measured.json")
    of = {
        "evaluation": asdict(config),
        "extractor": [extractor.name, extractor.weights_sha256],
        "reference": reference.source,
        "runs": {run.folder.name: run.provenance() for runs in arms.values() for run in runs},
    }
    kept: dict[str, Any] = {"of": finite(of), "measured": []}
    if path.is_file():
        found = json.loads(path.read_text())
        kept = found if found["of"] == kept["of"] else kept
    known = {(arm, seed, count): Measurement.from_json(content) for arm, seed, count, content in kept["measured"]}

    def keep(arm: str, seed: int, count: int, measurement: Measurement) -> None:
        kept["measured"].append([arm, seed, count, measurement.to_json()])
        write_json(path, kept)

    curves = sampling_steps(models, reference, extractor, config, list(steps), known=known, on_measured=keep)
    written = _write_distances(curves, place, "steps")
    path.unlink(missing_ok=True)  # it is in the tables' JSON now
    return written


def _write_distances(curves: DistanceCurves, place: Place, name: str) -> list[Path]:
    plot_curves(curves, place.path(f"{name}.png"))
    return [*place.write(name, curves.markdown(), curves.to_json()), place.path(f"{name}.png")]


ANALYSES: dict[str, Callable[..., list[Path]]] = {
    "training_curves": _training_curves,
    "perturbation": _perturbation,
    "trajectory": _trajectory,
    "step_distance": _step_distance,
    "sampling_steps": _sampling_steps,
}


def check_analysis(study: Study) -> None:
    """Refuse a name or a setting that no analysis has, or cannot do with, before anything is trained.

    Raises:
        ValueError: names those that exist, or the value and what is allowed.
    """
    name = study.analysis["name"]
    if name not in ANALYSES:
        raise ValueError(f"analysis.name={name!r}: choose one of {', '.join(ANALYSES)}")
    parameters = [*inspect.signature(ANALYSES[name]).parameters.values()][2:]
    own = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
    allowed = set(own)
    if len(allowed) < len(parameters):  # what the rest goes to
        allowed |= {field.name for field in fields(Perturbation if name == "perturbation" else ImageEvaluation)}
        # The metric is the analysis' own and looks at all features, and sampling_steps goes through numbers of steps.
        allowed -= {"metrics", "max_features"} | ({"num_inference_steps"} if name == "sampling_steps" else set())
    unknown = set(study.settings) - allowed
    if unknown:
        raise ValueError(f"analysis: {', '.join(sorted(unknown))} is none of {', '.join(sorted(allowed))}")
    check_values(name, {**own, **study.settings}, [run.configuration() for run in study.baselines()])


def analyze(study: Study, folder: Path, device: str = "cpu") -> list[Path]:
    """Write the study's tables, JSON and figures for what is trained; returns their paths.

    Args:
        folder: of all sets of runs.
        device: cpu | cuda.
    """
    target = folder / study.runs / study.name
    target.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    groups = dict(study.groups(folder))
    for group, arms in groups.items():
        written += ANALYSES[study.analysis["name"]](arms, Place(target, group, device), **study.settings)
    if study.analysis["name"] == "training_curves" and len(groups) > 1:
        written.append(target / "curves.png")
        plot_training_curves({group: _curves(arms, **study.settings) for group, arms in groups.items()}, written[-1])
    if written:
        runs = {run.folder.name: run.provenance() for run in study.trainings(folder) if run.is_trained}
        command = " ".join(["python", *sys.argv])
        write_json(target / "study.json", {**asdict(study), "command": command, "runs": runs})
    return written
