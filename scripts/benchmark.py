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
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its own start and stop otherwise

import benchmark_environment
import torch
from benchmark_timing import interleaved, ratio, seconds_per_call, spread
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from immiscible_policy.coupling import KNN, Independent, LinearAssignment
from immiscible_policy.policy import DiffusionPolicy
from immiscible_policy.training.precision import autocast, resolve_precision

Contenders = dict[str, Callable[[], object]]

PUBLISHED = "published form"
KNN_SIZES = ["256,3072,8", "1024,3072,8", "256,4096,64", "256,32,2"]
ASSIGNMENT_SIZES = ["64,32", "256,32", "256,3072", "1024,3072"]
POLICY_BATCH, OBSERVATION_DIM, ACTION_DIM = 64, 20, 2
LARGEST_PUBLISHED_ASSIGNMENT_BYTES = 2**30

EPILOG = f"""\
what is compared
  KNN         ours: one Gaussian draw and k scalar pairs, exact in law for any k.
              published form: draw (B, k, D) noise, fp16 differences and norms, argmin, gather.
  assignment  ours: the (B, B) cost through one matrix product, then scipy.
              published form: fp16 differences of shape (B, B, D), scaled by 0.10, fp16 norms, then
              scipy; left out where the differences alone need over 1 GiB.
  randn       one torch.randn(B, D): no coupling can be faster than the draw it returns.
  policy      ours: a training step (loss, backward, AdamW) of the default policy, in the precision that it chooses.
              published form: the same network with the library's convolutions in fp32 and Mish.
              Couplings at the policy's batch are given as shares of our step.
{benchmark_environment.COMPARED}
how to read the table
  time        median over the rounds
  vs ours     time of the published form over ours (above 1: ours is faster), median [quartiles]
  vs randn    time over that of the one draw
  memory      peak of what the call allocates, its result included; 1.0 BD is one float32 (B, D) tensor
  steps/s     steps of one world a second, median over the rounds [quartiles]
  over gym-pusht  time that gym-pusht takes for a step over that of the row (above 1: the row is faster)

examples
  python scripts/benchmark.py                                  everything, about two and a half minutes
  python scripts/benchmark.py --only coupling --rounds 31      steadier numbers
  python scripts/benchmark.py --only policy                    the policy's training step
  python scripts/benchmark.py --only environment --gym-pusht-python gym-pusht/bin/python
  python scripts/benchmark.py --knn-sizes 64,32,2 --assignment-sizes 64,32 --output benchmark.json
"""


# --- measuring -------------------------------------------------------------------------------------


def call_times(contenders: Contenders, rounds: int) -> dict[str, list[float]]:
    """Seconds per call of each contender, one entry a round."""
    return interleaved({name: seconds_per_call(call) for name, call in contenders.items()}, rounds)


def peak_memory(call: Callable[[], object]) -> int:
    """Highest number of bytes that ``call`` holds at once in CPU tensors, its result included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    del result
    memory = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    held = peak = 0
    for event in memory:
        held += int(event["args"]["Bytes"])
        peak = max(peak, held)
    return peak


# --- section: coupling -----------------------------------------------------------------------------


def published_knn(data: Tensor, k: int) -> Tensor:
    """Nearest of k explicit candidates with distances in half precision."""
    batch, dims = data.shape
    candidates = torch.randn(batch, k, dims)
    difference = data.half().unsqueeze(1) - candidates.half()
    nearest = torch.linalg.vector_norm(difference, dim=2).argmin(dim=1)
    return candidates.gather(1, nearest.view(batch, 1, 1).expand(-1, 1, dims)).squeeze(1)


def published_assignment(data: Tensor, noise: Tensor) -> Tensor:
    """Least total distance of all pairs' half-precision differences; 0.10 keeps fp16 in range."""
    difference = (0.10 * data.half()).unsqueeze(1) - (0.10 * noise.half()).unsqueeze(0)
    cost = torch.linalg.vector_norm(difference, dim=2)
    _, columns = linear_sum_assignment(cost.numpy())
    return noise[torch.from_numpy(columns)]


