"""The coupling section of scripts/benchmark.py: couplings against their published forms, on the CPU or a GPU."""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its own start and stop otherwise

import torch
from benchmark_timing import Quartiles, interleaved, quartiles, ratio, seconds_per_call, spread
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from immiscible_policy.coupling import KNN, LinearAssignment, prefetch
from immiscible_policy.coupling.solvers import auction, exact, greedy

Contenders = dict[str, Callable[[], object]]
Row = dict[str, Any]

PUBLISHED = "published form"
KNN_SIZES = ["256,3072,8", "1024,3072,8", "256,4096,64", "256,32,2"]
ASSIGNMENT_SIZES = ["64,32", "256,32", "256,3072", "1024,3072"]
SOLVER_SIZES = ["1024,3072", "4096,3072"]
PREFETCH_SIZE = (1024, 3072)
PREFETCH_BATCHES = 6
# What the differences of the published assignment may take at once; larger ones are formed in blocks of rows.
PUBLISHED_BLOCK_BYTES = 2**30
SLOW_ROUNDS = 5

COMPARED = """\
  KNN         ours: one Gaussian draw and k scalar pairs, exact in law for any k.
              published form: draw (B, k, D) noise, fp16 differences and norms, argmin, gather.
  assignment  ours: the (B, B) cost through one matrix product, then the solver.
              published form: fp16 differences of all pairs, scaled by 0.10 (in blocks of rows where they need more
              than 1 GiB), fp16 norms, then scipy.
  solver      the assignment problem alone, on the cost -<x, n> of image-like data. Gain: decrease of the total cost
              against pairs as drawn, in percent of the exact solution's.
  prefetch    a loop of exact assignments and training steps of the same length, plain and with the next batch's
              assignment in a thread (needs a core to spare, or a GPU that computes the steps).
  randn       one torch.randn(B, D): no coupling can be faster than the draw it returns.
"""


def image_like(batch: int, dims: int) -> Tensor:
    """Data of standard deviation 0.5: like small images (low frequencies, brightness, grain) where dims is 3 n^2."""
    side = round((dims / 3) ** 0.5)
    if 3 * side * side != dims or side < 8:
        return 0.5 * torch.randn(batch, dims)
    coarse = torch.randn(batch, 3, 4, 4)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    image = 0.28 * smooth + 0.36 * torch.randn(batch, 1, 1, 1) + 0.2 * torch.randn(batch, 3, side, side)
    return image.clamp(-1, 1).flatten(1)


# --- measuring -------------------------------------------------------------------------------------


def waiter(device: str) -> Callable[[], object]:
    """Waits for the device's queue; nothing to do on a CPU."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def call_times(contenders: Contenders, rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds per call of each contender, one entry a round."""
    finish = waiter(device)
    return interleaved({name: seconds_per_call(call, finish) for name, call in contenders.items()}, rounds)


