"""Mish from the logistic function against torch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from immiscible_policy.policy.networks.activations import Mish


def test_mish_equals_torchs_with_its_gradient() -> None:
    torch.manual_seed(0)
    x = torch.cat([3 * torch.randn(20_000), torch.linspace(-90, 90, 20_000)]).requires_grad_()
    exact = x.detach().double().requires_grad_()
    ours, theirs = Mish()(x), F.mish(exact)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-7)
    (slope,) = torch.autograd.grad(ours.sum(), x)
    (expected,) = torch.autograd.grad(theirs.sum(), exact)
    torch.testing.assert_close(slope.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf"), 1e30, -1e30, 0.0])
def test_mish_has_the_limits_of_torchs(value: float) -> None:
    x = torch.full((10_000,), value)
    torch.testing.assert_close(Mish()(x), F.mish(x), equal_nan=True)


@pytest.mark.parametrize(
    ("entries", "dtype"), [(100, torch.float32), (10_000, torch.float64), (10_000, torch.bfloat16)]
)
def test_mish_is_torchs_own_elsewhere(entries: int, dtype: torch.dtype) -> None:
    x = torch.randn(entries).to(dtype)
    assert torch.equal(Mish()(x), nn.Mish()(x))
