"""An image training run from configuration to summary: data, model, coupling, training, evaluation."""

from __future__ import annotations

import os
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
from image_diffusion.data import ImageDataset, ImageSource, load_images
from image_diffusion.evaluation import ImageEvaluation, build_extractor, data_reference, evaluate_model
from image_diffusion.latent_build import LatentParts, build_latent_model, load_parts, split_settings
from image_diffusion.metrics import result_key, save_measurements
from image_diffusion.model import PixelModel
from image_diffusion.sampling import save_grid
from immiscible_policy.coupling import Coupling
from immiscible_policy.evaluation.validation import validation_losses
from immiscible_policy.files import write_json
from immiscible_policy.run_setup import (
    begin_run,
    check_dataset,
    check_run_dir,
    fit,
    plain_settings,
    prepare_run_dir,
    trainer_config,
)
from immiscible_policy.training import Trainer
from immiscible_policy.training.precision import resolve_device

# Images of a coupling's fit, which most couplings do not look at.
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
        **options,
    )


def train_images(cfg: DictConfig, run_dir: Path, resume: bool = False) -> dict[str, Any]:
    """Train, sample, evaluate and summarise; returns what ``summary.json`` holds.

    A resumed run continues from its last checkpoint, or goes straight to the end if training had ended.
    """
    begin_run(cfg)
    coupling: Coupling = instantiate(cfg.coupling, _convert_="all")
    monitor = ImageEvaluation(**plain_settings(cfg.monitor))
    final = ImageEvaluation(**plain_settings(cfg.evaluation))
    if "fd" not in monitor.metrics:
        raise ValueError(f"monitor.metrics={list(monitor.metrics)}: must contain fd, by which the best model is kept")
    main = os.environ.get("RANK", "0") == "0"
    check_run_dir(run_dir, resume)
    check_dataset(cfg, "format", "images")
    source = ImageSource.from_config(plain_settings(cfg.dataset))
    _, latent = split_settings(plain_settings(cfg.model))
    parts = None if latent is None else load_parts(latent)  # what is missing shows before data is read
    data = load_images(source)
    model = build_image_model(cfg, data, coupling, parts)
    for evaluation in (monitor, final):
        model.check_guidance(evaluation.guidance_scale)
    if main and coupling.caveat is not None:
        print(f"coupling: {coupling}; {coupling.caveat}")
    _fit_coupling(coupling, model, data)
    config = trainer_config(cfg, len(data))
    run_dir = prepare_run_dir(run_dir, cfg.device)
    device = resolve_device(cfg.device)
    data.to(device)
    seeds = list(range(cfg.samples.seed, cfg.samples.seed + cfg.samples.n))
    extractor = build_extractor(monitor, data.image_size, data.channels, str(data.device))
    # One pass over the data serves both evaluations where they look at the same features.
    shared = all(getattr(monitor, name) == getattr(final, name) for name in ("extractor", "weights", "max_features"))
    wanted = replace(monitor, metrics=(*monitor.metrics, *final.metrics)) if shared else monitor
    reference = data_reference(data, extractor, wanted, progress=False) if main else None

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
    if source.test_split is not None:
        held_out = model.training_set(load_images(source.for_test()), memory_limit, device)
        validate = partial(validation_losses, dataset=held_out, coupling=coupling, batch_size=cfg.batch_size)
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
    if not shared:
        extractor = build_extractor(final, data.image_size, data.channels, str(data.device))
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


def _fit_coupling(coupling: Coupling, model: ImageModel, data: ImageDataset) -> None:
    """Show a coupling that asks for it (most do not) what it will pair."""
    if type(coupling).fit is Coupling.fit:
        return
    chosen = torch.linspace(0, len(data) - 1, min(len(data), FIT_IMAGES)).long().unique()
    upright = torch.cat([model.encode(data.batch(part)["image"]) for part in chosen.split(1024)])
    labels = data.labels[chosen] if data.labels is not None else None
    coupling.fit(upright * model.objective.data_scale, labels)
