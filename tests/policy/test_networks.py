"""Action networks: shapes, published sizes, and the U-Net's own convolutions against torch's."""

from typing import Any

import pytest
import torch
from host_reads import HostReads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from immiscible_policy.policy.networks import ConditionalUNet1D, build_network
from immiscible_policy.policy.networks.base import SinusoidalEmbedding
from immiscible_policy.policy.networks.unet1d import SequenceConv, Upsample

SMALL = {
    "unet1d": {"down_dims": [16, 32, 32], "n_groups": 4, "step_embed_dim": 16},
    "mlp": {"width": 32, "n_blocks": 2, "step_embed_dim": 16},
    "transformer": {"n_layers": 2, "n_heads": 2, "embed_dim": 32},
}


def small_network(name: str) -> nn.Module:
    options = {"name": name, **SMALL[name]}
    return build_network(options, action_dim=2, observation_dim=5, horizon=16, n_obs_steps=2).eval()


def test_paper_unet_has_the_published_parameter_count() -> None:
    network = ConditionalUNet1D(action_dim=2, condition_dim=40)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 65.78


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=8, deadline=None)
@given(batch=st.integers(1, 5))
def test_prediction_has_the_shape_of_the_actions(name: str, batch: int) -> None:
    prediction = small_network(name)(torch.randn(batch, 16, 2), torch.arange(batch), torch.randn(batch, 2, 5))
    assert prediction.shape == (batch, 16, 2)
    assert prediction.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_rows_of_a_batch_do_not_mix_and_every_input_counts(name: str) -> None:
    torch.manual_seed(0)
    network = small_network(name)
    noisy, time, condition = torch.randn(3, 16, 2), torch.tensor([5, 50, 90]), torch.randn(3, 2, 5)
    together = network(noisy, time, condition)
    alone = network(noisy[1:2], time[1:2], condition[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)
    for changed in (
        network(noisy + 1, time, condition),
        network(noisy, time + 5, condition),
        network(noisy, time, condition + 1),
    ):
        assert (changed - together).abs().amax(dim=(1, 2)).min() > 1e-6


@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
def test_sequence_conv_equals_conv1d(kernel_size: int, stride: int) -> None:
    torch.manual_seed(0)
    ours = SequenceConv(6, 10, kernel_size, stride)
    reference = nn.Conv1d(6, 10, kernel_size, stride, padding=kernel_size // 2)
    reference.weight.data.copy_(ours.weight.transpose(1, 2))
    reference.bias.data.copy_(ours.bias)  # type: ignore[union-attr]
    x = torch.randn(4, 16, 6)
    expected = reference(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(ours(x), expected)
    with torch.autocast("cpu", torch.bfloat16):  # the path that unfolds taps
        torch.testing.assert_close(ours(x).float(), expected, atol=0.05, rtol=0.05)


def test_unfolded_taps_have_the_gradients_of_conv1d() -> None:
    torch.manual_seed(0)
    conv, x = SequenceConv(8, 8, 5), torch.randn(4, 16, 8, requires_grad=True)
    weight = torch.randn(4, 16, 8)
    gradients = []
    for bf16 in (False, True):
        conv.zero_grad()
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            (conv(x).float() * weight).sum().backward()
        gradients.append((x.grad, conv.weight.grad, conv.bias.grad))
    for exact, rounded in zip(*gradients, strict=True):
        assert exact is not None
        assert rounded is not None
        assert (exact - rounded).norm() / exact.norm() < 0.02


def test_upsample_equals_transposed_convolution() -> None:
    torch.manual_seed(0)
    ours, reference = Upsample(6), nn.ConvTranspose1d(6, 6, 4, stride=2, padding=1)
    taps = reference.weight.detach().permute(1, 2, 0)
    ours.even.data.copy_(taps[:, [3, 1]].flatten(1))
    ours.odd.data.copy_(taps[:, [2, 0]].flatten(1))
    ours.bias.data.copy_(reference.bias)  # type: ignore[union-attr, arg-type]
    x = torch.randn(3, 8, 6)
    torch.testing.assert_close(ours(x), reference(x.transpose(1, 2)).transpose(1, 2))


def test_causal_transformer_does_not_look_ahead() -> None:
    torch.manual_seed(0)
    network = small_network("transformer")
    noisy, time, condition = torch.randn(2, 16, 2), torch.tensor([5, 50]), torch.randn(2, 2, 5)
    later = noisy.clone()
    later[:, 9:] += 1
    before, after = network(noisy, time, condition), network(later, time, condition)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert (before[:, 9:] - after[:, 9:]).abs().min() > 0


@pytest.mark.parametrize("options", [*({"name": name} for name in SMALL), {"name": "transformer", "causal": False}])
def test_a_step_reads_no_values(options: dict[str, Any]) -> None:
    """Of forward and backward: on a GPU the host would wait for them, in every step."""
    given = {**SMALL[options["name"]], **options}
    network = build_network(given, action_dim=2, observation_dim=5, horizon=16, n_obs_steps=2)
    noisy, time, condition = torch.randn(3, 16, 2), torch.tensor([5, 50, 90]), torch.randn(3, 2, 5)
    network(noisy, time, condition).sum().backward()  # what is kept between calls
    with HostReads():
        network(noisy, time, condition).sum().backward()


def test_sinusoidal_embedding_spans_wavelengths_of_two_pi_to_twenty_thousand_pi() -> None:
    embedding = SinusoidalEmbedding(8)
    torch.testing.assert_close(embedding.frequencies[[0, -1]], torch.tensor([1.0, 1e-4]))
    torch.testing.assert_close(embedding(torch.zeros(1))[0], torch.tensor([0.0] * 4 + [1.0] * 4))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "unet"}, "network.name='unet': choose one of mlp, transformer, unet1d"),
        ({"name": "mlp", "widht": 3}, "widht"),
        ({"name": "unet1d", "down_dims": [10], "n_groups": 4}, "divisible by n_groups"),
        ({"name": "unet1d", "kernel_size": 4}, "odd kernel"),
        ({"name": "unet1d", "activation": "relu"}, "activation='relu': choose one of gelu, mish, silu"),
        ({"name": "transformer", "embed_dim": 30, "n_heads": 4}, "divisible by n_heads"),
    ],
)
def test_wrong_configuration_is_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(config, action_dim=2, observation_dim=5, horizon=16, n_obs_steps=2)


def test_a_horizon_that_the_unet_cannot_halve_is_refused_before_its_first_step() -> None:
    with pytest.raises(ValueError, match="horizon=15: network 'unet1d' needs a multiple of 4"):
        build_network({"name": "unet1d", **SMALL["unet1d"]}, action_dim=2, observation_dim=5, horizon=15, n_obs_steps=2)


def test_unet_rejects_a_horizon_it_cannot_halve() -> None:
    network = small_network("unet1d")
    with pytest.raises(ValueError, match="horizon=10"):
        network(torch.randn(1, 10, 2), torch.zeros(1), torch.randn(1, 2, 5))
