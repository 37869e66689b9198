"""Convolutions with fewer products: equal to torch's, as precise as promised, and used where they are meant to be."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from immiscible_policy.policy.networks import ConditionalUNet1D, minimal_filtering
from immiscible_policy.policy.networks.unet1d import SequenceConv

Convolution = Callable[..., Tensor]


def library_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    taps = weight.shape[1]
    return F.conv1d(x.transpose(1, 2), weight.transpose(1, 2), bias, padding=taps // 2).transpose(1, 2)


def results(convolution: Convolution, inputs: tuple[Tensor, ...], gradient: Tensor) -> tuple[Tensor, ...]:
    """Output, and gradients of input, weight and bias."""
    inputs = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    output = convolution(*inputs)
    return (output.detach(), *torch.autograd.grad(output, inputs, gradient))


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 5),
    tiles=st.integers(1, 4),
    taps=st.sampled_from(minimal_filtering.TAPS),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 1000),
)
def test_equals_the_library_in_float64(batch: int, tiles: int, taps: int, channels: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    in_channels, out_channels = channels
    length = 4 * tiles
    x = torch.randn(batch, length, in_channels, generator=generator, dtype=torch.float64)
    weight = torch.randn(out_channels, taps, in_channels, generator=generator, dtype=torch.float64)
    bias = torch.randn(out_channels, generator=generator, dtype=torch.float64)
    gradient = torch.randn(batch, length, out_channels, generator=generator, dtype=torch.float64)
    ours = results(minimal_filtering.convolve, (x, weight, bias), gradient)
    theirs = results(library_convolution, (x, weight, bias), gradient)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [4, 8, 16])
@pytest.mark.parametrize("taps", minimal_filtering.TAPS)
def test_in_float32_results_are_off_by_a_millionth_of_their_norm(length: int, taps: int) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(64, length, 128), torch.randn(96, taps, 128), torch.randn(96)
    gradient = torch.randn(64, length, 96)
    ours = results(minimal_filtering.convolve, inputs, gradient)
    exact = results(library_convolution, tuple(tensor.double() for tensor in inputs), gradient.double())
    for mine, expected in zip(ours, exact, strict=True):
        assert (mine - expected).norm() / expected.norm() < 2e-6


@pytest.mark.parametrize(("length", "taps", "products"), [(4, 3, 6), (4, 5, 7), (8, 3, 6), (8, 5, 8), (16, 5, 8)])
def test_a_tile_takes_the_fewest_products(length: int, taps: int, products: int) -> None:
    matrices = minimal_filtering._TRANSFORMS[length, taps, torch.float32]
    assert matrices.output.shape == (4, products)
    assert matrices.filter.shape == (products, taps)
    assert matrices.data.shape == (length // 4 * products, length)


def test_a_transposed_input_and_frozen_parameters_are_fine() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(8, 5, 6), torch.randn(8)
    x = torch.randn(6, 8, 3).permute(2, 1, 0).requires_grad_()
    (gradient,) = torch.autograd.grad(minimal_filtering.convolve(x, weight, bias).sum(), x)
    (expected,) = torch.autograd.grad(library_convolution(x, weight, bias).sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("batch", "length", "channels", "taps", "stride", "expected"),
    [
        (32, 4, 32, 5, 1, True),
        (8, 16, 32, 3, 1, True),
        (31, 4, 32, 5, 1, False),  # too few rows for the transform of the weight
        (64, 6, 32, 5, 1, False),
        (64, 2, 32, 5, 1, False),
        (64, 36, 32, 5, 1, False),
        (64, 8, 16, 5, 1, False),
        (64, 8, 32, 7, 1, False),
        (64, 8, 32, 3, 2, False),
    ],
)
def test_used_for_batches_of_whole_tiles(
    batch: int, length: int, channels: int, taps: int, stride: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    calls = []
    convolve = minimal_filtering.convolve
    monkeypatch.setattr(minimal_filtering, "convolve", lambda *tensors: calls.append(1) or convolve(*tensors))
    conv, x = SequenceConv(channels, channels, taps, stride), torch.randn(batch, length, channels)
    output = conv(x)
    assert bool(calls) == expected
    reference = F.conv1d(x.transpose(1, 2), conv.weight.transpose(1, 2), conv.bias, stride, taps // 2).transpose(1, 2)
    torch.testing.assert_close(output, reference, rtol=1e-4, atol=1e-5)
    calls.clear()
    with torch.autocast("cpu", torch.bfloat16):  # whose precision the transforms would not bear
        conv(x)
    conv.bfloat16()(x.bfloat16())
    assert not calls


@pytest.mark.parametrize("activation", ["silu", "mish"])
def test_a_network_trains_as_with_the_librarys_convolutions(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = ConditionalUNet1D(2, 10, (32, 64), step_embed_dim=16, activation=activation)
    noisy, time, condition = torch.randn(32, 16, 2), torch.randint(0, 100, (32,)), torch.randn(32, 10)

    def outcome() -> list[Tensor]:
        network.zero_grad()
        prediction = network(noisy, time, condition)
        prediction.square().mean().backward()
        return [prediction.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]

    fast = outcome()
    monkeypatch.setattr(minimal_filtering, "pays", lambda *tensors: False)
    plain = outcome()
    assert len(fast) == len(plain) == 1 + len(list(network.parameters()))
    for mine, expected in zip(fast, plain, strict=True):
        assert (mine - expected).norm() <= 1e-4 * expected.norm()


def test_survives_compilation() -> None:
    torch.manual_seed(0)
    conv, x = SequenceConv(32, 32, 5), torch.randn(32, 8, 32)
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    for module in (conv, compiled):
        conv.zero_grad()
        output = module(x)
        output.sum().backward()
        if module is conv:
            expected = output.detach(), conv.weight.grad
    torch.testing.assert_close(output.detach(), expected[0])
    torch.testing.assert_close(conv.weight.grad, expected[1])
