"""The training loops of Diffusion Policy and of LeRobot, rebuilt from what they do in a step; part of benchmark.py.

Network, data path and bookkeeping are those of real-stanford/diffusion_policy (low-dimensional CNN configuration) and
of LeRobot's `lerobot-train` for its diffusion policy; batch, network size and device are the caller's. LeRobot itself
cannot be run beside this project: its releases ask for torchvision and for an older torch.
"""

import json
import os
import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from benchmark_published_network import PublishedUNet
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from immiscible_policy.training.precision import autocast

HORIZON, N_OBS_STEPS, N_ACTION_STEPS = 16, 2, 8
KEYPOINTS, AGENT, ACTION_DIM = 18, 2, 2
OBSERVATION_DIM = KEYPOINTS + AGENT
FPS = 10
ORIGINAL_WORKERS, LEROBOT_WORKERS = 1, 4
Item = dict[str, Any]


# --- data, an item at a time -------------------------------------------------------------------------


class Demonstrations:
    """Made-up episodes of the size of PushT's human demonstrations: `keypoint`, `agent`, `action`, `episode_ends`."""

    def __init__(self, seed: int, n_episodes: int = 206, length: int = 125) -> None:
        rng = np.random.default_rng(seed)
        n = n_episodes * length
        self.keypoint, self.agent, self.action = (
            rng.uniform(0, 512, (n, width)).astype(np.float32) for width in (KEYPOINTS, AGENT, ACTION_DIM)
        )
        self.episode_ends = np.arange(length, n + 1, length)


class SequenceItems(Dataset[Item]):
    """An item is a slice of every array, its ends filled up by repeating the edge, all of it the full horizon long."""

    def __init__(self, data: Demonstrations) -> None:
        self.arrays = {"keypoint": data.keypoint.reshape(-1, KEYPOINTS // 2, 2), "agent": data.agent}
        self.arrays["action"] = data.action
        spans: list[tuple[int, int, int, int]] = []
        ends = data.episode_ends.tolist()
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            for start in range(begin - N_OBS_STEPS + 1, end - HORIZON + N_ACTION_STEPS):
                first, last = max(start, begin), min(start + HORIZON, end)
                spans.append((first, last, first - start, last - start))
        self.spans = np.array(spans)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> Item:
        first, last, lead, filled = self.spans[index]
        sample = {}
        for name, values in self.arrays.items():
            part = values[first:last]
            if len(part) < HORIZON:
                padded = np.zeros((HORIZON, *values.shape[1:]), values.dtype)
                padded[:lead], padded[filled:], padded[lead:filled] = part[0], part[-1], part
                part = padded
            sample[name] = part
        observation = np.concatenate([sample["keypoint"].reshape(HORIZON, -1), sample["agent"]], axis=-1)
        return {"obs": torch.from_numpy(observation), "action": torch.from_numpy(sample["action"])}


class FrameItems(Dataset[Item]):
    """An item is a frame of an Arrow table, and for the columns with time offsets the frames at those, stacked."""

    def __init__(self, data: Demonstrations) -> None:
        n = len(data.action)
        lengths = np.diff(data.episode_ends, prepend=0)
        frame = np.concatenate([np.arange(length) for length in lengths])

        def vectors(values: np.ndarray) -> pa.Array:
            return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])

        self.table = pa.table(
            {
                "observation.state": vectors(data.agent),
                "observation.environment_state": vectors(data.keypoint),
                "action": vectors(data.action),
                "episode_index": np.repeat(np.arange(len(lengths)), lengths),
                "frame_index": frame,
                "timestamp": (frame / FPS).astype(np.float32),
                "next.reward": np.zeros(n, np.float32),
                "next.done": np.zeros(n, bool),
                "next.success": np.zeros(n, bool),
                "index": np.arange(n),
                "task_index": np.zeros(n, np.int64),
            }
        ).combine_chunks()
        self.ends = data.episode_ends.tolist()
        observed = [i + 1 - N_OBS_STEPS for i in range(N_OBS_STEPS)]
        self.offsets = {"observation.state": observed, "observation.environment_state": observed}
        self.offsets["action"] = [i + 1 - N_OBS_STEPS for i in range(HORIZON)]
        self.columns = {name: self.table.column(name).chunk(0) for name in self.offsets}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Item:
        row = self.table.slice(index, 1).to_pylist()[0]
        item: Item = {name: torch.tensor(value) for name, value in row.items()}
        episode = int(item["episode_index"])
        begin, end = self.ends[episode - 1] if episode else 0, self.ends[episode]
        for name, offsets in self.offsets.items():
            wanted = [index + offset for offset in offsets]
            item[f"{name}_is_pad"] = torch.BoolTensor([not begin <= i < end for i in wanted])
            rows = self.columns[name].take(pa.array([min(max(i, begin), end - 1) for i in wanted])).to_pylist()
            item[name] = torch.stack([torch.tensor(value) for value in rows])
        item["task"] = "push the block onto the goal"
        return item


# --- the loops ---------------------------------------------------------------------------------------


