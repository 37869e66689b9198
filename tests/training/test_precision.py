"""Choices of device and arithmetic."""

import warnings

import pytest
import torch

from immiscible_policy.training import precision
from immiscible_policy.training.precision import autocast, resolve_device, resolve_precision


def test_auto_is_resolved_to_something_that_runs() -> None:
    assert resolve_precision("auto", "cpu") in ("bf16", "fp32")
    assert resolve_device("auto") in ("cpu", "cuda")
    with autocast("bf16", "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast("fp32", "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("amx", "avx512", "intel", "expected"),
    [
        (False, False, False, "fp32"),
        (True, True, True, "bf16"),
        (False, True, False, "bf16"),
        (False, True, True, "fp32"),  # measured slower in bf16
    ],
)
def test_bf16_is_chosen_for_processors_that_are_faster_in_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, intel: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(precision, "_is_intel", lambda: intel)
    assert resolve_precision("auto", "cpu") == expected


@pytest.mark.parametrize(("amx", "avx512", "warned"), [(False, False, 1), (True, False, 0), (False, True, 0)])
def test_emulated_bf16_is_warned_of(monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, warned: int) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert resolve_precision("bf16", "cpu") == "bf16"
        resolve_precision("bf16", "cuda:0")
        resolve_precision("fp32", "cpu")
    assert len(caught) == warned
    assert all("mixed_precision=bf16: this processor has no instructions" in str(w.message) for w in caught)


def test_a_torch_without_the_queries_means_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    for query in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, query, raising=False)
    assert resolve_precision("auto", "cpu") == "fp32"


def test_impossible_choices_are_named() -> None:
    with pytest.raises(ValueError, match="mixed_precision='half': choose one of auto, fp32, bf16, fp16"):
        resolve_precision("half", "cpu")
    with pytest.raises(ValueError, match="needs a GPU"):
        resolve_precision("fp16", "cpu")
    with pytest.raises(ValueError, match="device='gpu'"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            resolve_device("cuda")
