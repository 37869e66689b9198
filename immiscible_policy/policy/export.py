"""A policy as one file that runs without this package: observation history and noise in, action chunk out.

What is exported is the whole function ``DiffusionPolicy.predict_action``: normaliser, encoder, network, a sampler of a
fixed number of steps, clipping, the way back to the actions' units, and the choice of the actions to execute.
"""

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from immiscible_policy.files import replace_folder, staging_folder
from immiscible_policy.policy import run_policy
from immiscible_policy.policy.diffusion_policy import DiffusionPolicy
from immiscible_policy.policy.export_description import FILES, action_unit, describe
from immiscible_policy.policy.export_onnx import PACKAGES, missing_packages, save_onnx
from immiscible_policy.policy.exportable import Inputs, example_inputs, predict, trace
from immiscible_policy.policy.inference_coupling import InferenceCoupling

# Largest difference from predict_action, as a share of the widest action range: 1e-3 px in PushT.
TOLERANCE = 2e-6
# Relative change of the noise, a few last bits of fp32, and how many times its effect may be seen in the export.
NUDGE, ROUNDING_FACTOR = 5e-7, 10
# Batches that an export of any batch size is checked on, each with this many noises for each kind of observations.
CHECKED_BATCHES = (1, 2, 5)
CHECKED_NOISES = 4


class ExportError(ValueError):
    """A policy that cannot be exported, or whose export does not compute what the policy does."""


@dataclass(frozen=True)
class Check:
    """Differences between an export's actions and the policy's, in the actions' ``unit``.

    Attributes:
        differences: the largest one by batch size.
        allowance: the largest one that would have passed.
        passed: whether no chunk differed by more than it may.
    """

    differences: Mapping[int, float]
    allowance: float
    passed: bool
    unit: str


@dataclass(frozen=True)
class Export:
    """What was written: sizes of the files in bytes, and the check that it passed."""

    folder: Path
    files: Mapping[str, int]
    check: Check


