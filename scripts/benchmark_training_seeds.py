"""Several training seeds at once: S networks as one stacked network against one after another; part of benchmark.py.

The network is the published form: the project's own asks for a memory layout that torch.func.vmap cannot see.
"""

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
from benchmark_published_network import PublishedUNet
from benchmark_published_training import ACTION_DIM, HORIZON, N_OBS_STEPS, OBSERVATION_DIM
from benchmark_timing import interleaved, quartiles, ratio, seconds_per_call, spread
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.optim.swa_utils import get_ema_multi_avg_fn

from immiscible_policy.training.precision import autocast, resolve_precision

SEEDS = (1, 2, 4)
BATCH, CONDITION_DIM = 64, N_OBS_STEPS * OBSERVATION_DIM
# Small enough for calls to cost more than arithmetic, where stacking has most to gain; the default network's size.
CPU_NETWORKS: list[dict[str, Any]] = [
    {"down_dims": (16, 32), "step_embed_dim": 32},
    {"down_dims": (64, 128, 256), "step_embed_dim": 128},
]
GPU_NETWORKS = CPU_NETWORKS[1:]
AVERAGE_DECAY = 0.999


def batches(seeds: int, device: str) -> tuple[Tensor, ...]:
    """Every seed's own noisy actions, diffusion times, conditions and targets, (seeds, BATCH, ...)."""
    shape = (seeds, BATCH, HORIZON, ACTION_DIM)
    time = torch.randint(100, (seeds, BATCH), device=device)
    condition = torch.randn(seeds, BATCH, CONDITION_DIM, device=device)
    return torch.randn(shape, device=device), time, condition, torch.randn(shape, device=device)


def optimised(parameters: list[Tensor]) -> Callable[[Tensor], None]:
    """What follows the loss: backward, fused AdamW, averaged weights."""
    optimizer = torch.optim.AdamW(parameters, fused=True)
    average = [p.detach().clone() for p in parameters]
    update = get_ema_multi_avg_fn(AVERAGE_DECAY)

    def finish(loss: Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update(average, parameters, 0)

    return finish


def one_after_another(networks: list[nn.Module], data: tuple[Tensor, ...], precision: str) -> Callable[[], None]:
    """A step of every network, in turn."""
    device = data[0].device.type
    finish = [optimised(list(network.parameters())) for network in networks]

    def step() -> None:
        for network, end, *own in zip(networks, finish, *data, strict=True):
            noisy, time, condition, target = own
            with autocast(precision, device):
                loss = (network(noisy, time, condition).float() - target).square().mean()
            end(loss)

    return step


def stacked(networks: list[nn.Module], data: tuple[Tensor, ...], precision: str) -> Callable[[], None]:
    """A step of all networks at once, by torch.func.vmap over their stacked weights. The same losses."""
    device = data[0].device.type
    parameters, buffers = stack_module_state(networks)
    skeleton = copy.deepcopy(networks[0]).to("meta")
    finish = optimised(list(parameters.values()))

    def loss_of_one(
        own: dict[str, Tensor], fixed: dict[str, Tensor], noisy: Tensor, time: Tensor, condition: Tensor, target: Tensor
    ) -> Tensor:
        prediction = functional_call(skeleton, (own, fixed), (noisy, time, condition))
        return (prediction.float() - target).square().mean()

    def step() -> None:
        with autocast(precision, device):
            loss = torch.func.vmap(loss_of_one)(parameters, buffers, *data).sum()
        finish(loss)

    return step


def seeds_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time of a step of S seeds, stacked and one after another, interleaved."""
    networks = GPU_NETWORKS if arguments.device == "cuda" else CPU_NETWORKS
    return [row for options in networks for row in _rows_of(options, arguments)]


def _rows_of(options: dict[str, Any], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    device = arguments.device
    precision = resolve_precision("auto", device)
    finish: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else lambda: None
    calls: dict[str, Callable[[], None]] = {}
    for seeds in SEEDS:
        data = batches(seeds, device)
        for name, form in (("one after another", one_after_another), ("stacked", stacked)):
            networks: list[nn.Module] = []
            for seed in range(seeds):
                torch.manual_seed(seed)
                networks.append(PublishedUNet(ACTION_DIM, CONDITION_DIM, **options).to(device))
            calls[f"{seeds} {name}"] = form(networks, data, precision)
    times = interleaved({key: seconds_per_call(call, finish) for key, call in calls.items()}, arguments.rounds)
    rows: list[dict[str, Any]] = []
    title = f"seeds at once, {precision}, {'-'.join(map(str, options['down_dims']))}"
    print(f"{title:<38} {'ms a step of all':>24} {'over one by one':>19}")
    for key in calls:
        seeds, name = int(key.split()[0]), key.split(maxsplit=1)[1]
        row: dict[str, Any] = {
            "part": "seeds",
            "contender": name,
            "seeds": seeds,
            "down_dims": list(options["down_dims"]),
            "precision": precision,
            "device": device,
            "s_per_step": quartiles(times[key]),
        }
        over = ""
        if name == "stacked":
            row["speed_over_one_after_another"] = ratio(times, f"{seeds} one after another", key)
            over = spread(row["speed_over_one_after_another"])
        milliseconds = quartiles([1e3 * seconds for seconds in times[key]])
        print(f"{f'{seeds} {name}':<38} {spread(milliseconds):>24} {over:>19}")
        rows.append(row)
    print()
    return rows
