"""An image training run from configuration to summary: data, model, coupling, training, evaluation."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from image_diffusion.base_model import ImageModel
from image_diffusion.data import RUN_RECORD, ImageDataset, ImageSource, load_images, recorded_images
from image_diffusion.evaluation import (
    ImageEvaluation,
    build_extractor,
    check_evaluation,
    check_seeds,
    data_reference,
    evaluate_model,
)
from image_diffusion.latent_build import LatentParts, build_latent_model, load_parts, split_settings
from image_diffusion.metrics import result_key, save_measurements
from image_diffusion.model import PixelModel
from image_diffusion.sampling import save_grid
from immiscible_policy.coupling import Coupling
from immiscible_policy.diffusion import OBJECTIVES
from immiscible_policy.evaluation.validation import validation_losses
from immiscible_policy.files import write_json
from immiscible_policy.run_setup import (
    begin_run,
    check_dataset,
    fit,
    is_main_process,
    plain_settings,
    prepare_run_dir,
    process_device,
    trainer_config,
)
from immiscible_policy.training import Trainer

# Images of a coupling's fit, where it looks at any.
FIT_IMAGES = 20_000


def build_image_model(
    cfg: DictConfig, data: ImageDataset, coupling: Coupling | None = None, parts: LatentParts | None = None
) -> ImageModel:
    """The model that ``cfg`` describes, freshly initialised or pretrained.

    Args:
        coupling: noted in its configuration.
        parts: of a latent model, where they are loaded already.

    Raises:
        ValueError: settings that do not fit the data.
    """
    options, latent = split_settings(plain_settings(cfg.model))
    network, objective = plain_settings(cfg.network), plain_settings(cfg.objective)
    if latent is not None:
        parts = load_parts(latent) if parts is None else parts
        return build_latent_model(latent, parts, options, network, objective, data, coupling)
    conditional = options.pop("class_conditional")
    if conditional and data.n_classes is None:
        raise ValueError(f"model.class_conditional=true: {data.source['name']} has no classes")
    if not conditional:
        options["label_dropout"] = 0.0
    return PixelModel(
        data.image_size,
        data.channels,
        network,
        objective,
        n_classes=data.n_classes if conditional else None,
        flip=data.flip,
        coupling=None if coupling is None else str(coupling),
        class_counts=data.class_counts() if conditional else None,
        **options,
    )


def _check_objective(settings: Mapping[str, Any]) -> None:
    """Refuse settings of another objective, which a method brings when its objective alone is replaced."""
    kind = OBJECTIVES.get(settings.get("name", ""))
    foreign = [] if kind is None else sorted(set(settings) - {"name", *inspect.signature(kind).parameters})
    if foreign:
        raise ValueError(
            f"objective.{foreign[0]}={settings[foreign[0]]}: objective.name={settings['name']} has no such setting. If "
            "objective=... replaced the method's own, choose the method instead: ddim, fm (flow matching), cm "
            "(consistency)"
        )


def train_images(cfg: DictConfig, run_dir: Path, resume: bool = False) -> dict[str, Any]:
    """Train, sample, evaluate and summarise; returns what ``summary.json`` holds.

    A resumed run continues from its last checkpoint, or goes straight to the end if training had ended.
    """
    begin_run(cfg, run_dir, resume)
    coupling: Coupling = instantiate(cfg.coupling, _convert_="all")
    monitor = ImageEvaluation(**plain_settings(cfg.monitor))
    final = ImageEvaluation(**plain_settings(cfg.evaluation))
    if "fd" not in monitor.metrics:
        raise ValueError(f"monitor.metrics={list(monitor.metrics)}: must contain fd, by which the best model is kept")
    if cfg.samples.n < 1:
        raise ValueError(f"samples.n={cfg.samples.n}: must be at least 1")
    check_seeds("samples.seed", cfg.samples.seed, cfg.samples.n)
    main = is_main_process()
    check_dataset(cfg, "format", "images")
    _check_objective(plain_settings(cfg.objective))
    source = ImageSource.from_config(plain_settings(cfg.dataset))
    test_source = None if source.test_split is None else _test_source(source, cfg.get("validate_on"))
    _, latent = split_settings(plain_settings(cfg.model))
    parts = None if latent is None else load_parts(latent)  # what is missing shows before data is read
    recorded = recorded_images(run_dir) if resume else None
    data = load_images(source, recorded)
    model = build_image_model(cfg, data, coupling, parts)
    held_out = None if test_source is None else load_images(test_source)
    if held_out is not None:
        _check_held_out(held_out, data, model.n_classes is not None, latent is not None and latent.captions)
    device = process_device(cfg.device)
    extractor = check_evaluation(monitor, model, len(data), device, "monitor")
    # One pass over the data serves both evaluations where they look at the same features.
    same_extractor = (monitor.extractor, monitor.weights) == (final.extractor, final.weights)
    shared = same_extractor and monitor.max_features == final.max_features
    check_evaluation(final, model, len(data), device, extractor=extractor if same_extractor else None)
    if main and coupling.caveat is not None:
        print(f"coupling: {coupling}; {coupling.caveat}")
    _fit_coupling(coupling, model, data, device)
    config = trainer_config(cfg, len(data))
    run_dir = prepare_run_dir(run_dir, cfg.device)
    if main and recorded is None:
        write_json(run_dir / RUN_RECORD, data.source)
    data.to(device)
    seeds = list(range(cfg.samples.seed, cfg.samples.seed + cfg.samples.n))
    wanted = replace(monitor, metrics=(*monitor.metrics, *final.metrics)) if shared else monitor
    reference = data_reference(data, extractor, wanted) if main else None

    def evaluate(averaged: ImageModel, step: int) -> Mapping[str, float]:
        save_grid(
            averaged.sample(seeds, guidance_scale=monitor.guidance_scale),
            run_dir / "media" / f"samples_step={step:07d}.png",
        )
        assert reference is not None  # only the main process evaluates
        found = evaluate_model(averaged, reference, extractor, monitor, progress=False)
        return {f"evaluation/{key}": measurement.value for key, measurement in found.items()}

    memory_limit = cfg.dataset.memory_limit if latent is None or latent.cache_latents else 0.0
    training_set = model.training_set(data, memory_limit, device)
    validate = None
    if held_out is not None:
        test_set = model.training_set(held_out, memory_limit, device)
        validate = partial(validation_losses, dataset=test_set, coupling=coupling, batch_size=config.batch_size)
    key = result_key("fd", extractor.name, monitor.n_samples, len(data), extractor.canonical)
    trainer = Trainer(
        model,
        training_set,
        coupling,
        config,
        run_dir,
        validate=validate,
        evaluate=evaluate,
        headline=f"evaluation/{key}",
        lower_is_better=True,
    )
    if not fit(trainer, resume):
        return {}
    averaged = trainer.averaged_model()
    if not same_extractor:
        extractor = build_extractor(final, data.image_size, data.channels, device)
    if not shared:
        reference = data_reference(data, extractor, final)
    assert reference is not None
    measured = evaluate_model(averaged, reference, extractor, final, {"training_seed": cfg.seed, "step": trainer.step})
    save_measurements(run_dir / "evaluation.json", measured)
    summary = {
        "coupling": str(coupling),
        "seed": cfg.seed,
        "data": data.source,
        "steps": trainer.step,
        "training_seconds": {"wall": trainer.seconds.wall, "cpu": trainer.seconds.cpu},
        "num_threads": torch.get_num_threads(),
        "precision": trainer.precision,
        "command": " ".join(["python", *sys.argv]),
        "versions": {name: version(name) for name in ("immiscible-policy", "torch", "diffusers", "numpy", "pillow")},
        "parameters": sum(p.numel() for p in model.parameters()),
        "final": {name: measurement.value for name, measurement in measured.items()},
    }
    write_json(run_dir / "summary.json", summary)
    return summary


def _test_source(source: ImageSource, at_most: int | None) -> ImageSource:
    """The test split, cut to ``max_items`` of the data and to ``validate_on`` images, evenly spaced over it."""
    if at_most is not None and at_most < 1:
        raise ValueError(f"validate_on={at_most}: must be at least 1, or null for all")
    limits = [limit for limit in (source.max_items, at_most) if limit is not None]
    return replace(source.for_test(), max_items=min(limits, default=None))


def _check_held_out(held_out: ImageDataset, data: ImageDataset, classes: bool, captions: bool) -> None:
    """Refuse test images that a model of the training's cannot be validated on.

    Args:
        classes, captions: whether the model is told them.
    """
    split = f"dataset.test_split={held_out.source['split']}"
    shape, wanted = ((part.channels, part.image_size) for part in (held_out, data))
    if shape != wanted:
        found, needed = (f"{channels} x {size} x {size}" for channels, size in (shape, wanted))
        raise ValueError(
            f"{split}: its images are {found}, those of the training {needed}: set dataset.image_size and "
            "dataset.channels"
        )
    without = "dataset.test_split=null trains without validation"
    if classes and held_out.n_classes != data.n_classes:
        raise ValueError(
            f"{split}: its images have {held_out.n_classes or 'no'} classes, those of the training {data.n_classes}, "
            f"which model.class_conditional=true tells the network; {without}"
        )
    if captions and held_out.captions is None:
        raise ValueError(f"{split}: its images have no captions, which model.captions=true needs; {without}")


def _fit_coupling(coupling: Coupling, model: ImageModel, data: ImageDataset, device: str) -> None:
    """Tell a coupling the size of the data set and show it what it asks for, which for most is nothing.

    It is shown the labels where training shows them, too: of conditional models.

    Args:
        device: to encode images on.
    """
    coupling.fit_size(len(data))
    if not coupling.fit_uses:
        return
    chosen = torch.linspace(0, len(data) - 1, min(len(data), FIT_IMAGES)).long().unique().to(data.device)
    labels = None if data.labels is None or model.n_classes is None else data.labels[chosen].to(device)
    shown = torch.empty(len(chosen), 0, device=device)  # stands for data that is not looked at
    if "data" in coupling.fit_uses:
        parts = [model.encode(data.batch(part)["image"].to(device)) for part in chosen.split(1024)]
        shown = torch.cat(parts) * model.objective.data_scale
    coupling.fit(shown, labels)
