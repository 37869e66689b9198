"""A diffusers pipeline for latent models that are no plain Stable Diffusion: told nothing, classes, or prompts through
any text encoder. Needs diffusers and torch, and transformers for prompts.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class LatentDiffusionPipeline(DiffusionPipeline):
    """Images from noise in an autoencoder's latents.

    Args:
        unet: ``UNet2DConditionModel`` with a text encoder, else ``UNet2DModel``.
        vae: the autoencoder.
        scheduler: of the sampler.
        text_encoder, tokenizer: of prompts, or None.
        data_scale: training data was multiplied by it; samples are divided by it.
        num_inference_steps: network calls of an image unless the caller says otherwise.
        prompt_length: tokens of a prompt.
        masked: whether the text encoder is told where the padding is. zero_padding: whether embeddings there are zero.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012 - diffusers' own way

    def __init__(
        self,
        unet: Any,
        vae: AutoencoderKL,
        scheduler: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        data_scale: float = 1.0,
        num_inference_steps: int = 50,
        prompt_length: int = 77,
        masked: bool = True,
        zero_padding: bool = True,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer)
        self.register_to_config(
            data_scale=data_scale,
            num_inference_steps=num_inference_steps,
            prompt_length=prompt_length,
            masked=masked,
            zero_padding=zero_padding,
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        batch_size: int = 1,
        class_labels: list[int] | torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Sample images.

        Args:
            prompt: one for each image, for models with a text encoder (default: the empty prompt); or
            batch_size: how many images.
            class_labels: one for each image, for models with classes and no text encoder.
            generator: one, or one for each image.
            num_inference_steps: network calls; default the model's.
            guidance_scale: of classifier-free guidance; above 1 it doubles the calls.
            output_type: pil | np ((B, H, W, C) in [0, 1]) | pt ((B, C, H, W) in [0, 1]) | latent.
        """
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        prompts = [prompt] if isinstance(prompt, str) else prompt
        n = batch_size if prompts is None else len(prompts)
        device, size = self._execution_device, self.unet.config.sample_size
        euler = isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler)
        condition, nothing = self._conditions(n, prompts, class_labels, device)
        shape = (n, self.unet.config.in_channels, size, size)
        sample = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        sample = sample * getattr(self.scheduler, "init_noise_sigma", 1.0)
        if euler:  # equal intervals; its own default spends the last step on the way from 0.001 to 0
            self.scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), device=device)
        else:
            self.scheduler.set_timesteps(steps, device=device)
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters and not euler
        options = {"generator": generator} if takes_generator else {}
        for t in self.progress_bar(self.scheduler.timesteps):
            scaled = sample if euler else self.scheduler.scale_model_input(sample, t)
            prediction = self._predict(scaled, t, condition)
            if guidance_scale != 1.0:
                without = self._predict(scaled, t, nothing)
                prediction = without + guidance_scale * (prediction - without)
            sample = self.scheduler.step(prediction, t, sample, **options).prev_sample
        images = sample / self.config.data_scale
        if output_type != "latent":
            images = self._decode(images, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _conditions(
        self, n: int, prompts: list[str] | None, class_labels: Any, device: torch.device
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What the network is told of n images, and what where guidance tells it nothing."""
        if self.text_encoder is not None:
            return self._embed(prompts or [""] * n, device), self._embed([""] * n, device)
        if prompts is not None:
            raise ValueError("prompt is given, but this model has no text encoder")
        if class_labels is None:
            return None, None
        labels = torch.as_tensor(class_labels, device=device)
        if labels.shape != (n,):
            raise ValueError(f"class_labels has shape {tuple(labels.shape)}; batch_size={n} needs one for each image")
        return labels, torch.full_like(labels, self.unet.config.num_class_embeds - 1)

    def _embed(self, prompts: list[str], device: torch.device) -> torch.Tensor:
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.config.prompt_length,
            truncation=True,
            return_tensors="pt",
        ).to(device)
        mask = tokens.attention_mask
        embeddings = self.text_encoder(tokens.input_ids, attention_mask=mask if self.config.masked else None)[0]
        embeddings = embeddings * mask[..., None] if self.config.zero_padding else embeddings
        return embeddings.to(self.unet.dtype)

    def _predict(self, sample: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        name = "class_labels" if self.text_encoder is None else "encoder_hidden_states"
        return self.unet(sample, t, **{name: condition}, return_dict=False)[0]

    def _decode(self, latents: torch.Tensor, output_type: str) -> Any:
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        image = self.vae.decode(latents / self.vae.config.scaling_factor + shift).sample
        image = (image / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return image
        image = image.cpu().permute(0, 2, 3, 1).float().numpy()
        return self.numpy_to_pil(image) if output_type == "pil" else image