def compare(
    case: str, contenders: Contenders, entries: int, rounds: int, pairs: dict[str, str]
) -> list[dict[str, Any]]:
    """Measure and print contenders; ``pairs`` maps a contender to the one of ours it is held against."""
    times = call_times(contenders, rounds)
    rows = []
    for name, call in contenders.items():
        peak = peak_memory(call)
        row: dict[str, Any] = {
            "case": case,
            "contender": name,
            "median_s": statistics.median(times[name]),
            "peak_bytes": peak,
            "peak_in_BD_floats": peak / (4 * entries),
            "time_over_randn": ratio(times, name, "randn"),
        }
        if name in pairs:
            row["time_over_ours"] = ratio(times, name, pairs[name])
        rows.append(row)
        print(format_row(row), flush=True)
    print()
    return rows


def format_row(row: dict[str, Any]) -> str:
    ours = row.get("time_over_ours")
    against = "" if ours is None else spread(ours)
    return (
        f"{row['case']:<20} {row['contender']:<22} {1e3 * row['median_s']:>9.3f} ms {against:>22} "
        f"{row['time_over_randn']['median']:>9.2f} {row['peak_bytes'] / 2**20:>9.2f} MiB "
        f"{row['peak_in_BD_floats']:>8.2f} BD"
    )


def coupling_section(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Couplings against their published forms, at image-like data of standard deviation 0.5."""
    print(f"{'(B, D, k)':<20} {'contender':<22} {'time':>12} {'vs ours':>22} {'vs randn':>9} {'memory':>13}")
    rows = []
    for batch, dims, k in arguments.knn_sizes:
        data = 0.5 * torch.randn(batch, dims)
        contenders: Contenders = {
            "randn": lambda d=data: torch.randn(d.shape),  # type: ignore[misc]
            "KNN l2": lambda d=data, k=k: KNN(k)(d),  # type: ignore[misc]
            "KNN inner": lambda d=data, k=k: KNN(k, metric="inner")(d),  # type: ignore[misc]
            PUBLISHED: lambda d=data, k=k: published_knn(d, k),  # type: ignore[misc]
        }
        rows += compare(f"({batch}, {dims}, {k})", contenders, data.numel(), arguments.rounds, {PUBLISHED: "KNN l2"})
    for batch, dims in arguments.assignment_sizes:
        data, noise = 0.5 * torch.randn(batch, dims), torch.randn(batch, dims)
        contenders = {"randn": lambda d=data: torch.randn(d.shape)}  # type: ignore[misc]
        for metric in ("l2", "sqeuclidean", "l1"):
            coupling = LinearAssignment(metric)
            contenders[f"assignment {metric}"] = lambda c=coupling, d=data, n=noise: c(d, n)  # type: ignore[misc]
        if 2 * batch * batch * dims <= LARGEST_PUBLISHED_ASSIGNMENT_BYTES:
            contenders[PUBLISHED] = lambda d=data, n=noise: published_assignment(d, n)  # type: ignore[misc]
        # A slow comparison needs fewer rounds: its ratios are far from 1.
        rounds = min(arguments.rounds, 5) if data.numel() > 100_000 else arguments.rounds
        rows += compare(f"({batch}, {dims})", contenders, data.numel(), rounds, {PUBLISHED: "assignment l2"})
    return rows


# --- section: policy -------------------------------------------------------------------------------


def training_step(precision: str, activation: str, batch: dict[str, Tensor]) -> Callable[[], object]:
    """One optimiser step of the small U-Net policy on a fixed batch."""
    network = {"name": "unet1d", "down_dims": [64, 128, 256], "step_embed_dim": 128, "activation": activation}
    policy = DiffusionPolicy(OBSERVATION_DIM, ACTION_DIM, network=network)
    policy.fit_normalizers(batch["observation"], batch["action"])
    optimizer = torch.optim.AdamW(policy.parameters(), fused=True)

    def step() -> None:
        with autocast(precision, "cpu"):
            loss = policy.loss(batch, Independent())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def policy_section(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The policy's training step against library convolutions in fp32, and what a coupling adds to it."""
    batch = {
        "observation": 512 * torch.rand(POLICY_BATCH, 2, OBSERVATION_DIM),
        "action": 512 * torch.rand(POLICY_BATCH, 16, ACTION_DIM),
        "action_is_pad": torch.zeros(POLICY_BATCH, 16, dtype=torch.bool),
    }
    actions = batch["action"] / 256 - 1
    precision = resolve_precision("auto", "cpu")
    ours = f"training step, {precision}"
    contenders: Contenders = {
        ours: training_step(precision, "silu", batch),
        PUBLISHED: training_step("fp32", "mish", batch),
        "coupling none": lambda: Independent()(actions),
        "coupling knn k=2": lambda: KNN(2)(actions),
        "coupling assignment": lambda: LinearAssignment()(actions),
    }
    times = call_times(contenders, arguments.rounds)
    rows = []
    print(f"{f'policy, batch {POLICY_BATCH}':<22} {'time':>12} {'over our step':>30}")
    for name in contenders:
        share = ratio(times, name, ours)
        rows.append({"contender": name, "median_s": statistics.median(times[name]), "time_over_ours": share})
        print(f"{name:<22} {1e3 * statistics.median(times[name]):>9.3f} ms {spread(share, '.4f'):>30}")
    print()
    return rows


SECTIONS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "coupling": coupling_section,
    "policy": policy_section,
    "environment": benchmark_environment.environment_section,
}


