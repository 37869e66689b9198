"""Image networks: diffusers' U-Nets behind the signature that every objective calls."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn


class PixelUNet(nn.Module):
    """``UNet2DModel`` as ``network(noisy, time, condition)``; the condition is class labels or None.

    Args:
        settings: of ``UNet2DModel``.
        zero_init: start the last convolution of every residual block, the attention's output and the output
            convolution at zero, as the original DDPM does (Ho et al., 2020, released code) and diffusers does not: the
            network then begins as a function that is zero everywhere.
    """

    def __init__(self, settings: Mapping[str, Any], zero_init: bool = True) -> None:
        super().__init__()
        self.unet = UNet2DModel(**settings)
        if zero_init:
            zero_initialise(self.unet)

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        """noisy (B, C, H, W), time (B,), condition (B,) int64 labels or None -> (B, C, H, W)."""
        return self.unet(noisy, time, class_labels=condition, return_dict=False)[0]


@torch.no_grad()
def zero_initialise(unet: nn.Module) -> None:
    """Set the weights and biases named in ``PixelUNet`` to zero, in place."""
    for name, module in unet.named_modules():
        last = name.rsplit(".", 1)[-1]
        if last in ("conv2", "conv_out") or name.endswith("to_out.0"):
            for parameter in module.parameters(recurse=False):
                parameter.zero_()


def build_network(
    settings: Mapping[str, Any], image_size: int, channels: int, n_classes: int | None = None
) -> PixelUNet:
    """The network of a configuration.

    Args:
        settings: arguments of ``UNet2DModel``, and ``zero_init``.
        n_classes: classes of a conditional network, one more than those of the data for "no class"; None for none.

    Raises:
        ValueError: a setting is unknown, or does not fit the images.
    """
    options = dict(settings)
    zero_init = bool(options.pop("zero_init", True))
    blocks = options.get("down_block_types", ())
    halvings = len(options.get("block_out_channels", ())) - 1
    if halvings > 0 and image_size % 2**halvings:
        raise ValueError(
            f"network.block_out_channels has {halvings + 1} resolutions: image_size={image_size} must be a multiple of "
            f"{2**halvings}"
        )
    try:
        return PixelUNet(
            {
                **options,
                "sample_size": image_size,
                "in_channels": channels,
                "out_channels": channels,
                "num_class_embeds": n_classes,
            },
            zero_init,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"network (block types {list(blocks)}): {error}") from error
