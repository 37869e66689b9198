"""From settings to a latent model: what fine-tuning starts from, and what is refused before any work."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from image_diffusion import latent_build
from image_diffusion.data import ImageDataset, ImageSource, load_images
from image_diffusion.latent_build import (
    LatentSettings,
    build_latent_model,
    load_parts,
    load_pretrained,
    pretrained_objective,
    split_settings,
)
from image_diffusion.latent_model import LatentModel
from image_diffusion.model import load_image_model

WEIGHTS = "diffusion_pytorch_model.safetensors"
SHARED = {"class_conditional": True, "label_dropout": 0.1, "num_inference_steps": 3}
OBJECTIVE = {"name": "ddpm", "sampler": "ddim", "clip_sample": True, "num_train_timesteps": 50}
NETWORK: dict[str, Any] = {
    "block_out_channels": [8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
}


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_images(ImageSource("digits", format="digits", split="test"))


def build(settings: LatentSettings, data: ImageDataset, **options: Any) -> LatentModel:
    shared = {name: options.pop(name, value) for name, value in SHARED.items()}
    objective = {**OBJECTIVE, "clip_sample": False, **options.pop("objective", {})}
    return build_latent_model(settings, load_parts(settings), shared, NETWORK, objective, data, **options)


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_fine_tuning_starts_from_the_pretrained_weights(
    stable_diffusion_folder: Path, digits: ImageDataset, tmp_path: Path
) -> None:
    rewrite(stable_diffusion_folder / "unet" / "config.json", _diffusers_version="0.6.0")
    rewrite(stable_diffusion_folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    model = build(LatentSettings(pretrained=str(stable_diffusion_folder)), digits, objective={"sampler": "pndm"})
    unet = load_file(stable_diffusion_folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert set(unet) == set(model.network.unet.state_dict())
    for name, value in model.network.unet.state_dict().items():
        assert torch.equal(value, unet[name]), name
    assert all(parameter.requires_grad for parameter in model.parameters())
    vae = load_file(stable_diffusion_folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, vae[name]) for name, value in model.autoencoder.network.state_dict().items())
    objective: Any = model.objective
    assert (objective.beta_schedule, objective.beta_start, objective.beta_end) == ("scaled_linear", 0.00085, 0.012)
    assert (objective.num_train_timesteps, objective.prediction_type) == (1000, "v_prediction")
    assert (objective.steps_offset, objective.set_alpha_to_one, objective.clip_sample) == (1, False, False)
    assert objective.sampler == "pndm"
    assert model.prompts == [str(digit) for digit in range(10)]

    model.save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "unet" / "config.json").read_text())
    assert written["sample_size"] == 4  # of digits, whatever the pretrained one was made for
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert (pipeline.unet.config.sample_size, pipeline.scheduler.config.prediction_type) == (4, "v_prediction")
    again = load_pretrained(str(tmp_path / "saved"))  # and training can go on from it
    assert again.unet is not None
    assert torch.equal(again.unet.conv_in.weight, model.network.unet.conv_in.weight)
    assert load_image_model(tmp_path / "saved").config == model.config


def test_a_step_of_fine_tuning_changes_the_network_alone(stable_diffusion_folder: Path, digits: ImageDataset) -> None:
    settings = LatentSettings(pretrained=str(stable_diffusion_folder), gradient_checkpointing=True)
    model = build(settings, digits)
    assert model.network.unet.is_gradient_checkpointing
    from immiscible_policy.coupling import KNN

    before = model.autoencoder.digest(), model.text.encoder.digest()  # type: ignore[union-attr]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    model.train()
    model(digits.batch(torch.arange(4)), KNN(k=4)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    assert (model.autoencoder.digest(), model.text.encoder.digest()) == before  # type: ignore[union-attr]


def test_pretrained_pipelines_of_other_kinds_are_named(stable_diffusion_folder: Path, tmp_path: Path) -> None:
    def changed(part: str, **changes: Any) -> str:
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stable_diffusion_folder, folder)
        rewrite(folder / part, **changes)
        return str(folder)

    with pytest.raises(ValueError, match=r"model\.pretrained=\./nowhere: no such folder, and no id of the Hub"):
        load_pretrained("./nowhere")
    with pytest.raises(ValueError, match=r"not a pipeline \(no model_index\.json\)"):
        load_pretrained(str(stable_diffusion_folder / "unet"))
    with pytest.raises(ValueError, match="only Stable Diffusion 1 and 2"):
        load_pretrained(changed("unet/config.json", addition_embed_type="text_time"))
    with pytest.raises(ValueError, match="its U-Net takes 9 channels and its latents have 2"):
        load_pretrained(changed("unet/config.json", in_channels=9))
    with pytest.raises(ValueError, match="unet: "):
        load_pretrained(changed("unet/config.json", block_out_channels=[4, 4]))
    folder = Path(changed("unet/config.json"))
    weights = load_file(folder / "unet" / WEIGHTS)
    save_file({k: v for k, v in weights.items() if k != "conv_in.bias"}, folder / "unet" / WEIGHTS)
    with pytest.raises(ValueError, match=r"unet: 1 weights are missing or misshapen, such as conv_in\.bias"):
        load_pretrained(str(folder))
    with pytest.raises(ValueError, match="neither it nor its vae/ holds an AutoencoderKL"):
        load_pretrained(changed("vae/config.json", _class_name="AutoencoderTiny"))


def test_an_id_of_the_hub_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DiffusionPipeline

    def refuse(name: str, **options: Any) -> str:
        raise OSError(f"{name} is offline")

    monkeypatch.setattr(DiffusionPipeline, "download", refuse)
    with pytest.raises(ValueError, match=r"model\.pretrained=owner/name: .*not to be had from the Hub \(owner/name is"):
        load_pretrained("owner/name")


@pytest.mark.parametrize(
    ("objective", "scheduler", "message"),
    [
        ({"name": "flow_matching"}, {"beta_schedule": "linear"}, "objective=ddpm"),
        ({"name": "ddpm"}, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({"name": "ddpm"}, {"beta_schedule": "linear", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ],
)
def test_schedulers_of_other_kinds_are_named(objective: dict, scheduler: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pretrained_objective(objective, scheduler)


def test_what_a_scheduler_does_not_name_has_diffusers_defaults(stable_diffusion_folder: Path) -> None:
    path = stable_diffusion_folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "PNDMScheduler", "beta_schedule": "linear", "num_train_timesteps": 7}))
    parts = load_pretrained(str(stable_diffusion_folder))
    assert parts.scheduler is not None
    found = pretrained_objective({**OBJECTIVE, "beta_start": 0.5, "steps_offset": 1}, parts.scheduler)
    assert (found["prediction_type"], found["beta_start"], found["beta_end"]) == ("epsilon", 1e-4, 0.02)
    assert (found["steps_offset"], found["set_alpha_to_one"], found["num_train_timesteps"]) == (0, False, 7)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"scheduler_config\.json names no scheduler"):
        load_pretrained(str(stable_diffusion_folder))


@pytest.mark.parametrize(
    ("kind", "spacing"),
    [("DDIMScheduler", "leading"), ("PNDMScheduler", "leading"), ("EulerDiscreteScheduler", "trailing")],
)
def test_how_a_sampler_goes_is_taken_from_samplers_of_its_kind_alone(
    kind: str, spacing: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = {**OBJECTIVE, "clip_sample": False, "beta_end": 0.02, "timestep_spacing": "trailing", "steps_offset": 1}
    scheduler = {"beta_schedule": "linear", "beta_end": 0.012, "prediction_type": "v_prediction", "steps_offset": 0}
    scheduler |= {"timestep_spacing": "leading", "set_alpha_to_one": False, "num_train_timesteps": 50}
    found = pretrained_objective(objective, {**scheduler, "_class_name": kind})
    assert (found["beta_end"], found["prediction_type"], found["timestep_spacing"]) == (0.012, "v_prediction", spacing)
    assert ("set_alpha_to_one" in found) == (spacing == "leading")
    own = ", objective.steps_offset=0 (was 1), objective.timestep_spacing=leading (was trailing)"
    told = f"model.pretrained: its {kind} replaces objective.beta_end=0.012 (was 0.02){own * (spacing == 'leading')}\n"
    assert capsys.readouterr().out == told
    monkeypatch.setenv("RANK", "1")
    assert pretrained_objective(objective, {**scheduler, "_class_name": kind}) == found
    assert capsys.readouterr().out == ""


def test_classes_are_told_by_embeddings_prompts_or_not_at_all(
    make_vae: Callable[..., Path], digits: ImageDataset, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = str(make_vae())
    plain = build(LatentSettings(vae), digits, class_conditional=False)
    assert (plain.n_classes, plain.label_dropout, plain.text) == (None, 0.0, None)
    embedded = build(LatentSettings(vae), digits)
    assert embedded.network.unet.config.num_class_embeds == 11
    assert embedded.class_counts == digits.class_counts()
    cross = {**NETWORK, "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"],
             "attention_head_dim": 2}  # fmt: skip
    settings = LatentSettings(vae, text_encoder=str(bert_folder), prompt="digit {}")
    objective = {**OBJECTIVE, "clip_sample": False}
    told = build_latent_model(settings, load_parts(settings), SHARED, cross, objective, digits)
    assert told.prompts is not None
    assert (told.n_classes, told.prompts[:2]) == (10, ["digit 0", "digit 1"])
    assert told.network.unet.config.cross_attention_dim == 12
    settings = LatentSettings(vae, text_encoder=str(bert_folder), captions=True)
    with pytest.raises(ValueError, match=r"model\.captions=true: digits has no captions"):
        build_latent_model(settings, load_parts(settings), SHARED, cross, objective, digits)
    captioned = load_images(ImageSource("digits", format="digits", split="test"))
    captioned.captions = [[f"number {i}", "a digit"] for i in range(297)]
    told = build_latent_model(settings, load_parts(settings), SHARED, cross, objective, captioned)
    assert (told.n_classes, told.label_dropout, told.prompts) == (None, 0.1, [f"number {i}" for i in range(297)])
    monkeypatch.setattr(latent_build, "N_PROMPTS", 200)
    told = build_latent_model(settings, load_parts(settings), SHARED, cross, objective, captioned)
    assert told.prompts is not None
    assert (len(told.prompts), told.prompts[-1]) == (200, "number 295")  # evenly spaced, not the first 200
    assert told.class_counts is None
    captioned.class_names = None
    settings = LatentSettings(vae, text_encoder=str(bert_folder))
    with pytest.raises(ValueError, match=r"dataset\.class_names=\[\.\.\.\]"):
        build_latent_model(settings, load_parts(settings), SHARED, cross, objective, captioned)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "pixel"}, r"model\.space='pixel': choose one of pixels, latents"),
        ({"space": "pixels", "vae": "x"}, r"model\.vae=x: only models of latents have it \(method=sd\)"),
        ({"space": "latents", "prompt": "digit"}, r"model\.prompt='digit': must hold \{\} once"),
        ({"space": "latents", "pretrained": "x", "vae": "y"}, r"leave out model\.vae and model\.text_encoder"),
        ({"space": "latents", "captions": True, "vae": "y"}, r"model\.captions=true needs model\.text_encoder"),
    ],
)
def test_settings_that_contradict_each_other_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_settings({**SHARED, **options})


def test_images_that_do_not_fit_are_named(make_vae: Callable[..., Path], digits: ImageDataset) -> None:
    with pytest.raises(ValueError, match=r"dataset\.channels=3, or another model\.vae"):
        build(LatentSettings(str(make_vae(channels=3))), digits)
    with pytest.raises(ValueError, match=r"objective\.clip_sample=true"):
        build(LatentSettings(str(make_vae())), digits, objective={"clip_sample": True})
    unlabelled = load_images(ImageSource("digits", format="digits", split="test", label_column=None))
    with pytest.raises(ValueError, match="digits has no classes"):
        build(LatentSettings(str(make_vae())), unlabelled)
