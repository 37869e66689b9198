"""The section `training` of scripts/benchmark.py: whole training steps a second, published loops' among them."""

import argparse
import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmark_training_seeds
import torch
from benchmark_published_network import PublishedUNet
from benchmark_published_training import (
    ACTION_DIM,
    HORIZON,
    N_ACTION_STEPS,
    N_OBS_STEPS,
    OBSERVATION_DIM,
    Demonstrations,
    LeRobotLoop,
    OriginalLoop,
)
from benchmark_timing import quartiles, ratio, spread
from benchmark_training_turns import Loop, Turns, lerobot_flags
from tqdm import tqdm

from immiscible_policy.coupling import KNN
from immiscible_policy.data.windows import ActionWindows
from immiscible_policy.policy import DiffusionPolicy
from immiscible_policy.training import Trainer, TrainerConfig
from immiscible_policy.training.memory import keep_freed_memory, return_freed_memory
from immiscible_policy.training.precision import resolve_precision

Row = dict[str, Any]
LEROBOT, ORIGINAL = LeRobotLoop.name, OriginalLoop.name

COMPARED = """\
  training    a whole step of training: data, loss, backward, clipping, optimiser, averaged weights, bookkeeping.
              ours: Trainer with KNN(k=2). original loop, LeRobot's loop: rebuilt from what these do in a step, with the
              library's convolutions and Mish (in fp32, their default, and in the precision that ours chooses), a
              DataLoader with 1 and 4 workers that makes one item at a time, optimisers as torch chooses them, losses
              read in every step. Same network size, batch and data. Ours keeps the memory that it frees, as a run does;
              theirs returns it, as processes do. The workers have cores of their own where there are any; cpu counts
              their time too, and a loop's workers stand still while it is another's turn. Then several training seeds
              at once, stacked in one network.
"""


@dataclass(frozen=True)
class Size:
    """A network, and how long its contenders run: untimed steps (a loader's queue fills), steps a turn, turns."""

    down_dims: tuple[int, ...]
    step_embed_dim: int
    warm_up: int
    steps: int
    most_rounds: int


SIZES = {
    "small": Size((64, 128, 256), 128, 8, 4, 100),
    "paper": Size((256, 512, 1024), 256, 1, 1, 7),
}
# A GPU's steps are short.
GPU_STEPS = 50
LOG_EVERY = 100


class OurLoop:
    """What `Trainer.fit` does in a step, without validation and checkpoints."""

    workers: Sequence[int] = ()

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._sink = open(os.devnull, "w")  # noqa: SIM115 - closed by close()
        self.progress = tqdm(file=self._sink, mininterval=1.0)

    def step(self) -> None:
        trainer = self.trainer
        trainer.step += 1
        with trainer.seconds:
            loss, norm = trainer._train_step(trainer._indices(trainer.step))
        trainer._losses.append(loss)
        self.progress.update()
        if trainer.step % LOG_EVERY == 0:
            trainer._progress(norm)

    def close(self) -> None:
        self.progress.close()
        self._sink.close()


@dataclass(frozen=True)
class Contender:
    """A row of the table, and how to start its loop. `compile` as in TrainerConfig."""

    name: str
    precision: str
    activation: str
    start: Callable[[], Loop]
    compile: bool | str = False

    @property
    def published(self) -> bool:
        return self.name in (LEROBOT, ORIGINAL)


def our_loop(
    size: Size, data: Demonstrations, arguments: argparse.Namespace, precision: str, activation: str, mode: bool | str
) -> Loop:
    """The project's trainer on the data, which lie where the network does."""
    torch.manual_seed(arguments.seed)
    network = {
        "name": "unet1d",
        "down_dims": list(size.down_dims),
        "step_embed_dim": size.step_embed_dim,
        "activation": activation,
    }
    policy = DiffusionPolicy(OBSERVATION_DIM, ACTION_DIM, HORIZON, N_OBS_STEPS, N_ACTION_STEPS, network=network)
    observation = torch.cat([torch.from_numpy(data.keypoint), torch.from_numpy(data.agent)], dim=1)
    policy.fit_normalizers(observation, torch.from_numpy(data.action))
    windows = ActionWindows(
        observation, data.action, data.episode_ends, HORIZON, N_OBS_STEPS, N_ACTION_STEPS, device=arguments.device
    )
    config = TrainerConfig(
        steps=100_000,
        batch_size=arguments.training_batch,
        device=arguments.device,
        mixed_precision=precision,
        seed=arguments.seed,
        # LeRobot's, which as a rule is not reached; ours is not, either, but for the first steps of a training.
        gradient_clip=10.0,
        compile=mode,
    )
    trainer = Trainer(policy, windows, KNN(k=2), config, Path(tempfile.gettempdir()))
    trainer.model.train()
    return OurLoop(trainer)


def contenders(size: Size, data: Demonstrations, arguments: argparse.Namespace) -> list[Contender]:
    """In the order of the table; our default precision only where it is another than fp32."""

    def published(loop: type[LeRobotLoop] | type[OriginalLoop], precision: str) -> Contender:
        def start() -> Loop:
            torch.manual_seed(arguments.seed)
            condition_dim = N_OBS_STEPS * OBSERVATION_DIM
            network = PublishedUNet(ACTION_DIM, condition_dim, size.down_dims, size.step_embed_dim)
            return loop(network, data, arguments.training_batch, arguments.device, precision)

        return Contender(loop.name, precision, "mish", start)

    def ours(precision: str, activation: str, mode: bool | str = False) -> Contender:
        return Contender(
            "ours" if mode is False else f"ours, compile={str(mode).lower()}",
            precision,
            activation,
            lambda: our_loop(size, data, arguments, precision, activation, mode),
            mode,
        )

    chosen = [published(LeRobotLoop, "fp32"), published(OriginalLoop, "fp32"), ours("fp32", "mish")]
    precision = resolve_precision("auto", arguments.device)
    if precision != "fp32":
        chosen += [published(LeRobotLoop, precision), published(OriginalLoop, precision), ours(precision, "mish")]
    if size.down_dims == SIZES["small"].down_dims:
        chosen.append(ours(precision, "silu"))
    for mode in arguments.training_compile:
        chosen += [ours("fp32", "mish", mode)] + ([ours(precision, "mish", mode)] if precision != "fp32" else [])
    return chosen


