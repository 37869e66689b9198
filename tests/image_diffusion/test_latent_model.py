"""Latent models: what is diffused, what the network is told, what is saved, and that a seed is an image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from image_batches import Spy, images
from torch import Tensor

from image_diffusion.autoencoder import load_autoencoder
from image_diffusion.latent_model import LatentModel
from image_diffusion.model import load_image_model, sample_in_batches
from image_diffusion.networks import build_network, build_text_network
from image_diffusion.painting import build_mask, paint
from image_diffusion.text import load_text_encoder
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
CROSS_UNET = {
    **UNET,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}
STABLE = {"name": "ddpm", "num_train_timesteps": 20, "beta_schedule": "scaled_linear", "beta_start": 0.01,
          "beta_end": 0.3, "timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False,
          "clip_sample": False}  # fmt: skip
OBJECTIVES: dict[str, dict[str, Any]] = {
    "ddim": STABLE,
    "pndm": {**STABLE, "sampler": "pndm"},
    "ddpm": {**STABLE, "sampler": "ddpm"},
    "v": {**STABLE, "prediction_type": "v_prediction", "sampler": "pndm"},
    "fm": {"name": "flow_matching", "clip_sample": False},
    "cm": {"name": "consistency", "clip_sample": False, "s0": 2, "s1": 8},
}
Maker = Callable[..., LatentModel]


@pytest.fixture
def make_model(make_vae: Callable[..., Path], request: pytest.FixtureRequest) -> Maker:
    """make_model(method, text=None | "clip" | "bert", **options)."""

    def make(method: str = "ddim", text: str | None = None, **options: Any) -> LatentModel:
        autoencoder = load_autoencoder(make_vae(**options.pop("vae", {})))
        objective = {**OBJECTIVES[method], **options.pop("objective", {})}
        torch.manual_seed(0)
        if text is None:
            n_classes = options.get("n_classes")
            network: Any = build_network(UNET, 4, 2, None if n_classes is None else n_classes + 1)
        else:
            encoder = load_text_encoder(request.getfixturevalue(f"{text}_folder"))
            network = build_text_network(CROSS_UNET, 4, 2, encoder.dim)
            options["text_encoder"] = encoder
        settings = {"num_inference_steps": 3, **options}
        return LatentModel(8, autoencoder, network, objective, **settings).eval()

    return make


@pytest.mark.parametrize("coupling", [Independent(), KNN(k=4), LinearAssignment()])
@pytest.mark.parametrize("method", ["ddim", "v", "fm"])
def test_the_coupling_pairs_latents_and_its_noise_is_in_input_and_target(
    method: str, coupling: Coupling, make_model: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make_model(method, objective={"data_scale": 2.0}, n_classes=3)
    seen: list[tuple[Tensor, Tensor]] = []

    def network(noisy: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        seen.append((noisy, time))
        return 0.5 * noisy

    monkeypatch.setitem(trained._modules, "network", network)
    spy, label = Spy(coupling), torch.arange(6) % 3
    batch = {"image": images(), "label": label, "index": torch.arange(6)}
    loss = trained.loss(batch, spy, torch.Generator().manual_seed(1))
    (data, options, noise), (noisy, time) = spy.calls[0], seen[0]
    assert data.shape == noise.shape == (6, 2, 4, 4)
    torch.testing.assert_close(data, 2 * trained.prepare(images(), torch.Generator().manual_seed(1)))
    assert torch.equal(options["condition"], label)
    objective: Any = trained.objective
    if method == "fm":
        s = (time / 1000).view(-1, 1, 1, 1)
        torch.testing.assert_close(noisy, (1 - s) * data + s * noise)
        target = noise - data
    else:
        abar = objective.scheduler.alphas_cumprod[time].view(-1, 1, 1, 1)
        torch.testing.assert_close(noisy, abar.sqrt() * data + (1 - abar).sqrt() * noise)
        target = noise if method == "ddim" else abar.sqrt() * noise - (1 - abar).sqrt() * data
    torch.testing.assert_close(loss, (0.5 * noisy - target).square().mean())


def test_training_draws_from_the_posterior_and_mirrors_half(make_model: Maker) -> None:
    trained, plain = make_model(), make_model(flip=False)
    one = images(1)
    posterior, mirrored = (plain.autoencoder.posterior(view)[0] for view in (one, one.flip(-1)))
    many = one.expand(4000, -1, -1, -1)
    drawn = plain.prepare(many, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), posterior[0], atol=5 * float(posterior[1].max()) / 63, rtol=0)
    torch.testing.assert_close(drawn.std(0), posterior[1], rtol=0.1, atol=0)
    both = trained.prepare(many, torch.Generator().manual_seed(0))
    middle = (posterior[0] + mirrored[0]) / 2
    spread = (posterior[1].square() + (posterior[0] - middle).square()).sqrt()
    torch.testing.assert_close(both.mean(0), middle, atol=5 * float(spread.max()) / 63, rtol=0)
    torch.testing.assert_close(plain.encode(one)[0], posterior[0])


@pytest.mark.parametrize("method", OBJECTIVES)
def test_a_seed_is_an_image_in_any_company(method: str, make_model: Maker) -> None:
    trained = make_model(method)
    together = trained.sample([5, 6, 7, 8])
    assert together.shape == (4, 1, 8, 8)
    assert together.dtype == torch.uint8
    alone = torch.cat([trained.sample([seed]) for seed in (8, 5)])
    assert int((alone.int() - together[[3, 0]].int()).abs().max()) <= 1
    assert int((together[0].int() - together[1].int()).abs().max()) > 5
    parts = torch.cat(list(sample_in_batches(trained, range(5, 9), batch_size=3)))
    assert int((parts.int() - together.int()).abs().max()) <= 1


@pytest.mark.parametrize(
    ("method", "text", "options", "pipeline"),
    [
        ("ddim", None, {}, "LatentDiffusionPipeline"),
        ("ddpm", None, {"n_classes": 3, "label_dropout": 0.1}, "LatentDiffusionPipeline"),
        ("fm", None, {"vae": {"channels": 3, "shift_factor": 0.2}}, "LatentDiffusionPipeline"),
        ("cm", None, {}, "LatentDiffusionPipeline"),
        ("ddim", "clip", {"vae": {"channels": 3}}, "StableDiffusionPipeline"),
        ("pndm", "clip", {}, "StableDiffusionPipeline"),
        ("v", "clip", {}, "StableDiffusionPipeline"),
        ("ddim", "clip", {"vae": {"shift_factor": 0.2}}, "LatentDiffusionPipeline"),
        ("fm", "clip", {}, "LatentDiffusionPipeline"),
        ("pndm", "bert", {"objective": {"data_scale": 2.0}}, "LatentDiffusionPipeline"),
    ],
)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_saved_model_is_a_pipeline_that_draws_the_same(
    method: str,
    text: str | None,
    options: dict[str, Any],
    pipeline: str,
    guidance: float,
    make_model: Maker,
    tmp_path: Path,
) -> None:
    trained = make_model(method, text, **options)
    if guidance != 1.0 and text is None and trained.n_classes is None:
        pytest.skip("nothing to guide by")
    labels: Any = ["a cat", "", "2 dogs"] if text else [2, 0, 1] if trained.n_classes else None
    trained.save_pretrained(tmp_path / "saved")
    again = load_image_model(tmp_path / "saved")
    steps = 1 if method == "cm" else 2
    asked = {"labels": labels, "guidance_scale": guidance, "num_inference_steps": steps}
    expected = trained.sample([1, 2, 3], **asked)
    assert torch.equal(again.sample([1, 2, 3], **asked), expected)
    assert again.config == trained.config
    custom = {"custom_pipeline": str(tmp_path / "saved"), "trust_remote_code": True}
    standard = pipeline == "StableDiffusionPipeline"
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "saved", **({} if standard else custom))
    assert type(loaded).__name__ == pipeline
    loaded.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"generator": [torch.Generator().manual_seed(s) for s in (1, 2, 3)]}
    if text:
        arguments["prompt"] = labels
    else:
        arguments |= {"batch_size": 3, "class_labels": labels}
        if labels:
            with pytest.raises(ValueError, match=r"class_labels has shape \(3,\); batch_size=1 needs one for each"):
                loaded(num_inference_steps=steps, class_labels=labels)
    found = loaded(num_inference_steps=steps, guidance_scale=guidance, output_type="np", **arguments)[0]
    found = np.asarray(found).reshape(3, 8, 8, -1)
    difference = torch.from_numpy(found * 255).permute(0, 3, 1, 2).round().int() - expected.int()
    assert int(difference.abs().max()) <= 1


def test_only_the_network_is_trained_and_kept_in_checkpoints(make_model: Maker) -> None:
    trained = make_model(text="clip")
    assert {id(p) for p in trained.parameters()} == {id(p) for p in trained.network.parameters()}
    assert set(trained.state_dict()) - {"frozen_hash"} == {f"network.{name}" for name in trained.network.state_dict()}


def test_training_does_not_go_on_in_other_latents(make_model: Maker) -> None:
    trained, state = make_model(), make_model().state_dict()
    trained.load_state_dict(state)
    with torch.no_grad():
        next(trained.autoencoder.network.parameters()).add_(1e-3)
    other = LatentModel(8, trained.autoencoder, trained.network, STABLE, num_inference_steps=3)
    with pytest.raises(ValueError, match="another autoencoder or text encoder"):
        other.load_state_dict(state)


def told(trained: LatentModel, batch: dict[str, Tensor], seed: int = 0) -> Tensor:
    found = trained.training_condition(batch, torch.Generator().manual_seed(seed))
    assert found is not None
    return found


def test_classes_become_their_prompts_and_some_the_empty_one(make_model: Maker) -> None:
    names = ["cat", "dog", "owl"]
    trained = make_model(text="bert", n_classes=3, prompts=names, label_dropout=0.25)
    label = torch.arange(600) % 3
    found = told(trained, {"label": label})
    known = trained.text.encode(["", *names], torch.device("cpu"))  # type: ignore[union-attr]
    distance = torch.cdist(found.flatten(1), known.flatten(1))
    which = distance.argmin(1)
    assert float(distance.min(1).values.max()) < 1e-2
    assert 110 < int((which == 0).sum()) < 190
    kept = which > 0
    assert torch.equal(which[kept] - 1, label[kept])
    torch.testing.assert_close(trained.condition(2, [1, 0]), known[[2, 1]])
    torch.testing.assert_close(trained.condition(2, ["owl", ""]), known[[3, 0]])
    torch.testing.assert_close(trained.condition(4, None), known[[1, 2, 3, 1]])
    assert trained.seed_labels([7, 5, 6]) == [1, 2, 0]
    assert trained.label_counts is None
    assert "_class_prompts" in dict(trained.named_buffers())  # so that no step brings the prompts to a GPU
    counted = make_model(text="bert", n_classes=3, prompts=names, class_counts=[1, 0, 0])
    assert counted.data_labels([7, 5, 6]) == [0, 0, 0]
    assert counted.seed_labels([7, 5, 6]) == [0, 0, 0]


def test_few_images_show_prompts_of_all_the_data(make_model: Maker) -> None:
    trained = make_model(text="bert", prompts=[f"picture {i}" for i in range(100)])
    assert trained.label_counts == [1] * 100
    labels = trained.data_labels(range(50))
    assert labels is not None
    assert len(set(labels)) == 50
    assert max(labels) > 95


def test_one_of_an_images_captions_is_drawn(make_model: Maker) -> None:
    trained = make_model(text="bert", prompts=["cat"])
    assert trained.text is not None
    numbers = torch.tensor(trained.text.number(["a cat", "an owl", "the owl"]))
    prompts = torch.tensor([[numbers[0], -1], [numbers[1], numbers[2]]]).repeat(300, 1)
    found = told(trained, {"prompts": prompts})
    known = trained.text.encode(["a cat", "an owl", "the owl"], torch.device("cpu"))
    which = torch.cdist(found.flatten(1), known.flatten(1)).argmin(1)
    assert not which[::2].any()
    assert set(which[1::2].tolist()) == {1, 2}
    assert 110 < int((which[1::2] == 1).sum()) < 190


def test_guidance_leads_away_from_the_empty_prompt(make_model: Maker) -> None:
    trained = make_model(text="clip")
    noisy, time = torch.randn(2, 2, 4, 4), torch.tensor([3, 7])
    condition, empty = trained.condition(2, ["a cat", "dogs"]), trained.condition(2, ["", ""])
    with torch.no_grad():
        plain, without = trained.network(noisy, time, condition), trained.network(noisy, time, empty)
        guided = trained.guided(2.5)(noisy, time, condition)
    torch.testing.assert_close(guided, without + 2.5 * (plain - without), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", OBJECTIVES)
@pytest.mark.parametrize("name", ["centre", "surroundings"])
def test_painting_keeps_what_is_not_masked_to_the_bit(method: str, name: str, make_model: Maker) -> None:
    trained, pictures, mask = make_model(method), images(3), build_mask(name, 8)
    painted = paint(trained, pictures, mask, seeds=[1, 2, 3])
    assert torch.equal(painted[:, :, ~mask], pictures[:, :, ~mask])
    assert (painted[:, :, mask] != pictures[:, :, mask]).float().mean() > 0.5
    alone = paint(trained, pictures[2:], mask, seeds=[3])
    assert int((painted[2:].int() - alone.int()).abs().max()) <= 1


def test_painting_knows_nothing_of_what_was_masked(make_model: Maker) -> None:
    trained, mask = make_model(), build_mask("centre", 8)
    changed = torch.where(mask, 255 - images(3), images(3))
    assert torch.equal(
        paint(trained, images(3), mask, seeds=[1, 2, 3])[:, :, mask],
        paint(trained, changed, mask, seeds=[1, 2, 3])[:, :, mask],
    )


def test_latents_that_hold_a_masked_pixel_are_painted(make_model: Maker) -> None:
    trained = make_model()
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2, 5] = mask[7, 7] = True
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[1, 2] = expected[3, 3] = True
    assert torch.equal(trained.sample_mask(mask), expected)
    assert torch.equal(trained.sample_mask(mask.expand(3, 1, 8, 8)), expected.expand(3, 1, 4, 4))
    mask[::2, ::2] = True
    with pytest.raises(ValueError, match="keeps nothing of an image"):
        paint(trained, images(1), mask, [0])


def test_parts_that_do_not_fit_are_named(make_model: Maker) -> None:
    with pytest.raises(ValueError, match=r"objective\.clip_sample=true: latents go beyond"):
        make_model(objective={"clip_sample": True})
    with pytest.raises(ValueError, match=r"image_size=8: .* must be a multiple of 16"):
        make_model(vae={"block_out_channels": [4] * 5, "down_block_types": ["DownEncoderBlock2D"] * 5,
                        "up_block_types": ["UpDecoderBlock2D"] * 5})  # fmt: skip
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0 needs"):
        make_model().sample([0], guidance_scale=2.0)
    with pytest.raises(ValueError, match="trained without classes"):
        make_model().sample([0], labels=["a cat"])
    with pytest.raises(ValueError, match=r"labels: 1 of 0 to 2 are needed, got 1 with \['a cat'\]"):
        make_model(n_classes=3).sample([0], labels=["a cat"])


def test_prompts_that_there_are_not_are_named(make_model: Maker) -> None:
    with pytest.raises(ValueError, match="prompts: 3 classes need one each"):
        make_model(text="bert", n_classes=3, prompts=["cat"])
    with pytest.raises(ValueError, match=r"labels: 2 prompts or numbers of 0 to 0 are needed, got 2 with \[1\]"):
        make_model(text="bert", prompts=["cat"]).sample([0, 1], labels=[0, 1])


def test_networks_that_look_elsewhere_are_named() -> None:
    with pytest.raises(ValueError, match=r"network\.attention_head_dim=64: must be 1 to"):
        build_text_network({**CROSS_UNET, "attention_head_dim": 64}, 4, 2, 12)
    with pytest.raises(ValueError, match="does not look at prompts: choose network=unet_latent_text"):
        build_text_network(UNET, 4, 2, 12)
    with pytest.raises(ValueError, match=r"looks at prompts, and there is no text encoder: give model\.text_encoder"):
        build_network(CROSS_UNET, 4, 2)
    with pytest.raises(ValueError, match="must be a multiple of 8"):
        build_text_network({**CROSS_UNET, "block_out_channels": [8] * 4}, 4, 2, 12)
    with pytest.raises(ValueError, match="depth"):
        build_text_network({**CROSS_UNET, "depth": 3}, 4, 2, 12)


def test_a_damaged_folder_is_named(make_model: Maker, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "vae" / "config.json").unlink()
    with pytest.raises(ValueError, match="holds an AutoencoderKL"):
        load_image_model(tmp_path / "a")
    make_model().save_pretrained(tmp_path / "b")
    (tmp_path / "b" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match=r"model folder .*b: "):
        load_image_model(tmp_path / "b")
