"""From a history of pictures and positions to one feature vector a step (Chi et al., RSS 2023, section III-B)."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from immiscible_policy.policy.encoders.spatial_softmax import SpatialSoftmax

ImageObservation = Mapping[str, Tensor]
"""``pixels`` (B, T, H, W, 3) uint8 RGB and ``agent_pos`` (B, T, D), T steps, oldest first."""


class Trunk(Protocol):
    """A network (N, 3, H, W) in [-1, 1] -> (N, out_channels, H', W')."""

    out_channels: int

    def __call__(self, images: Tensor) -> Tensor: ...


class ImageEncoder(nn.Module):
    """Crop, scale to [-1, 1], convolutional trunk, spatial softmax, one linear layer; the position goes beside it.

    With ``ResNet18`` and the defaults this is the released encoder of Diffusion Policy: 11,197,088 parameters, and
    with positions of 2 entries 66 features a step.

    Args:
        trunk: module ``trunk(images) -> feature maps`` with ``out_channels``.
        agent_dim: entries of one position.
        crop: side of the square that is cut out of a picture: at a random place in training, from the centre
            otherwise. None takes the whole picture.
        shared_crop: one place for all pictures of a history, so that what moves between them is what moved; else a
            place for each picture (which is what the released configuration trains with).
        n_keypoints: of the spatial softmax.
        feature_dim: features of a picture.
    """

    def __init__(
        self,
        trunk: Trunk,
        agent_dim: int,
        crop: int | None = 84,
        shared_crop: bool = True,
        n_keypoints: int = 32,
        feature_dim: int = 64,
    ) -> None:
        super().__init__()
        for name, value in (("crop", crop), ("feature_dim", feature_dim)):
            if value is not None and value < 1:
                raise ValueError(f"encoder.{name}={value}: must be at least 1")
        self.agent_dim, self.crop, self.shared_crop = agent_dim, crop, shared_crop
        self.trunk = trunk
        self.keypoints = SpatialSoftmax(trunk.out_channels, n_keypoints)
        self.head = nn.Sequential(nn.Linear(self.keypoints.out_dim, feature_dim), nn.ReLU())
        self.out_dim = feature_dim + agent_dim

    def forward(
        self, pixels: Tensor, agent_pos: Tensor, training: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Features of each step.

        Args:
            pixels: (B, T, H, W, 3) uint8, RGB.
            agent_pos: (B, T, agent_dim) normalised positions.
            training: whether pictures are cropped at random.
            generator: for the places of the crops, on the pictures' device; None for torch's own.

        Returns:
            (B, T, feature_dim + agent_dim) float32, the pictures' features first.

        Raises:
            ValueError: pictures of another type or shape, or smaller than the crop.
        """
        batch, steps = self._checked_size(pixels)
        places = None
        if training and self.crop is not None:
            places = draw_places(pixels, self.crop, self.shared_crop, generator)
        images = crop_pictures(pixels.flatten(0, 1), self.crop, places)
        # (N, H, W, 3) seen as (N, 3, H, W) is what torch calls channels_last: convolutions read it as it lies.
        images = images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
        features = self.head(self.keypoints(self.trunk(images))).float()
        return torch.cat([features.unflatten(0, (batch, steps)), agent_pos.float()], dim=-1)

    def _checked_size(self, pixels: Tensor) -> tuple[int, int]:
        if pixels.ndim != 5 or pixels.shape[-1] != 3 or pixels.dtype != torch.uint8:
            raise ValueError(
                f"pixels are {pixels.dtype} of shape {tuple(pixels.shape)}; this encoder takes torch.uint8 RGB of "
                "shape (B, n_obs_steps, height, width, 3)"
            )
        if self.crop is not None and min(pixels.shape[2:4]) < self.crop:
            raise ValueError(
                f"encoder.crop={self.crop}: at most the pictures' size, which is {tuple(pixels.shape[2:4])}"
            )
        return pixels.shape[0], pixels.shape[1]


def draw_places(pixels: Tensor, crop: int, shared: bool, generator: torch.Generator | None = None) -> Tensor:
    """Random top left corners, uniform over all places of a crop: (B, T, H, W, 3) -> (B * T, 2) int64 rows, columns.

    With ``shared``, the T pictures of a history get the same place.
    """
    batch, steps, height, width = pixels.shape[:4]
    drawn = [
        torch.randint(size - crop + 1, (batch, 1 if shared else steps), device=pixels.device, generator=generator)
        for size in (height, width)
    ]
    return torch.stack(drawn, dim=-1).expand(batch, steps, 2).flatten(0, 1)


def crop_pictures(pictures: Tensor, crop: int | None, places: Tensor | None = None) -> Tensor:
    """Squares of side ``crop`` out of pictures (N, H, W, C) -> (N, crop, crop, C).

    Args:
        pictures: of any type.
        crop: None returns the pictures.
        places: (N, 2) top row and left column of each; None is the centre (rounded down).
    """
    if crop is None:
        return pictures
    batch, height, width, channels = pictures.shape
    if places is None:
        top, left = (height - crop) // 2, (width - crop) // 2
        return pictures[:, top : top + crop, left : left + crop]
    # A crop's row is one run of memory: choosing runs is many times as fast as indexing pixels.
    row = torch.arange(crop, device=pictures.device) + places[:, :1]
    row = row + height * torch.arange(batch, device=pictures.device)[:, None]
    runs = pictures.reshape(-1).unfold(0, crop * channels, channels)
    return runs.index_select(0, (row * width + places[:, 1:]).flatten()).view(batch, crop, crop, channels)
