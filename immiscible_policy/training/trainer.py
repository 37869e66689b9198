"""The one training loop. It reads from top to bottom in ``Trainer.fit``.

A model is any module whose call returns the loss of a batch, ``model(batch, coupling, generator) -> scalar``, and that
has ``save_pretrained(folder)``. A model with an ``objective`` (``diffusion.Objective``) also has
``begin_step(step, total_steps)``, called before every step, and what the objective remembers is part of a checkpoint.
A dataset has ``len()`` and ``batch(indices) -> dict of tensors``; the loop adds the indices as ``index``.
"""

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from immiscible_policy.coupling import Coupling
from immiscible_policy.files import replace_folder, staging_folder
from immiscible_policy.training.checkpoint import (
    CheckpointError,
    checkpoint_exists,
    load_state,
    load_value,
    rng_state,
    save_state,
    saved_models,
    set_rng_state,
)
from immiscible_policy.training.config import TrainerConfig
from immiscible_policy.training.metrics import MetricsLogger
from immiscible_policy.training.precision import resolve_device, resolve_precision
from immiscible_policy.training.setup import (
    build_average,
    build_optimizer,
    compile_network,
    forget_earlier_accelerator,
)
from immiscible_policy.training.stopwatch import Stopwatch

Metrics = Mapping[str, float]


