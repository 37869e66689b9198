"""Which device and arithmetic a run uses when the user leaves it to us."""

import platform
import warnings
from pathlib import Path

import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def resolve_device(device: str) -> str:
    """``auto`` becomes cuda where there is one, else cpu; anything else is checked and returned."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r}: choose auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: this machine has no CUDA device; choose cpu or auto")
    return device


def resolve_precision(precision: str, device: str) -> str:
    """``auto`` becomes bf16 where the hardware multiplies faster in bf16, else fp32.

    Returns fp32, bf16 or fp16. Warns of bf16 on a CPU without AVX512-BF16 or AMX, which emulates it.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"mixed_precision={precision!r}: choose one of {', '.join(PRECISIONS)}")
    if precision == "fp16" and device == "cpu":
        raise ValueError("mixed_precision='fp16' needs a GPU; on a CPU choose bf16, fp32 or auto")
    if precision == "bf16" and device == "cpu" and not any(_bf16_instructions_of_cpu()):
        warnings.warn(
            "mixed_precision=bf16: this processor has no instructions for it and takes many times as long as in fp32 "
            "(measured: 8, training the default policy); choose fp32 or auto unless results are to match some in bf16",
            stacklevel=2,
        )
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if _bf16_is_faster_on_cpu() else "fp32"


def _bf16_is_faster_on_cpu() -> bool:
    amx, avx512 = _bf16_instructions_of_cpu()
    # Intel's cores with AMX switched off, as in some virtual machines, are slower in bf16 (docs/performance.md).
    return amx or (avx512 and not _is_intel())


def _bf16_instructions_of_cpu() -> tuple[bool, bool]:
    """Whether there is AMX, and AVX512-BF16."""
    # Private queries: torch has no public one for bf16 on CPUs. Without them fp32 is always right.
    amx, avx512 = (
        bool(getattr(torch.cpu, query, bool)()) for query in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    return amx, avx512


def _is_intel() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return "GenuineIntel" in (cpuinfo.read_text() if cpuinfo.is_file() else platform.processor())


def autocast(precision: str, device: str) -> torch.autocast:
    """A context that runs the network in a resolved precision (a no-op for fp32)."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.split(":")[0], dtype or torch.bfloat16, enabled=dtype is not None)
