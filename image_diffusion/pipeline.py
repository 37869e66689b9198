"""A diffusers pipeline for pixel models: flow matching, PNDM, class labels, scaled data. Needs diffusers and torch."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ImagePipelineOutput, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor


class PixelDiffusionPipeline(DiffusionPipeline):
    """Images from noise, by any scheduler whose ``step`` needs no more than prediction, time and sample.

    Args:
        unet: predicts what the scheduler expects.
        scheduler: of the sampler.
        data_scale: training data was multiplied by it; samples are divided by it.
        num_inference_steps: network calls of an image unless the caller says otherwise.
    """

    def __init__(
        self, unet: UNet2DModel, scheduler: Any, data_scale: float = 1.0, num_inference_steps: int = 50
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(data_scale=data_scale, num_inference_steps=num_inference_steps)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: list[int] | torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Sample images.

        Args:
            batch_size: how many.
            class_labels: one for each image, for conditional models.
            generator: one, or one for each image.
            num_inference_steps: network calls; default the model's.
            output_type: pil | np ((B, H, W, C) in [0, 1]) | pt ((B, C, H, W) in [0, 1]).
        """
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        size = self.unet.config.sample_size
        shape = (batch_size, self.unet.config.in_channels, size, size)
        device = self._execution_device
        euler = isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler)
        if class_labels is not None:
            class_labels = torch.as_tensor(class_labels, device=device)
            if class_labels.shape != (batch_size,):
                found = tuple(class_labels.shape)
                raise ValueError(f"class_labels has shape {found}; batch_size={batch_size} needs one for each image")
        sample = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        sample = sample * self.scheduler.init_noise_sigma if hasattr(self.scheduler, "init_noise_sigma") else sample
        if euler:
            # Equal intervals; its own default spends the last step on the way from 0.001 to 0.
            self.scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), device=device)
        else:
            self.scheduler.set_timesteps(steps, device=device)
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters and not euler
        options = {"generator": generator} if takes_generator else {}
        for t in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(sample, t) if self._scales else sample
            prediction = self.unet(scaled, t, class_labels=class_labels, return_dict=False)[0]
            sample = self.scheduler.step(prediction, t, sample, **options).prev_sample
        image = (sample / self.config.data_scale / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            image = image.cpu().permute(0, 2, 3, 1).float().numpy()
            image = self.numpy_to_pil(image) if output_type == "pil" else image
        return ImagePipelineOutput(images=image) if return_dict else (image,)

    @property
    def _scales(self) -> bool:
        return hasattr(self.scheduler, "scale_model_input") and not isinstance(
            self.scheduler, FlowMatchEulerDiscreteScheduler
        )