def export_policy(
    policy: DiffusionPolicy,
    folder: str | Path,
    num_inference_steps: int | None = None,
    format: str = "torch",
    batch: int | str = "dynamic",
    source: Path | None = None,
    noise_scale: float = 1.0,
    progress: bool = False,
) -> Export:
    """Write ``policy`` as a folder that runs without this package, in fp32, and check that it computes the same.

    The folder holds ``policy.pt2`` (``torch.export.load(path).module()(observation, noise)``) or ``policy.onnx``,
    ``policy.json``, ``example.npz`` and ``run_policy.py``. It appears complete or not at all.

    Args:
        policy: on the device that it is to run on. One in training mode is exported as it acts in evaluation mode.
        num_inference_steps: network calls a prediction takes; default the policy's.
        format: torch | onnx (on the CPU; needs the packages onnx, onnxscript and onnxruntime).
        batch: the one batch size that the export takes, or ``dynamic`` for any.
        source: the folder that the policy was loaded from, for the record.
        noise_scale: the caller is to multiply the noise by it: ``policy.json`` tells so, and ``run_policy.py`` does.
        progress: show a bar of the check, which takes some hundred predictions.

    Raises:
        ValueError: an argument is wrong, or the objective's sampler cannot be recorded (``SamplerNotRecordable``).
        ExportError: the check failed; nothing was written.
    """
    steps = policy.num_inference_steps if num_inference_steps is None else num_inference_steps
    named, folder = Path(folder), Path(folder).resolve()  # a link stays, and what it leads to is replaced
    _check_arguments(policy, folder, steps, format, batch)
    InferenceCoupling(noise_scale=noise_scale)  # which refuses what is not allowed
    if any(module.training for module in policy.modules()):
        policy = copy.deepcopy(policy).eval()
    staging = staging_folder(folder)
    try:
        if format == "onnx":
            save_onnx(policy, steps, batch, staging / FILES[format])
        else:
            torch.export.save(trace(policy, steps, batch), staging / FILES[format])
        describe(policy, staging, steps, format, batch, source, noise_scale)
        check = check_export(policy, staging, steps, batch, progress)
        if not check.passed:
            worst = max(check.differences.values(), key=lambda value: (value != value, value))
            raise ExportError(
                f"the exported policy's actions differ from the policy's by up to {worst:.2g} {check.unit}, which is "
                "more than rounding; the export was deleted"
            )
        files = {path.name: path.stat().st_size for path in sorted(staging.iterdir())}
        replace_folder(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Export(named, files, check)


def check_export(policy: DiffusionPolicy, folder: Path, steps: int, batch: int | str, progress: bool = False) -> Check:
    """Hold an export's actions against ``predict_action``'s, on random and on demonstration-like observations."""
    run = run_policy.load(folder)
    sizes = (batch,) if isinstance(batch, int) else CHECKED_BATCHES
    differences, allowances = dict.fromkeys(sizes, 0.0), [0.0]
    excess = 0.0
    checks = list(product(sizes, ("random", "demonstrations"), range(CHECKED_NOISES)))
    for size, like, seed in tqdm(checks, desc="check", unit="batch", leave=False, disable=not progress):
        inputs = example_inputs(policy, size, like, seed)
        actions = torch.from_numpy(run(*(value.cpu().numpy() for value in inputs.values()))[0])
        expected = predict(policy, inputs, steps).cpu()
        # Unlike those of Python, torch's maxima keep NaN, and nothing is smaller than NaN.
        difference = (actions - expected).abs().flatten(1).amax(1)
        allowed = _allowance(policy, inputs, steps, expected)
        differences[size] = torch.maximum(torch.tensor(differences[size]), difference.max()).item()
        excess = torch.maximum(torch.tensor(excess), (difference / allowed).max()).item()
        allowances.append(allowed.max().item())
    return Check(differences, max(allowances), excess < 1, action_unit(policy))


def _allowance(policy: DiffusionPolicy, inputs: Inputs, steps: int, expected: Tensor) -> Tensor:
    """How far each of B chunks may be from the policy's, (B,) in the actions' units.

    ``TOLERANCE``, or more where rounding alone makes more: a sampler's first step divides by a signal level that is
    almost nothing, so that what a few last bits of the noise change can be seen in the actions. Other batch sizes and
    other libraries sum in another order and round differently.
    """
    allowed = torch.full((len(expected),), TOLERANCE * _widest_range(policy))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        nudge = NUDGE * torch.randn(inputs["noise"].shape, generator=generator).to(policy.device)
        moved = predict(policy, inputs | {"noise": inputs["noise"] * (1 + nudge)}, steps).cpu()
        allowed = torch.maximum(allowed, ROUNDING_FACTOR * (moved - expected).abs().flatten(1).amax(1))
    return allowed


def _widest_range(policy: DiffusionPolicy) -> float:
    return (policy.action_normalizer.high - policy.action_normalizer.low).max().item() or 1.0


def _check_arguments(policy: DiffusionPolicy, folder: Path, steps: int, format: str, batch: int | str) -> None:
    if format not in FILES:
        raise ValueError(f"format={format!r}: choose one of {', '.join(FILES)}")
    if batch != "dynamic" and not (isinstance(batch, int) and batch >= 1):
        raise ValueError(f"batch={batch!r}: choose dynamic or a number of at least 1")
    policy.objective.check_num_inference_steps(steps)
    if format == "onnx" and (missing := missing_packages()):
        raise ValueError(f"format='onnx' needs {', '.join(missing)}: pip install {' '.join(PACKAGES)}")
    if format == "onnx" and policy.device.type != "cpu":
        raise ValueError(f"device={policy.device}: an ONNX export is made on the CPU")
    kinds = {parameter.dtype for parameter in policy.parameters()} - {torch.float32}
    if kinds:
        raise ValueError(f"the policy's weights are {', '.join(map(str, kinds))}; fp32 is what is exported")
    if not policy.action_normalizer.is_fitted:
        raise ValueError("the policy has no action ranges: it was never fitted to data")
    if folder.exists() and not (folder.is_dir() and ((folder / "policy.json").is_file() or not any(folder.iterdir()))):
        raise ValueError(f"folder {folder}: exists and is no exported policy; nothing was changed")
    if Path.cwd().is_relative_to(folder):
        raise ValueError(f"folder {folder}: is or holds the working folder, which cannot be replaced; choose another")
