"""Time this project's parts against the published way of doing the same, side by side.

Contenders of one comparison run interleaved in rounds, so that a busy machine slows all of them alike;
ratios are taken within a round and reported as median [quartiles].
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_coupling
import benchmark_environment
import benchmark_images
import benchmark_inference
import benchmark_training
import torch
from benchmark_coupling import PUBLISHED, Contenders, call_times
from benchmark_timing import ratio, spread
from torch import Tensor

from immiscible_policy.cli import report_failure
from immiscible_policy.coupling import KNN, Independent, LinearAssignment
from immiscible_policy.policy import DiffusionPolicy
from immiscible_policy.training.precision import autocast, resolve_device, resolve_precision

POLICY_BATCH, OBSERVATION_DIM, ACTION_DIM = 64, 20, 2

EPILOG = f"""\
what is compared
{benchmark_coupling.COMPARED}\
  policy      ours: a training step (loss, backward, AdamW) of the default policy, in the precision that it chooses.
              published form: the same network with the library's convolutions in fp32 and Mish.
              Couplings at the policy's batch are given as shares of our step.
{benchmark_environment.COMPARED}\
{benchmark_inference.COMPARED}\
{benchmark_training.COMPARED}\
{benchmark_images.COMPARED}
how to read the table
  time        median over the rounds
  vs ours     time of the published form over ours (above 1: ours is faster), median [quartiles]
  vs randn    time over that of the one draw
  memory      peak of what the call allocates, its result included; 1.0 BD is one float32 (B, D) tensor
  steps/s     steps of one world (of training) a second, median over the rounds [quartiles]
  over gym-pusht  time that gym-pusht takes for a step over that of the row (above 1: the row is faster)

examples
  python scripts/benchmark.py                                  everything, about ten minutes
  python scripts/benchmark.py --only coupling --rounds 31      steadier numbers
  python scripts/benchmark.py --only coupling --device cuda    the couplings on a GPU
  python scripts/benchmark.py --only policy                    the policy's training step
  python scripts/benchmark.py --only inference                 latency of an action chunk
  python scripts/benchmark.py --only training                  whole training steps, about three minutes
  python scripts/benchmark.py --only training --device cuda --training-compile true reduce-overhead
  python scripts/benchmark.py --only images --image-networks small cifar --image-batch 32
  python scripts/benchmark.py --only environment --gym-pusht-python gym-pusht/bin/python
  python scripts/benchmark.py --only coupling --knn-sizes 64,32,2 --assignment-sizes 64,32 --solver-sizes
  python scripts/benchmark.py --output benchmark.json          all numbers, to keep
"""


# --- section: policy -------------------------------------------------------------------------------


def training_step(policy: DiffusionPolicy, precision: str, batch: dict[str, Tensor]) -> Callable[[], object]:
    """One optimiser step on a fixed batch."""
    optimizer = torch.optim.AdamW(policy.parameters(), fused=True)

    def step() -> None:
        with autocast(precision, str(policy.device)):
            loss = policy.loss(batch, Independent())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def policy_section(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The policy's training step against library convolutions in fp32, and what a coupling adds to it."""
    device = arguments.device
    batch = {
        "observation": 512 * torch.rand(POLICY_BATCH, 2, OBSERVATION_DIM, device=device),
        "action": 512 * torch.rand(POLICY_BATCH, 16, ACTION_DIM, device=device),
        "action_is_pad": torch.zeros(POLICY_BATCH, 16, dtype=torch.bool, device=device),
    }
    actions = batch["action"] / 256 - 1
    precision = resolve_precision("auto", device)
    ours = f"training step, {precision}"
    contenders: Contenders = {
        ours: training_step(benchmark_inference.make_policy(device), precision, batch),
        PUBLISHED: training_step(benchmark_inference.make_policy(device, published=True), "fp32", batch),
        "coupling none": lambda: Independent()(actions),
        "coupling knn k=2": lambda: KNN(2)(actions),
        "coupling assignment": lambda: LinearAssignment()(actions),
    }
    times = call_times(contenders, arguments.rounds, device)
    rows = []
    print(f"{f'policy, batch {POLICY_BATCH}':<22} {'time':>12} {'over our step':>30}")
    for name in contenders:
        share = ratio(times, name, ours)
        rows.append({"contender": name, "median_s": statistics.median(times[name]), "time_over_ours": share})
        print(f"{name:<22} {1e3 * statistics.median(times[name]):>9.3f} ms {spread(share, '.4f'):>30}")
    print()
    return rows


SECTIONS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "coupling": benchmark_coupling.coupling_section,
    "policy": policy_section,
    "inference": benchmark_inference.inference_section,
    "environment": benchmark_environment.environment_section,
    "training": benchmark_training.training_section,
    "images": benchmark_images.images_section,
}


# --- command line ----------------------------------------------------------------------------------


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=sorted(SECTIONS), help="run one section (default: all)")
    parser.add_argument("--rounds", type=int, default=11, help="interleaved rounds (default: 11)")
    parser.add_argument("--threads", type=int, default=1, help="torch CPU threads (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, noise and actions (default: 0)")
    benchmark_coupling.add_options(parser)
    benchmark_environment.add_options(parser)
    benchmark_inference.add_options(parser)
    benchmark_training.add_options(parser)
    benchmark_images.add_options(parser)
    parser.add_argument("--output", type=Path, help="also write all numbers to this JSON file")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error(f"--rounds and --threads must be >= 1, got {arguments.rounds} and {arguments.threads}")
    if any(steps < 1 for steps in arguments.inference_steps):
        parser.error(f"--inference-steps must be >= 1, got {arguments.inference_steps}")
    if arguments.seed < 0:
        parser.error(f"--seed must be >= 0, got {arguments.seed}")
    if arguments.output is not None and not arguments.output.resolve().parent.is_dir():
        parser.error(f"--output: the folder {arguments.output.resolve().parent} does not exist")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    try:
        resolve_device(arguments.device)
    except ValueError as error:
        return report_failure(error)
    threads = f"{arguments.threads} of {os.cpu_count()} CPU threads"
    print(f"torch {torch.__version__}, {threads}, {platform.machine()}\n")
    chosen = [arguments.only] if arguments.only else list(SECTIONS)
    try:
        results = {name: SECTIONS[name](arguments) for name in chosen}
    except benchmark_environment.GymPushtError as error:
        return report_failure(error)
    if arguments.output is not None:
        report = {
            "torch": torch.__version__,
            "threads": arguments.threads,
            **results,
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
        print(f"numbers written to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
