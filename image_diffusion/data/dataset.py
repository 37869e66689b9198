"""A data set of images that the training loop reads batches from, decoded beforehand or as they are asked for."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from image_diffusion.data.decode import Decoder
from image_diffusion.data.decoding import Decoding
from image_diffusion.data.raw import RawImages, evenly_spaced
from image_diffusion.data.source import ImageSource

N_HASHED = 1_024  # images that the content hash covers


class ImageDataset:
    """Images, labels and captions in a fixed order; ``batch`` gives the same for the same indices, without flips.

    Attributes:
        image_size: height and width in pixels. channels: 1 or 3.
        n_classes: number of classes, or None without labels. class_names: in the order of the labels, or None.
        captions: at least one text for each image, or None.
        labels: (N,) int64, or None. images: (N, C, H, W) uint8, or None where they are decoded on access.
        flip: whether training should mirror images.
        source: a JSON-able record of what the data is, for the record of every number; see ``load_images``.
        device: where the tensors lie; ``batch`` wants its indices there.
    """

    def __init__(self, raw: RawImages, decoder: Decoder, images: Tensor | None, source: ImageSource) -> None:
        self.images = images
        self.image_size, self.channels, self.flip = decoder.size, decoder.channels, source.flip
        self.labels = raw.labels.values if raw.labels else None
        self.n_classes = raw.labels.n_classes if raw.labels else None
        self.class_names = raw.labels.names if raw.labels else None
        self.captions = raw.captions
        self.device = torch.device("cpu")
        self._decoding = Decoding(raw, decoder, source.decode_threads)
        self._n = len(raw)
        self.source: dict[str, Any] = {}

    def __len__(self) -> int:
        return self._n

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """``image`` (B, C, H, W) uint8 and, where there are classes, ``label`` (B,) int64, at ``indices`` (B,) int64.

        Raises:
            IndexError: an index beyond the data. CorruptImageError, ImageDataError: an image decoded on access that
                cannot be; the message names it.
        """
        images = self.images
        batch = {"image": self._decoding.tensor(indices.cpu().numpy()) if images is None else images[indices]}
        if self.labels is not None:
            batch["label"] = self.labels[indices]
        return batch

    def class_counts(self) -> list[int] | None:
        """How many images each of the ``n_classes`` has, or None without labels."""
        return None if self.labels is None else self.labels.bincount(minlength=self.n_classes or 0).tolist()

    def to(self, device: torch.device | str) -> ImageDataset:
        """Move images and labels that are in memory to a device, so that batches need not be copied there."""
        if self.images is not None:
            self.device = torch.device(device)
            self.images = self.images.to(self.device)
            self.labels = None if self.labels is None else self.labels.to(self.device)
        return self


def content_hash(dataset: ImageDataset) -> str:
    """SHA-256 of the size, the class names, all labels and captions, and up to 1,024 evenly spaced images."""
    names = None if dataset.class_names is None else list(dataset.class_names)
    head = [len(dataset), dataset.channels, dataset.image_size, names, dataset.captions]
    digest = hashlib.sha256(json.dumps(head).encode())
    if dataset.labels is not None:
        digest.update(dataset.labels.cpu().numpy().data)
    hashed = torch.from_numpy(evenly_spaced(len(dataset), N_HASHED))
    digest.update(dataset.batch(hashed)["image"].cpu().contiguous().numpy().data)
    return digest.hexdigest()
