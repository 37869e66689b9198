"""Action-sequence policies."""

from immiscible_policy.policy.diffusion_policy import DiffusionPolicy, load_policy
from immiscible_policy.policy.inference_coupling import InferenceCoupling
from immiscible_policy.policy.planner import Planner

__all__ = ["DiffusionPolicy", "InferenceCoupling", "Planner", "load_policy"]
