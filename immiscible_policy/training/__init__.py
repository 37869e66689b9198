"""The training loop for policies and images."""

from immiscible_policy.training.checkpoint import CheckpointError
from immiscible_policy.training.config import TrainerConfig
from immiscible_policy.training.trainer import Dataset, DivergedError, Trainer

__all__ = ["CheckpointError", "Dataset", "DivergedError", "Trainer", "TrainerConfig"]
