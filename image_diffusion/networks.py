"""Image networks: diffusers' U-Nets behind the signature that every objective calls."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

LATENT_SIZE = "image_size / (pixels of a latent)"


class PixelUNet(nn.Module):
    """``UNet2DModel`` as ``network(noisy, time, condition)``; the condition is class labels or None."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        """noisy (B, C, H, W), time (B,), condition (B,) int64 labels or None -> (B, C, H, W)."""
        return self.unet(noisy, time, class_labels=condition, return_dict=False)[0]


class TextUNet(nn.Module):
    """``UNet2DConditionModel`` as ``network(noisy, time, condition)``; the condition is a prompt's embeddings."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """noisy (B, C, H, W), time (B,), condition (B, T, D) -> (B, C, H, W)."""
        return self.unet(noisy, time, encoder_hidden_states=condition, return_dict=False)[0]


@torch.no_grad()
def zero_initialise(unet: nn.Module) -> None:
    """Set the last convolution of every residual block, the attention's output and the output convolution to zero.

    The original DDPM (Ho et al., 2020, released code) starts there and diffusers does not: the network then begins as a
    function that is zero everywhere.
    """
    for name, module in unet.named_modules():
        last = name.rsplit(".", 1)[-1]
        if last in ("conv2", "conv_out") or name.endswith("to_out.0"):
            for parameter in module.parameters(recurse=False):
                parameter.zero_()


def build_network(
    settings: Mapping[str, Any],
    image_size: int,
    channels: int,
    n_classes: int | None = None,
    size_name: str = "image_size",
) -> PixelUNet:
    """The network of a configuration, for images or for latents of this size.

    Args:
        settings: arguments of ``UNet2DModel``, and ``zero_init`` (see ``zero_initialise``), true unless given.
        n_classes: classes of a conditional network, one more than those of the data for "no class"; None for none.
        size_name: what errors call the size.

    Raises:
        ValueError: a setting is unknown, or does not fit the images.
    """
    options = dict(settings)
    zero_init = bool(options.pop("zero_init", True))
    blocks = options.get("down_block_types", ())
    if any(name.startswith("CrossAttn") for name in blocks):
        raise ValueError(
            f"network (block types {list(blocks)}) looks at prompts, and there is no text encoder: give "
            "model.text_encoder, or choose a network without CrossAttnDownBlock2D (network=unet_latent)"
        )
    _check_resolutions(options, image_size, size_name)
    _check_heads(options, options.get("mid_block_type", "") is not None and options.get("add_attention", True))
    try:
        unet = UNet2DModel(
            **{
                **options,
                "sample_size": image_size,
                "in_channels": channels,
                "out_channels": channels,
                "num_class_embeds": n_classes,
            }
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"network (block types {list(blocks)}): {error}") from error
    if zero_init:
        zero_initialise(unet)
    return PixelUNet(unet)


def build_text_network(settings: Mapping[str, Any], latent_size: int, channels: int, embedding_dim: int) -> TextUNet:
    """The network of a configuration that is told prompts.

    Args:
        settings: arguments of ``UNet2DConditionModel``, and ``zero_init``, true unless given.
        embedding_dim: of a prompt's embeddings.

    Raises:
        ValueError: a setting is unknown, does not fit the latents, or the network would not look at prompts.
    """
    options = dict(settings)
    zero_init = bool(options.pop("zero_init", True))
    blocks = options.get("down_block_types", ())
    if blocks and not any(name.startswith("CrossAttn") for name in blocks):
        raise ValueError(
            f"network (block types {list(blocks)}) does not look at prompts: choose network=unet_latent_text (method="
            "sd_text) or another with CrossAttnDownBlock2D"
        )
    _check_resolutions(options, latent_size, LATENT_SIZE)
    _check_heads(options, "CrossAttn" in (options.get("mid_block_type", "CrossAttn") or ""))
    sizes = {"sample_size": latent_size, "in_channels": channels, "out_channels": channels}
    try:
        unet = UNet2DConditionModel(**{**options, **sizes, "cross_attention_dim": embedding_dim})
    except (TypeError, ValueError) as error:
        raise ValueError(f"network (block types {list(blocks)}): {error}") from error
    if zero_init:
        zero_initialise(unet)
    return TextUNet(unet)


def _check_resolutions(options: Mapping[str, Any], size: int, name: str) -> None:
    halvings = len(options.get("block_out_channels", ())) - 1
    if halvings > 0 and size % 2**halvings:
        raise ValueError(
            f"network.block_out_channels has {halvings + 1} resolutions: {name}={size} must be a multiple of "
            f"{2**halvings}"
        )


def _check_heads(options: Mapping[str, Any], in_the_middle: bool) -> None:
    """Refuse an ``attention_head_dim`` that leaves a block no head, or no channel of one.

    Args:
        in_the_middle: whether the block in the middle has attention.
    """
    widths, given = list(options.get("block_out_channels", ())), options.get("attention_head_dim", 8)
    each = [given] * len(widths) if given is None or isinstance(given, int) else list(given)
    ways = (options.get("down_block_types", ()), reversed(options.get("up_block_types", ())))
    attending = {place for names in ways for place, name in enumerate(names) if "Attn" in name}
    attending |= {len(widths) - 1} if in_the_middle else set()
    for place, (width, dim) in enumerate(zip(widths, each, strict=False)):
        if place in attending and dim is not None and not 1 <= dim <= width:
            raise ValueError(
                f"network.attention_head_dim={given}: must be 1 to {width}, the channels of a block with attention "
                f"(network.block_out_channels={widths})"
            )
