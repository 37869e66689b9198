"""The batch that an assignment runs over: of this process alone, or of all processes of the group together.

Across ranks, no noise travels unless it was given: each rank draws one seed from its generator, seeds and
sizes are gathered, and every rank draws all ranks' noises from them. What travels are rows: of the cost
matrix, of conditions and of given noise. Batches may be uneven, down to none.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

_DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
)  # fmt: skip
_DIMENSIONS = 8  # trailing dimensions that are compared one by one; the rest by their product
_LARGEST_SEED = 2**62


def world_size() -> int:
    """Processes in the default group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@dataclass(frozen=True)
class Alone:
    """One process: its own batch is the whole batch.

    Attributes:
        sizes: samples that each process has.
        generators: what each process's noise is drawn with.
        rank: which of them this process is.
    """

    sizes: tuple[int, ...]
    generators: tuple[torch.Generator | None, ...]
    rank: int = 0

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in the order of ranks; (size of this rank, ...) -> (sum of sizes, ...)."""
        return rows

    def gather_same(self, tensor: Tensor) -> Tensor:
        """(world size, ...) tensors that have one shape on all ranks."""
        return tensor[None]

    @property
    def mine(self) -> slice:
        """Where the rows of this process lie among those of all."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])


@dataclass(frozen=True)
class AllRanks(Alone):
    """All processes of the default group. Every method is a collective: all ranks must call it."""

    def gather(self, rows: Tensor) -> Tensor:
        flat = rows.reshape(rows.shape[0], math.prod(rows.shape[1:]))
        padded = flat.new_zeros(max(self.sizes), flat.shape[1])
        if padded.numel() == 0:
            return rows.new_empty(sum(self.sizes), *rows.shape[1:])
        padded[: flat.shape[0]] = flat
        parts = [part[:size] for part, size in zip(self.gather_same(padded), self.sizes, strict=True)]
        return torch.cat(parts).reshape(-1, *rows.shape[1:])

    def gather_same(self, tensor: Tensor) -> Tensor:
        return _all_gather(tensor)


def all_ranks(
    data: Tensor, noise: Tensor | None, condition: Tensor | None, generator: torch.Generator | None, settings: str
) -> AllRanks:
    """Meet the other ranks: exchange sizes and seeds, and make sure that all make the same call.

    Args:
        data: (b, ...) this rank's samples; b may be 0.
        noise, condition: as given on this rank.
        generator: one seed is drawn from it.
        settings: describes the coupling; must be equal on all ranks, up to addresses in memory.

    Raises:
        ValueError: on all ranks, where data's trailing shape or dtype, the presence of noise, the
            condition or the settings differ between ranks.
    """
    seed = torch.randint(_LARGEST_SEED, (), generator=generator, device=data.device)
    agreed = {
        "data": _description(data),
        "noise": [int(noise is not None)],
        "condition": [-1] * len(_description(data)) if condition is None else _description(condition),
        "the settings of the coupling": [zlib.crc32(re.sub(r" at 0x[0-9a-f]+", "", settings).encode())],
    }
    header = torch.tensor([data.shape[0], *(value for part in agreed.values() for value in part)], device=data.device)
    table = _all_gather(torch.cat((seed[None], header))).tolist()
    start = 2
    for name, mine in agreed.items():
        parts = [row[start : start + len(mine)] for row in table]
        if any(part != parts[0] for part in parts):
            raise ValueError(f"{name} must be alike on all ranks, got {[_readable(name, part) for part in parts]}")
        start += len(mine)
    # Ranks whose generators were seeded alike must not draw alike.
    seeds = [(row[0] + position * 0x9E3779B97F4A7C15) % _LARGEST_SEED for position, row in enumerate(table)]
    generators = tuple(torch.Generator(data.device).manual_seed(seed) for seed in seeds)
    return AllRanks(tuple(row[1] for row in table), generators, dist.get_rank())


def _all_gather(tensor: Tensor) -> Tensor:
    """(world size, ...) tensors of all ranks, which must have one shape and dtype."""
    # As bytes, since backends differ in the dtypes that they know.
    mine = tensor.contiguous().reshape(-1).view(torch.uint8)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    return torch.stack(parts).view(tensor.dtype).reshape(len(parts), *tensor.shape)


def _description(tensor: Tensor) -> list[int]:
    """dtype and trailing shape as a fixed number of integers."""
    shape = list(tensor.shape[1:])
    head, tail = shape[:_DIMENSIONS], shape[_DIMENSIONS:]
    dtype = _DTYPES.index(tensor.dtype) if tensor.dtype in _DTYPES else len(_DTYPES)
    return [dtype, len(shape), *head, *[-1] * (_DIMENSIONS - len(head)), math.prod(tail)]


def _readable(name: str, part: Sequence[int]) -> str:
    if name == "noise":
        return "given" if part[0] else "None"
    if name == "the settings of the coupling":
        return f"checksum {part[0]:08x}"
    if part[0] == -1:
        return "None"
    dtype = str(_DTYPES[part[0]]) if part[0] < len(_DTYPES) else "another dtype"
    return f"{dtype} (B, {', '.join(str(size) for size in part[2 : 2 + part[1]])})"
