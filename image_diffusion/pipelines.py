"""Trained models as diffusers pipelines, which other programs load without this package.

Where a standard pipeline computes the same, it is that one: ``DDIMPipeline`` or ``DDPMPipeline`` for unconditional
models, ``ConsistencyModelPipeline``, ``StableDiffusionPipeline`` for latents and CLIP. What they lack (PNDM and flow
matching in pixels, class labels with DDIM, scaled data) is in ``pipeline.py``, for latents (other text encoders,
classes, none of both) in ``latent_pipeline.py``; they are copied into the folder as ``pipeline.py`` and loaded by
``DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)``.

A DDIM pipeline takes the library's strides, ``ddim_floor``. They are those of ``ddim`` with leading spacing, which the
methods here have, and where the steps divide those of training.
"""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDPMPipeline,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)

from image_diffusion.autoencoder import Autoencoder
from image_diffusion.latent_pipeline import LatentDiffusionPipeline
from image_diffusion.pipeline import PixelDiffusionPipeline
from image_diffusion.text import TextEncoder
from immiscible_policy.diffusion import DDPM, Consistency, FlowMatching, Objective

# What diffusers looks for in a folder that brings its own pipeline.
PIPELINE_FILE = "pipeline.py"


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
    pipeline = PixelDiffusionPipeline(
        unet=unet, scheduler=scheduler, data_scale=objective.data_scale, num_inference_steps=num_inference_steps
    )
    _save_with_its_file(pipeline, folder)


def write_latent_pipeline(
    unet: Any,
    autoencoder: Autoencoder,
    text_encoder: TextEncoder | None,
    objective: Objective,
    num_inference_steps: int,
    folder: Path,
) -> None:
    """Write ``model_index.json``, ``unet/``, ``vae/``, ``scheduler/`` and with a text encoder ``text_encoder/`` and
    ``tokenizer/`` into ``folder``.

    A Stable Diffusion pipeline has no safety checker, whatever training started from.

    Raises:
        ValueError: an objective without a scheduler in diffusers.
    """
    parts = {"unet": unet, "vae": autoencoder.network, "scheduler": build_scheduler(objective)}
    if text_encoder is not None:
        parts |= {"text_encoder": text_encoder.network, "tokenizer": text_encoder.tokenizer}
    if text_encoder is not None and _is_stable_diffusion(autoencoder, text_encoder, objective):
        # Here, because importing it takes seconds, and has transformers complain where torchvision is missing.
        from diffusers import StableDiffusionPipeline

        StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        ).save_pretrained(folder)
        return
    options: dict[str, Any] = {"data_scale": objective.data_scale, "num_inference_steps": num_inference_steps}
    if text_encoder is not None:
        options |= {"prompt_length": text_encoder.length, "masked": text_encoder.masked}
        options["zero_padding"] = not text_encoder.is_clip
    _save_with_its_file(LatentDiffusionPipeline(**parts, **options), folder)


def _is_stable_diffusion(autoencoder: Autoencoder, text_encoder: TextEncoder, objective: Objective) -> bool:
    """Whether diffusers' StableDiffusionPipeline computes what the model does: it sets ``steps_offset`` to 1."""
    usual = isinstance(objective, DDPM) and objective.steps_offset == 1 and objective.data_scale == 1.0
    return usual and text_encoder.is_clip and not getattr(autoencoder.network.config, "shift_factor", None)


def _save_with_its_file(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Save a pipeline of this package with the file that its class is in."""
    pipeline.save_pretrained(folder)
    kind = type(pipeline)
    shutil.copyfile(inspect.getfile(kind), folder / PIPELINE_FILE)
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    content["_class_name"] = [Path(PIPELINE_FILE).stem, kind.__name__]
    index.write_text(json.dumps(content, indent=2) + "\n")


def standard_pipeline(unet: UNet2DModel, objective: Objective) -> Any:
    """diffusers' own pipeline class that samples as the objective does, or None."""
    if objective.data_scale != 1.0:
        return None
    if isinstance(objective, Consistency):
        return ConsistencyModelPipeline
    if isinstance(objective, DDPM) and unet.config.num_class_embeds is None:
        # PNDM's scheduler takes no generator, which both would hand it.
        return {"ddim": DDIMPipeline, "ddpm": DDPMPipeline}.get(objective.sampler)
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
