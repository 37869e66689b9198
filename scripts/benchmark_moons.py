"""Eight Gaussians to two moons, C2OT's two-dimensional benchmark, with our couplings: distances beside the published.

Trains a small network by flow matching for every coupling and seed, and measures the distance between its points and
the moons. Results are written to the output after every training, and trainings that it already holds are skipped, so
that the command can be killed and repeated. A training takes about five minutes of one core, with an assignment of the
whole batch (ot, c2ot_rate) about half an hour.

example
  python scripts/benchmark_moons.py --condition none --arms fm fm_shuffled ot knn --seeds 0 1 2 3 4 5 6 7 8 9
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from immiscible_policy import cli
from immiscible_policy.evaluation.moons import CONDITIONS, Protocol, two_moons
from immiscible_policy.evaluation.moons_report import ARMS, markdown, run_benchmark
from immiscible_policy.evaluation.wasserstein import squared_wasserstein


def say(condition: str, arm: str, seed: int, scores: Mapping[str, float]) -> None:
    print(
        f"{condition}, {arm}, seed {seed}: one Euler step {scores['euler']:.3f}, adaptive {scores['adaptive']:.3f} "
        f"({scores['n_calls']:.0f} calls), {scores['training_cpu_seconds'] / 60:.1f} minutes of training",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--condition", choices=CONDITIONS, default="none", help="what the network is told")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), metavar="ARM", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)), metavar="S", help="default: 0 to 9")
    parser.add_argument("--iterations", type=int, default=Protocol.iterations, help="default: 20000, as published")
    parser.add_argument("--points", type=int, default=Protocol.n_points, help="default: 10000, as published")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("outputs/moons.json"), help="default: outputs/moons.json")
    arguments = parser.parse_args()
    arms = arguments.arms or [name for name, arm in ARMS.items() if arguments.condition in arm.conditions]
    cells = [(arguments.condition, arm, seed) for seed in arguments.seeds for arm in arms]
    torch.set_num_threads(arguments.threads)
    try:
        protocol = Protocol(iterations=arguments.iterations, n_points=arguments.points)
        content = run_benchmark(arguments.output, cells, protocol, say, lambda steps: tqdm(steps, disable=None))
        draws = [two_moons(protocol.n_points, torch.Generator().manual_seed(seed))[0] for seed in (0, 1)]
        print(f"\n{markdown(content, squared_wasserstein(*draws))}\nwritten: {arguments.output}")
    except (ValueError, OSError, ArithmeticError) as error:
        cli.fail(str(error))


if __name__ == "__main__":
    main()
