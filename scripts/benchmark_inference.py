"""The section `inference` of scripts/benchmark.py: latency of an action chunk at batch 1, on the CPU or a GPU."""

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from benchmark_published_network import PublishedUNet
from benchmark_timing import interleaved, ratio, seconds_per_call, spread

from immiscible_policy.policy import DiffusionPolicy, run_policy
from immiscible_policy.policy.export import export_policy
from immiscible_policy.policy.export_onnx import missing_packages
from immiscible_policy.policy.exportable import ExportablePolicy, Inputs, example_inputs, predict
from immiscible_policy.training.precision import autocast

Calls = dict[str, Callable[[], object]]
Row = dict[str, Any]

OURS, PUBLISHED = "eager, fp32", "published form"
DOWN_DIMS, STEP_EMBED_DIM = (64, 128, 256), 128
# Beyond this many steps torch takes minutes to trace what it exports, and to load it.
LONGEST_EXPORT = {"torch": 16, "onnx": 100}

COMPARED = f"""\
  inference   one action chunk at batch 1 from the default policy with random weights, for several numbers of steps.
              eager: predict_action, in fp32 and under bf16 autocast; recorded: its sampler as a list of tensor
              operations; compiled: that with the network through torch.compile; exported: policy.pt2 and policy.onnx
              of scripts/export_policy.py (torch: up to {LONGEST_EXPORT["torch"]} steps); cuda graph: the recorded one,
              captured.
              published form: Mish in the network, library convolutions, diffusers' scheduler, fp32.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this section."""
    parser.add_argument(
        "--inference-steps",
        nargs="+",
        type=int,
        metavar="N",
        default=[1, 4, 16, 100],
        help="sampling steps of an action chunk (default: 1 4 16 100)",
    )


def make_policy(device: str, published: bool = False) -> DiffusionPolicy:
    """The default policy for keypoints with random weights and PushT's ranges, or one around the published network."""
    network = {"name": "unet1d", "down_dims": list(DOWN_DIMS), "step_embed_dim": STEP_EMBED_DIM, "activation": "silu"}
    policy = DiffusionPolicy(20, 2, network=network)
    if published:
        policy.network = PublishedUNet(2, 2 * 20, DOWN_DIMS, STEP_EMBED_DIM)
    policy.fit_normalizers(512 * torch.rand(1000, 20), 512 * torch.rand(1000, 2))
    return policy.to(device).eval()


def under_bf16(policy: DiffusionPolicy, inputs: Inputs, steps: int, device: str) -> Callable[[], object]:
    """``predict_action`` as rollouts call it on hardware with bf16."""

    def call() -> object:
        with autocast("bf16", device):
            return predict(policy, inputs, steps)

    return call


def exported(policy: DiffusionPolicy, inputs: Inputs, steps: int, format: str, folder: Path) -> Callable[[], object]:
    """An export of ``policy`` for batch 1, read back from its folder."""
    export_policy(policy, folder / f"{format}{steps}", steps, format, batch=1)
    run = run_policy.load(folder / f"{format}{steps}", threads=torch.get_num_threads())
    arrays = [value.cpu().numpy() for value in inputs.values()]
    return lambda: run(*arrays)


def captured(module: ExportablePolicy, inputs: Inputs) -> Callable[[], object]:
    """A CUDA graph of one prediction; new inputs would be copied into the tensors that it was captured with."""
    arguments = tuple(inputs.values())
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # what libraries set up at first use must not be captured
        for _ in range(3):
            module(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        module(*arguments)
    return graph.replay


def compiled_network(policy: DiffusionPolicy) -> torch.nn.Module:
    """The network through torch.compile, with CUDA graphs on a GPU."""
    mode = "reduce-overhead" if policy.device.type == "cuda" else "default"
    return torch.compile(policy.network, mode=mode, dynamic=False)  # type: ignore[return-value]


def unavailable(device: str) -> dict[str, str]:
    """Contenders that cannot run here, and why."""
    reasons = {}
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        reasons["compiled"] = "no C++ compiler"
    if missing := missing_packages():
        reasons["exported, onnx"] = f"{', '.join(missing)} not installed"
    elif device != "cpu":
        reasons["exported, onnx"] = "runs on the CPU"
    if device == "cpu":
        reasons["cuda graph"] = "needs --device cuda"
    return reasons


def contenders(
    policy: DiffusionPolicy, published: DiffusionPolicy, steps: int, device: str, folder: Path, skip: Mapping[str, str]
) -> Calls:
    """Calls that predict one chunk in ``steps`` steps."""
    inputs = example_inputs(policy, 1)
    calls: Calls = {
        OURS: lambda: predict(policy, inputs, steps),
        "eager, bf16": under_bf16(policy, inputs, steps, device),
    }
    recorded = ExportablePolicy(policy, steps)
    calls["recorded"] = lambda: recorded(*inputs.values())
    if "compiled" not in skip:
        fast = ExportablePolicy(policy, steps)
        fast.sampler.network.network = compiled_network(fast.policy)  # type: ignore[union-attr]
        calls["compiled"] = lambda: fast(*inputs.values())
    if "cuda graph" not in skip:
        calls["cuda graph"] = captured(ExportablePolicy(policy, steps), inputs)
    for format in ("torch", "onnx"):
        if f"exported, {format}" not in skip and steps <= LONGEST_EXPORT[format]:
            calls[f"exported, {format}"] = exported(policy, inputs, steps, format, folder)
    calls[PUBLISHED] = lambda: predict(published, inputs, steps)
    return calls


def inference_section(arguments: argparse.Namespace) -> list[Row]:
    """Latency of an action chunk, and how the other ways compare with ``predict_action`` in fp32."""
    device = arguments.device
    policy, published = make_policy(device), make_policy(device, published=True)
    skip, rows = unavailable(device), []
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for steps in arguments.inference_steps:
            calls = contenders(policy, published, steps, device, Path(folder), skip)
            measures = {name: seconds_per_call(call, finish) for name, call in calls.items()}
            times = interleaved(measures, arguments.rounds)
            print(f"{f'inference, {steps} steps':<22} {'time':>12} {'over eager, fp32':>30}")
            for name in calls:
                share = ratio(times, name, OURS)
                median = statistics.median(times[name])
                rows.append({"steps": steps, "contender": name, "median_s": median, "time_over_eager": share})
                print(f"{name:<22} {1e3 * median:>9.3f} ms {spread(share, '.3f'):>30}")
            print()
    for name, reason in skip.items():
        rows.append({"contender": name, "skipped": reason})
        print(f"{name} left out: {reason}")
    print()
    return rows
