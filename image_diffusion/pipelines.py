"""Trained models as diffusers pipelines, which other programs load without this package.

Where a standard pipeline computes the same, it is that one: ``DDIMPipeline`` or ``DDPMPipeline`` for unconditional
models, ``ConsistencyModelPipeline``. What they lack (flow matching in pixels, class labels with DDIM, scaled data) is
in ``pipeline.py``, which is copied into the folder and loaded by
``DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDPMPipeline,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)

from immiscible_policy.diffusion import DDPM, Consistency, FlowMatching, Objective

PIPELINE_FILE = Path(__file__).with_name("pipeline.py")


def write_pipeline(unet: UNet2DModel, objective: Objective, num_inference_steps: int, folder: Path) -> None:
    """Write ``model_index.json``, ``unet/`` and ``scheduler/`` into ``folder``.

    Raises:
        ValueError: an objective without a scheduler in diffusers.
    """
    scheduler = build_scheduler(objective)
    standard = standard_pipeline(unet, objective)
    if standard is not None:
        standard(unet=unet, scheduler=scheduler).save_pretrained(folder)
        return
    from image_diffusion.pipeline import PixelDiffusionPipeline

    pipeline = PixelDiffusionPipeline(
        unet=unet, scheduler=scheduler, data_scale=objective.data_scale, num_inference_steps=num_inference_steps
    )
    pipeline.save_pretrained(folder)
    shutil.copyfile(PIPELINE_FILE, folder / PIPELINE_FILE.name)
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    content["_class_name"] = [PIPELINE_FILE.stem, PixelDiffusionPipeline.__name__]
    index.write_text(json.dumps(content, indent=2) + "\n")


def standard_pipeline(unet: UNet2DModel, objective: Objective) -> Any:
    """diffusers' own pipeline class that samples as the objective does, or None."""
    if objective.data_scale != 1.0:
        return None
    if isinstance(objective, Consistency):
        return ConsistencyModelPipeline
    if isinstance(objective, DDPM) and unet.config.num_class_embeds is None:
        return DDIMPipeline if objective.sampler == "ddim" else DDPMPipeline
    return None


def build_scheduler(objective: Objective) -> Any:
    """diffusers' scheduler of an objective's sampler (of flow matching: Euler)."""
    if isinstance(objective, DDPM):
        return objective.sampling_scheduler()
    if isinstance(objective, Consistency):
        return CMStochasticIterativeScheduler(
            sigma_min=objective.sigma_min,
            sigma_max=objective.sigma_max,
            sigma_data=objective.sigma_data * objective.data_scale,
            rho=objective.rho,
            clip_denoised=objective.clip_sample and objective.data_scale == 1.0,
        )
    if isinstance(objective, FlowMatching):
        return FlowMatchEulerDiscreteScheduler()
    raise ValueError(f"{type(objective).__name__} has no scheduler in diffusers")
