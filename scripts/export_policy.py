"""Export a trained policy as a folder that runs on a robot without this package, checked before it is there."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmark_timing import interleaved, quartiles, seconds_per_call, spread

from immiscible_policy.cli import interruptible, report_failure
from immiscible_policy.policy import load_policy, run_policy
from immiscible_policy.policy.export import Export, export_policy
from immiscible_policy.policy.export_description import FILES
from immiscible_policy.policy.exportable import Inputs, example_inputs
from immiscible_policy.policy_run import last_policy_folder
from immiscible_policy.training.precision import resolve_device

TIMED_ROUNDS = 11

TEXT = f"""\
examples:
  python scripts/export_policy.py outputs/<date>/<time>_<name> --output exported
  python scripts/export_policy.py outputs/.../checkpoints/step=0012000 --output exported --num-inference-steps 4
  python scripts/export_policy.py outputs/<date>/<time>_<name> --output exported --format onnx
  python exported/run_policy.py                    # torch (or onnxruntime) and numpy are all it needs

what is written
  {FILES["torch"]:<15} the whole policy: torch.export.load(path).module()(observation, noise) -> actions, sequence
  {FILES["onnx"]:<15} the same for ONNX runtimes (--format onnx; pip install onnx onnxscript onnxruntime)
  policy.json     inputs and outputs, units, ranges, order of the observation's entries, sampler, versions, hashes
  example.npz     inputs and the actions that belong to them, to check another machine by
  run_policy.py   a short program that loads and runs it

Observations and actions are in their own units, as the policy was trained on them (PushT: pixels). The sampler is
unrolled: fewer steps are faster to run, to load and, with --format torch, to export. On a CPU onnxruntime takes a
third of torch's time for a chunk (docs/performance.md). Samplers that draw noise at their steps (sampler=ddpm) cannot
be exported. Before the folder appears, its actions are held against those of predict_action, for several batch sizes;
if they differ by more than rounding, nothing is written and the command fails.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=TEXT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policy", type=Path, help="a policy folder, or a run folder (its last policy is taken)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; an older export there is replaced")
    parser.add_argument("--format", choices=sorted(FILES), default="torch", help="default: torch")
    parser.add_argument("--num-inference-steps", type=int, default=16, help="network calls a chunk (default: 16)")
    about = "told in policy.json and used by run_policy.py: multiplies the noise that goes in (default: 1)"
    parser.add_argument("--noise-scale", type=float, default=1.0, help=about)
    parser.add_argument("--batch", default="dynamic", help="a batch size, often 1, or dynamic for any (the default)")
    parser.add_argument("--device", default="cpu", help="cpu (the default), cuda or cuda:N: where it will run")
    return parser


def latency(folder: Path, inputs: Inputs) -> str:
    """Time of a call, median [quartiles] in milliseconds."""
    run = run_policy.load(folder, threads=torch.get_num_threads())
    arrays = [value.cpu().numpy() for value in inputs.values()]
    times = interleaved({"call": seconds_per_call(lambda: run(*arrays))}, TIMED_ROUNDS)["call"]
    return spread({name: 1e3 * value for name, value in quartiles(times).items()}, ".2f")


def report(export: Export) -> None:
    """Print what was written and how it was checked."""
    print(f"checked against predict_action, largest difference of an action in {export.check.unit}:")
    for size, difference in export.check.differences.items():
        print(f"  batch {size:<4} {difference:.2g}")
    print(f"{export.folder}:")
    for name, size in export.files.items():
        print(f"  {name:<15} {size / 1e6:>8.2f} MB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    batch: int | str = arguments.batch
    with contextlib.suppress(ValueError):
        batch = int(arguments.batch)
    try:
        folder = last_policy_folder(arguments.policy)
        policy = load_policy(folder, resolve_device(arguments.device))
        steps = arguments.num_inference_steps
        expected = "a second or two a step" if arguments.format == "torch" else "some 20 seconds"
        print(f"{folder}: {type(policy.objective).__name__} in {steps} steps; tracing takes {expected}")
        export = export_policy(
            policy,
            arguments.output,
            steps,
            arguments.format,
            batch,
            source=folder,
            noise_scale=arguments.noise_scale,
            progress=True,
        )
    except (ValueError, OSError) as error:
        return report_failure(error)
    report(export)
    inputs = example_inputs(policy, batch if isinstance(batch, int) else 1)
    print(f"{latency(export.folder, inputs)} ms a chunk, {torch.get_num_threads()} thread(s), median [quartiles]")
    print(f"try it: python {export.folder / 'run_policy.py'}")
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
