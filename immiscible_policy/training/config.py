"""The training loop's settings."""

from dataclasses import dataclass

from immiscible_policy.checks import check_integer

LR_SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")
OPTIMIZERS = ("adamw", "adam", "radam")
EMA_WARMUPS = ("power", "ratio", "none")
COMPILE_MODES = (False, True, "reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class TrainerConfig:
    """Settings of ``Trainer``; defaults are those of the reference diffusion policy where it has them.

    Args:
        steps: optimiser steps of the whole run; the learning-rate schedule spans them.
        batch_size: data that the coupling and the network see at once, on each process.
        gradient_accumulation: so many batches make an optimiser step; a coupling pairs within each of them.
        optimizer: adamw | adam | radam.
        learning_rate, betas, weight_decay: of the optimiser (adam, radam: of the plain kind, added to the gradient).
        lr_schedule, warmup_steps: diffusers' schedule by name, and its linear warm-up.
        gradient_clip: largest global gradient norm, above 0; None (null on the command line) clips nothing.
        ema_warmup: how the decay of the weights' moving average grows up to ``ema_max_decay``: power: 1 - (1 +
            step)^-``ema_power`` | ratio: (1 + step) / (10 + step), as in many image trainers | none: not at all.
        ema_power, ema_max_decay: see there.
        mixed_precision: auto | fp32 | bf16 | fp16.
        compile: True, "reduce-overhead" (CUDA graphs) or "max-autotune" runs the model's ``network`` through
            torch.compile in that mode (True: its default one); takes a minute at the start, changes results by
            rounding, and needs a C++ compiler on a CPU. False runs it as it is.
        device: auto | cpu | cuda.
        seed: of data order, noise and diffusion times.
        log_every, validate_every, evaluate_every, checkpoint_every: in steps. The last step does all four.
        keep_checkpoints: how many of the newest ``step=...`` folders to keep; ``best`` and ``latest`` stay besides.
        tensorboard: write TensorBoard events. wandb: Weights & Biases project, or None.
    """

    steps: int = 10_000
    batch_size: int = 64
    gradient_accumulation: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    lr_schedule: str = "cosine"
    warmup_steps: int = 500
    gradient_clip: float | None = 1.0
    ema_warmup: str = "power"
    ema_power: float = 0.75
    ema_max_decay: float = 0.9999
    mixed_precision: str = "auto"
    compile: bool | str = False
    device: str = "auto"
    seed: int = 0
    log_every: int = 100
    validate_every: int = 1_000
    evaluate_every: int = 1_000
    checkpoint_every: int = 1_000
    keep_checkpoints: int = 10
    tensorboard: bool = True
    wandb: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.betas, list | tuple) or len(self.betas) != 2:
            raise ValueError(f"betas={self.betas!r}: must be two numbers, such as [0.9, 0.999]")
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in (
            "steps",
            "batch_size",
            "gradient_accumulation",
            "log_every",
            "validate_every",
            "evaluate_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            check_integer(name, getattr(self, name), 1)
        for name in ("learning_rate", "ema_power"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip={self.gradient_clip}: must be positive, or null to clip nothing")
        if self.compile not in COMPILE_MODES:
            modes = ", ".join(str(mode).lower() for mode in COMPILE_MODES)
            raise ValueError(f"compile={self.compile!r}: choose one of {modes}")
        if isinstance(self.compile, str) and self.gradient_accumulation > 1:
            # The gradients of a CUDA graph lie in memory that its next run takes for its own.
            raise ValueError(
                f"compile={self.compile!r}: CUDA graphs do not add up gradients; choose compile=true with "
                f"gradient_accumulation={self.gradient_accumulation}, or gradient_accumulation=1"
            )
        if not 0 <= self.ema_max_decay < 1:
            raise ValueError(f"ema_max_decay={self.ema_max_decay}: must be at least 0 and below 1")
        choices = (("lr_schedule", LR_SCHEDULES), ("optimizer", OPTIMIZERS), ("ema_warmup", EMA_WARMUPS))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps}: must be between 0 and steps={self.steps}")