# --- measuring ---------------------------------------------------------------------------------------


def measure(size_name: str, data: Demonstrations, arguments: argparse.Namespace) -> list[Row]:
    """Interleaved turns of all contenders of one size; rows with speeds over the published loops."""
    size = SIZES[size_name]
    chosen = contenders(size, data, arguments)
    keys = [f"{c.name} {c.precision} {c.activation}" for c in chosen]
    on_gpu = arguments.device == "cuda"
    warm_up, steps = (GPU_STEPS, GPU_STEPS) if on_gpu else (size.warm_up, size.steps)
    wall: dict[str, list[float]] = {key: [] for key in keys}
    busy: dict[str, list[float]] = {key: [] for key in keys}
    with contextlib.ExitStack() as stack:
        turns = {}
        for key, contender in zip(keys, chosen, strict=True):
            turns[key] = Turns(contender.start(), arguments.device)
            stack.callback(turns[key].close)
        for number in range(1 + min(arguments.rounds, size.most_rounds)):
            for key, contender in zip(keys, chosen, strict=True):
                # A process of its own would have the one or the other from its beginning.
                (return_freed_memory if contender.published else keep_freed_memory)()
                with lerobot_flags(on_gpu and contender.name == LEROBOT):
                    seconds, processor = turns[key].take(steps if number else warm_up)
                if number:
                    wall[key].append(seconds)
                    busy[key].append(processor)
    theirs = {(c.name, c.precision): key for key, c in zip(keys, chosen, strict=True)}
    eager = {
        c.precision: key for key, c in zip(keys, chosen, strict=True) if c.name == "ours" and c.activation == "mish"
    }
    rows = []
    for key, contender in zip(keys, chosen, strict=True):
        row: Row = {
            "part": "loop",
            "size": size_name,
            "contender": contender.name,
            "precision": contender.precision,
            "activation": contender.activation,
            "batch": arguments.training_batch,
            "device": arguments.device,
            "steps_per_s": quartiles([1 / seconds for seconds in wall[key]]),
            "cpu_s_per_step": statistics.median(busy[key]),
        }
        for short, name in (("lerobot", LEROBOT), ("original", ORIGINAL)):
            fp32, same = theirs[name, "fp32"], theirs[name, contender.precision]
            row[f"speed_over_{short}"] = ratio(wall, fp32, key)
            row[f"speed_over_{short}_same_precision"] = ratio(wall, same, key)
            row[f"cpu_of_{short}_over_this"] = ratio(busy, fp32, key)
            row[f"cpu_of_{short}_over_this_same_precision"] = ratio(busy, same, key)
        if contender.compile is not False:
            row["speed_over_eager"] = ratio(wall, eager[contender.precision], key)
        rows.append(row)
    return rows


# --- the section -------------------------------------------------------------------------------------


def training_section(arguments: argparse.Namespace) -> list[Row]:
    """Steps a second of our trainer and of the published loops, then several seeds at once."""
    data = Demonstrations(arguments.seed)
    rows: list[Row] = []
    for size in arguments.training_sizes:
        measured = measure(size, data, arguments)
        print_rows(measured)
        rows += measured
    return rows + benchmark_training_seeds.seeds_rows(arguments)


def print_rows(rows: Sequence[Row]) -> None:
    head = f"training, {rows[0]['size']}, batch {rows[0]['batch']}"
    over = ("over LeRobot, fp32", "over original, fp32", "LeRobot, same", "original, same")
    print(f"{head:<38} {'steps/s':>24} " + " ".join(f"{title:>19}" for title in over) + f" {'cpu/step':>10}")
    for row in rows:
        name = f"{row['contender']}, {row['precision']}, {row['activation']}"
        keys = [f"speed_over_{loop}{same}" for same in ("", "_same_precision") for loop in ("lerobot", "original")]
        ratios = " ".join(f"{spread(row[key]):>19}" for key in keys)
        tail = f"  {spread(row['speed_over_eager'])} over eager" if "speed_over_eager" in row else ""
        print(f"{name:<38} {spread(row['steps_per_s']):>24} {ratios} {1e3 * row['cpu_s_per_step']:>7.0f} ms{tail}")
    print()


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def compile_mode(text: str) -> bool | str:
    return True if text == "true" else text


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this section."""
    parser.add_argument(
        "--training-sizes", nargs="+", choices=sorted(SIZES), default=list(SIZES), help="networks (default: both)"
    )
    parser.add_argument("--training-batch", type=positive, default=64, metavar="B", help="data a step (default: 64)")
    parser.add_argument(
        "--training-compile",
        nargs="*",
        type=compile_mode,
        choices=(True, "reduce-overhead", "max-autotune"),
        default=[],
        metavar="MODE",
        help="also with trainer.compile: true, reduce-overhead, max-autotune (minutes to compile on a CPU)",
    )