class Dataset(Protocol):
    """What the loop needs of data: its size, and a batch by indices."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Mapping[str, Tensor]: ...


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


class Trainer:
    """Trains a model on a dataset under a coupling, with moving-average weights, checkpoints and resume.

    Args:
        model: see the module's text; trained in place.
        dataset: kept wherever its tensors are; batches are moved to the device. A dataset on a GPU says so with
            ``device`` and is asked for batches by indices that lie there.
        coupling: pairs data with noise. Its state is part of a checkpoint.
        config: the settings.
        run_dir: checkpoints, metrics and events go here.
        validate: moving-average model -> numbers, every ``validate_every`` steps.
        evaluate: (moving-average model, step) -> numbers, every ``evaluate_every`` steps.
        headline: the number of ``evaluate`` that is shown while training and that picks the ``best`` checkpoint.
        lower_is_better: of that number.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        coupling: Coupling,
        config: TrainerConfig,
        run_dir: Path,
        validate: Callable[[Any], Metrics] | None = None,
        evaluate: Callable[[Any, int], Metrics] | None = None,
        headline: str = "rollout/max_coverage",
        lower_is_better: bool = False,
    ) -> None:
        self.config, self.run_dir, self.coupling, self.dataset = config, run_dir, coupling, dataset
        self.validate, self.evaluate, self.headline = validate, evaluate, headline
        self._sign = -1 if lower_is_better else 1
        device = resolve_device(config.device)
        if device.startswith("cuda:"):  # the accelerator takes the current one
            torch.cuda.set_device(device)
        self.precision = resolve_precision(config.mixed_precision, device)
        if config.mixed_precision == "auto" and self.can_resume:
            # A run goes on in what auto was where it began, on whatever machine of the kind.
            self.precision = load_value(self.latest, "precision") or self.precision
        forget_earlier_accelerator()
        self.accelerator = Accelerator(
            mixed_precision={"fp32": "no"}.get(self.precision, self.precision), cpu=device == "cpu"
        )
        self.device = self.accelerator.device
        if len(dataset) < self._global_batch:
            accumulated = "" if config.gradient_accumulation == 1 else f" x {config.gradient_accumulation} accumulated"
            raise ValueError(
                f"batch_size={config.batch_size}{accumulated} on {self.accelerator.num_processes} processes needs at "
                f"least {self._global_batch} data, the dataset has {len(dataset)}"
            )
        # By all names, of which weights that modules share have several.
        self._averaged = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
        self.ema_model: Any = copy.deepcopy(model).to(self.device).eval().requires_grad_(False)
        optimizer = build_optimizer(model, config)
        self.bare_model = model  # which prepare may wrap
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if config.compile:
            compile_network(model, config.compile)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.lr_schedule = get_scheduler(
            config.lr_schedule,
            optimizer,
            num_warmup_steps=config.warmup_steps,
            num_training_steps=config.steps,
        )
        self.ema = build_average(self.parameters, config)
        self.generator = torch.Generator(self.device)
        # A stream of its own for each process; the same for all couplings, so that runs of one seed are paired.
        self.generator.manual_seed(config.seed * 1_000 + self.accelerator.process_index)
        self.step = 0
        self._may_read_norm = self.device.type == "cpu"  # where that is no wait
        self.seconds = Stopwatch()
        self.best: float | None = None
        self._losses: list[Tensor] = []  # of the steps since the last log
        self._data_device = torch.device(getattr(dataset, "device", "cpu"))
        self._epoch_order: tuple[int, Tensor] = (-1, torch.empty(0))

    @property
    def _global_batch(self) -> int:
        return self._step_batch * self.accelerator.num_processes

    @property
    def _step_batch(self) -> int:
        """Data of an optimiser step on this process."""
        return self.config.batch_size * self.config.gradient_accumulation

    @property
    def latest(self) -> Path:
        return self.run_dir / "checkpoints" / "latest"

    @property
    def can_resume(self) -> bool:
        """Whether the run folder holds a checkpoint, complete or not."""
        return checkpoint_exists(self.latest)

    def fit(self) -> None:
        """Train up to ``config.steps``; a KeyboardInterrupt leaves a checkpoint to resume from."""
        config, main = self.config, self.accelerator.is_main_process
        logger = MetricsLogger(self.run_dir, config.tensorboard, config.wandb, self.step) if main else None
        progress = tqdm(
            total=config.steps,
            initial=self.step,
            desc="train",
            unit="step",
            disable=not main,
            mininterval=1.0,
        )
        shown: dict[str, str] = {}
        saved_at = self.step
        self.model.train()
        try:
            while self.step < config.steps:
                self.step += 1
                with self.seconds:
                    loss, gradient_norm = self._train_step(self._indices(self.step))
                self._losses.append(loss)
                progress.update()
                metrics: dict[str, float] = {}
                if self._due(config.log_every) or self._evaluates:  # a rollout has a training loss beside it
                    metrics.update(self._progress(gradient_norm))
                    shown["loss"] = f"{metrics['train/loss']:.4f}"
                metrics.update(self._assess())
                if self.headline in metrics:
                    shown[self.headline.split("/")[-1].replace("max_", "")] = f"{metrics[self.headline]:.3f}"
                if metrics:
                    progress.set_postfix(shown, refresh=False)
                    if logger is not None:
                        logger.log(self.step, metrics)
                if self._due(config.checkpoint_every):
                    self.save()
                    saved_at = self.step
        except KeyboardInterrupt:
            progress.close()
            if main:
                tqdm.write(
                    f"interrupted; the last checkpoint is from step {saved_at}. Continue with resume={self.run_dir}"
                )
            raise
        finally:
            progress.close()
            if logger is not None:
                logger.close()

    def _train_step(self, indices: Tensor) -> tuple[Tensor, Tensor | float]:
        """One optimiser step. Nothing here waits for a GPU's queue, so that the next step is prepared meanwhile."""
        begin_step = getattr(self.bare_model, "begin_step", None)
        if begin_step is not None:
            begin_step(self.step, self.config.steps)
        parts = indices.split(self.config.batch_size)
        losses = []
        for number, part in enumerate(parts, 1):
            batch = {name: self._on_device(value) for name, value in self.dataset.batch(part).items()}
            batch["index"] = self._on_device(part)
            if self.config.compile:
                torch.compiler.cudagraph_mark_step_begin()  # the memory of the last step's graphs is free again
            # Processes exchange gradients once a step.
            with self.accelerator.no_sync(self.model) if number < len(parts) else nullcontext():
                loss = self.model(batch, self.coupling, self.generator)
                self.accelerator.backward(loss / len(parts) if len(parts) > 1 else loss)
            losses.append(loss.detach())
        norm = self._clip_gradients(float("inf") if self.config.gradient_clip is None else self.config.gradient_clip)
        self.optimizer.step()
        self.lr_schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_average()
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean(), norm

    def _clip_gradients(self, limit: float) -> Tensor | float:
        """Scale the gradients to a norm of at most `limit`; returns what it was."""
        if not self._may_read_norm:
            norm: Tensor | float = self.accelerator.clip_grad_norm_(self.parameters, limit)
            return norm
        # Gradients within the limit need not be multiplied by 1, which is 3% of a step of the default policy.
        total = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if not total + 1e-6 <= limit:  # torch's own small number
            clip_grads_with_norm_(self.parameters, limit, total)
        return total

    def _on_device(self, value: Tensor) -> Tensor:
        if self.device.type == "cuda" and value.device.type == "cpu":
            return value.pin_memory().to(self.device, non_blocking=True)  # from pageable memory it would wait
        return value.to(self.device)

    def _update_average(self) -> None:
        """``ema.step`` in one pass over the weights: the library's makes temporaries as large as they are."""
        self.ema.optimization_step += 1
        decay = self.ema.get_decay(self.ema.optimization_step)
        get_ema_multi_avg_fn(decay)(self.ema.shadow_params, self.parameters, 0)

    def _progress(self, gradient_norm: Tensor | float) -> dict[str, float]:
        """Numbers of the steps since the last log. Reading them is the loop's only wait for a GPU."""
        with self.seconds:  # the wait is time of the steps
            loss = self._mean_loss()
        return {
            "train/loss": loss,
            "train/gradient_norm": float(gradient_norm),
            "train/learning_rate": float(self.lr_schedule.get_last_lr()[0]),
            "train/epoch": self.step * self._global_batch / len(self.dataset),
            "train/seconds": self.seconds.wall,
            "train/cpu_seconds": self.seconds.cpu,
        }

    def averaged_model(self) -> Any:
        """The model with the moving-average weights of this moment, in evaluation mode.

        What has no average, frozen weights and buffers, is the trained model's own.
        """
        self.ema.copy_to([p for name, p in self.ema_model.named_parameters() if name in self._averaged])
        # Not the copy's, which was made before a checkpoint was loaded.
        own = self.bare_model.state_dict().items()
        self.ema_model.load_state_dict({n: v for n, v in own if n not in self._averaged}, strict=False)
        return self.ema_model

    def _assess(self) -> dict[str, float]:
        """Validation and evaluation of the moving-average weights where they are due."""
        metrics: dict[str, float] = {}
        validate = self.validate is not None and self._due(self.config.validate_every)
        if not (validate or self._evaluates):
            return metrics
        if self.accelerator.is_main_process:
            self.averaged_model()
            if validate and self.validate is not None:
                metrics.update(self.validate(self.ema_model))
            if self._evaluates and self.evaluate is not None:
                metrics.update(self.evaluate(self.ema_model, self.step))
                self._save_model(f"step={self.step:07d}")
                for outdated in saved_models(self.latest.parent)[: -self.config.keep_checkpoints]:
                    shutil.rmtree(outdated)
                score = metrics.get(self.headline)
                if score is not None and (self.best is None or self._sign * score > self._sign * self.best):
                    self.best = score
                    self._save_model("best")
        self.accelerator.wait_for_everyone()
        return metrics

    @property
    def _evaluates(self) -> bool:
        """Whether this step ends with an evaluation."""
        return self.evaluate is not None and self._due(self.config.evaluate_every)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _indices(self, step: int) -> Tensor:
        """This process' data of a step: a fresh permutation an epoch, a function of (seed, step) alone."""
        steps_per_epoch = len(self.dataset) // self._global_batch
        epoch, position = divmod(step - 1, steps_per_epoch)
        if self._epoch_order[0] != epoch:
            shuffle = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.dataset), generator=shuffle)
            self._epoch_order = (epoch, order.to(self._data_device))
        start = position * self._global_batch + self.accelerator.process_index * self._step_batch
        return self._epoch_order[1][start : start + self._step_batch]

    def _mean_loss(self) -> float:
        mean = float(self.accelerator.reduce(torch.stack(self._losses).mean(), "mean"))
        self._losses.clear()
        if mean != mean or mean in (float("inf"), float("-inf")):
            raise DivergedError(
                f"the loss is {mean} at step {self.step}: training has diverged. Lower learning_rate "
                f"({self.config.learning_rate}) or set gradient_clip ({self.config.gradient_clip}). "
                f"{self.latest} still holds the last good state."
            )
        return mean

    def _save_model(self, name: str) -> None:
        target = self.run_dir / "checkpoints" / name
        staging = staging_folder(target)
        self.ema_model.save_pretrained(staging)
        replace_folder(staging, target)

    def save(self) -> None:
        """Write everything that an exact resume needs as ``checkpoints/latest``."""
        states = self._gather_rng_states()
        # Of all processes: their mean is what is logged.
        losses = self.accelerator.reduce(torch.stack(self._losses), "mean") if self._losses else None
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        model = self.accelerator.unwrap_model(self.model)
        save_state(
            self.latest,
            {
                "step": self.step,
                "best": self.best,
                "losses": losses,
                "seconds": [self.seconds.wall, self.seconds.cpu],
                "precision": self.precision,
                "device": self.device.type,
                "config": dataclasses.asdict(self.config),
                "model": model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "lr_schedule": self.lr_schedule.state_dict(),
                "ema": {"step": self.ema.optimization_step, "parameters": self.ema.shadow_params},
                "scaler": scaler.state_dict() if scaler is not None else None,
                "coupling": self.coupling.state_dict(),
                "objective": model.objective.state_dict() if hasattr(model, "objective") else {},
                "rng": states,
            },
        )

    def _gather_rng_states(self) -> list[dict[str, Tensor]]:
        state = rng_state(self.generator)
        if self.accelerator.num_processes == 1:
            return [state]
        gathered = {
            name: self.accelerator.gather(value.to(self.device).unsqueeze(0)).cpu() for name, value in state.items()
        }
        return [{k: v[rank] for k, v in gathered.items()} for rank in range(self.accelerator.num_processes)]

    def resume(self) -> None:
        """Continue from ``checkpoints/latest``; a CheckpointError says why that cannot be done exactly."""
        state = load_state(self.latest)
        model = self.accelerator.unwrap_model(self.model)
        mine, theirs = json.loads(json.dumps(dataclasses.asdict(self.config))), state["config"]
        free = ("device", "mixed_precision", "tensorboard", "wandb", "log_every", "keep_checkpoints")
        # A setting that a checkpoint does not know had its default when it was written.
        defaults = json.loads(json.dumps(dataclasses.asdict(TrainerConfig())))
        changed = [k for k in mine if k not in free and mine[k] != theirs.get(k, defaults[k])]
        if changed or self.precision != state["precision"]:
            details = [f"{k}={mine[k]} (saved with {theirs.get(k, defaults[k])})" for k in changed]
            if self.precision != state["precision"]:
                details.append(f"mixed_precision={self.precision} (saved with {state['precision']})")
            raise CheckpointError(f"checkpoint {self.latest} is from another configuration: {'; '.join(details)}")
        saved_on = state.get("device", self.device.type)  # older checkpoints do not say
        if saved_on != self.device.type:
            raise CheckpointError(
                f"checkpoint {self.latest} was written on {saved_on}, this run is on {self.device.type}, whose random "
                f"numbers are others: an exact resume needs device={saved_on}"
            )
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        if shapes != {name: tuple(value.shape) for name, value in state["model"].items()}:
            raise CheckpointError(f"checkpoint {self.latest} holds another network than the configuration builds")
        if len(state["rng"]) != self.accelerator.num_processes:
            raise CheckpointError(
                f"checkpoint {self.latest} was written by {len(state['rng'])} processes, this run has "
                f"{self.accelerator.num_processes}: an exact resume needs the same number"
            )
        model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_schedule.load_state_dict(state["lr_schedule"])
        self.ema.optimization_step = state["ema"]["step"]
        self.ema.shadow_params = [p.to(self.device) for p in state["ema"]["parameters"]]
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.coupling.load_state_dict(state["coupling"])
        if hasattr(model, "objective"):
            model.objective.load_state_dict(state.get("objective", {}))  # older checkpoints have none
        set_rng_state(self.generator, state["rng"][self.accelerator.process_index])
        self.step, self.best = state["step"], state["best"]
        losses = state.get("losses")  # older checkpoints have none
        self._losses = [] if losses is None else list(losses.to(self.device))
        self.seconds.wall, self.seconds.cpu = state["seconds"]
