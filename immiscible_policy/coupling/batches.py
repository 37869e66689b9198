"""Coupling a data set batch by batch without training: what the diagnostics share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from immiscible_policy.coupling.base import Coupling

Track = Callable[[Iterable[int], str], Iterable[int]]
"""Wraps a loop, which it is given with a name, to show its progress."""


def untracked(steps: Iterable[int], name: str) -> Iterable[int]:
    """Shows nothing."""
    return steps


def fitted_copy(coupling: Coupling, data: Tensor, condition: Tensor | None) -> Coupling:
    """A copy that has seen the data set, so that the given coupling's memory stays as it is."""
    coupling = copy.deepcopy(coupling)
    coupling.fit(data, condition)
    return coupling


def couple_rows(
    coupling: Coupling, data: Tensor, condition: Tensor | None, rows: Tensor, generator: torch.Generator
) -> Tensor:
    """Noise for the rows ``rows`` (B,) of a data set; (B, D)."""
    rows = rows.to(data.device)
    time = torch.rand(len(rows), generator=generator, device=data.device) if coupling.uses_time else None
    chosen = None if condition is None else condition[rows]
    noise = coupling(data[rows], condition=chosen, generator=generator, time=time, indices=rows)
    return noise.reshape(len(rows), -1)


def coupled_batches(
    coupling: Coupling,
    data: Tensor,
    condition: Tensor | None,
    batches: Tensor,
    seed: int,
    track: Track = untracked,
    name: str = "",
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Number, indices (B,) and noise (B, D) of each batch; each begins with a generator state of its own."""
    coupling = fitted_copy(coupling, data, condition)
    for number in track(range(len(batches)), name):
        generator = torch.Generator(data.device).manual_seed((seed + 1) * 1_000_003 + number)
        rows = batches[number].to(data.device)
        yield number, rows, couple_rows(coupling, data, condition, rows, generator)


def epoch_batches(n_data: int, batch_size: int, n_batches: int, seed: int) -> Tensor:
    """(n_batches, batch_size) indices, epoch after epoch of random order, incomplete batches dropped."""
    generator = torch.Generator("cpu").manual_seed(seed)
    whole = n_data // batch_size
    epochs = [
        torch.randperm(n_data, generator=generator, device="cpu")[: whole * batch_size].view(whole, batch_size)
        for _ in range(-(-n_batches // whole))
    ]
    return torch.cat(epochs)[:n_batches]


def check_sizes(n_data: int, batch_size: int, least: int = 2) -> None:
    """Raise ValueError unless a batch of ``batch_size`` can be drawn."""
    if not least <= batch_size <= n_data:
        raise ValueError(f"batch_size must be from {least} to the {n_data} data, got {batch_size}")
