"""CLIP from a local folder (extra ``images``): embeddings to compare images in, and how well images fit captions.

``hf download openai/clip-vit-large-patch14-336 --local-dir <folder>`` fetches the network of published CMMD values,
``openai/clip-vit-base-patch16`` or ``-large-patch14`` that of published CLIPScores. Nothing is downloaded here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from image_diffusion.metrics.extractor import as_rgb, check_images
from image_diffusion.metrics.record import Measurement, MetricRecord, result_key
from immiscible_policy.files import file_sha256


class ClipExtractor:
    """Projected image embeddings, not normalised; images are prepared as published CMMD values were.

    Args:
        folder: a CLIP model as ``save_pretrained`` and the hub lay it out.
        name: of the extractor; ``clip-`` and the folder's name by default.
        device: to compute on.

    Raises:
        ImportError: transformers is not installed. ValueError: no CLIP model in the folder.
    """

    canonical = False

    def __init__(self, folder: str | Path, name: str | None = None, device: str | torch.device = "cpu") -> None:
        self.folder = Path(folder).expanduser()
        self.name = name or _name(self.folder)
        self.device = torch.device(device)
        self.weights_sha256 = _weights_sha256(self.folder)
        config = _load("CLIPConfig", self.folder)
        # The part for images has an entry of its own, which not every file sets.
        config.vision_config.projection_dim = config.projection_dim
        network = _load("CLIPVisionModelWithProjection", self.folder, config=config.vision_config)
        self._network = network.to(self.device)
        self.dim = int(self._network.config.projection_dim)
        self.size = int(self._network.config.image_size)
        self.resize = f"bicubic without antialiasing to {self.size}x{self.size}; greyscale repeated to 3 channels"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        check_images(images, (1, 3), self.name)
        unit = as_rgb(images).to(self.device).float() / 255.0
        resized = functional.interpolate(unit, (self.size, self.size), mode="bicubic")
        return self._network(pixel_values=_normalized(resized)).image_embeds.float()


class ClipScorer:
    """CLIPScore: 100 max(cos(image, caption), 0) (Hessel et al. 2021, equation 1, with the weight 100 usual today).

    Args:
        folder: a CLIP model with its tokenizer.
        name, device: as for :class:`ClipExtractor`.
    """

    def __init__(self, folder: str | Path, name: str | None = None, device: str | torch.device = "cpu") -> None:
        self.folder = Path(folder).expanduser()
        self.name = name or _name(self.folder)
        self.device = torch.device(device)
        self.weights_sha256 = _weights_sha256(self.folder)
        self._network = _load("CLIPModel", self.folder).to(self.device)
        self._tokenizer = _load("CLIPTokenizer", self.folder)
        self._length = int(self._network.config.text_config.max_position_embeddings)
        self.size = int(self._network.config.vision_config.image_size)
        self.resize = (
            f"bicubic with antialiasing, shorter side to {self.size}, centre crop; greyscale repeated to 3 channels"
        )

    @torch.inference_mode()
    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Scores (N,) float32 in [0, 100] of images (N, C, H, W) uint8 and their N captions (cut at 77 tokens).

        Raises:
            TypeError, ValueError: as ``check_images``; another number of captions than of images.
        """
        check_images(images, (1, 3), self.name)
        if isinstance(captions, str) or len(captions) != len(images):
            raise ValueError(f"captions must be one string for each of {len(images)} images, got {captions!r}")
        tokens = self._tokenizer(
            list(captions), padding=True, truncation=True, max_length=self._length, return_tensors="pt"
        ).to(self.device)
        output = self._network(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            pixel_values=_normalized(self._cropped(as_rgb(images).to(self.device))),
        )
        cosine = functional.cosine_similarity(output.image_embeds.float(), output.text_embeds.float())
        return (100.0 * cosine).clamp_min(0.0).cpu()

    def _cropped(self, images: Tensor) -> Tensor:
        """(N, 3, size, size) in [0, 1]."""
        height, width = images.shape[2:]
        scale = self.size / min(height, width)
        shape = [max(self.size, round(side * scale)) for side in (height, width)]
        resized = functional.interpolate(images.float(), shape, mode="bicubic", antialias=True).clamp_(0.0, 255.0)
        top, left = ((side - self.size) // 2 for side in shape)
        return resized[:, :, top : top + self.size, left : left + self.size] / 255.0


def clip_score(
    pairs: Iterable[tuple[Tensor, Sequence[str]]], scorer: ClipScorer, record: Mapping[str, Any] | None = None
) -> dict[str, Measurement]:
    """Mean CLIPScore of generated images and the captions they were made from, with its standard error.

    Args:
        pairs: batches of images (N, C, H, W) uint8 and their captions.
        scorer: the network.
        record: fields for the result's record.
    """
    batches = [scorer(images, captions) for images, captions in pairs]
    if not batches:
        raise ValueError("pairs must hold at least one batch, got none")
    scores = torch.cat(batches).double()
    n = len(scores)
    error = float(scores.std()) / n**0.5 if n > 1 else None
    described = MetricRecord(
        scorer.name, False, scorer.weights_sha256, scorer.resize, n, 0, "the captions", {}, record or {}
    )
    key = result_key("clipscore", scorer.name, n, 0, False)
    return {key: Measurement(float(scores.mean()), described, error)}


def _normalized(unit: Tensor) -> Tensor:
    from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    mean, deviation = (torch.tensor(v, device=unit.device).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (unit - mean) / deviation


def _name(folder: Path) -> str:
    """``clip-`` and the folder's name in the letters that a result's key may have."""
    kept = re.sub(r"[^a-z0-9.]+", "-", folder.resolve().name.lower()).strip("-")
    return f"clip-{kept.removeprefix('clip-')}"


def _weights_sha256(folder: Path) -> str:
    """Hash of the weights' file; of the hashes, where there are several."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    # Without its configuration transformers would take the weights for another network's.
    if not files or not (folder / "config.json").is_file():
        raise ValueError(f"folder must hold a CLIP model (config.json and *.safetensors), there is none at {folder}")
    hashes = [file_sha256(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _load(kind: str, folder: Path, **options: Any) -> Any:
    """An object of transformers' class ``kind``, from the folder alone."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError("CLIP needs the package transformers: pip install -e '.[images]'") from error
    try:
        loaded = getattr(transformers, kind).from_pretrained(folder, local_files_only=True, **options)
    # Absent, broken and unsuitable files raise the exceptions of half a dozen libraries.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder} does not hold what {kind} needs ({reason})") from error
    return loaded.eval().requires_grad_(False) if isinstance(loaded, torch.nn.Module) else loaded
