"""Eight Gaussians to two moons by flow matching: the two-dimensional benchmark of C2OT, protocol and measurement.

C2OT is "The Curse of Conditions" (Cheng and Schwing, ICCV 2025, arXiv 2503.10636); the published numbers are in its
figure 1. Settings that the paper leaves out are those of its authors' released code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from immiscible_policy.coupling import Coupling
from immiscible_policy.diffusion import FlowMatching, couple
from immiscible_policy.diffusion.flow_matching import NETWORK_TIME_SCALE
from immiscible_policy.evaluation.wasserstein import squared_wasserstein

CONDITIONS = ("none", "class", "x")
RADIUS = 5.0
SOURCE_STD = 0.1**0.25  # the covariance is sqrt(0.1) times the identity
MOON_NOISE = 0.2


@dataclass(frozen=True)
class Protocol:
    """Settings of a training and its measurement; the defaults are the published ones.

    Args:
        iterations: optimiser steps.
        batch_size: samples of a step.
        coupled_size: samples that a coupling sees at once, a multiple of ``batch_size``; its pairs last for
            ``coupled_size / batch_size`` steps.
        learning_rate: of Adam.
        width, depth: of the network.
        n_points: generated and real points that are compared.
        tolerance: relative and absolute, of the adaptive solver.
    """

    iterations: int = 20_000
    batch_size: int = 256
    coupled_size: int = 1024
    learning_rate: float = 3e-4
    width: int = 128
    depth: int = 3
    n_points: int = 10_000
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "coupled_size", "width", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.n_points < 2:
            raise ValueError(f"n_points={self.n_points}: must be at least 2")
        if self.coupled_size % self.batch_size:
            raise ValueError(f"coupled_size={self.coupled_size}: must be a multiple of batch_size={self.batch_size}")

    def objective(self, sampler: str) -> FlowMatching:
        """Flow matching with one of its samplers; points are not clipped, since they are no images."""
        return FlowMatching(sampler=sampler, rtol=self.tolerance, atol=self.tolerance, clip_sample=False)


@dataclass(frozen=True)
class Scores:
    """What a trained network reached.

    Attributes:
        euler: squared 2-Wasserstein distance to the moons of points from one Euler step.
        adaptive: the same with the adaptive solver.
        n_calls: network calls that the adaptive solver took, mean over the batches.
    """

    euler: float
    adaptive: float
    n_calls: float


def eight_gaussians(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Points (n, 2) of eight Gaussians with equal weights on a circle of radius 5; a coupling's ``source``."""
    if len(shape) != 2 or shape[1] != 2:
        raise ValueError(f"shape must be (n, 2), got {shape}")
    angle = torch.randint(8, shape[:1], generator=generator) * (math.pi / 4)
    centres = RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    return centres + SOURCE_STD * torch.randn(shape, generator=generator)


