"""Encoders of image observations by name: history of pictures and positions in, one feature vector a step out."""

from collections.abc import Mapping
from typing import Any

from immiscible_policy.checks import check_choice
from immiscible_policy.policy.encoders.convnet import ConvNet
from immiscible_policy.policy.encoders.image_encoder import ImageEncoder, ImageObservation
from immiscible_policy.policy.encoders.resnet import ResNet18
from immiscible_policy.policy.encoders.spatial_softmax import SpatialSoftmax

__all__ = ["ENCODERS", "ConvNet", "ImageEncoder", "ImageObservation", "ResNet18", "SpatialSoftmax", "build_encoder"]

ENCODERS = {"convnet": ConvNet, "resnet18": ResNet18}
_OWN_OPTIONS = ("crop", "shared_crop", "n_keypoints", "feature_dim")


def build_encoder(config: Mapping[str, Any], *, agent_dim: int) -> ImageEncoder:
    """The encoder that ``config`` describes.

    Args:
        config: ``name`` (resnet18 | convnet), the options of ``ImageEncoder`` (crop, shared_crop, n_keypoints,
            feature_dim), and those of the named trunk.
        agent_dim: entries of the position that stands beside each picture.
    """
    options = dict(config)
    name = str(options.pop("name", None))
    check_choice("encoder.name", name, ENCODERS)
    own = {key: options.pop(key) for key in _OWN_OPTIONS if key in options}
    try:
        trunk = ENCODERS[name](**options)
    except TypeError as error:
        raise ValueError(f"encoder {name!r}: {error}") from error
    return ImageEncoder(trunk, agent_dim, **own)
