"""Image models: what reaches the network, what is saved, and that a seed is an image."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from image_batches import Spy, images
from torch import Tensor

from image_diffusion.model import PixelModel, load_image_model, sample_in_batches, to_bytes
from image_diffusion.networks import build_network
from immiscible_policy.coupling import KNN, Coupling, Independent, LinearAssignment

UNET: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "zero_init": False,
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "ddim": {"name": "ddpm", "num_train_timesteps": 20, "beta_schedule": "linear", "timestep_spacing": "leading"},
    "ddpm": {"name": "ddpm", "num_train_timesteps": 20, "sampler": "ddpm"},
    "fm": {"name": "flow_matching"},
    "cm": {"name": "consistency", "s0": 2, "s1": 8},
}


def model(method: str = "ddim", **options: Any) -> PixelModel:
    torch.manual_seed(0)
    objective = {**OBJECTIVES[method], **options.pop("objective", {})}
    settings = {"network": UNET, "num_inference_steps": 3, **options}
    return PixelModel(8, settings.pop("channels", 1), objective=objective, **settings).eval()


@pytest.mark.parametrize("coupling", [Independent(), KNN(k=4), LinearAssignment()])
@pytest.mark.parametrize("method", ["ddim", "fm", "cm"])
def test_the_coupled_noise_is_in_the_input_and_in_the_target(
    method: str, coupling: Coupling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the noise that the coupling returned, the loss is what the method's formula says, and what was seen, too."""
    trained = model(method, objective={"data_scale": 2.0})
    seen: list[tuple[Tensor, Tensor]] = []

    def network(noisy: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        seen.append((noisy, time))
        return 0.5 * noisy

    monkeypatch.setitem(trained._modules, "network", network)
    spy = Spy(coupling)
    loss = trained.loss({"image": images(), "index": torch.arange(6)}, spy, torch.Generator().manual_seed(1))
    (data, options, noise), (noisy, time) = spy.calls[0], seen[0]
    assert options["condition"] is None
    assert float(data.abs().max()) <= 2.0
    objective: Any = trained.objective
    if method == "ddim":
        abar = objective.scheduler.alphas_cumprod[time].view(-1, 1, 1, 1)
        torch.testing.assert_close(noisy, abar.sqrt() * data + (1 - abar).sqrt() * noise)
        target = noise
    elif method == "fm":
        s = (time / 1000).view(-1, 1, 1, 1)
        torch.testing.assert_close(noisy, (1 - s) * data + s * noise)
        target = noise - data
    else:
        for (scaled, log_sigma), _ in zip(seen, ("student", "teacher"), strict=True):
            sigma = (log_sigma / 250).exp().view(-1, 1, 1, 1)
            torch.testing.assert_close(scaled * (sigma**2 + 1.0).sqrt(), data + sigma * noise, rtol=1e-4, atol=1e-4)
        return
    torch.testing.assert_close(loss, (0.5 * noisy - target).square().mean())


def test_bytes_become_data_and_data_bytes() -> None:
    trained = model(flip=False)
    ramp = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    data = trained.prepare(ramp)
    assert (float(data.min()), float(data.max())) == (-1.0, 1.0)
    assert torch.equal(to_bytes(data), ramp)
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_half_of_the_images_are_mirrored_by_the_given_generator() -> None:
    trained = model()
    picture = images(1).expand(400, -1, -1, -1)
    data = trained.prepare(picture, torch.Generator().manual_seed(0))
    upright = model(flip=False).prepare(picture[:1])
    mirrored = (data == upright.flip(-1)).flatten(1).all(1)
    assert ((data == upright).flatten(1).all(1) ^ mirrored).all()
    assert 160 < int(mirrored.sum()) < 240
    assert torch.equal(data, trained.prepare(picture, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("method", OBJECTIVES)
def test_a_seed_is_an_image_in_any_company(method: str) -> None:
    trained = model(method)
    together = trained.sample([5, 6, 7, 8])
    assert together.shape == (4, 1, 8, 8)
    assert together.dtype == torch.uint8
    alone = torch.cat([trained.sample([seed]) for seed in (8, 5)])
    assert int((alone.int() - together[[3, 0]].int()).abs().max()) <= 1  # sums of other batches round differently
    assert int((together[0].int() - together[1].int()).abs().max()) > 5
    parts = torch.cat(list(sample_in_batches(trained, range(5, 9), batch_size=3)))
    assert int((parts.int() - together.int()).abs().max()) <= 1


def test_a_seed_chooses_the_class_that_nobody_gave() -> None:
    trained = model(n_classes=3)
    together = trained.sample([7, 8, 9], labels=[1, 2, 0])
    assert int((trained.sample([7, 8, 9]).int() - together.int()).abs().max()) <= 1
    parts = torch.cat(list(sample_in_batches(trained, [9, 7, 8], batch_size=2)))
    assert int((parts.int() - together[[2, 0, 1]].int()).abs().max()) <= 1
    assert int((trained.sample([7], labels=[0]).int() - together[:1].int()).abs().max()) > 1
    assert trained.default_labels(4) == [0, 1, 2, 0]
    # Labels that begin at 1 leave a class without images.
    assert model(n_classes=3, class_counts=[0, 5, 2]).default_labels(4) == [1, 2, 1, 2]
    assert model(n_classes=3, class_counts=[1, 5, 2]).default_labels(4) == [0, 1, 2, 0]


def test_a_saved_model_knows_how_frequent_its_classes_were(tmp_path: Path) -> None:
    model(n_classes=3, class_counts=[5, 0, 2]).save_pretrained(tmp_path / "new")
    again = load_image_model(tmp_path / "new")
    assert again.class_counts == again.label_counts == [5, 0, 2]
    model(n_classes=3).save_pretrained(tmp_path / "old")
    assert "class_counts" not in (tmp_path / "old" / "image_model.json").read_text()
    assert load_image_model(tmp_path / "old").label_counts is None


@pytest.mark.parametrize(
    ("method", "options", "pipeline"),
    [
        ("ddim", {}, "DDIMPipeline"),
        ("ddpm", {}, "DDPMPipeline"),
        ("cm", {}, "ConsistencyModelPipeline"),
        ("fm", {"channels": 3}, "PixelDiffusionPipeline"),
        ("ddim", {"n_classes": 3}, "PixelDiffusionPipeline"),
        ("ddim", {"objective": {"sampler": "pndm", "clip_sample": False}}, "PixelDiffusionPipeline"),
        ("cm", {"objective": {"data_scale": 2.0}}, "PixelDiffusionPipeline"),
        ("ddim", {"objective": {"data_scale": 2.0}}, "PixelDiffusionPipeline"),
    ],
)
def test_a_saved_model_is_a_pipeline_that_draws_the_same(
    method: str, options: dict[str, Any], pipeline: str, tmp_path: Path
) -> None:
    trained = model(method, **options)
    trained.save_pretrained(tmp_path / "saved")
    again = load_image_model(tmp_path / "saved")
    steps = 1 if method == "cm" else 3
    expected = trained.sample([1, 2, 3], num_inference_steps=steps)
    assert torch.equal(again.sample([1, 2, 3], num_inference_steps=steps), expected)
    assert again.config == trained.config
    custom = {"custom_pipeline": str(tmp_path / "saved"), "trust_remote_code": True}
    loaded = DiffusionPipeline.from_pretrained(
        tmp_path / "saved", **(custom if pipeline == "PixelDiffusionPipeline" else {})
    )
    assert type(loaded).__name__ == pipeline
    loaded.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"generator": [torch.Generator().manual_seed(s) for s in (1, 2, 3)]}
    if trained.n_classes:
        arguments["class_labels"] = [1, 2, 0]  # of seeds 1, 2, 3
    found = loaded(batch_size=3, num_inference_steps=steps, output_type="np", **arguments)[0]
    difference = torch.from_numpy(found * 255).permute(0, 3, 1, 2).round().int() - expected.int()
    assert int(difference.abs().max()) <= 1
    if trained.n_classes:
        with pytest.raises(ValueError, match=r"class_labels has shape \(2,\); batch_size=1 needs one for each image"):
            loaded(class_labels=[1, 2], num_inference_steps=steps)


def test_labels_reach_the_network_and_are_dropped_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = model(n_classes=3, label_dropout=0.25)
    seen: list[Tensor] = []
    network = trained.network

    def seeing(noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        seen.append(condition)
        return network(noisy, time, condition)

    monkeypatch.setitem(trained._modules, "network", seeing)
    batch = {"image": images(400), "label": torch.arange(400) % 3}
    spy = Spy(Independent())
    trained.loss(batch, spy, torch.Generator().manual_seed(0))
    assert torch.equal(spy.calls[0][1]["condition"], batch["label"])  # the coupling sees the true ones
    dropped = seen[0] == 3
    assert 70 < int(dropped.sum()) < 130
    assert torch.equal(seen[0][~dropped], batch["label"][~dropped])


def test_guidance_extrapolates_from_the_prediction_without_label() -> None:
    trained = model(n_classes=3, label_dropout=0.25)
    noisy, time, label = torch.randn(2, 1, 8, 8), torch.tensor([3, 7]), torch.tensor([0, 2])
    with torch.no_grad():
        plain, without = trained.network(noisy, time, label), trained.network(noisy, time, torch.tensor([3, 3]))
        guided = trained.guided(2.5)(noisy, time, label)
    torch.testing.assert_close(guided, without + 2.5 * (plain - without), rtol=1e-4, atol=1e-5)
    assert not torch.equal(trained.sample([0], [1]), trained.sample([0], [1], guidance_scale=3.0))


def test_the_papers_network_has_its_size_and_starts_at_zero() -> None:
    """google/ddpm-cifar10-32's: 35.7M parameters (ddpm-torch's table), zero at the start."""
    settings = {
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 2,
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "dropout": 0.1,
    }
    network = build_network(settings, 32, 3).eval()
    assert sum(p.numel() for p in network.parameters()) == 35_746_307
    tiny = build_network({**UNET, "zero_init": True}, 8, 1)
    noisy, time = torch.randn(2, 1, 8, 8), torch.tensor([1, 5])
    with torch.no_grad():
        assert not tiny(noisy, time).any()
        assert build_network({**UNET, "attention_head_dim": 16}, 8, 1)(noisy, time).any()  # as wide as the attention
        assert build_network(UNET, 8, 1)(noisy, time).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4}, "channels=4: choose 1"),
        ({"label_dropout": 1.0}, "label_dropout=1.0: must be at least 0 and below 1"),
        ({"n_classes": 0}, "n_classes=0: must be at least 1"),
        ({"n_classes": 2, "class_counts": [1]}, r"class_counts=\[1\]: needs a number of images for each"),
        ({"num_inference_steps": 21}, "num_inference_steps=21: choose 1 to 20"),
        ({"network": {**UNET, "depth": 3}}, "depth"),
        ({"network": {**UNET, "block_out_channels": [8, 8, 8, 8, 8]}}, "image_size=8 must be a multiple of 16"),
        ({"network": {**UNET, "up_block_types": ["UpBlock2D"]}}, "up_block_types"),
        ({"network": {**UNET, "attention_head_dim": 17}}, r"attention_head_dim=17: must be 1 to 16, .*=\[8, 16\]"),
        ({"network": {**UNET, "attention_head_dim": 0}}, r"network\.attention_head_dim=0: must be 1 to 16"),
        ({"network": {**UNET, "attention_head_dim": 16, "block_out_channels": [16, 8]}}, r"=16: must be 1 to 8"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**options)


def test_what_a_model_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="trained without classes"):
        model().sample([0], labels=[1])
    with pytest.raises(ValueError, match=r"labels: 2 of 0 to 2 are needed, got 2 with \[3\]"):
        model(n_classes=3).sample([0, 1], labels=[0, 3])
    with pytest.raises(ValueError, match=r"guidance_scale=2.0"):
        model(n_classes=3).sample([0], guidance_scale=2.0)


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image_model\.json is missing"):
        load_image_model(tmp_path)
    model().save_pretrained(tmp_path / "a")
    model(channels=3).save_pretrained(tmp_path / "b")
    (tmp_path / "a" / "image_model.json").write_text((tmp_path / "b" / "image_model.json").read_text())
    with pytest.raises(ValueError, match="do not"):
        load_image_model(tmp_path / "a")
    (tmp_path / "b" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match="damaged"):
        load_image_model(tmp_path / "b")
