"""Argument checks shared by every coupling and by :func:`diagnose`.

Each error names the argument, what was found and what is allowed. The checks cost microseconds, since
a policy's training step lasts only tens of milliseconds; finiteness is read from one scalar, and a GPU
is never waited for: there the scalar is read at a later call.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_arguments(
    data: Tensor,
    noise: Tensor | None = None,
    condition: Tensor | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    time: Tensor | None = None,
    indices: Tensor | None = None,
) -> None:
    """Raise TypeError or ValueError unless the arguments of a coupling call fit together."""
    _check_data(data)
    if noise is not None:
        _check_noise(noise, data)
    if condition is not None:
        _check_condition(condition, data)
    if mask is not None:
        _check_mask(mask, data)
    if generator is not None:
        _check_generator(generator, data)
    if time is not None:
        _check_time(time, data)
    if indices is not None:
        _check_indices(indices, data)
    _check_finite(data, noise, mask)


def compute_dtype(data: Tensor) -> torch.dtype:
    """The dtype distances are computed in: float32 at least, float64 for float64 data."""
    return torch.float64 if data.dtype == torch.float64 else torch.float32


def flat_rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """View (B, ...) as (B, D) in ``dtype``; copies only where the dtype or the layout asks for it."""
    return tensor.reshape(tensor.shape[0], -1).to(dtype)


def flat_mask(mask: Tensor | None, data: Tensor) -> Tensor | None:
    """Expand a mask to ``data`` and view it as (B, D); None stays None."""
    return None if mask is None else mask.expand(data.shape).reshape(data.shape[0], -1)


def _check_data(data: Tensor) -> None:
    if not isinstance(data, Tensor):
        raise TypeError(f"data must be a torch.Tensor, got {type(data).__name__}")
    if data.dtype not in FLOAT_DTYPES:
        raise TypeError(f"data must be float16, bfloat16, float32 or float64, got {data.dtype}")
    if data.ndim < 1:
        raise ValueError("data must have a batch dimension, (B, ...); got a scalar tensor of shape ()")


def _check_noise(noise: Tensor, data: Tensor) -> None:
    if not isinstance(noise, Tensor):
        raise TypeError(f"noise must be a torch.Tensor or None, got {type(noise).__name__}")
    if noise.shape != data.shape:
        raise ValueError(f"noise must have the shape of data {tuple(data.shape)}, got {tuple(noise.shape)}")
    if noise.dtype != data.dtype:
        raise TypeError(f"noise must have the dtype of data {data.dtype}, got {noise.dtype}")
    if noise.device != data.device:
        raise ValueError(f"noise must be on the device of data {data.device}, got {noise.device}")


def _check_condition(condition: Tensor, data: Tensor) -> None:
    if not isinstance(condition, Tensor):
        raise TypeError(f"condition must be a torch.Tensor or None, got {type(condition).__name__}")
    if condition.ndim < 1 or condition.shape[0] != data.shape[0]:
        raise ValueError(
            f"condition must have one row per sample, (B, ...) or (B,) with B={data.shape[0]}; "
            f"got shape {tuple(condition.shape)}"
        )


def _check_mask(mask: Tensor, data: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a torch.Tensor or None, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, True where the entry counts; got {mask.dtype}")
    if mask.device != data.device:
        raise ValueError(f"mask must be on the device of data {data.device}, got {mask.device}")
    trailing = data.shape[data.ndim - mask.ndim :] if mask.ndim <= data.ndim else None
    if trailing is None or any(m not in (1, d) for m, d in zip(mask.shape, trailing, strict=True)):
        raise ValueError(
            f"mask must be broadcastable to data {tuple(data.shape)}, got {tuple(mask.shape)}; "
            "a (B, T) mask of time steps needs a last axis: mask[..., None]"
        )


def _check_generator(generator: torch.Generator, data: Tensor) -> None:
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
    found, wanted = generator.device, data.device
    same_index = found.index is None or wanted.index is None or found.index == wanted.index
    if found.type != wanted.type or not same_index:
        raise ValueError(f"generator must be on the device of data {wanted}, got {found}")


def _check_time(time: Tensor, data: Tensor) -> None:
    if not isinstance(time, Tensor):
        raise TypeError(f"time must be a torch.Tensor or None, got {type(time).__name__}")
    if time.dtype not in FLOAT_DTYPES:
        raise TypeError(f"time must be a float tensor of diffusion times in [0, 1], got {time.dtype}")
    if tuple(time.shape) != (data.shape[0],):
        raise ValueError(f"time must have shape (B,) = ({data.shape[0]},), got {tuple(time.shape)}")
    require_unit_interval("time must be", time)


def _check_indices(indices: Tensor, data: Tensor) -> None:
    if not isinstance(indices, Tensor):
        raise TypeError(f"indices must be a torch.Tensor or None, got {type(indices).__name__}")
    if indices.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"indices must be an int64 or int32 tensor, got {indices.dtype}")
    if tuple(indices.shape) != (data.shape[0],):
        raise ValueError(f"indices must have shape (B,) = ({data.shape[0]},), got {tuple(indices.shape)}")


def _check_finite(data: Tensor, noise: Tensor | None, mask: Tensor | None) -> None:
    """One scalar tells: a norm is finite exactly if every entry is and no square overflows."""
    dtype = compute_dtype(data)
    if data.is_cuda:
        # Padding may hold anything; multiplying by the mask would keep its NaN.
        counted = data if mask is None else data.masked_fill(~mask, 0.0)
        norm = torch.linalg.vector_norm(counted, dtype=dtype)
        _LATE.check(norm if noise is None else norm + torch.linalg.vector_norm(noise, dtype=dtype))
        return
    total = torch.linalg.vector_norm(data, dtype=dtype)
    if noise is not None:
        total = total + torch.linalg.vector_norm(noise, dtype=dtype)
    if math.isfinite(float(total)):
        return
    valid = torch.ones_like(data, dtype=torch.bool) if mask is None else mask.expand(data.shape)
    # Padding may hold anything: only entries that count can make the call fail.
    _raise_if_not_finite("data", data, valid)
    if noise is not None:
        _raise_if_not_finite("noise", noise, torch.ones_like(valid))


def require_finite(name: str, tensor: Tensor, valid: Tensor | None = None) -> None:
    """Raise ValueError where ``tensor`` holds NaN or infinity, among its entries that are ``valid`` (None: all)."""
    bad, counted = ~torch.isfinite(tensor), tensor.numel()
    if valid is not None:
        bad, counted = bad & valid, int(valid.sum())
    if n_bad := int(bad.sum()):
        raise ValueError(f"{name} must be finite, got {n_bad} NaN or infinite of {counted} entries")


def require_unit_interval(requirement: str, values: Tensor) -> None:
    """Raise ValueError where ``values`` holds NaN or numbers outside [0, 1]; on a GPU this is noticed late.

    Args:
        requirement: how the message begins, such as "time must be".
    """
    if values.numel() == 0:
        return
    if values.is_cuda:
        late = _LATE_UNIT_INTERVAL.get(requirement)
        if late is None:
            complaint = f"{requirement} in [0, 1], but at an earlier call values lay up to {{}} from 0.5"
            late = LateCheck(_copy_from_gpu, lambda distance: distance <= 0.5, complaint)
            late = _LATE_UNIT_INTERVAL.setdefault(requirement, late)
        late.check((values.detach().float() - 0.5).abs().amax())
        return
    low, high = (float(end) for end in values.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{requirement} in [0, 1], got values in [{low:.3g}, {high:.3g}]")


def _raise_if_not_finite(name: str, tensor: Tensor, valid: Tensor) -> None:
    require_finite(name, tensor, valid)
    used = tensor.masked_fill(~valid, 0.0)
    if not math.isfinite(float(torch.linalg.vector_norm(used, dtype=compute_dtype(tensor)))):
        raise ValueError(
            f"{name} must be normalised (values of order 1), got magnitudes up to "
            f"{float(used.abs().max()):.3g}, whose squared distances overflow {compute_dtype(tensor)}"
        )


class LateCheck:
    """Reads scalars from a GPU without waiting for it: a copy is begun at one call and read at a later one.

    While a copy is under way further scalars go unread: what is wrong once is so again, and data that is not finite
    makes noise, and soon a loss, that is not finite either.

    Args:
        begin_copy: scalar -> (its copy on the host, function that says whether the copy has arrived).
        is_allowed: tells of what was read.
        complaint: of what is not allowed, which is put in place of its braces.
    """

    def __init__(
        self,
        begin_copy: Callable[[Tensor], tuple[Tensor, Callable[[], bool]]],
        is_allowed: Callable[[float], bool] = math.isfinite,
        complaint: str = "data and noise must be finite and normalised, but at an earlier call their norm was {}",
    ) -> None:
        self._begin_copy = begin_copy
        self._is_allowed = is_allowed
        self._complaint = complaint
        self._copies: dict[torch.device, tuple[Tensor, Callable[[], bool]]] = {}

    def check(self, scalar: Tensor) -> None:
        """Begin to read a scalar; ValueError if the one begun before has arrived and is not allowed."""
        under_way = self._copies.get(scalar.device)
        if under_way is not None:
            host, has_arrived = under_way
            if not has_arrived():
                return
            del self._copies[scalar.device]
            if not self._is_allowed(float(host)):
                raise ValueError(
                    f"{self._complaint.format(float(host))} (on {scalar.device} this is noticed late, so that no step "
                    "waits for it)"
                )
        self._copies[scalar.device] = self._begin_copy(scalar)


def _copy_from_gpu(scalar: Tensor) -> tuple[Tensor, Callable[[], bool]]:
    # By name: pinned memory is the CPU's, and the default device need not be that.
    host = torch.empty((), dtype=scalar.dtype, device="cpu", pin_memory=True)
    host.copy_(scalar, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(scalar.device))
    return host, event.query


_LATE = LateCheck(_copy_from_gpu)
_LATE_UNIT_INTERVAL: dict[str, LateCheck] = {}  # one each, since a check under way keeps others waiting
