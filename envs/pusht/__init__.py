"""PushT: push a T-shaped block onto its outline with a round agent (Chi et al., Diffusion Policy, 2023)."""

from envs.pusht.env import PushTEnv
from envs.pusht.geometry import coverage
from envs.pusht.keypoints import BLOCK_KEYPOINTS, keypoints_in_world

__all__ = ["BLOCK_KEYPOINTS", "PushTEnv", "coverage", "keypoints_in_world"]
