"""Tiny autoencoders, text encoders and pipelines, made without downloads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel

CROSS_UNET: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}


@pytest.fixture
def make_vae(tmp_path: Path) -> Callable[..., Path]:
    """make_vae(name, **settings) saves a random AutoencoderKL of grey images, half as wide and with 2 channels."""

    def make(name: str = "vae", **settings: Any) -> Path:
        torch.manual_seed(3)
        channels = settings.pop("channels", 1)
        vae = AutoencoderKL(
            **{
                "in_channels": channels,
                "out_channels": channels,
                "down_block_types": ["DownEncoderBlock2D"] * 2,
                "up_block_types": ["UpDecoderBlock2D"] * 2,
                "block_out_channels": [8, 16],
                "latent_channels": 2,
                "norm_num_groups": 4,
                "mid_block_add_attention": False,
                "scaling_factor": 0.7,
                **settings,
            }
        )
        vae.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """A random CLIP text model of 16 dimensions with a vocabulary of bytes."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(4)
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    folder = tmp_path / "clip"
    transformers.CLIPTextModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    """A random BERT of 12 dimensions with a vocabulary of letters."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    folder = tmp_path / "bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *"0123456789"]
    words += [f"##{letter}" for letter in words[5:]]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = transformers.BertTokenizer(vocab=vocabulary, model_max_length=20)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def stable_diffusion_folder(make_vae: Callable[..., Path], clip_folder: Path, tmp_path: Path) -> Path:
    """A random Stable Diffusion pipeline for grey images, as released: PNDM, scaled_linear, epsilon."""
    import transformers
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(6)
    unet = UNet2DConditionModel(**CROSS_UNET, sample_size=8, in_channels=2, out_channels=2, cross_attention_dim=16)
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(make_vae("sd_vae")),
        text_encoder=transformers.CLIPTextModel.from_pretrained(clip_folder),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(clip_folder),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(tmp_path / "stable_diffusion")
    return tmp_path / "stable_diffusion"