def diffusion_loss(network: nn.Module, scheduler: Any, action: Tensor, condition: Tensor) -> Tensor:
    """Squared errors (B, T, action_dim) of the predicted noise, as both loops compute them."""
    noise = torch.randn(action.shape, device=action.device)
    time = torch.randint(0, scheduler.config.num_train_timesteps, (len(action),), device=action.device).long()
    return F.mse_loss(network(scheduler.add_noise(action, noise, time), time, condition), noise, reduction="none")


class PublishedLoop:
    """What both loops share. `step` is one step; `workers` are the processes that load its data.

    In bf16 the loss is computed under torch.autocast, as LeRobot's `use_amp` has it; fp32 is what both default to.
    """

    def __init__(
        self, network: PublishedUNet, items: Dataset[Item], batch_size: int, workers: int, device: str, precision: str
    ) -> None:
        self.network, self.device = network.to(device).train(), torch.device(device)
        self.precision = precision
        self.scheduler = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", variance_type="fixed_small")
        with warnings.catch_warnings():  # more workers than cores, as published
            warnings.simplefilter("ignore")
            self.loader = DataLoader(items, batch_size, shuffle=True, num_workers=workers, pin_memory=device == "cuda")
            self._batches = iter(self.loader)
        self._sink = open(os.devnull, "w")  # noqa: SIM115 - closed by close()
        self.progress = tqdm(file=self._sink, mininterval=1.0)
        self.optimizer: torch.optim.Optimizer
        self.done = 0

    @property
    def workers(self) -> list[int]:
        return [process.pid for process in getattr(self._batches, "_workers", [])]

    def _start(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.lr_schedule = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)

    def _normalised(self, value: Tensor, low: float = 0.0, high: float = 512.0) -> Tensor:
        """In the step, by ranges that lie on the device like a fitted normaliser's."""
        if not hasattr(self, "_range"):
            self._range = torch.tensor([low, high], device=self.device)
        return 2 * (value - self._range[0]) / (self._range[1] - self._range[0]) - 1

    def _next(self) -> Item:
        try:
            return next(self._batches)
        except StopIteration:
            self._batches = iter(self.loader)
            return next(self._batches)

    def close(self) -> None:
        self.progress.close()
        self._sink.close()
        shut_down = getattr(self._batches, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()


class OriginalLoop(PublishedLoop):
    """real-stanford/diffusion_policy: AdamW in torch's default form, averaged weights by a loop, the loss read."""

    name = "original loop"

    def __init__(
        self, network: PublishedUNet, data: Demonstrations, batch_size: int, device: str, precision: str = "fp32"
    ) -> None:
        super().__init__(network, SequenceItems(data), batch_size, ORIGINAL_WORKERS, device, precision)
        self._start(torch.optim.AdamW(network.parameters(), 1e-4, (0.95, 0.999), weight_decay=1e-6))
        self.average = [p.detach().clone() for p in network.parameters()]

    def step(self) -> None:
        batch = {name: value.to(self.device, non_blocking=True) for name, value in self._next().items()}
        observation, action = self._normalised(batch["obs"]), self._normalised(batch["action"])
        with autocast(self.precision, self.device.type):
            error = diffusion_loss(self.network, self.scheduler, action, observation[:, :N_OBS_STEPS].flatten(1))
        loss = (error * torch.ones_like(action, dtype=torch.bool).type(error.dtype)).flatten(1).mean(1).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_schedule.step()
        decay = min(0.9999, 1 - (1 + max(0, self.done - 1)) ** -0.75)
        with torch.no_grad():
            for average, parameter in zip(self.average, self.network.parameters(), strict=True):
                average.mul_(decay)
                average.add_(parameter.data.to(average.dtype), alpha=1 - decay)
        self.done += 1
        value = loss.item()
        self.progress.update()
        self.progress.set_postfix(loss=value, refresh=False)
        self._sink.write(json.dumps({"train_loss": value, "lr": self.lr_schedule.get_last_lr()[0]}) + "\n")


class LeRobotLoop(PublishedLoop):
    """LeRobot: Adam in torch's default form, gradients clipped, loss and their norm read; no averaged weights."""

    name = "LeRobot's loop"

    def __init__(
        self, network: PublishedUNet, data: Demonstrations, batch_size: int, device: str, precision: str = "fp32"
    ) -> None:
        super().__init__(network, FrameItems(data), batch_size, LEROBOT_WORKERS, device, precision)
        self._start(torch.optim.Adam(network.parameters(), 1e-4, (0.95, 0.999), weight_decay=1e-6))

    def step(self) -> None:
        batch = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in self._next().items()
        }
        state, around = (self._normalised(batch[f"observation.{name}"]) for name in ("state", "environment_state"))
        condition = torch.cat([state, around], dim=-1).flatten(1)
        action = self._normalised(batch["action"])
        with autocast(self.precision, self.device.type):
            loss = diffusion_loss(self.network, self.scheduler, action, condition).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_schedule.step()
        self.last = loss.item(), norm.item()
        self.progress.update()
        self.done += 1
