"""Action-sequence policies."""

from immiscible_policy.policy.diffusion_policy import DiffusionPolicy, load_policy

__all__ = ["DiffusionPolicy", "load_policy"]