def peak_memory(call: Callable[[], object], device: str = "cpu") -> int:
    """Highest number of bytes that ``call`` holds at once in tensors, its result included."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
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


# --- published forms -------------------------------------------------------------------------------


def published_knn(data: Tensor, k: int) -> Tensor:
    """Nearest of k explicit candidates with distances in half precision."""
    batch, dims = data.shape
    candidates = torch.randn(batch, k, dims, device=data.device)
    difference = data.half().unsqueeze(1) - candidates.half()
    nearest = torch.linalg.vector_norm(difference, dim=2).argmin(dim=1)
    return candidates.gather(1, nearest.view(batch, 1, 1).expand(-1, 1, dims)).squeeze(1)


def published_assignment(data: Tensor, noise: Tensor) -> Tensor:
    """Least total distance of all pairs' half-precision differences; 0.10 keeps fp16 in range."""
    half_data, half_noise = 0.10 * data.half(), 0.10 * noise.half()
    rows = max(1, PUBLISHED_BLOCK_BYTES // (2 * noise.numel()))
    blocks = [
        torch.linalg.vector_norm(block.unsqueeze(1) - half_noise.unsqueeze(0), dim=2) for block in half_data.split(rows)
    ]
    _, columns = linear_sum_assignment(torch.cat(blocks).cpu().numpy())
    return noise[torch.from_numpy(columns).to(noise.device)]


# --- comparisons -----------------------------------------------------------------------------------


def compare(case: str, contenders: Contenders, entries: int, rounds: int, held_against: str, device: str) -> list[Row]:
    """Measure and print contenders; the published form is held against ``held_against``."""
    times = call_times(contenders, rounds, device)
    rows = []
    for name, call in contenders.items():
        peak = peak_memory(call, device)
        row: Row = {
            "case": case,
            "contender": name,
            "median_s": statistics.median(times[name]),
            "peak_bytes": peak,
            "peak_in_BD_floats": peak / (4 * entries),
            "time_over_randn": ratio(times, name, "randn"),
        }
        if name == PUBLISHED:
            row["time_over_ours"] = ratio(times, name, held_against)
            row["ours"] = held_against
        rows.append(row)
        print(format_row(row), flush=True)
    print()
    return rows


def format_row(row: Row) -> str:
    ours = row.get("time_over_ours")
    against = "" if ours is None else spread(ours)
    return (
        f"{row['case']:<20} {row['contender']:<24} {1e3 * row['median_s']:>9.3f} ms {against:>22} "
        f"{spread(row['time_over_randn']):>22} {row['peak_bytes'] / 2**20:>9.2f} MiB "
        f"{row['peak_in_BD_floats']:>8.2f} BD"
    )


def knn_rows(batch: int, dims: int, k: int, rounds: int, device: str) -> list[Row]:
    data = image_like(batch, dims).to(device)
    contenders: Contenders = {
        "randn": lambda: torch.randn(data.shape, device=device),
        "KNN l2": lambda: KNN(k)(data),
        "KNN inner": lambda: KNN(k, "inner")(data),
        "KNN cosine": lambda: KNN(k, "cosine")(data),
        PUBLISHED: lambda: published_knn(data, k),
    }
    return compare(f"({batch}, {dims}, {k})", contenders, data.numel(), rounds, "KNN l2", device)


def assignment_rows(batch: int, dims: int, rounds: int, device: str) -> list[Row]:
    data, noise = image_like(batch, dims).to(device), torch.randn(batch, dims, device=device)
    contenders: Contenders = {"randn": lambda: torch.randn(data.shape, device=device)}
    for metric in ("l2", "sqeuclidean", "l1"):
        if metric == "l1" and batch * batch * dims > 2**30:
            continue  # minutes, and no claim rests on it
        coupling = LinearAssignment(metric)
        contenders[f"assignment {metric}"] = lambda c=coupling: c(data, noise)  # type: ignore[misc]
    fast = LinearAssignment("sqeuclidean", solver="auction")
    contenders["assignment auction"] = lambda: fast(data, noise)
    contenders[PUBLISHED] = lambda: published_assignment(data, noise)
    rows = compare(f"({batch}, {dims})", contenders, data.numel(), rounds, "assignment sqeuclidean", device)
    # The same pairs as the squared distances' optimum, solved in float64 without any of our shortcuts.
    squared = torch.cdist(data.double(), noise.double()).square().cpu().numpy()
    reference = noise[torch.from_numpy(linear_sum_assignment(squared)[1]).to(device)]
    equal = float((LinearAssignment("sqeuclidean")(data, noise) == reference).all(1).double().mean())
    print(f"{'':<20} pairs of assignment sqeuclidean equal to the float64 optimum: {100 * equal:.1f}%\n")
    rows[-1]["sqeuclidean_pairs_equal_to_float64"] = equal
    return rows


def solver_rows(batch: int, dims: int, rounds: int, device: str) -> list[Row]:
    data, noise = image_like(batch, dims), torch.randn(batch, dims)
    cost = -(data @ noise.T)
    table, on_device = cost.numpy(), cost.to(device)
    solvers: dict[str, Callable[[], Tensor]] = {
        "scipy": lambda: torch.from_numpy(linear_sum_assignment(table)[1]),
        "exact": lambda: exact(on_device),
        "auction": lambda: auction(on_device),
        "greedy": lambda: greedy(on_device),
    }
    times = call_times(dict(solvers), rounds, device)
    totals = {name: float(cost[torch.arange(batch), call().cpu()].double().sum()) for name, call in solvers.items()}
    as_drawn = float(cost.diagonal().double().sum())
    rows: list[Row] = []
    for name in solvers:
        gain = (as_drawn - totals[name]) / (as_drawn - totals["scipy"])
        faster: Quartiles = ratio(times, "scipy", name)
        rows.append(
            {
                "case": f"({batch}, {dims})",
                "contender": f"solver {name}",
                "median_s": statistics.median(times[name]),
                "scipy_time_over_its": faster,
                "gain": gain,
            }
        )
        print(
            f"{rows[-1]['case']:<20} {rows[-1]['contender']:<24} {1e3 * rows[-1]['median_s']:>9.3f} ms "
            f"{spread(faster):>22} of scipy's time, {100 * gain:.2f}% of the gain",
            flush=True,
        )
    print()
    return rows


def prefetch_rows(rounds: int, device: str) -> list[Row]:
    batch, dims = PREFETCH_SIZE
    coupling = LinearAssignment("sqeuclidean")
    batches = [image_like(batch, dims).to(device) for _ in range(PREFETCH_BATCHES)]
    seconds = statistics.median(call_times({"couple": lambda: coupling(batches[0])}, 3, device)["couple"])
    factor = torch.randn(1024, 1024, device=device)
    finish = waiter(device)

    def step() -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            factor @ factor
            finish()

    def plain() -> None:
        for data in batches:
            coupling(data)
            step()

    def ahead() -> None:
        for _ in prefetch(batches, coupling):
            step()

    times = interleaved(
        {name: seconds_per_call(call, finish) for name, call in (("plain", plain), ("ahead", ahead))}, rounds
    )
    faster = quartiles([a / b for a, b in zip(times["plain"], times["ahead"], strict=True)])
    print(f"({batch}, {dims})         prefetch                 plain loop's time over prefetch's: {spread(faster)}\n")
    return [{"case": f"({batch}, {dims})", "contender": "prefetch", "plain_time_over_its": faster}]


def coupling_section(arguments: argparse.Namespace) -> list[Row]:
    """Couplings against their published forms, at image-like data of standard deviation 0.5."""
    device = arguments.device
    print(f"{'(B, D, k)':<20} {'contender':<24} {'time':>12} {'vs ours':>22} {'vs randn':>22} {'memory':>13}")
    rows = []
    for batch, dims, k in arguments.knn_sizes:
        rows += knn_rows(batch, dims, k, arguments.rounds, device)
    for batch, dims in arguments.assignment_sizes:
        # A slow comparison needs fewer rounds: its ratios are far from 1.
        rounds = min(arguments.rounds, SLOW_ROUNDS) if batch * dims > 100_000 else arguments.rounds
        rows += assignment_rows(batch, dims, rounds, device)
    for batch, dims in arguments.solver_sizes:
        rows += solver_rows(batch, dims, min(arguments.rounds, SLOW_ROUNDS), device)
    if not arguments.skip_prefetch:
        rows += prefetch_rows(min(arguments.rounds, SLOW_ROUNDS), device)
    return rows


# --- options ---------------------------------------------------------------------------------------


def sizes(count: int) -> Callable[[str], tuple[int, ...]]:
    """Parser of ``count`` positive integers separated by commas."""

    def parse(text: str) -> tuple[int, ...]:
        parts = text.split(",")
        if len(parts) != count or not all(p.strip().isdigit() and int(p) > 0 for p in parts):
            raise argparse.ArgumentTypeError(f"expected {count} positive integers separated by commas, got {text!r}")
        return tuple(int(p) for p in parts)

    return parse


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this section."""
    for name, count, default, meaning in (
        ("knn", 3, KNN_SIZES, "B,D,K"),
        ("assignment", 2, ASSIGNMENT_SIZES, "B,D"),
        ("solver", 2, SOLVER_SIZES, "B,D"),
    ):
        parser.add_argument(
            f"--{name}-sizes", nargs="*", type=sizes(count), metavar=meaning, default=[sizes(count)(s) for s in default]
        )
    parser.add_argument("--skip-prefetch", action="store_true", help="leave the prefetch comparison out")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the couplings run (default: cpu)"
    )