def two_moons(n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Points (n, 2) of two half circles in equal steps along them, the outer first, and which is whose, (n,) int64.

    Those of torchdyn, times 3 less 1: half circles of radius 1 around (0, 0), upwards, and (1, 0.5), downwards. A
    point's noise is one number, uniform in [0, 0.2), added to both coordinates.
    """
    outer, inner = (torch.linspace(0, math.pi, size) for size in (n // 2, n - n // 2))
    points = torch.cat(
        [torch.stack([outer.cos(), outer.sin()], 1), torch.stack([1 - inner.cos(), 0.5 - inner.sin()], 1)]
    )
    labels = (torch.arange(n) >= n // 2).long()
    return 3 * (points + MOON_NOISE * torch.rand(n, 1, generator=generator)) - 1, labels


def condition_of(condition: str, points: Tensor, labels: Tensor) -> Tensor | None:
    """What the network is told, (n, 1) float: -1 or 1 for the moon, the first coordinate, or nothing."""
    if condition not in CONDITIONS:
        raise ValueError(f"condition={condition!r}: choose one of {', '.join(CONDITIONS)}")
    if condition == "none":
        return None
    return points[:, :1] if condition == "x" else 2.0 * labels[:, None].float() - 1.0


class ResidualNet(nn.Module):
    """A residual multilayer perceptron of points; time and condition are added to the input's projection.

    Args:
        width: of the residual stream; each block's hidden layer has four times as many units.
        depth: blocks.
        conditional: whether a condition (n, 1) is expected.
    """

    def __init__(self, width: int = 128, depth: int = 3, conditional: bool = False) -> None:
        super().__init__()
        self.point, self.time, self.out = nn.Linear(2, width), nn.Linear(1, width), nn.Linear(width, 2)
        self.condition = nn.Linear(1, width) if conditional else None
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(depth)
        )

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        """noisy (n, 2), time (n,) as ``FlowMatching`` gives it, condition (n, 1) -> velocity (n, 2).

        The layers see the published time, 0 at the source and 1 at the moons.
        """
        hidden = self.point(noisy) + self.time(1 - time[:, None] / NETWORK_TIME_SCALE)
        if self.condition is not None:
            hidden = hidden + self.condition(condition)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.out(hidden)


def train(
    coupling: Coupling,
    condition: str = "none",
    seed: int = 0,
    protocol: Protocol | None = None,
    in_order: bool = False,
    track: Callable[[Sequence[int]], Sequence[int]] = lambda steps: steps,
) -> ResidualNet:
    """Train a network on pairs of the coupling.

    Args:
        coupling: with ``source=eight_gaussians``.
        condition: none | class (which moon) | x (the first coordinate).
        seed: of weights, data and times.
        in_order: take the points of a coupled batch along the moons, a quarter of them in each step, as the authors'
            loop without coupling does; with an assignment it takes them in the order of the source, that is a random
            one, as everything here does unless told otherwise.
        track: wraps the steps' loop to show progress.
    """
    protocol = Protocol() if protocol is None else protocol
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ResidualNet(protocol.width, protocol.depth, condition != "none")
    objective = protocol.objective("euler")
    optimizer = torch.optim.Adam(network.parameters(), lr=protocol.learning_rate)
    steps_of_pairs = protocol.coupled_size // protocol.batch_size
    for step in track(range(protocol.iterations)):
        part = step % steps_of_pairs
        if part == 0:
            points, labels = two_moons(protocol.coupled_size, generator)
            if not in_order:
                order = torch.randperm(len(points), generator=generator)
                points, labels = points[order], labels[order]
            given = condition_of(condition, points, labels)
            # Classes are labels to a coupling, so that it compares them as such.
            known = labels if condition == "class" else given
            noise, _ = couple(objective, coupling, points, known, generator=generator)
        rows = slice(part * protocol.batch_size, (part + 1) * protocol.batch_size)
        told = None if given is None else given[rows]
        loss = objective.loss(network, points[rows], noise[rows], told, generator=generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def evaluate(network: nn.Module, condition: str = "none", seed: int = 0, protocol: Protocol | None = None) -> Scores:
    """Distances between generated points and moons, and what they cost.

    Args:
        condition: as in training; each generated point has the condition of one of the moons' points.
        seed: of the source's and the moons' points.

    Raises:
        ArithmeticError: the network returned NaN or infinity.
    """
    protocol = Protocol() if protocol is None else protocol
    generator = torch.Generator().manual_seed(seed)
    source = eight_gaussians((protocol.n_points, 2), generator)
    points, labels = two_moons(protocol.n_points, generator)
    given = condition_of(condition, points, labels)
    euler, _ = protocol.objective("euler").solve(network, source, given, steps=1)
    parts, calls = [], []
    adaptive = protocol.objective("adaptive")
    for start in range(0, len(source), protocol.batch_size):
        rows = slice(start, start + protocol.batch_size)
        part, count = adaptive.solve(network, source[rows], None if given is None else given[rows])
        parts.append(part)
        calls.append(count)
    return Scores(
        squared_wasserstein(euler, points), squared_wasserstein(torch.cat(parts), points), float(np.mean(calls))
    )
