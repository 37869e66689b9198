"""The section `images` of scripts/benchmark.py: training steps of image models, diffusers' example loop among them."""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from benchmark_timing import quartiles, ratio, spread
from benchmark_training import OurLoop, positive
from benchmark_training_turns import Loop, Turns
from datasets import Dataset, Image
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from omegaconf import OmegaConf
from PIL import Image as Pictures
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from image_diffusion.data import ImageSource, load_images
from image_diffusion.model import PixelModel
from immiscible_policy.cli import CONFIG_DIR
from immiscible_policy.coupling import KNN, Coupling, Independent, LinearAssignment
from immiscible_policy.training import Trainer, TrainerConfig
from immiscible_policy.training.precision import resolve_precision

Row = dict[str, Any]
SIZE, CHANNELS, N_IMAGES = 32, 3, 512
EXAMPLE = "diffusers' example"
PLAIN = "ours, none"
NETWORKS = {"small": "unet2d_small", "cifar": "unet2d_cifar"}
# Steps without timing, steps a turn, turns at most: the large network takes seconds a step on a CPU.
LENGTHS = {"small": (2, 2, 100), "cifar": (1, 1, 7)}
GPU_STEPS = 50

COMPARED = """\
  images      a whole step of training on 32x32 RGB images, DDIM's objective. ours: Trainer without coupling, with KNN
              (k=8) and with an assignment. diffusers' example: its unconditional training script rebuilt from what it
              does in a step: PNG files decoded and mirrored one at a time in the main process (its default), fp32,
              AdamW as torch chooses it, diffusers' EMA, the loss read and logged in every step. torchvision's
              transforms are replaced by the same in Pillow and numpy. small: 0.7M parameters, cifar: 35.7M.
"""


class ExampleLoop:
    """A step of diffusers' examples/unconditional_image_generation/train_unconditional.py."""

    workers: Sequence[int] = ()

    def __init__(self, network: UNet2DModel, data: Dataset, batch: int, device: str) -> None:
        self.accelerator = Accelerator(cpu=device == "cpu", log_with=None)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
        schedule = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)
        data = data.with_transform(self._transform)
        loader: Any = DataLoader(data, batch_size=batch, shuffle=True, drop_last=True)
        self.network, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(
            network, optimizer, loader, schedule
        )
        self.ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self.ema.to(self.accelerator.device)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        self._sink = open(os.devnull, "w")  # noqa: SIM115 - closed by close()
        self.progress = tqdm(file=self._sink)
        self.batches = self._forever()

    @staticmethod
    def _transform(examples: dict[str, Any]) -> dict[str, list[Tensor]]:
        images = []
        for picture in examples["image"]:
            picture = picture.convert("RGB").resize((SIZE, SIZE), Pictures.Resampling.BILINEAR)
            if torch.rand(1).item() < 0.5:
                picture = picture.transpose(Pictures.Transpose.FLIP_LEFT_RIGHT)
            array = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
            images.append(array.float().div(255).sub(0.5).div(0.5))
        return {"input": images}

    def _forever(self) -> Iterator[dict[str, Tensor]]:
        while True:
            yield from self.loader

    def step(self) -> None:
        clean = next(self.batches)["input"]
        noise = torch.randn(clean.shape, dtype=clean.dtype, device=clean.device)
        time = torch.randint(0, 1000, (len(clean),), device=clean.device).long()
        noisy = self.scheduler.add_noise(clean, noise, time)
        with self.accelerator.accumulate(self.network):
            loss = F.mse_loss(self.network(noisy, time).sample.float(), noise.float())
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        self.ema.step(self.network.parameters())
        self.progress.update(1)
        logs = {
            "loss": loss.detach().item(),
            "lr": self.schedule.get_last_lr()[0],
            "ema_decay": self.ema.cur_decay_value,
        }
        self.progress.set_postfix(**logs)
        self.accelerator.log(logs)

    def close(self) -> None:
        self.progress.close()
        self._sink.close()


def pictures(seed: int) -> Dataset:
    """Made-up PNG files in a data set of the layout that the Hub's have."""
    rng = np.random.default_rng(seed)
    files = []
    for array in rng.integers(0, 256, (N_IMAGES, SIZE, SIZE, CHANNELS), dtype=np.uint8):
        buffer = io.BytesIO()
        Pictures.fromarray(array).save(buffer, "PNG")
        files.append({"bytes": buffer.getvalue(), "path": None})
    return Dataset.from_dict({"image": files}).cast_column("image", Image())