# --- command line ----------------------------------------------------------------------------------


def sizes(count: int) -> Callable[[str], tuple[int, ...]]:
    """Parser of ``count`` positive integers separated by commas."""

    def parse(text: str) -> tuple[int, ...]:
        parts = text.split(",")
        if len(parts) != count or not all(p.strip().isdigit() and int(p) > 0 for p in parts):
            raise argparse.ArgumentTypeError(f"expected {count} positive integers separated by commas, got {text!r}")
        return tuple(int(p) for p in parts)

    return parse


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=sorted(SECTIONS), help="run one section (default: all)")
    parser.add_argument("--rounds", type=int, default=11, help="interleaved rounds (default: 11)")
    parser.add_argument("--threads", type=int, default=1, help="torch CPU threads (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, noise and actions (default: 0)")
    parser.add_argument(
        "--knn-sizes", nargs="*", type=sizes(3), metavar="B,D,K", default=[sizes(3)(s) for s in KNN_SIZES]
    )
    parser.add_argument(
        "--assignment-sizes",
        nargs="*",
        type=sizes(2),
        metavar="B,D",
        default=[sizes(2)(s) for s in ASSIGNMENT_SIZES],
    )
    benchmark_environment.add_options(parser)
    parser.add_argument("--output", type=Path, help="also write all numbers to this JSON file")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error(f"--rounds and --threads must be >= 1, got {arguments.rounds} and {arguments.threads}")
    if arguments.seed < 0:
        parser.error(f"--seed must be >= 0, got {arguments.seed}")
    if arguments.output is not None and not arguments.output.resolve().parent.is_dir():
        parser.error(f"--output: the folder {arguments.output.resolve().parent} does not exist")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    threads = f"{arguments.threads} of {os.cpu_count()} CPU threads"
    print(f"torch {torch.__version__}, {threads}, {platform.machine()}\n")
    chosen = [arguments.only] if arguments.only else list(SECTIONS)
    try:
        results = {name: SECTIONS[name](arguments) for name in chosen}
    except benchmark_environment.GymPushtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.output is not None:
        report = {
            "torch": torch.__version__,
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            **results,
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
        print(f"numbers written to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
