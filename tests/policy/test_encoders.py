"""Encoders of pictures: crops, spatial softmax, trunks, and what comes out for a history."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from immiscible_policy.policy.encoders import ConvNet, ImageEncoder, ResNet18, SpatialSoftmax, build_encoder
from immiscible_policy.policy.encoders.image_encoder import crop_pictures, draw_places
from immiscible_policy.policy.encoders.resnet import BasicBlock

SMALL = {"name": "convnet", "channels": [4, 8], "n_groups": 2, "crop": 20, "n_keypoints": 4, "feature_dim": 6}


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def small_encoder(**options: object) -> ImageEncoder:
    torch.manual_seed(0)
    return build_encoder({**SMALL, **options}, agent_dim=2)


class Seen(nn.Module):
    """A trunk that remembers its input."""

    out_channels = 3

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return images


@pytest.mark.parametrize(("row", "column", "y", "x"), [(0, 0, -1, -1), (4, 6, 1, 1), (2, 3, 0, 0), (1, 5, -0.5, 2 / 3)])
def test_a_hot_pixel_is_its_coordinates(row: int, column: int, y: float, x: float) -> None:
    maps = torch.zeros(2, 3, 5, 7)
    maps[:, 1, row, column] = 100.0
    keypoints = SpatialSoftmax(3)(maps).reshape(2, 3, 2)
    torch.testing.assert_close(keypoints[:, 1], torch.tensor([[float(x), float(y)]] * 2))
    torch.testing.assert_close(keypoints[:, 0], torch.zeros(2, 2))  # the middle of a map that is the same everywhere


def test_two_equal_pixels_meet_half_way_and_logits_weigh() -> None:
    maps = torch.full((1, 1, 3, 3), -100.0)
    maps[0, 0, 0, 0] = maps[0, 0, 2, 2] = 50.0
    torch.testing.assert_close(SpatialSoftmax(1)(maps), torch.zeros(1, 2))
    maps[0, 0, 2, 2] = 50.0 + torch.tensor(3.0).log()  # three times the weight: 3/4 - 1/4
    torch.testing.assert_close(SpatialSoftmax(1)(maps), torch.full((1, 2), 0.5))


def test_keypoints_of_a_single_place_and_of_a_convolution() -> None:
    assert SpatialSoftmax(2)(torch.randn(1, 2, 1, 1)).tolist() == [[0.0] * 4]
    softmax = SpatialSoftmax(5, n_keypoints=32)
    assert softmax(torch.randn(2, 5, 3, 3)).shape == (2, 64)
    assert softmax.out_dim == 64
    with pytest.raises(ValueError, match="n_keypoints=0: must be at least 1"):
        SpatialSoftmax(5, n_keypoints=0)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(4, 12),
    width=st.integers(4, 12),
    crop=st.integers(1, 4),
    n=st.integers(1, 5),
    seed=st.integers(0),
)
def test_crops_equal_a_loop(height: int, width: int, crop: int, n: int, seed: int) -> None:
    images = pictures(n, height, width, seed=seed % 1000)
    places = draw_places(images[:, None], crop, True, torch.Generator().manual_seed(seed % 2**31))
    loop = [
        image[top : top + crop, left : left + crop] for image, (top, left) in zip(images, places.tolist(), strict=True)
    ]
    assert torch.equal(crop_pictures(images, crop, places), torch.stack(loop))


def test_places_are_uniform_over_all_of_them() -> None:
    places = draw_places(pictures(4000, 1, 8, 6), 4, True, torch.Generator().manual_seed(0))
    counts = torch.bincount(places[:, 0] * 3 + places[:, 1], minlength=15)
    assert len(counts) == 15  # 5 rows times 3 columns
    expected = 4000 / 15
    # The 99.9% point of chi-square with 14 degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < 36.1


def test_a_history_shares_its_crop_unless_told_otherwise() -> None:
    images = pictures(50, 3, 30, 30)
    shared = draw_places(images, 10, True).view(50, 3, 2)
    assert torch.equal(shared, shared[:, :1].expand(50, 3, 2))
    assert len(shared[:, 0].unique(dim=0)) > 30
    own = draw_places(images, 10, False).view(50, 3, 2)
    assert (own[:, 0] != own[:, 1]).any(dim=-1).float().mean() > 0.9


def test_evaluation_takes_the_centre_and_draws_nothing() -> None:
    encoder = ImageEncoder(Seen(), 2, crop=4, n_keypoints=2, feature_dim=3).eval()
    images, position = pictures(2, 1, 9, 7), torch.zeros(2, 1, 2)
    state = torch.get_rng_state()
    first = encoder(images, position)
    assert torch.equal(torch.get_rng_state(), state)
    expected = images[:, 0, 2:6, 1:5].permute(0, 3, 1, 2) / 255 * 2 - 1
    torch.testing.assert_close(encoder.trunk.images, expected)  # type: ignore[attr-defined]
    assert torch.equal(encoder(images, position), first)
    border = images.clone()
    border[:, :, :2] = border[:, :, :, 5:] = 0
    assert torch.equal(encoder(border, position), first)
    assert encoder.trunk.images.min() >= -1  # type: ignore[attr-defined]


def test_training_crops_follow_the_generator_or_the_global_stream() -> None:
    encoder, images, position = small_encoder(), pictures(4, 2, 32, 32), torch.zeros(4, 2, 2)

    def features(seed: int) -> Tensor:
        return encoder(images, position, True, torch.Generator().manual_seed(seed))

    assert torch.equal(features(1), features(1))
    assert not torch.equal(features(1), features(2))
    state = torch.get_rng_state()
    first = encoder(images, position, True)
    torch.set_rng_state(state)
    assert torch.equal(encoder(images, position, True), first)
    assert not torch.equal(encoder(images, position, True), first)


def test_steps_stay_apart_and_the_position_comes_last() -> None:
    encoder = small_encoder()
    images, position = pictures(3, 2, 32, 32), torch.randn(3, 2, 2)
    features = encoder(images, position)
    assert features.shape == (3, 2, 8)
    assert encoder.out_dim == 8
    assert features[..., :-2].min() >= 0
    assert torch.equal(features[..., -2:], position)
    changed = images.clone()
    changed[1, 0] = 255 - changed[1, 0]
    moved = (encoder(changed, position) - features).abs().amax(-1) > 1e-6
    assert moved.tolist() == [[False, False], [True, False], [False, False]]


def test_resnet_is_the_known_one() -> None:
    trunk = ResNet18()
    assert sum(p.numel() for p in trunk.parameters()) == 11_176_512
    assert trunk(torch.zeros(1, 3, 84, 84)).shape == (1, 512, 3, 3)
    assert trunk(torch.zeros(1, 3, 96, 76)).shape == (1, 512, 3, 3)
    norms = [module for module in trunk.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 20
    assert all(norm.num_groups == norm.num_channels // 16 for norm in norms)
    assert not any("Batch" in type(module).__name__ for module in trunk.modules())
    encoder = build_encoder({"name": "resnet18"}, agent_dim=2)
    assert sum(p.numel() for p in encoder.parameters()) == 11_197_088
    assert encoder.out_dim == 66


def test_a_block_adds_to_what_it_is_given() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, 6, 6)
    same, other = BasicBlock(16, 16), BasicBlock(16, 32, stride=2)
    for block in (same, other):
        nn.init.zeros_(block.body[-1].weight)  # type: ignore[arg-type]
    assert torch.equal(same(x), x.relu())
    convolved = nn.functional.conv2d(x, other.skip[0].weight, stride=2)  # type: ignore[index]
    torch.testing.assert_close(other(x), nn.functional.group_norm(convolved, 2).relu())


def test_a_resnet_does_not_mix_pictures() -> None:
    torch.manual_seed(0)
    trunk = ResNet18(widths=(16, 32))
    images = torch.randn(3, 3, 24, 24)
    torch.testing.assert_close(trunk(images)[1], trunk(images[1:2])[0], rtol=1e-4, atol=1e-5)


def test_convnet_halves_all_but_its_last_layer() -> None:
    trunk = ConvNet()
    assert trunk(torch.zeros(1, 3, 84, 84)).shape == (1, 64, 11, 11)
    encoder = build_encoder({"name": "convnet"}, agent_dim=2)
    assert sum(p.numel() for p in encoder.parameters()) < 100_000


def test_gradients_reach_every_weight() -> None:
    for config in (SMALL, {**SMALL, "name": "resnet18", "widths": [16, 32]}):
        options = {name: value for name, value in config.items() if name not in ("channels", "n_groups")}
        encoder = build_encoder(options if config["name"] == "resnet18" else config, agent_dim=2)
        encoder(pictures(4, 2, 32, 32), torch.zeros(4, 2, 2), True).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "resnet50"}, "encoder.name='resnet50': choose one of convnet, resnet18"),
        ({}, "encoder.name='None': choose one of"),
        ({**SMALL, "crop": 0}, "encoder.crop=0: must be at least 1"),
        ({**SMALL, "feature_dim": -1}, "encoder.feature_dim=-1: must be at least 1"),
        ({**SMALL, "channels": [3]}, r"channels=\[3\], n_groups=2"),
        ({**SMALL, "depth": 3}, "encoder 'convnet': .*depth"),
        ({"name": "resnet18", "widths": [8]}, r"widths=\[8\]: needs multiples of 16"),
    ],
)
def test_wrong_settings_are_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(config, agent_dim=2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 2, 32, 32, 3), "pixels are torch.float32"),
        (pictures(1, 32, 32), r"shape \(1, 32, 32, 3\); this encoder takes torch.uint8 RGB"),
        (torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8), r"shape \(1, 2, 3, 32, 32\)"),
        (pictures(1, 2, 32, 19), r"encoder.crop=20: at most the pictures' size, which is \(32, 19\)"),
    ],
)
def test_wrong_pictures_are_named(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_encoder()(images, torch.zeros(1, 2, 2))