def our_loop(network: str, data: Dataset, coupling: Coupling, arguments: argparse.Namespace, precision: str) -> Loop:
    """The project's trainer on the same files, decoded once."""
    torch.manual_seed(arguments.seed)
    settings: Any = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "network" / f"{network}.yaml"))
    model = PixelModel(SIZE, CHANNELS, settings, {"name": "ddpm", "beta_schedule": "linear"})
    with tempfile.TemporaryDirectory() as folder:
        data.to_parquet(str(Path(folder) / "train.parquet"))
        images = load_images(ImageSource("pictures", path=folder, image_size=SIZE, channels=CHANNELS))
    images.to(arguments.device)
    config = TrainerConfig(
        steps=100_000,
        batch_size=arguments.image_batch,
        device=arguments.device,
        mixed_precision=precision,
        seed=arguments.seed,
    )
    trainer = Trainer(model, images, coupling, config, Path(tempfile.gettempdir()))
    trainer.model.train()
    return OurLoop(trainer)


def example_loop(network: str, data: Dataset, arguments: argparse.Namespace) -> Loop:
    """diffusers' own, on the same U-Net."""
    torch.manual_seed(arguments.seed)
    settings: Any = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "network" / f"{network}.yaml"))
    settings.pop("zero_init")
    unet = UNet2DModel(sample_size=SIZE, in_channels=CHANNELS, out_channels=CHANNELS, **settings)
    return ExampleLoop(unet, data, arguments.image_batch, arguments.device)


def measure(size: str, data: Dataset, arguments: argparse.Namespace) -> list[Row]:
    """Interleaved turns; rows with times over ours without coupling, and speeds over the example's."""
    network = NETWORKS[size]
    starts: dict[str, Callable[[], Loop]] = {EXAMPLE: lambda: example_loop(network, data, arguments)}
    couplings: dict[str, Coupling] = {"none": Independent(), "knn, k=8": KNN(8), "assignment": LinearAssignment()}
    for name, coupling in couplings.items():
        starts[f"ours, {name}"] = lambda c=coupling: our_loop(network, data, c, arguments, "fp32")  # type: ignore[misc]
    precision = resolve_precision("auto", arguments.device)
    if precision != "fp32":
        starts[f"ours, knn, k=8, {precision}"] = lambda: our_loop(network, data, KNN(8), arguments, precision)
    warm_up, steps, most = LENGTHS[size]
    if arguments.device == "cuda":
        warm_up, steps, most = GPU_STEPS, GPU_STEPS, arguments.rounds
    wall: dict[str, list[float]] = {name: [] for name in starts}
    with contextlib.ExitStack() as stack:
        turns = {}
        for name, start in starts.items():
            turns[name] = Turns(start(), arguments.device)
            stack.callback(turns[name].close)
        for number in range(1 + min(arguments.rounds, most)):
            for name, turn in turns.items():
                seconds, _ = turn.take(steps if number else warm_up)
                if number:
                    wall[name].append(seconds)
    return [
        {
            "size": size,
            "contender": name,
            "batch": arguments.image_batch,
            "device": arguments.device,
            "median_s": statistics.median(times),
            "steps_per_s": quartiles([1 / seconds for seconds in times]),
            "time_over_plain": ratio(wall, name, PLAIN),
            "speed_over_example": ratio(wall, EXAMPLE, name),
        }
        for name, times in wall.items()
    ]


def images_section(arguments: argparse.Namespace) -> list[Row]:
    """Training steps of image models, with and without couplings."""
    data = pictures(arguments.seed)
    rows: list[Row] = []
    for size in arguments.image_networks:
        measured = measure(size, data, arguments)
        print(
            f"{f'images, {size}, batch {arguments.image_batch}':<28} {'time':>12} {'over ours, none':>22}"
            f" {'speed over the example':>26}"
        )
        for row in measured:
            print(
                f"{row['contender']:<28} {1e3 * row['median_s']:>9.1f} ms {spread(row['time_over_plain'], '.3f'):>22}"
                f" {spread(row['speed_over_example']):>26}"
            )
        print()
        rows += measured
    return rows


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this section."""
    parser.add_argument(
        "--image-networks", nargs="+", choices=sorted(NETWORKS), default=["small"], help="networks (default: small)"
    )
    parser.add_argument("--image-batch", type=positive, default=64, metavar="B", help="images a step (default: 64)")
