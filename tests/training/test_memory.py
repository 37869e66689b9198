"""The memory of freed tensors is kept for the next ones."""

import os
import platform
import subprocess
import sys

import pytest

# Page faults of ten tensors of 64 MiB, each filled and freed, after three others.
COUNTED = """
import resource, torch
from immiscible_policy.training.memory import keep_freed_memory
print(keep_freed_memory())
for number in range(13):
    torch.ones(2**24)
    if number == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> tuple[bool, int]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", COUNTED], env={**inherited, **environment}, capture_output=True, text=True, check=True
    )
    kept, number = done.stdout.split()
    return kept == "True", int(number)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets the memory of glibc")
def test_freed_memory_is_kept_unless_the_environment_says_how() -> None:
    kept, few = faults()
    assert kept
    assert few < 1000
    kept, many = faults(MALLOC_MMAP_THRESHOLD_="1000000")
    assert not kept
    assert many > 10_000  # ten times 64 MiB in pages of 4 KiB are 163,840; huge pages would make them fewer
